"""Which PyTorch module a node comes from, as torch.onnx records it in the node's metadata."""

from __future__ import annotations

import ast

import onnx_ir as ir

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
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
