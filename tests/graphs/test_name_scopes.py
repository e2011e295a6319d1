"""The module of a node is read from its metadata, whatever stands there."""

import onnx_ir as ir
import pytest

from cbam_deploy.graphs.name_scopes import NAME_SCOPES, scopes_of


def scopes(text):
    return scopes_of(ir.node("Relu", [None], metadata_props={NAME_SCOPES: text}))


def test_modules_are_all_but_the_last_entry():
    assert scopes("['', 'layer1', 'layer1.0', 'node_relu']") == ("", "layer1", "layer1.0")
    assert scopes_of(ir.node("Relu", [None])) == ()


@pytest.mark.parametrize(
    "text",
    [
        *("", "[", "x", "1", "{}", "['a', 1]", "{[]: 1}", "\0", "['a'\n", "[" * 150 + "]" * 150),
        *("(" * 10**5, "-" * 9000 + "1", "[" * 4000, "{{}}", "1" * 9000, "+".join(["1j"] * 4000)),
    ],
)
def test_what_is_no_list_of_texts_names_no_module(text):
    assert scopes(text) == ()
