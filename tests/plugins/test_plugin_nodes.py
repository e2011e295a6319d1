from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import GateSpec
from cbam_deploy.gates.operators import operator_for
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import plan
from cbam_deploy.plugins.plugin_nodes import (
    FORMATS,
    NODES,
    PluginNode,
    embedding_limits,
    fused_node,
)

HOPPER, AMPERE = embedding_limits((9, 0)), embedding_limits((8, 0))
STAGED = [name for name, node in NODES.items() if node.stage != "fused"]
FUSED = [name for name, node in NODES.items() if node.stage == "fused"]


def gates(
    node: PluginNode, channels: int = 64, size: int = 12, splits: int = 2
) -> list[tuple[Gate, int | None]]:
    """The node's gate in every type and layout that it takes, with its splits."""
    hidden = max(1, channels // 16)
    kernel_size = 0 if "Se" in node.operator or "ChannelExcitation" in node.operator else 7
    shapes = {"x": (-1, channels, size, size), "w0": (hidden, channels)}
    if "ws" in node.inputs:
        shapes["ws"] = (1, 2, kernel_size, kernel_size)
    sizes = (channels, size, size, hidden, kernel_size, splits)
    attributes = dict(zip(node.sizes, sizes, strict=False)) | dict.fromkeys(node.scales, 0.5)
    found = []
    for dtype in node.dtypes:
        for format_ in FORMATS[dtype]:
            try:
                gate = node.gate(shapes, attributes, dtype, format_)
            except BadInput:
                continue
            found.append((gate, attributes.get("splits")))
    return found


@pytest.mark.parametrize("name", NODES)
def test_tensors_of_a_node_are_the_pointers_of_its_kernel_in_order(name):
    node = NODES[name]
    cases = gates(node)
    assert cases
    for gate, splits in cases:
        for launch in node.tactics(gate, HOPPER, (8, 64, 1), splits).values():
            assert launch.inputs == node.inputs
            assert launch.outputs == node.outputs


@pytest.mark.parametrize("name", NODES)
def test_a_tactic_is_found_again_by_its_number_alone(name):
    node = NODES[name]
    for gate, splits in gates(node):
        tactics = node.tactics(gate, HOPPER, (8, 64, 1), splits)
        assert 1 <= len(tactics) <= 4
        for number, launch in tactics.items():
            assert node.launch(gate, HOPPER, number, splits) == launch


@pytest.mark.parametrize("name", FUSED)
def test_what_the_geometry_prefers_is_among_the_tactics(name):
    node = NODES[name]
    for gate, _ in gates(node):
        for batch in (1, 8, 64):
            preferred = plan(gate, HOPPER, batch=batch, strategy="fused").launches[0]
            assert preferred in node.tactics(gate, HOPPER, (batch,)).values()


@settings(max_examples=300, deadline=None)
@given(
    channels=st.integers(1, 600),
    size=st.integers(1, 70),
    batch=st.sampled_from([1, 8, 128]),
    other_batch=st.sampled_from([1, 8, 128]),
)
def test_three_nodes_agree_on_the_statistics_between_them(channels, size, batch, other_batch):
    """Whatever layout TensorRT chooses for one node and for the next."""
    chosen = Gate(channels, size, size, max(1, channels // 16), dtype="float16", layout="nchw")
    splits = plan(chosen, AMPERE, batch=batch, strategy="staged").launches[1].integer("splits")
    first, second = NODES["GateChannelStatistics"], NODES["GateSpatialStatistics"]
    written, read = (
        [
            launch
            for gate, _ in gates(node, channels, size, splits)
            if gate.dtype == "float16"
            for launch in node.tactics(gate, AMPERE, (other_batch,), splits).values()
        ]
        for node in (first, second)
    )
    assert len(written) == len(read) == (2 if channels % 8 == 0 else 1)
    for launch in written:
        per_block = launch.integer("positions_per_block")
        assert -(-size * size // per_block) == splits
        assert launch.integer("stored") == channels
    for launch in read:
        assert launch.integer("splits") == splits
        assert launch.integer("stored") == channels


def test_a_kind_of_gate_without_a_kernel_has_no_plugin_node():
    gate = operator_for(GateSpec(channel_pool="max", spatial="none", arrangement="channel"))
    with pytest.raises(BadInput, match="SeGateMax: there is no kernel"):
        fused_node(gate, integers=False)


def test_splits_that_a_plan_cannot_have_are_refused():
    gate = Gate(64, 8, 8, 4)
    with pytest.raises(BadInput, match="cannot be split in 3"):
        plan(gate, AMPERE, strategy="staged", splits=3)


@pytest.mark.parametrize("name", STAGED)
def test_layout_that_pads_channels_is_refused_where_statistics_are_shared(name):
    node = NODES[name]
    dtypes = {(gate.dtype, gate.layout) for gate, _ in gates(node, channels=20)}
    assert ("float16", "nchw") in dtypes
    assert ("float16", "nhwc") not in dtypes
    assert ("int8", "chw32") not in dtypes
