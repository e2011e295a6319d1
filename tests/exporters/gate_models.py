"""ONNX models of one or a few gate nodes, and random weights for them."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from cbam_deploy.gates.operators import DOMAIN, operator_named
from cbam_deploy.graphs.gate_functions import set_functions


def random_weights(op, channels, *, hidden=4, kernel_size=7, seed=0):
    random = np.random.default_rng(seed)
    shapes = operator_named(op).weight_shapes(channels, hidden, kernel_size)
    return {name: random.normal(0, 0.5, size).astype(np.float32) for name, size in shapes.items()}


def gate_model(op, weights, dtype=np.float32, *, channels=None, nodes=1):
    """A model of `nodes` gates in a row, all of `weights`: inputs X (and R), output Y."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shape = ["N", channels or len(weights["B1"]), "H", "W"]
    maps = operator_named(op).maps
    values = ["X", *(f"y{number}" for number in range(1, nodes)), "Y"]
    graph = helper.make_graph(
        [
            helper.make_node(op, [before, *maps[1:], *weights], [after], domain=DOMAIN)
            for before, after in itertools.pairwise(values)
        ],
        "gates",
        [helper.make_tensor_value_info(name, kind, shape) for name in maps],
        [helper.make_tensor_value_info("Y", kind, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))
    set_functions(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto
