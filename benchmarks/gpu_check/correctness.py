"""Part: the kernels' results against the float64 reference, element by element within its bound.

Buffers are as large as they have to be and filled with NaN beforehand; every plan runs twice and
has to give the same bits. Where clusters go on from image to image, the same images come a third
time, many times over, so that each cluster has several turns: with the same bits again.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.buffers import DeviceBuffers, held_buffers
from benchmarks.gpu_check.cases import Case, Inputs, all_cases, draw, reference_key
from benchmarks.gpu_check.job import Failed, Job
from benchmarks.gpu_check.storage import decode, encode, from_storage, to_storage
from cbam_deploy.gates.reference import Bounded, apply_gate, disagreement
from cbam_deploy.plugins.cuda_launch import (
    LoadedPlan,
    NoRoom,
    Parameters,
    call,
    current_device,
    device_limits,
    load,
)
from cbam_deploy.plugins.geometry import KNOWN_DEVICES, DeviceLimits

DRY_LIMITS = replace(KNOWN_DEVICES[90], large_clusters=True)
_DRY_ADDRESS = 1 << 40


def run(job: Job) -> None:
    """Try every case."""
    check(job, job.each(all_cases(limits(job.dry))))


def run_small(job: Job) -> None:
    """Try the small cases: what compute-sanitizer is given."""
    check(job, job.each([case for case in all_cases(limits(job.dry)) if case.is_small]))


def limits(dry: bool) -> DeviceLimits:
    """Limits of this GPU, or in a dry run of an H200."""
    return DRY_LIMITS if dry else device_limits(0)


def check(job: Job, cases: list[Case]) -> None:
    """Try `cases`; raises `Failed` when the results of any are not as they should be."""
    wrong = tried = 0
    made: dict[tuple[object, ...], tuple[Inputs, Bounded]] = {}  # the last reference, by its key
    for case in job.in_time(cases):
        key = reference_key(case)
        if key not in made:
            made = {key: _reference(case)}
        inputs, expected = made[key]
        if job.dry:
            _rehearse(case, inputs, expected)
            job.row(case=str(case))
            continue
        lost = False
        try:
            problem, error = _try(case, inputs, expected)
        except NoRoom as reason:
            job.row(case=str(case), note=str(reason))
            continue
        except RuntimeError as failure:
            problem, error, lost = str(failure), None, not _device_answers()
        job.row(
            case=str(case),
            agrees=problem is None,
            problem=problem or "",
            largest_error_over_bound=error,
        )
        tried += 1
        wrong += problem is not None
        if lost:
            raise Failed(f"{case}: {problem}, and the GPU answers nothing more")
    if wrong:
        raise Failed(f"{wrong} of {tried} cases are wrong")


def _device_answers() -> bool:
    """Whether the context outlived a failure; one that touched memory it must not has not."""
    try:
        with current_device(0):
            call("cuCtxSynchronize")
    except RuntimeError:
        return False
    return True


def _reference(case: Case) -> tuple[Inputs, Bounded]:
    """Inputs and what is expected, the same for all cases of one `reference_key`."""
    inputs = draw(case)
    dtype = case.gate.dtype
    r = None if inputs.r is None else decode(inputs.r, dtype)
    return inputs, apply_gate(case.gate, inputs.weights, decode(inputs.x, dtype), r)


def _try(case: Case, inputs: Inputs, expected: Bounded) -> tuple[str | None, float | None]:
    """Run a case twice on GPU 0; what is wrong, and the largest error relative to its bound."""
    loaded = load(case.plan, 0)
    with current_device(0), held_buffers() as buffers:
        dtype = put_inputs(case, inputs, buffers)
        results = []
        for _ in range(2):
            buffers.poison("y")
            for name, _ in case.plan.workspace:
                buffers.poison(name)
            loaded.launch(buffers.addresses, case.batch, 0)
            results.append(buffers.get("y", dtype))
    if results[0].tobytes() != results[1].tobytes():
        return "two runs give different bits", None
    several_turns = case.batch > 1 and case.plan.launches[0].persistent
    if several_turns and not _same_in_every_turn(case, loaded, inputs, results[0]):
        return "a cluster gives different bits in a later turn", None
    return _judge(case, results[0], expected)


def _same_in_every_turn(
    case: Case, loaded: LoadedPlan, inputs: Inputs, y: NDArray[np.generic]
) -> bool:
    """Whether the images of a case, in any order and so many that clusters take several, give `y`.

    Some clusters have three turns, the last one with a single image.
    """
    (launch,), (running,) = case.plan.launches, loaded.running_blocks
    images = 2 * running // launch.cluster * launch.images + 1
    order = np.random.default_rng(0).integers(case.batch, size=images)
    many = replace(case, batch=images)
    maps = (None if one is None else one[order] for one in (inputs.x, inputs.r))
    with current_device(0), held_buffers() as buffers:
        dtype = put_inputs(many, Inputs(inputs.weights, *maps), buffers)
        loaded.launch(buffers.addresses, images, 0)
        found = buffers.get("y", dtype)
    return found.tobytes() == y.reshape(case.batch, -1)[order].tobytes()


def put_inputs(case: Case, inputs: Inputs, buffers: DeviceBuffers) -> np.dtype[np.generic]:
    """All buffers of a case's plan, y and the workspace poisoned; returns the maps' dtype."""
    stored = to_storage(case.gate, inputs.x)
    buffers.put("x", stored)
    if inputs.r is not None:
        buffers.put("r", to_storage(case.gate, inputs.r))
    for name, weight in vars(inputs.weights).items():
        if weight is not None:
            buffers.put(name, weight)
    for name, size in case.plan.workspace:
        buffers.allocate(name, 4 * size * case.batch)
    buffers.allocate("y", stored.nbytes)
    return stored.dtype


def _judge(
    case: Case, stored: NDArray[np.generic], expected: Bounded
) -> tuple[str | None, float | None]:
    try:
        y = decode(from_storage(case.gate, stored, case.batch), case.gate.dtype)
    except ValueError as error:
        return str(error), None
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.clip(expected.value, -128, 127) if case.gate.dtype == "int8" else expected.value
        errors = np.abs(y - value) / expected.error
    finite = errors[np.isfinite(errors)]
    worst = float(finite.max()) if finite.size else None
    return disagreement(case.gate, y, expected), worst


def _rehearse(case: Case, inputs: Inputs, expected: Bounded) -> None:
    """All of `_try` but memory and launches: the reference itself stands in for the result."""
    gate = case.gate
    names = {name for one in case.plan.launches for name in (*one.inputs, *one.outputs)}
    for launch in case.plan.launches:
        Parameters(launch, dict.fromkeys(names, _DRY_ADDRESS), batch=1)
    value = expected.value
    if gate.dtype == "int8":
        value = np.nan_to_num(np.rint(np.clip(value, -128, 127)))
    y = _with_zero_padding(case, to_storage(gate, encode(value, gate.dtype)))
    problem, _ = _judge(case, y, expected)
    if problem is not None or y.nbytes != to_storage(gate, inputs.x).nbytes:
        raise RuntimeError(f"{case}: the reference disagrees with itself: {problem}")


def _with_zero_padding(case: Case, y: NDArray[np.generic]) -> NDArray[np.generic]:
    ones = np.ones((case.batch, case.gate.channels, case.gate.height, case.gate.width), np.uint8)
    return np.where(to_storage(case.gate, ones) == 1, y, np.zeros_like(y))
