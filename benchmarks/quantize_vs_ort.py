"""What INT8 takes: our quantization against `quantize_static` of ONNX Runtime on the same file.

Both get the same pictures, ready in memory, and the same method; `quantize_static` one picture at a
time, as its data readers do, with signed symmetric types and weights by channel, and otherwise as
it is. Each run has a process of its own, so that its peak memory is its own; both take turns.

    python benchmarks/quantize_vs_ort.py model.onnx [--images 64] [--methods minmax entropy ...]
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cbam_deploy.data import open_source
from cbam_deploy.exporters.int8.quantization import quantize
from cbam_deploy.graphs.onnx_file import read_model, write_model
from cbam_deploy.machine import environment
from cbam_deploy.numerics.metrics import tensor_error
from cbam_deploy.preprocessing import Preprocessing

Pictures = NDArray[np.float32]
BATCH = 4


def ours(model: Path, output: Path, pictures: Pictures, method: str) -> None:
    """Our quantization, from file to file."""
    batches = (pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH))
    quantized, _ = quantize(read_model(model), batches, method=method)  # type: ignore[arg-type]
    write_model(quantized, output)


def theirs(model: Path, output: Path, pictures: Pictures, method: str) -> None:
    """`quantize_static`, from file to file."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantType,
        quantize_static,
    )

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._pictures: Iterator[Pictures] = iter(pictures)

        def get_next(self) -> dict[str, Pictures] | None:
            picture = next(self._pictures, None)
            return None if picture is None else {"input": picture[None]}

    logging.disable(logging.WARNING)
    quantize_static(
        str(model),
        str(output),
        Reader(),
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QInt8,
        calibrate_method=methods[method],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )


RUNS: dict[str, Callable[[Path, Path, Pictures, str], None]] = {"ours": ours, "ort": theirs}


def photos(images: int) -> Pictures:
    """The built-in photos, repeated when there are not enough."""
    once = drawn(images, seed=0)
    return np.resize(once, (images, *once.shape[1:]))


def drawn(images: int, seed: int) -> Pictures:
    """Photos as `convert` draws them."""
    source = open_source("photos", Preprocessing())
    batches = source.batches(4, limit=images, shuffle_seed=seed)
    return np.concatenate([batch.images for batch in batches])


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One run, in this process."""
    pictures = photos(options.images)
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "quantized.onnx"
        RUNS[options.run](options.model, output, pictures, options.methods[0])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        snr = signal_to_noise(options.model, output)
    return {"seconds": wall, "cpu_seconds": cpu, "peak_bytes": memory, "snr_db": snr}


def signal_to_noise(model: Path, quantized: Path) -> float:
    """Of the outputs for eight pictures that were drawn by another seed, in dB."""
    x = drawn(8, seed=1)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    outputs = [
        onnxruntime.InferenceSession(str(path), options).run(None, {"input": x})[0]
        for path in (model, quantized)
    ]
    return tensor_error("output", *outputs).snr_db


def in_own_process(options: argparse.Namespace, run: str, method: str) -> dict[str, float]:
    """`measure` in a new process."""
    command = [sys.executable, __file__, str(options.model), "--run", run, "--methods", method]
    done = subprocess.run(
        [*command, "--images", str(options.images)], capture_output=True, check=True, text=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(options: argparse.Namespace) -> list[str]:
    """Measure all, and return the lines to print."""
    lines = [
        "| method | run | wall s | CPU s | peak GB | SNR dB | wall / ort | CPU / ort |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method in options.methods:
        found: dict[str, list[dict[str, float]]] = {run: [] for run in RUNS}
        for repetition in range(options.repetitions):
            for run in list(RUNS)[:: 1 if repetition % 2 == 0 else -1]:
                found[run].append(in_own_process(options, run, method))
        for run, results in found.items():
            lines.append(_row(method, run, results, found["ort"]))
    return lines


def _row(
    method: str, run: str, results: list[dict[str, float]], baseline: list[dict[str, float]]
) -> str:
    def median(key: str) -> float:
        return float(np.median([result[key] for result in results]))

    def ratio(key: str) -> float:
        pairs = zip(results, baseline, strict=True)
        return float(np.median([mine[key] / other[key] for mine, other in pairs]))

    cells: list[Any] = [method, run, f"{median('seconds'):.1f}", f"{median('cpu_seconds'):.1f}"]
    peak = max(result["peak_bytes"] for result in results)
    cells += [f"{peak / 1e9:.2f}", f"{median('snr_db'):.1f}"]
    cells += [f"{ratio('seconds'):.2f}", f"{ratio('cpu_seconds'):.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--methods", nargs="+", default=["minmax", "entropy", "percentile"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help="Markdown file to add the result to")
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(options)))
        return
    lines = compare(options)
    print("\n".join(lines))
    if options.record:
        record(options, lines)


def record(options: argparse.Namespace, lines: list[str]) -> None:
    """Add the result to the record, with the machine, the versions and the settings."""
    machine = environment()
    packages = ", ".join(
        f"{name} {machine['packages'][name]}" for name in ("cbam-deploy", "onnxruntime", "numpy")
    )
    text = (
        f"\n## {options.model.name}, {options.images} pictures\n\n"
        f"{datetime.date.today().isoformat()}, {machine['cpu']}, {machine['cores']} cores, "
        f"Python {machine['python']}, {packages}; medians of {options.repetitions} runs each, "
        "ratios run by run.\n\n" + "\n".join(lines) + "\n"
    )
    record: Path = options.record
    earlier = record.read_text() if record.exists() else "# Quantization against quantize_static\n"
    record.write_text(earlier + text)


if __name__ == "__main__":
    main()
