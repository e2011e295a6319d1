"""Does the data path of `train` keep up? Pictures a second it delivers, and the network takes.

    python benchmarks/training_data_path.py [--data FOLDER] [--model resnet50] [--amp bf16]

Without a folder, JPEG files of ImageNet's usual size (500 x 375 pixels) are made from the built-in
photographs. Pictures are decoded, cropped and brought to the device as in training; the network
learns from one batch over and over, so that it never waits. The page cache is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from cbam_deploy.data import ImageSource, open_source
from cbam_deploy.machine import environment
from cbam_deploy.models import create_model
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.training.augment import random_resized_crop_and_flip
from cbam_deploy.training.feed import on_device
from cbam_deploy.training.precision import MixedPrecision

IMAGENET_SIZE = (500, 375)


@dataclass(frozen=True)
class Figure:
    """Images a second of one part: the median of the rounds, and the slowest and fastest."""

    part: str
    images_per_second: float
    slowest: float
    fastest: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="labelled pictures; made up where left out")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--attention", default="cbam", choices=("cbam", "se", "none"))
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--amp", default="none", choices=("none", "bf16", "fp16"))
    parser.add_argument("--workers", type=int, action="append", help="repeat for several")
    parser.add_argument("--batches", type=int, default=4, help="batches a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="also write the figures as JSON")
    given = parser.parse_args()
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    preprocessing = Preprocessing.for_size(given.image_size)
    parts: dict[str, Callable[[int], int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = given.data or made_up(Path(folder), min(given.batch_size * given.batches, 512))
        source = open_source(data, preprocessing, split="train")
        cores = os.cpu_count() or 1
        for workers in given.workers or sorted({1, min(cores, 8), cores}):
            parts[f"data path, {workers} threads"] = reading(source, given, workers, device)
        parts[f"{given.model} + {given.attention}, {given.amp}"] = learning(given, device)
        figures = [measure(part, run, given.rounds) for part, run in parts.items()]
    network = figures[-1].images_per_second
    for figure in figures:
        print(
            f"{figure.part:32} {figure.images_per_second:8.1f} images/s"
            f" ({figure.slowest:.1f} to {figure.fastest:.1f}),"
            f" {figure.images_per_second / network:.2f} of the network's"
        )
    if given.json:
        content = {"environment": environment(), "figures": [asdict(figure) for figure in figures]}
        given.json.write_text(json.dumps(content, indent=1))


def made_up(folder: Path, count: int) -> str:
    """JPEG files of real scenes, shifted each so that no two are alike."""
    photos = open_source("photos", Preprocessing(256, 256, (0, 0, 0), (1, 1, 1)))
    from PIL import Image

    views = np.concatenate([batch.images for batch in photos.batches(16)])
    (folder / "class").mkdir()
    for number in range(count):
        pixels = np.roll(views[number % len(views)], number, axis=(1, 2)).transpose(1, 2, 0)
        picture = Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).resize(IMAGENET_SIZE)
        picture.save(folder / "class" / f"{number}.jpg", quality=90)
    return str(folder)


def reading(
    source: ImageSource, given: argparse.Namespace, workers: int, device: torch.device
) -> Callable[[int], int]:
    """Bring the pictures of a round to the device; returns how many."""

    def run(number: int) -> int:
        batches = source.batches(
            given.batch_size,
            limit=given.batch_size * given.batches,
            shuffle_seed=(0, number),
            augment=random_resized_crop_and_flip,
            workers=workers,
        )
        count = sum(len(labels) for _, labels in on_device(batches, device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # The last copies are still under way.
        return count

    return run


def learning(given: argparse.Namespace, device: torch.device) -> Callable[[int], int]:
    """Take the steps of a round; returns how many pictures they had."""
    network = create_model(given.model, attention=given.attention, seed=0)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    precision = MixedPrecision(given.amp, device)
    size = (given.batch_size, 3, given.image_size, given.image_size)
    images = torch.randn(size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(given.batch_size, dtype=torch.int64, device=device)

    def run(_number: int) -> int:
        for _ in range(given.batches):
            with precision.forward():
                loss = cross_entropy(network(images).float(), labels)
            precision.step(loss, optimizer)
        loss.item()  # Waits for the device.
        return given.batch_size * given.batches

    return run


def measure(part: str, run: Callable[[int], int], rounds: int) -> Figure:
    """Time `run` after one round to warm up."""
    run(0)
    rates = []
    for number in range(1, rounds + 1):
        begin = time.perf_counter()
        count = run(number)
        rates.append(count / (time.perf_counter() - begin))
    return Figure(part, float(np.median(rates)), min(rates), max(rates))


if __name__ == "__main__":
    main()
