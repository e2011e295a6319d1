"""Blocks by the names that exporters give, gates by themselves, and graphs without such names."""

from __future__ import annotations

import half_networks
import numpy as np
import pytest

from cbam_deploy.exporters.precision_groups import groups_of

CHAIN = """(float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] y)
{
  a = Conv (x, w)
  b = Relu (a)
  y = Conv (b, v)
}"""


def chain(names=("", "", ""), weights=("w", "v")):
    model = half_networks.network(CHAIN, **dict.fromkeys("wv", np.ones((4, 4, 1, 1), np.float32)))
    for node, name in zip(model.graph, names, strict=True):
        node.name = name
    for old, new in zip("wv", weights, strict=True):
        model.graph.initializers[old].name = new
    return {group.name: group.nodes for group in groups_of(model)}


@pytest.mark.parametrize(
    ("module", "block"),
    [
        ("layer1.0.conv1", "layer1.0"),
        ("features.3.conv.0.0", "features.3"),
        ("backbone.stages.2.1.dw", "backbone.stages.2"),
        ("decoder.up1.conv", "decoder.up1"),
        ("fc", "fc"),
    ],
)
def test_a_block_reaches_to_the_first_number_of_a_module_path(module, block):
    names = ("first", "act", "last")
    found = chain(names, (f"{module}.weight", "head.weight"))
    assert found == {block: ("first", "act"), "head": ("last",)}


def test_without_modules_the_scopes_in_node_names_tell():
    names = (
        "/layer1/layer1.0/conv1/Conv",
        "/layer1/layer1.0/relu/Relu",
        "/head/out/Conv",
    )
    assert chain(names) == {"layer1/layer1.0": names[:2], "head": names[2:]}


def test_without_any_names_a_product_is_a_group_with_what_follows_it():
    assert chain() == {"a": ("a", "b"), "y": ("y",)}


def test_a_gate_is_a_group_and_what_follows_it_is_not_of_it():
    groups = {group.name: group for group in groups_of(half_networks.gated())}
    assert groups["gated"].gate
    assert groups["gated"].nodes == ("gated",)
    assert {name: group.nodes for name, group in groups.items() if not group.gate} == {
        "stem": ("stem", "relu"),
        "branch": ("branch",),
        "mean": ("mean",),
        "logits": ("logits",),
    }
