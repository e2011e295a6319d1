"""Move a model to a newer opset: by the number alone, or by onnx's version converter."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import inliner, version_converter

from cbam_deploy.errors import BadInput, in_one_line
from cbam_deploy.gates.operators import DOMAIN
from cbam_deploy.graphs.gate_bodies import FIRST_OPSET
from cbam_deploy.graphs.gate_functions import set_functions
from cbam_deploy.graphs.shapes import make_weights_inputs

# Opset 19 only adds types and attribute values to what opset 18 has (https://onnx.ai/onnx/operators),
# except that an AveragePool with ceil_mode no longer counts windows that begin in the padding.
ADDS_ONLY_FROM = {19: 18}


def raise_opset(model: ir.Model, version: int) -> None:
    """Declare at least `version` of ONNX's own operators, in the graph and its functions.

    Raises:
        BadInput: that could change what the model computes.
    """
    current = model.opset_imports.get("", 1)
    if current >= version:
        return
    hint = "convert the FP32 file, or keep the float side FP32 (int8+fp32)"
    if current < ADDS_ONLY_FROM.get(version, version):
        raise BadInput(f"the model is of opset {current}, its scales need {version}", hint)
    for node in model.graph.all_nodes():
        ceil = node.attributes.get("ceil_mode")
        if node.op_type == "AveragePool" and ceil is not None and ceil.as_int():
            raise BadInput(
                f"opset {version}, which its scales need, changes AveragePool {node.name}", hint
            )
    for imports in (model.opset_imports, *(f.opset_imports for f in model.functions.values())):
        if "" in imports:
            imports[""] = max(version, imports[""])


def check_opset(version: int | None) -> None:
    """Refuse a version that nothing can be exported in; raises `BadInput`."""
    newest = onnx.defs.onnx_opset_version()
    if version is not None and not FIRST_OPSET <= version <= newest:
        raise BadInput(f"opset {version}", f"choose one from {FIRST_OPSET} to {newest}")


def converted_to(model: ir.Model, version: int) -> ir.Model:
    """A copy of `model` in the operators of opset `version`, by onnx's version converter.

    Gates stay nodes, and get their bodies in the new operators; other functions are inlined. Names
    of inputs, outputs and weights stay. Whether it still computes the same is for the caller to
    prove: the converter knows most changes between opsets, not all.

    Raises:
        BadInput: the converter cannot convert it.
    """
    copy = model.clone()
    weights = dict(copy.graph.initializers)
    tensors = {name: value.const_value for name, value in weights.items()}
    make_weights_inputs(copy.graph)  # The converter copies whatever the graph holds several times.
    try:
        proto = _without_functions(ir.to_proto(copy))
        made = ir.from_proto(version_converter.convert_version(proto, version))
    except Exception as error:  # The converter raises what its C++ does.
        raise BadInput(
            f"onnx cannot convert it from opset {model.opset_imports.get('', 1)} to {version}"
            f" ({in_one_line(error)})",
            f"export the model again with opset {version}",
        ) from error
    for value in [value for value in made.graph.inputs if value.name in tensors]:
        made.graph.inputs.remove(value)
        value.const_value = tensors[value.name or ""]
        made.graph.register_initializer(value)
    _keep_metadata(model, made)
    set_functions(made)
    return made


def _without_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph alone, in which only gates still call functions."""
    others = [(f.domain, f.name) for f in proto.functions if f.domain != DOMAIN]
    if others:
        proto = inliner.inline_selected_functions(proto, others)
    del proto.functions[:]
    return proto


def _keep_metadata(model: ir.Model, made: ir.Model) -> None:
    """Give `made` what `model` says of itself and of its nodes, which converting leaves out."""
    made.metadata_props.update(model.metadata_props)
    made.meta.update(model.meta)
    made.ir_version = max(made.ir_version, model.ir_version)
    known = {node.outputs[0].name: node for node in model.graph if node.outputs}
    for node in made.graph:
        before = known.get(node.outputs[0].name) if node.outputs else None
        if before is not None:
            node.name = node.name or before.name
            node.metadata_props.update(before.metadata_props)
