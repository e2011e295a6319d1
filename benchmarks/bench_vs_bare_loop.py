"""Does the harness change what it measures? The median of `bench` against that of a bare loop.

The bare loop is what a person would write: an ONNX Runtime session with default options,
`session.run` between two readings of the clock, again and again. Both take short turns in the same
rounds, so that a drifting machine favours neither, and the ratio is taken within rounds; every
repetition opens both anew. Beside another network, that one takes turns in the same rounds too.

    python benchmarks/bench_vs_bare_loop.py model.onnx [--beside other.onnx] [--record FILE]
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cbam_deploy import open_runtime
from cbam_deploy.benchmarking.interleaving import measure_in_rounds, plan_turns
from cbam_deploy.benchmarking.statistics import paired_ratio
from cbam_deploy.benchmarking.warm_up import warm_up
from cbam_deploy.machine import environment
from cbam_deploy.runtimes.base import Execution


class BareLoop(Execution):
    """`session.run` between two readings of the clock."""

    def __init__(self, model: Path, feeds: dict[str, NDArray[np.float32]]) -> None:
        self.session, self.feeds = onnxruntime.InferenceSession(str(model)), feeds

    def measure(self, runs: int) -> NDArray[np.float64]:
        """Seconds of each run."""
        durations = []
        for _ in range(runs):
            begin = time.perf_counter()
            self.session.run(None, self.feeds)
            durations.append(time.perf_counter() - begin)
        return np.array(durations)


def round_medians(
    model: Path, beside: Path | None, batch: int, seconds: float, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median seconds of a run, round by round: in `bench`'s turns, and in the bare loop's."""
    paths = [model] if beside is None else [model, beside]
    runners = [open_runtime(path, device="cpu") for path in paths]
    executions = []
    for runner in runners:
        runner.activate()
        (spec,) = runner.inputs
        random = np.random.default_rng(seed)
        feeds = {spec.name: random.standard_normal((batch, *spec.shape[1:]), np.float32)}
        executions.append(runner.prepare(feeds))
        if runner is runners[0]:
            executions.append(BareLoop(model, feeds))
    settled = [warm_up(execution, seconds).run_seconds for execution in executions]
    plans = plan_turns(executions, [batch] * len(executions), settled, seconds)
    ours, bare, *_ = measure_in_rounds(plans, seed)
    for runner in runners:
        runner.deactivate()
    return np.array([np.median(turn) for turn in ours]), np.array([np.median(t) for t in bare])


def compare(options: argparse.Namespace) -> list[str]:
    """Measure, and return the lines to print."""
    takes = [
        round_medians(options.model, options.beside, options.batch, options.seconds, seed)
        for seed in range(options.repetitions)
    ]
    ours, bare = (np.concatenate(side) for side in zip(*takes, strict=True))
    ratio = paired_ratio(ours, bare, seed=0)
    return [
        f"bare loop  {1e3 * np.median(bare):9.3f} ms, median of {len(bare)} rounds",
        f"bench      {1e3 * np.median(ours):9.3f} ms   {ratio.value:.4f} of the bare loop "
        f"(95% interval {ratio.low:.4f} to {ratio.high:.4f})",
    ]


def record(path: Path, options: argparse.Namespace, lines: list[str]) -> None:
    """Add the result to `path`, with the command and the machine."""
    machine = environment()
    packages = ", ".join(
        f"{name} {machine['packages'][name]}" for name in ("cbam-deploy", "onnxruntime", "numpy")
    )
    text = (
        f"\n## {options.model.name}, batch {options.batch}\n\n"
        f"{datetime.date.today().isoformat()}, {machine['cpu']}, {machine['cores']} cores, "
        f"Python {machine['python']}, {packages}.\n\n"
        f"    $ python {shlex.join(sys.argv)}\n" + "".join(f"    {line}\n" for line in lines)
    )
    earlier = path.read_text() if path.exists() else "# `bench` against a bare loop\n"
    path.write_text(earlier + text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="an ONNX file with one float32 input")
    parser.add_argument("--beside", type=Path, help="measure with this one in the same rounds too")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="timed duration of each take")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--record", type=Path, help="Markdown file to add the result to")
    options = parser.parse_args()
    lines = compare(options)
    print("\n".join(lines))
    if options.record:
        record(options.record, options, lines)


if __name__ == "__main__":
    main()
