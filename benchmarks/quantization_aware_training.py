"""INT8 by calibration and by training, on a network that calibration costs points.

    OMP_NUM_THREADS=1 python benchmarks/quantization_aware_training.py --seed 0 1 2

A MobileNet with SE gates is trained on the digits; then six channels behind its second block are
made 64 times as large, and the weights that read them as much smaller: a power of two, so the FP32
network computes the same. INT8 has one scale for all channels of an activation, so the other 122
keep a few levels only. Where that costs less than two points by calibration, the factor is doubled
until it does.

Every network is an ONNX file and judged on the 355 held-out digits in ONNX Runtime on the CPU: run
as it is written, and optimized, by which ONNX Runtime also rounds biases to integers. The control
is fine-tuned as long and in the same way in FP32, then calibrated.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import cbam_deploy
from cbam_deploy.artefacts import open_onnx
from cbam_deploy.data.builtin import open_digits
from cbam_deploy.data.network_input import network_feeds
from cbam_deploy.graphs.session import open_session
from cbam_deploy.graphs.signature import specs_of
from cbam_deploy.models import load_state

MODEL = {"model": "mobilenet", "attention": "se"}
BATCH = 64
BLOCK, CHANNELS, FACTORS = 1, 6, (64, 128, 256, 512, 1024)
POINTS = 0.02
DIGITS = 355
METHODS = ("percentile", "entropy")


def plant(state: dict[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    """The same network, outliers in the channels of the largest gamma and beta."""
    state = {name: tensor.clone() for name, tensor in state.items()}
    gamma, beta = (state[f"blocks.{BLOCK}.bn2.{kind}"] for kind in ("weight", "bias"))
    loud = (gamma.abs() + beta.abs()).argsort(descending=True)[:CHANNELS]
    gamma[loud] *= factor
    beta[loud] *= factor
    state[f"blocks.{BLOCK}.gate2.channel.reduce.weight"][:, loud] /= factor
    state[f"blocks.{BLOCK + 1}.depthwise.weight"][loud] /= factor
    return state


def right(path: Path, *, as_written: bool = True) -> int:
    """How many of the held-out digits the file knows, as it is written or optimized."""
    opened = open_onnx(path)
    source = open_digits(opened.provenance.preprocessing, "test")
    session = open_session(path, str(path), as_written=as_written)
    known = 0
    for batch in source.batches(BATCH):
        feeds = network_feeds(batch.inputs, source, specs_of(opened.model.graph.inputs))
        known += int((session.run(None, feeds)[0].argmax(1) == batch.labels).sum())
    return known


def measure(seed: int, folder: Path) -> dict[str, int]:
    """Right answers of every network of one seed."""
    fine_tuning = {"data": "digits", "image_size": 32, "batch_size": BATCH, "seed": seed}
    base = cbam_deploy.train(
        **MODEL, **fine_tuning, output=folder / "base", epochs=12, lr=0.05, lr_step=5,
        weight_decay=5e-4,
    )  # fmt: skip
    weights = folder / "outliers.safetensors"

    def exported(name: str, **options: object) -> Path:
        path = folder / f"{name}.onnx"
        cbam_deploy.export_onnx(MODEL["model"], path, **options)
        return path

    def calibrated(name: str, fp32: Path, method: str) -> Path:
        path = folder / f"{name}-{method}.onnx"
        cbam_deploy.convert(
            fp32, path, precision="int8+fp32", calibration="digits", method=method, seed=seed
        )
        return path

    classes = {"attention": "se", "num_classes": 10, "image_size": 32}
    for factor in FACTORS:
        save_file(plant(dict(load_state(base.weights).state_dict), factor), weights)
        fp32 = exported("outliers", weights=weights, **classes)
        files = {f"calibrated, {METHODS[0]}": calibrated("ptq", fp32, METHODS[0])}
        if right(fp32) - right(files[f"calibrated, {METHODS[0]}"]) >= POINTS * DIGITS:
            break
    files |= {f"calibrated, {name}": calibrated("ptq", fp32, name) for name in METHODS[1:]}
    control = cbam_deploy.train(
        **MODEL, **fine_tuning, weights=weights, output=folder / "control", epochs=20, lr=0.001,
        lr_step=10,
    )  # fmt: skip
    tuned = exported("control", weights=control.weights)
    files["fine-tuned in FP32, calibrated"] = calibrated("control", tuned, METHODS[0])
    trained = cbam_deploy.train(
        **MODEL, **fine_tuning, weights=weights, output=folder / "int8", quantize=True
    )
    files["--quantize"] = exported("int8", weights=trained.weights)
    found = {"factor": factor, "FP32": right(fp32), "fine-tuned in FP32": right(tuned)}
    found |= {name: right(path) for name, path in files.items()}
    found |= {f"{name}; optimized": right(path, as_written=False) for name, path in files.items()}
    assert trained.best.val_accuracy is not None
    found["--quantize, in PyTorch"] = round(trained.best.val_accuracy * DIGITS)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, nargs="*", default=[0, 1, 2])
    seeds = parser.parse_args().seed
    runs = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(seed, Path(folder)))
    print("| network | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean | spread |")
    print("|---|" + "---:|" * (len(seeds) + 2))
    print("| factor | " + " | ".join(str(run.pop("factor")) for run in runs) + " | | |")
    for name in runs[0]:
        tops = [100 * run[name] / DIGITS for run in runs]
        cells = [f"{top:.2f}%" for top in tops]
        spread = f"{statistics.stdev(tops):.2f}" if len(tops) > 1 else ""
        print(f"| {name} | {' | '.join(cells)} | {statistics.mean(tops):.2f}% | {spread} |")
    for ending in ("", "; optimized"):
        calibrated, trained = f"calibrated, {METHODS[0]}{ending}", f"--quantize{ending}"
        lost = [run["FP32"] - run[calibrated] for run in runs]
        regained = [run[trained] - run[calibrated] for run in runs]
        cells = [f"{100 * r / max(loss, 1):.0f}%" for r, loss in zip(regained, lost, strict=True)]
        total = f"{100 * sum(regained) / max(sum(lost), 1):.0f}%"
        print(f"| regained{ending} | {' | '.join(cells)} | {total} | |")


if __name__ == "__main__":
    main()
