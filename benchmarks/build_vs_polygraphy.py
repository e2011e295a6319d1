"""How long `cbam-deploy build-engine` takes against `polygraphy convert` on the same ONNX file.

Both run as whole commands, in turn, so that a drifting machine favours neither; which one goes
first alternates. Both build for TensorRT-RTX with the same optimization profile, strongly typed.

    python benchmarks/build_vs_polygraphy.py [MODEL.onnx] [--rounds 10]

Without a file, CBAM-ResNet-50 is exported first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cbam_deploy.engines.manifest import read_manifest
from cbam_deploy.machine import clocks, environment

BOUND = 1.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or exported(Path(folder))
        ours = our_command(model, Path(folder) / "ours.engine")
        seconds(ours)
        theirs = polygraphy_command(model, Path(folder) / "ours.engine")
        seconds(theirs)
        before = clocks()["cpu_mhz"]
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for turn in range(given.rounds):
            pair = [("ours", ours), ("theirs", theirs)]
            for name, command in pair if turn % 2 == 0 else reversed(pair):
                times[name].append(seconds(command))
        return report(model, times, before)


def exported(folder: Path) -> Path:
    """CBAM-ResNet-50 as `cbam-deploy export` writes it."""
    model = folder / "cbam-resnet50.onnx"
    subprocess.run(
        [sys.executable, "-m", "cbam_deploy", "export", "resnet50", "-o", model], check=True
    )
    return model


def our_command(model: Path, engine: Path) -> list[str]:
    command = [sys.executable, "-m", "cbam_deploy", "build-engine", model, "-o", engine]
    return [str(word) for word in [*command, "--runtime", "tensorrt-rtx"]]


def polygraphy_command(model: Path, engine: Path) -> list[str]:
    """The same build in Polygraphy's words; the shapes are those of our manifest."""
    command = [str(Path(sys.executable).with_name("polygraphy")), "convert", str(model)]
    command += ["-o", str(engine.with_name("theirs.engine")), "--strongly-typed"]
    for end in ("min", "opt", "max"):
        command.append(f"--trt-{end}-shapes")
        for name, shapes in read_manifest(engine).profile.items():
            command.append(f"{name}:[{','.join(map(str, getattr(shapes, end)))}]")
    return command


def seconds(command: list[str]) -> float:
    """Wall-clock time of one whole command."""
    rtx = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"}
    start = time.perf_counter()
    subprocess.run(command, check=True, env=rtx, capture_output=True)
    return time.perf_counter() - start


def report(model: Path, times: dict[str, list[float]], before: list[float]) -> int:
    """Print a Markdown record; the exit code says whether the bound holds."""
    here = environment()
    packages = {name: here["packages"].get(name) for name in ("tensorrt-rtx-cu13", "polygraphy")}
    ratios = sorted(o / t for o, t in zip(times["ours"], times["theirs"], strict=True))
    ratio = statistics.median(times["ours"]) / statistics.median(times["theirs"])
    print(f"Model: {model.name}, {model.stat().st_size / 1e6:.0f} MB; {len(ratios)} rounds\n")
    print(f"Machine: {here['cpu']}, {here['cores']} cores, {here['os']}, Python {here['python']}")
    print(f"Versions: {packages}; clocks before {before} MHz, after {clocks()['cpu_mhz']} MHz\n")
    print("| command | median | fastest | slowest |\n|---|---|---|---|")
    for name, title in (("ours", "cbam-deploy build-engine"), ("theirs", "polygraphy convert")):
        middle, low, high = statistics.median(times[name]), min(times[name]), max(times[name])
        print(f"| {title} | {middle:.2f} s | {low:.2f} s | {high:.2f} s |")
    print(
        f"\nRatio of medians {ratio:.3f} (pair by pair {ratios[0]:.2f} to {ratios[-1]:.2f})", end=""
    )
    print(f"; bound {BOUND}: {'holds' if ratio <= BOUND else 'does not hold'}")
    return 0 if ratio <= BOUND else 1


if __name__ == "__main__":
    raise SystemExit(main())
