"""Move a model to a newer opset where that changes nothing but the number."""

from __future__ import annotations

import onnx_ir as ir

from cbam_deploy.errors import BadInput

# Opset 19 only adds types and attribute values to what opset 18 has (https://onnx.ai/onnx/operators),
# except that an AveragePool with ceil_mode no longer counts windows that begin in the padding.
ADDS_ONLY_FROM = {19: 18}


def raise_opset(model: ir.Model, version: int) -> None:
    """Declare at least `version` of ONNX's own operators, in the graph and its functions.

    onnx.version_converter is not used: it inlines local functions, and with them the gates.

    Raises:
        BadInput: that could change what the model computes.
    """
    current = model.opset_imports.get("", 1)
    if current >= version:
        return
    hint = "export the model again with a newer opset, or keep the float side FP32 (int8+fp32)"
    if current < ADDS_ONLY_FROM.get(version, version):
        raise BadInput(f"the model is of opset {current}, FP16 scales need {version}", hint)
    for node in model.graph.all_nodes():
        ceil = node.attributes.get("ceil_mode")
        if node.op_type == "AveragePool" and ceil is not None and ceil.as_int():
            raise BadInput(
                f"opset {version}, which FP16 scales need, changes AveragePool {node.name}", hint
            )
    for imports in (model.opset_imports, *(f.opset_imports for f in model.functions.values())):
        if "" in imports:
            imports[""] = max(version, imports[""])
