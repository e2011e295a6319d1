"""What ONNX Runtime's profiler writes, read; and its graph, set beside the file's."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from cbam_deploy.errors import BadInput
from cbam_deploy.profiling.onnxruntime import node_times
from cbam_deploy.profiling.optimized import OptimizedGraph, with_own_names
from cbam_deploy.profiling.runs import typical


def node(name, start, duration, operator="Conv", **facts):
    args = {"op_name": operator, "node_index": "1", **facts}
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": start,
        "dur": duration,
        "args": args,
    }


def run(start, duration):
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": duration, "args": {}}


def written(*events):
    return json.dumps(events).encode()


def test_times_of_nodes_are_in_seconds_and_without_the_first_run():
    events = [node("a", 10, 900), run(0, 1000), node("a", 1010, 30), run(1001, 100),
              node("a", 1110, 50), run(1102, 100)]  # fmt: skip
    (found,) = node_times(written(*events))
    assert (found.name, found.operator) == ("a", "Conv")
    np.testing.assert_allclose(found.seconds, [30e-6, 50e-6], rtol=1e-12)


def test_what_runs_within_a_node_counts_with_it():
    events = [run(0, 5), node("if", 10, 40, "If"), node("inner", 20, 10), run(9, 60)]
    assert [found.name for found in node_times(written(*events))] == ["if"]


def test_nodes_that_share_a_name_are_kept_apart_by_their_number():
    events = [run(0, 5), node("a", 10, 4), node("a", 20, 6, node_index="2"), run(9, 60)]
    assert [float(found.seconds[0]) for found in node_times(written(*events))] == [4e-6, 6e-6]


def test_types_are_those_of_inputs_then_of_outputs():
    shapes = {"input_type_shape": [{"uint8": [1]}, {}], "output_type_shape": [{"float": [1]}]}
    (found,) = node_times(written(run(0, 5), node("a", 10, 4, **shapes), run(9, 60)))
    assert found.types == ("uint8", "float")


def test_no_run_to_its_end_is_refused():
    with pytest.raises(BadInput, match="saw no run to its end"):
        node_times(written(node("a", 0, 1), run(0, 5)))


def test_what_a_kernel_typically_takes_is_untouched_by_runs_that_were_interrupted():
    short, long = np.array([3.0, 4.0] * 16), np.array([40.0, 30.0] * 16)
    np.testing.assert_allclose(typical([short, long]), [3.5, 35.0], rtol=1e-12)
    disturbed = long.copy()
    disturbed[::5] = 4000.0
    found = typical([short, disturbed])
    assert found[0] / found[1] == pytest.approx(3.5 / 35, rel=0.15)


def test_kernels_add_up_to_the_median_run():
    seconds = np.random.default_rng(0).lognormal(0, 1, (5, 31))
    total = typical(list(seconds)).sum()
    assert total == pytest.approx(np.median(seconds.sum(axis=0)), rel=1e-12)
    np.testing.assert_array_equal(typical([np.zeros(3)]), [0.0])


GRAPH = """
<ir_version: 10, opset_import: ["" : 18]>
network (float[1,8,8,8] x, float[8,8,3,3] w) => (float[1,8,8,8] y)
{ c = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (c)  e = Exp (r)  y = Add (e, r) }
"""
# As ONNX Runtime rewrites it for its own layout, with what it calls the values then.
REWRITTEN = """
<ir_version: 10, opset_import: ["" : 18, "com.microsoft.nchwc" : 1]>
network (float[1,8,8,8] x, float[8,8,3,3] w) => (float[1,8,8,8] y)
{
  reorder = com.microsoft.nchwc.ReorderInput (x)
  reorder_1 = com.microsoft.nchwc.Conv (reorder, w)
  r = com.microsoft.nchwc.ReorderOutput (reorder_1)
  e = Exp (r)
  y = Add (e, r)
}
"""


def rewritten():
    given = with_own_names(ir.from_proto(parser.parse_model(GRAPH)))
    run_as = parser.parse_model(REWRITTEN)
    names = ("ReorderInput", "r_nchwc", "ReorderOutput_token_3", "e", "y")
    for part, name in zip(run_as.graph.node, names, strict=True):
        part.name = name
    return given, run_as


def test_a_fused_node_stands_for_all_between_what_it_reads_and_what_it_makes():
    graph = OptimizedGraph(*rewritten())
    assert graph.nodes_of("r_nchwc") == ("c", "r")
    assert graph.nodes_of("e") == ("e",)
    assert graph.nodes_of("y") == ("y",)


def test_a_reorder_belongs_to_the_node_whose_result_it_moves():
    graph = OptimizedGraph(*rewritten())
    assert graph.nodes_of("ReorderOutput_token_3") == ("r",)
    assert graph.nodes_of("ReorderInput") == ()  # Of an input, which no node makes.


# INT8 convolutions of ONNX Runtime want channels last: what moves them is none of the file.
MOVED = """
<ir_version: 10, opset_import: ["" : 18]>
network (float[1,8,8,8] x, float[8,8,3,3] w) => (float[1,8,8,8] y)
{
  last = Transpose <perm = [0, 2, 3, 1]> (x)
  conv_out0 = Conv (last, w)
  r = Transpose <perm = [0, 3, 1, 2]> (conv_out0)
  e = Exp (r)
  y = Add (e, r)
}
"""


def test_transposes_that_the_file_has_not_are_moves_and_hide_nothing():
    run_as = parser.parse_model(MOVED)
    for index, part in enumerate(run_as.graph.node):
        part.name = f"new_{index}"
    graph = OptimizedGraph(rewritten()[0], run_as)
    assert graph.moves == {"new_0", "new_2"}
    assert [graph.nodes_of(f"new_{n}") for n in range(4)] == [(), ("c", "r"), ("r",), ("e",)]


def test_without_the_rewritten_graph_names_alone_are_compared():
    graph = OptimizedGraph(rewritten()[0], None)
    names = ("c", "r_nchwc", "e/duplicated", "e_token_7", "InsertedPrecisionFreeCast_r", "unknown")
    found = [graph.nodes_of(name) for name in names]
    assert found == [("c",), ("r",), ("e",), ("e",), ("r",), ()]


def test_each_call_has_a_function_of_its_own_and_the_file_stays_as_it_was(gated_file):
    model = ir.load(gated_file)
    before = onnx.load(gated_file)
    copy = with_own_names(model)
    (call,) = [one for one in copy.graph if one.op_identifier() in copy.functions]
    assert call.op_type not in {one.op_type for one in model.graph}
    assert all(one.name for one in copy.graph)
    assert all(one.name for one in copy.functions[call.op_identifier()])
    assert ir.to_proto(model) == before
