"""What looks like a gate and is none is named, and what does not look like one is not."""

import pytest
from gated_networks import lively
from onnx import load
from origin_files import assert_computes, export, picture
from origin_networks import Cbam
from origins import Blocks
from torch.export import Dim
from unfused_networks import NAMED, PLAIN, CoordinateAttention, Simam

from cbam_deploy.exporters import fuse
from tests.conftest import once

# One export of all is quicker than one of each.
ALL = {gate.__name__: gate for gate in NAMED}


@pytest.fixture(scope="session")
def by_dynamo(tmp_path_factory):
    """The report on all of them, and on the plain networks, in one network."""
    module = lively(Blocks({**ALL, **PLAIN}))

    def make(path):
        free = ({0: Dim("batch", min=2)},)
        export(module, path, dynamo=True, opset_version=18, dynamic_shapes=free)

    path = once(tmp_path_factory, "unfused", "exported.onnx", make)
    return fuse(path, tmp_path_factory.mktemp("unfused") / "fused.onnx")


def reasons(report, name):
    return {where: why for where, why in report.refused if where.startswith(f"blocks.{name}.")}


@pytest.mark.parametrize("gate", NAMED, ids=lambda gate: gate.__name__)
def test_an_attention_is_named_by_its_module_and_what_it_is(gate, by_dynamo):
    found = reasons(by_dynamo, gate.__name__)
    assert list(found) == [f"blocks.{gate.__name__}.gate"]
    (reason,) = found.values()
    assert NAMED[gate] in reason
    assert reason.endswith("its standard operators run everywhere")


@pytest.mark.parametrize("name", PLAIN)
def test_a_network_without_attention_gates_has_none(name, by_dynamo):
    assert reasons(by_dynamo, name) == {}
    assert not any(node.startswith(f"blocks.{name}.") for node, _ in by_dynamo.fused)


@pytest.mark.parametrize("gate", NAMED, ids=lambda gate: gate.__name__)
def test_what_torchscript_exports_is_named_and_stays_as_it_is(gate, tmp_path, fused):
    module = lively(Blocks({"net": gate}))
    path = tmp_path / "exported.onnx"
    export(module, path, dynamo=False, opset_version=17, dynamic_axes={})
    before = [node.op_type for node in load(path).graph.node]
    report, path = fused(path)
    ((_, reason),) = report.refused
    assert NAMED[gate] in reason
    assert [node.op_type for node in load(path).graph.node] == before
    assert_computes(path, module, picture())


@pytest.mark.parametrize("name", PLAIN)
def test_torchscripts_graph_of_a_network_without_attention_gates_has_none(name, tmp_path, fused):
    module = lively(Blocks({name: PLAIN[name]}))
    path = tmp_path / "exported.onnx"
    axes = {"input": {0: "batch"}}
    export(module, path, dynamo=False, opset_version=17, dynamic_axes=axes)
    report, _ = fused(path)
    assert (report.found, report.refused) == (0, ())


class OneAfterTheOther(Simam):
    """A gate whose map an attention made, which another one takes."""

    def __init__(self, channels):
        super().__init__(channels)
        self.cbam, self.coordinates = Cbam(channels), CoordinateAttention(channels)

    def forward(self, x):
        return self.coordinates(self.cbam(super().forward(x)))


def test_a_gate_between_attentions_is_fused_and_they_are_named(tmp_path, fused):
    path = tmp_path / "exported.onnx"
    module = lively(Blocks({"net": OneAfterTheOther}))
    export(module, path, dynamo=False, opset_version=17, dynamic_axes={})
    report, path = fused(path)
    assert [operator for _, operator in report.fused] == ["CbamGate"]
    assert ["SimAM" in reason for _, reason in report.refused] == [True, False]
    assert ["coordinate" in reason for _, reason in report.refused] == [False, True]
    assert_computes(path, module, picture())
