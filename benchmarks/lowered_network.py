"""Every gate of CBAM-ResNet-50, lowered, through the plugin library and a stand-in for the driver.

    OMP_NUM_THREADS=1 python -m benchmarks.lowered_network --size 64

The network is exported for small pictures, converted to FP16 and INT8 and lowered; each node's
launch program is what `lower` wrote for that GPU. Kernels run on threads of this machine, in blocks
of 256 and 512; results are compared with float64. Prints a row per gate: its error over what the
bound allows, for the worst element of all formats and tactics.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "plugins"))

from lowered_network import (
    WARP,
    driver_kernels,
    lowered_gates,
    recorded_kernels,
    results,
    runs_of,
)
from native_build import Programs, build_driver, build_host, packaged_library

from cbam_deploy import convert, export_onnx, lower
from cbam_deploy.gates.reference import Bounded, disagreement


def error_over_bound(y: NDArray[np.generic], expected: Bounded, dtype: str) -> float:
    """Of the worst element."""
    value = np.clip(expected.value, -128, 127) if dtype == "int8" else expected.value
    return float(np.max(np.abs(y.astype(np.float64) - value) / expected.error))


def main() -> int:
    """Print the rows; 1 where a result is off."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="of the pictures, pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--target", default="sm_87")
    parser.add_argument("--precision", action="append", choices=("fp16", "int8"))
    parser.add_argument("--gates", type=int, help="only the first so many")
    parser.add_argument("--folder", type=Path, help="keeps files there, and takes those there are")
    options = parser.parse_args()
    if options.folder is None:
        with tempfile.TemporaryDirectory() as folder:
            return check(options, Path(folder))
    return check(options, options.folder)


def check(options: argparse.Namespace, folder: Path) -> int:
    """Make the files in `folder` and run them."""
    network = folder / "r50.onnx"
    if not network.exists():
        export_onnx("resnet50", network, image_size=options.size)
    wrong = 0
    for precision in options.precision or ("fp16", "int8"):
        converted, lowered = folder / f"{precision}.onnx", folder / f"{precision}-trt.onnx"
        if not converted.exists():
            settings = {"calibration": "photos", "images": 8} if precision == "int8" else {}
            convert(network, converted, precision=precision, **settings)
        with recorded_kernels() as kernels:
            lower(converted, lowered, targets=[options.target])
        gates = lowered_gates(lowered, converted)
        seconds = time.perf_counter()
        driver = build_driver(folder, driver_kernels(runs_of(gates), kernels), WARP)
        programs = Programs(packaged_library(folder), build_host(folder), driver)
        programs = programs.on(int(options.target.removeprefix("sm_")))
        built = time.perf_counter() - seconds
        print(
            f"\n{precision}: {len(gates)} gates, {len(kernels)} kernels, built in {built:.0f} s\n"
        )
        print("| gate | map | formats | tactics | error over bound |\n|---|---|--:|--:|--:|")
        for gate in gates[: options.gates]:
            maps, runs = gate.maps(options.batch), runs_of([gate])
            expected = gate.expected(maps)
            with tempfile.TemporaryDirectory() as place:
                all_y = results(gates, runs, {gate.name: maps}, programs, Path(place))
            worst = 0.0
            for run, y in zip(runs, all_y, strict=True):
                worst = max(worst, error_over_bound(y, expected, run.form.dtype))
                if fault := disagreement(gate.gate(run.form), y, expected):
                    wrong = 1
                    print(f"{gate.name} {run.form.layout} {run.tactic.number}: {fault}")
            sizes = "x".join(map(str, gate.program.sizes))
            row = (gate.name, sizes, len(gate.formats), len(runs), f"{worst:.2f}")
            print(f"| {' | '.join(map(str, row))} |", flush=True)
        print(f"\n{time.perf_counter() - seconds - built:.0f} s", flush=True)
    return wrong


if __name__ == "__main__":
    raise SystemExit(main())
