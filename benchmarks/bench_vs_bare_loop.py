"""Does the harness change what it measures? The median of `bench` against that of a bare loop.

The bare loop is what a person would write: an ONNX Runtime session with default options,
`session.run` between two readings of the clock, again and again. Each repetition opens everything
anew and takes both, in an order that alternates; the ratio is taken within each repetition.

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

from cbam_deploy import bench
from cbam_deploy.benchmarking.statistics import paired_ratio
from cbam_deploy.machine import environment


def bare_loop_seconds(model: Path, batch: int, seconds: float) -> float:
    """Median duration of `session.run`, after as long a warm-up."""
    session = onnxruntime.InferenceSession(str(model))
    (specification,) = session.get_inputs()
    shape = [batch, *specification.shape[1:]]
    feeds = {specification.name: np.random.default_rng(0).standard_normal(shape, np.float32)}
    durations: list[float] = []
    begin = time.perf_counter()
    while (now := time.perf_counter()) < begin + 2 * seconds:
        session.run(None, feeds)
        if now > begin + seconds:
            durations.append(time.perf_counter() - now)
    return float(np.median(durations))


def bench_seconds(model: Path, beside: Path | None, batch: int, seconds: float) -> float:
    """What `bench` says, alone or with another network in the same rounds."""
    artefacts = [model] if beside is None else [model, beside]
    return bench(artefacts, batches=(batch,), seconds=seconds).entries[0].median_seconds


def compare(options: argparse.Namespace) -> list[str]:
    """Measure, and return the lines to print."""
    takes = {
        "bare loop": lambda: bare_loop_seconds(options.model, options.batch, options.seconds),
        "bench": lambda: bench_seconds(options.model, None, options.batch, options.seconds),
    }
    if options.beside:
        takes["bench, side by side"] = lambda: bench_seconds(
            options.model, options.beside, options.batch, options.seconds
        )
    found: dict[str, list[float]] = {name: [] for name in takes}
    random = np.random.default_rng(0)
    for repetition in range(options.repetitions):
        for name in random.permutation(list(takes)):
            found[name].append(takes[name]())
        print(f"repetition {repetition + 1} of {options.repetitions} done", file=sys.stderr)
    bare = np.array(found["bare loop"])
    lines = []
    for name, medians in found.items():
        line = f"{name:20} {1e3 * np.median(medians):9.3f} ms"
        if name != "bare loop":
            ratio = paired_ratio(np.array(medians), bare, seed=0)
            line += f"   {ratio.value:.4f} of the bare loop"
            line += f" (95% interval {ratio.low:.4f} to {ratio.high:.4f})"
        lines.append(line)
    return lines


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
    parser.add_argument("--seconds", type=float, default=2.0, help="timed duration of each take")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--record", type=Path, help="Markdown file to add the result to")
    options = parser.parse_args()
    lines = compare(options)
    print("\n".join(lines))
    if options.record:
        record(options.record, options, lines)


if __name__ == "__main__":
    main()
