from __future__ import annotations

import pytest
from gate_cases import GENERATED
from hypothesis import given, settings
from hypothesis import strategies as st

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import CBAM
from cbam_deploy.gates.operators import in_lower_case, operator_for, operator_named
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import plan
from cbam_deploy.plugins.plugin_nodes import (
    FORMATS,
    NODES,
    PluginNode,
    embedding_limits,
    nodes_of,
)
from cbam_deploy.plugins.stages import stages

CBAM_GATE = operator_for(CBAM)
HOPPER, AMPERE = embedding_limits((9, 0)), embedding_limits((8, 0))
STAGED = [name for name, node in NODES.items() if node.stage != "fused"]
FUSED = [name for name, node in NODES.items() if node.stage == "fused"]


def gates(
    node: PluginNode, channels: int = 64, size: int = 12, splits: int = 2
) -> list[tuple[Gate, int | float | None]]:
    """The node's gate in every type and layout that it takes, with its splits."""
    weights = node.operator.weights
    hidden = max(1, channels // 16) if "W0" in weights else 0
    kernel_size, taps = (7 if "WS" in weights else 0), (3 if "WC" in weights else 0)
    of_weights = node.operator.weight_shapes(channels, hidden, kernel_size, taps)
    shapes = {name.lower(): shape for name, shape in of_weights.items()}
    shapes["x"] = (-1, channels, size, size)
    sizes = (channels, size, size, hidden, kernel_size, taps, splits)
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


OTHERS = sorted({variant.operator for variant in GENERATED}, key=str)[::5]


@settings(max_examples=300, deadline=None)
@given(
    channels=st.integers(1, 600),
    size=st.integers(1, 70),
    batch=st.sampled_from([1, 8, 128]),
    other_batch=st.sampled_from([1, 8, 128]),
)
def test_three_nodes_agree_on_the_statistics_between_them(channels, size, batch, other_batch):
    """Whatever layout TensorRT chooses for one node and for the next."""
    hidden = max(1, channels // 16)
    chosen = Gate(CBAM_GATE, channels, size, size, hidden, 7, dtype="float16", layout="nchw")
    splits = plan(chosen, AMPERE, batch=batch, strategy="staged").splits
    first, second = NODES["CbamGateChannelStatistics"], NODES["CbamGateSpatialStatistics"]
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


@pytest.mark.parametrize("operator", OTHERS, ids=lambda operator: operator.name)
def test_every_operator_has_nodes_that_follow_from_its_launches(operator):
    for node in nodes_of(operator):
        for gate, splits in gates(node):
            for launch in node.tactics(gate, HOPPER, (8,), splits).values():
                assert (launch.inputs, launch.outputs) == (node.inputs, node.outputs)
    staged = [node for node in nodes_of(operator) if node.stage != "fused"]
    assert [node.stage for node in staged] == list(stages(operator))
    given = set(in_lower_case(operator.inputs))
    for node in staged:
        assert set(node.inputs) <= given
        given |= set(node.outputs)


def test_names_of_nodes_are_names_of_no_operator_but_their_own():
    for name, node in NODES.items():
        assert operator_named(name) in (None, node.operator)


def test_splits_that_a_plan_cannot_have_are_refused():
    gate = Gate(CBAM_GATE, 64, 8, 8, 4, 7)
    with pytest.raises(BadInput, match="cannot be split in 3"):
        plan(gate, AMPERE, strategy="staged", splits=3)


@pytest.mark.parametrize("name", STAGED)
def test_layout_that_pads_channels_is_refused_where_statistics_are_shared(name):
    node = NODES[name]
    dtypes = {(gate.dtype, gate.layout) for gate, _ in gates(node, channels=20)}
    assert ("float16", "nchw") in dtypes
    assert ("float16", "nhwc") not in dtypes
    assert ("int8", "chw32") not in dtypes
