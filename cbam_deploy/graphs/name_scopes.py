"""Which PyTorch module a node comes from.

The names of its weights say so, and the scopes that torch.onnx records in the node's metadata.
"""

from __future__ import annotations

import ast

import onnx_ir as ir

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
PASSING = ("QuantizeLinear", "DequantizeLinear", "Cast", "Identity")  # Hand on what they read.
_LONGEST = 10_000  # characters; paths of modules are far shorter


def scopes_of(node: ir.Node) -> tuple[str, ...]:
    """Paths of the modules around `node`, outermost first; empty where nothing readable says."""
    text = node.metadata_props.get(NAME_SCOPES, "")
    if not text or len(text) > _LONGEST:
        return ()
    try:
        scopes = ast.literal_eval(text)
    # Besides what is no literal: what is nested too deeply, and what cannot be a dictionary's key.
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return ()
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        return ()
    return tuple(scopes[:-1])  # The last one is the node itself.


def module_of(node: ir.Node | None) -> str:
    """Path of the module of a node's largest weight, by its name, else the innermost scope around.

    A batch normalization is folded into the convolution before it, which is then recorded as its.
    What was put in between has neither, and belongs to what it stands behind. Empty where the file
    does not say.
    """
    while node is not None:
        found = [weight for value in node.inputs if (weight := weight_behind(value)) is not None]
        found.sort(key=lambda value: -(value.const_value.size if value.const_value else 0))
        modules = [module for weight in found if (module := _owner(weight.name or ""))]
        modules += scopes_of(node)[-1:]
        if modules or node.op_type not in PASSING or node.inputs[0] is None:
            return next(iter(modules), "")
        node = node.inputs[0].producer()
    return ""


def weight_behind(value: ir.Value | None) -> ir.Value | None:
    """The weight that a value is, or is made of by what passes it on."""
    while value is not None and not value.is_initializer():
        producer = value.producer()
        if producer is None or producer.op_type not in PASSING:
            return None
        value = producer.inputs[0]
    return value


def _owner(weight: str) -> str:
    return weight.rpartition(".")[0]
