"""What `benchmarks.gpu_check` tries the kernels on, and how it judges their results."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gpu_check_jobs import outcome_of

from benchmarks.gpu_check import buffers, candidates, cases, correctness, storage
from benchmarks.gpu_check.gate_cases import BATCHES, MAPS, gate_cases
from benchmarks.gpu_check.job import FAILED, PASSED
from benchmarks.kernel_report import FORMATS
from cbam_deploy.gates.description import CBAM
from cbam_deploy.gates.operators import GATE_OPERATORS, operator_for
from cbam_deploy.gates.reference import Weights, apply_gate
from cbam_deploy.plugins.cuda_launch import NoRoom
from cbam_deploy.plugins.gate import Gate
from cbam_deploy.plugins.geometry import fused_candidates
from cbam_deploy.plugins.launches import LaunchPlan

LIMITS = correctness.limits(dry=True)


def test_cases_are_of_every_kernel_type_layout_and_operator():
    every = cases.all_cases(LIMITS)
    assert len(set(every)) == len(every)
    kinds = {
        (case.gate.operator.name, case.gate.dtype, case.gate.layout, len(case.plan.launches))
        for case in every
    }
    names = ("CbamGate", "CbamGateAddRelu", "SeGate", "SeGateAddRelu")
    assert kinds >= {(name, *one, count) for name in names for one in FORMATS for count in (1, 3)}
    assert {launch.cluster for case in every for launch in case.plan.launches} == {1, 2, 4, 8, 16}
    assert {case.gate.kernel_size for case in every} == {0, 1, 3, 7, 15}
    assert {one.gate for one in GATE_OPERATORS.values()} < {
        case.gate.operator.gate for case in every if case.gate.dtype == "bfloat16"
    }
    assert {len(case.plan.launches) for case in every} == {1, 2, 3, 4}
    assert sum(case.is_small for case in every) > 100


def test_every_fused_plan_that_is_timed_is_checked():
    checked = {case.plan.launches[0].kernel for case in cases.all_cases(LIMITS)}
    timed = candidates.candidate_cases()
    assert {(case.gate.channels, case.gate.height) for case in timed} == set(MAPS)
    for gate in {case.gate for case in timed}:
        for one in fused_candidates(gate, LIMITS):
            assert one.launches[0].kernel in checked


def test_timed_gates_are_those_of_resnet_50():
    timed = gate_cases()
    assert {(case.gate.channels, case.gate.height) for case in timed} == set(MAPS)
    assert len(timed) == len(MAPS) * len(BATCHES) * len(FORMATS)
    first = timed[0]
    assert first.moved_bytes == 3 * 32 * 256 * 56 * 56 * 2


def test_bfloat16_is_rounded_as_pytorch_does():
    values = np.random.default_rng(0).standard_normal(7_700) * 10.0 ** np.arange(-40, 37, 0.01)
    values[:4] = np.nan, np.inf, -np.inf, -0.0
    values = values.astype(np.float32)
    found = storage.decode(storage.encode(values, "bfloat16"), "bfloat16")
    expected = torch.tensor(values).bfloat16().double().numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("dtype", "layout"), FORMATS)
def test_storage_holds_every_element_once(dtype, layout):
    channels = 24 if layout == "nhwc" else 0
    gate = Gate(operator_for(CBAM), 20, 3, 5, 2, 7, dtype=dtype, layout=layout, stored=channels)
    x = storage.encode(np.arange(2 * 20 * 15.0).reshape(2, 20, 3, 5) % 100, dtype)
    stored = storage.to_storage(gate, x)
    assert stored.size == 2 * gate.stored * gate.positions
    padding = stored.size - x.size
    assert (stored.view(np.uint8) == 0xFF).sum() >= padding * stored.itemsize
    if padding:
        with pytest.raises(ValueError, match="padding"):
            storage.from_storage(gate, stored, 2)
        ones = storage.to_storage(gate, np.ones(x.shape, np.uint8))
        stored = np.where(ones == 1, stored, np.zeros_like(stored))
    np.testing.assert_array_equal(storage.from_storage(gate, stored, 2), x)


def test_inputs_depend_on_the_reference_alone():
    one, other = (
        case for case in cases.all_cases(LIMITS) if str(case.gate) == GATE and case.values == "nan"
    )
    assert cases.reference_key(one) == cases.reference_key(other)
    np.testing.assert_array_equal(cases.draw(one).x, cases.draw(other).x)


GATE = "CbamGateAddRelu on 20x5x5 float16 nhwc"


@pytest.fixture
def case():
    return next(
        case
        for case in cases.all_cases(LIMITS)
        if str(case.gate) == GATE and case.values == "normal"
    )


class StandInGpu:
    """The driver's memory in this process's own; a plan is carried out by the float64 reference.

    `spoil` may change what a launch computes, given its number; in a `lost` context the driver
    answers nothing more.
    """

    def __init__(self, monkeypatch):
        self.memory = {}
        self.launches = 0
        self.lost = False
        self.spoil = lambda number, y: None
        monkeypatch.setattr(buffers, "call", self.call)
        monkeypatch.setattr(correctness, "call", self.call)
        monkeypatch.setattr(correctness, "current_device", lambda device: nullcontext())
        monkeypatch.setattr(
            correctness,
            "load",
            lambda plan, device: SimpleNamespace(
                launch=partial(self.launch, plan.gate),
                # Room for two clusters.
                running_blocks=tuple(2 * launch.cluster for launch in plan.launches),
            ),
        )

    def call(self, name, *arguments):
        if self.lost and name != "cuMemFree":
            raise RuntimeError(f"CUDA driver: {name} answers X")
        if name == "cuMemAlloc":
            memory = ctypes.create_string_buffer(*arguments)
            self.memory[ctypes.addressof(memory)] = memory
            return ctypes.addressof(memory)
        if name == "cuMemFree":
            return self.memory.pop(*arguments)
        if name == "cuMemsetD8":
            return ctypes.memset(*arguments)
        if name in ("cuMemcpyHtoD", "cuMemcpyDtoH"):
            return ctypes.memmove(*arguments)
        assert name == "cuCtxSynchronize"
        return None

    def launch(self, gate, addresses, batch, stream):
        def held(name, dtype):
            memory = self.memory[addresses[name]]
            return np.frombuffer(memory, dtype)

        dtype = storage.encode(np.zeros(1), gate.dtype).dtype
        maps = [
            storage.decode(storage.from_storage(gate, held(name, dtype), batch), gate.dtype)
            for name in ("x", "r")
        ]
        assert np.isnan(held("y", dtype)).all(), "no launch finds what another has left"
        c, hidden, k = gate.channels, gate.hidden, gate.kernel_size
        shapes = [(hidden, c), (hidden,), (c, hidden), (c,), (1, 2, k, k), (1,)]
        names = ("w0", "b0", "w1", "b1", "ws", "bs")
        given = [held(name, np.float32).reshape(s) for name, s in zip(names, shapes, strict=True)]
        y = storage.encode(apply_gate(gate, Weights(*given), *maps).value, gate.dtype)
        self.spoil(self.launches, y)
        self.launches += 1
        held("y", dtype)[:] = storage.to_storage(gate, y)


@pytest.fixture
def gpu(monkeypatch):
    stand_in = StandInGpu(monkeypatch)
    yield stand_in
    assert stand_in.memory == {}, "all memory was given back"


@pytest.mark.parametrize("wrong", ["nothing", "one value", "one nan"])
def test_one_wrong_value_fails_the_correctness_part(wrong, case, gpu, tmp_path):
    def spoil(number, y):
        if wrong != "nothing":
            y[1, 7, 2, 3] = np.nan if wrong == "one nan" else y[1, 7, 2, 3] + 0.25

    gpu.spoil = spoil
    found = outcome_of(lambda job: correctness.check(job, [case]), tmp_path)
    (row,) = found.rows
    assert row["agrees"] is (wrong == "nothing")
    assert found.status == (PASSED if wrong == "nothing" else FAILED)
    if wrong == "nothing":
        assert 0 < row["largest_error_over_bound"] <= 1
    else:
        assert "(1, 7, 2, 3)" in row["problem"]


@pytest.mark.parametrize("answers", [True, False])
def test_a_launch_that_fails_is_a_wrong_case(answers, case, gpu, tmp_path):
    def refused(number, y):
        gpu.lost = not answers
        raise RuntimeError("CUDA driver: cuLaunchKernel answers X")

    gpu.spoil = refused
    found = outcome_of(lambda job: correctness.check(job, [case, case]), tmp_path)
    assert found.status == FAILED
    assert len(found.rows) == (2 if answers else 1), "the others are tried where that is possible"
    assert "answers X" in found.rows[0]["problem"]


def test_a_cluster_without_room_is_no_wrong_case(case, gpu, tmp_path, monkeypatch):
    def refuse(plan, device):
        raise NoRoom("a cluster of its blocks has no room")

    monkeypatch.setattr(correctness, "load", refuse)
    found = outcome_of(lambda job: correctness.check(job, [case]), tmp_path)
    assert found.status == PASSED
    assert found.rows == ({"case": str(case), "note": "a cluster of its blocks has no room"},)


def test_two_launches_that_differ_in_a_bit_are_a_wrong_case(case, gpu, tmp_path):
    def spoil(number, y):
        if number:
            y.view(np.uint16)[0, 0, 0, 0] ^= 1

    gpu.spoil = spoil
    found = outcome_of(lambda job: correctness.check(job, [case]), tmp_path)
    assert found.status == FAILED
    assert found.rows[0]["problem"] == "two runs give different bits"


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("wrong", ["nothing", "the last turn"])
def test_clusters_that_go_on_from_image_to_image_are_given_several(images, wrong, gpu, tmp_path):
    gate = Gate(operator_for(CBAM, residual=True), 32, 3, 3, 16, 7, dtype="float16", layout="nhwc")
    plans = [one.launches[0] for one in fused_candidates(gate, LIMITS)]
    launch = next(one for one in plans if one.cluster == 2 and one.images == images)
    batches = []

    def spoil(number, y):
        batches.append(len(y))
        if number == 2 and wrong == "the last turn":
            y.view(np.uint16)[-1, 0, 0, 0] ^= 1

    gpu.spoil = spoil
    case = cases.Case(LaunchPlan(gate, (launch,)), 2)
    found = outcome_of(lambda job: correctness.check(job, [case]), tmp_path)
    assert batches == [2, 2, 2 * 2 * images + 1]
    assert found.status == (PASSED if wrong == "nothing" else FAILED), found
    if wrong != "nothing":
        assert found.rows[0]["problem"] == "a cluster gives different bits in a later turn"


def test_every_kernel_that_goes_on_from_image_to_image_is_given_several():
    every = [case for case in cases.all_cases(LIMITS) if case.plan.launches[0].persistent]
    several = {case.plan.launches[0].kernel for case in every if case.batch > 1}
    assert several == {case.plan.launches[0].kernel for case in every}


def test_references_are_made_once_for_neighbouring_cases(case, tmp_path, monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return apply_gate(*arguments)

    monkeypatch.setattr(correctness, "apply_gate", counted)
    neighbours = [
        replace(case, plan=replace(case.plan, gate=replace(case.gate, layout=layout)))
        for layout in ("nhwc", "nchw")
    ]
    found = outcome_of(lambda job: correctness.check(job, neighbours), tmp_path, dry=True)
    assert len(found.rows) == 2
    assert len(calls) == 1
