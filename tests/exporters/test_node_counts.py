"""Each node of a converted file is counted once, by what it computes in."""

import onnx_ir as ir
from onnx import parser

from cbam_deploy.exporters.node_counts import count_nodes, counts_table

GRAPH = """
<ir_version: 10, opset_import: ["" : 18]>
network (float[1,4] x, int64[1] n) => (float[1,4] y, int64[1] m)
<float s = {0.5}, int8 z = {0}>
{
  q = QuantizeLinear (x, s, z)
  d = DequantizeLinear (q, s, z)
  inner = Relu (d)
  qi = QuantizeLinear (inner, s, z)
  di = DequantizeLinear (qi, s, z)
  product = Neg (di)
  half = Cast <to = 10> (product)
  halved = Exp (half)
  whole = Cast <to = 1> (halved)
  y = Abs (whole)
  m = Neg (n)
}
"""


def counted(*quantized):
    model = ir.from_proto(parser.parse_model(GRAPH))
    types = {"half": ir.DataType.FLOAT16, "halved": ir.DataType.FLOAT16, "q": ir.DataType.INT8,
             "qi": ir.DataType.INT8}  # fmt: skip
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"
        for value in node.outputs:
            if value.dtype is None:
                value.type = ir.TensorType(types.get(value.name or "", ir.DataType.FLOAT))
    return model, count_nodes(model.graph, quantized)


def test_rows_add_up_to_all_nodes():
    model, counts = counted("node_product")
    total = sum(sum(operators.values()) for operators in counts.values())
    assert total == len(list(model.graph))
    table = counts_table(counts)
    assert [int(row[1]) for row in table.rows] == [
        *map(sum, map(dict.values, counts.values())),
        11,
    ]


def test_nodes_are_where_they_compute():
    _, counts = counted("node_product")
    assert counts == {
        "INT8": {"Relu": 1, "Neg": 1},
        "FP16": {"Exp": 1},
        "FP32": {"Abs": 1},
        "Q and DQ": {"QuantizeLinear": 2, "DequantizeLinear": 2},
        "casts": {"Cast": 2},
        "no floats": {"Neg": 1},
    }


def test_a_node_behind_dq_that_was_not_quantized_is_float():
    _, counts = counted()
    assert counts["INT8"] == {"Relu": 1}
    assert counts["FP32"] == {"Neg": 1, "Abs": 1}
