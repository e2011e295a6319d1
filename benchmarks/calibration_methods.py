"""Which calibration method keeps most? INT8 against FP32 by method and number of pictures.

Networks trained on the digits with several seeds (top-1 on the held-out split), and any ONNX file
given with pictures of its own (signal-to-noise of the outputs).

    python benchmarks/calibration_methods.py [--seeds 4] [--also model.onnx photos]
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cbam_deploy import convert, evaluate, export_onnx, train
from cbam_deploy.data import open_source
from cbam_deploy.graphs.onnx_file import read_provenance
from cbam_deploy.training.recipes import DIGITS

METHODS = ("minmax", "percentile", "entropy")
COUNTS = (64, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--also", nargs=2, metavar=("MODEL.onnx", "SOURCE"))
    options = parser.parse_args()
    print("| network | method | pictures | SNR dB | top-1 | drop | other predictions |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(options.seeds):
            run, network = folder / f"run{seed}", folder / f"digits{seed}.onnx"
            train(**{**DIGITS, "seed": seed}, output=run)
            export_onnx("resnet20", network, weights=run / "best.safetensors")
            compare(network, "digits", folder)
        if options.also:
            compare(Path(options.also[0]), options.also[1], folder)


def compare(network: Path, data: str, folder: Path) -> None:
    """Print a row for each method and number of calibration pictures."""
    converted = folder / "int8.onnx"
    pictures = held_out(network, data)
    reference = logits(network, pictures)
    for method, images in itertools.product(METHODS, COUNTS):
        report = convert(
            network, converted, precision="int8", calibration=data, method=method, images=images
        )
        if report.calibration["images"] < images:
            continue  # The source has no more pictures than last time.
        noise = logits(converted, pictures) - reference
        snr = 10 * np.log10(np.sum(reference**2) / np.sum(noise**2))
        row = [network.name, method, report.calibration["images"], f"{snr:.1f}"]
        if data == "digits":
            _, after = evaluate([network, converted], data=data).networks
            row += [f"{after.value:.2%}", f"{100 * after.drop:.2f}", after.disagreements]
        print("|", " | ".join(map(str, [*row, *["", "", ""][: 7 - len(row)]])), "|", flush=True)


def held_out(network: Path, data: str) -> NDArray[np.float32]:
    """Pictures the network was not calibrated on, where the source has a split."""
    provenance = read_provenance(network)
    assert provenance is not None
    assert provenance.preprocessing is not None
    source = open_source(data, provenance.preprocessing, split="test")
    return np.concatenate([batch.images for batch in source.batches(64)])


def logits(network: Path, pictures: NDArray[np.float32]) -> NDArray[np.float64]:
    session = onnxruntime.InferenceSession(network)
    batches = np.array_split(pictures, max(1, len(pictures) // 32))
    outputs = [session.run(None, {"input": batch})[0] for batch in batches]
    return np.concatenate(outputs).astype(np.float64)


if __name__ == "__main__":
    main()
