"""Do `evaluate` and INT8 calibration need more memory for more images? Peak memory of each.

    python benchmarks/memory_by_images.py [--images 5000 50000]

Each directory has ten classes of JPEG files of noise, 48 x 40 pixels; the network is a
CBAM-ResNet-20 for pictures of 32 pixels. Every command runs in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cbam_deploy import export_onnx

CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 50000])
    options = parser.parse_args()
    print("| command | images | peak MB | seconds |")
    print("|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = folder / "network.onnx"
        export_onnx("resnet20", network, num_classes=CLASSES, image_size=32)
        for count in options.images:
            pictures = folder / str(count)
            generate(pictures, count)
            calibrated = ["--calibration", pictures, "--images", str(count)]
            commands = {
                "evaluate": ["evaluate", network, "--data", pictures],
                "convert --precision int8": [
                    *("convert", network, "--precision", "int8", "-o", folder / "int8.onnx"),
                    *calibrated,
                ],
            }
            for title, command in commands.items():
                peak, seconds = run_apart(command)
                print(f"| {title} | {count} | {peak / 1e6:.0f} | {seconds:.1f} |", flush=True)


def generate(folder: Path, count: int) -> None:
    """Write `count` different pictures in folders by class."""
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
    for index in range(count):
        noise = random.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"class{index % CLASSES}" / f"{index}.jpg")


def run_apart(command: list[str | Path]) -> tuple[int, float]:
    """Peak memory in bytes, and duration in seconds, of a command of cbam-deploy."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "cbam_deploy", *command], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss * 1024, time.perf_counter() - begin


if __name__ == "__main__":
    main()
