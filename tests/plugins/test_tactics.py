from __future__ import annotations

from dataclasses import replace

import pytest
from gate_cases import GENERATED

from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import CBAM, GateSpec
from cbam_deploy.gates.operators import operator_for
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import KNOWN_DEVICES, fused_candidates, known_device, plan
from cbam_deploy.plugins.tactics import MOST_FUSED, STAGED, tactics

CBAM_GATE = operator_for(CBAM)
SHAPES = ((256, 56), (512, 28), (1024, 14), (2048, 7))
GATES = [Gate(CBAM_GATE, c, size, size, c // 16, 7, dtype="float16") for c, size in SHAPES]
OPERATORS = sorted({variant.operator for variant in GENERATED}, key=str)[::5]


@pytest.mark.parametrize("capability", KNOWN_DEVICES)
@pytest.mark.parametrize("gate", GATES, ids=str)
def test_the_first_tactic_is_predicted_fastest_and_the_staged_kernels_are_one(gate, capability):
    limits = KNOWN_DEVICES[capability]
    found = tactics(gate, limits, batch=8)
    assert len(found) <= MOST_FUSED + 1
    assert found[STAGED] == plan(gate, limits, batch=8, strategy="staged")
    limits = replace(limits, large_clusters=capability >= 90)
    assert next(iter(found.values())) == plan(gate, limits, batch=8)
    if fused_candidates(gate, limits):
        assert plan(gate, limits, batch=1, strategy="fused") in found.values()


def test_a_tactic_of_portable_clusters_stands_beside_those_of_large_ones():
    found = tactics(GATES[0], KNOWN_DEVICES[90])
    clusters = {one.launches[0].cluster for one in found.values()}
    assert {16, 8, 1} <= clusters


def test_a_number_means_the_same_kernel_whatever_batch_the_plan_is_for():
    limits = KNOWN_DEVICES[90]
    for gate in GATES:
        for_one, for_many = tactics(gate, limits, batch=1), tactics(gate, limits, batch=64)
        shared = set(for_one) & set(for_many) - {STAGED}
        assert shared
        assert all(for_one[number] == for_many[number] for number in shared)
        for number, one in for_one.items():
            if number != STAGED:
                (launch,) = one.launches
                several = 1000 * launch.images if launch.images > 1 else 0
                assert divmod(number, 10_000) == (launch.cluster, several + launch.threads)


def test_shared_memory_beyond_48_kib_is_used_where_the_gpu_has_it():
    found = tactics(GATES[2], KNOWN_DEVICES[87]).values()
    most = max(launch.shared_bytes for one in found for launch in one.launches)
    assert 48 * 1024 < most <= 163 * 1024


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_every_operator_has_tactics(operator):
    weights = operator.weights
    hidden, kernel_size = (4 if "W0" in weights else 0), (7 if "WS" in weights else 0)
    gate = Gate(operator, 64, 12, 12, hidden, kernel_size, 3 if "WC" in weights else 0)
    assert STAGED in tactics(gate, KNOWN_DEVICES[89])


def test_a_gate_without_any_plan_is_refused():
    operator = operator_for(GateSpec(mixer="conv", join="gates"))
    gate = Gate(operator, 9000, 1, 1, 0, 7, 3, dtype="float32", layout="nchw")
    with pytest.raises(BadInput, match="its statistics exceed the shared memory of a block"):
        tactics(gate, KNOWN_DEVICES[75])


@pytest.mark.parametrize(("capability", "counts_as"), [(90, 90), (88, 87), (103, 100), (122, 121)])
def test_gpu_without_kernels_of_its_own_takes_those_of_the_one_before(capability, counts_as):
    assert known_device(capability).capability == counts_as


def test_gpu_older_than_the_kernels_is_refused():
    with pytest.raises(BadInput, match=r"7.0 is older"):
        known_device(70)
