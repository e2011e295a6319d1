"""Results as the rooms that make them write them, with values that tests can find again."""

from __future__ import annotations

import copy

import pytest

from cbam_deploy.benchmarking.result import BenchReport, Comparison, Entry, Verdict
from cbam_deploy.report.units import Estimate


def make_entry(artefact, runtime, batch, median, relative=None):
    return Entry(
        artefact,
        runtime,
        batch,
        sha256="0" * 64,
        runs=400,
        round_seconds=tuple(median * (1 + 0.001 * number) for number in range(10)),
        median_seconds=median,
        p90_seconds=1.1 * median,
        p95_seconds=1.2 * median,
        p99_seconds=1.5 * median,
        images_per_second=Estimate(batch / median, 0.98 * batch / median, 1.01 * batch / median),
        relative=relative,
        peak_memory_bytes=66_100_000,
        peak_memory_of="process",
    )


@pytest.fixture
def bench_report():
    slower = Estimate(1.0432, 1.0211, 1.0663)
    cpu = "onnxruntime-cpu"
    return BenchReport(
        entries=(
            make_entry("plain.onnx", cpu, 1, 0.025),
            make_entry("plain.onnx", cpu, 8, 0.1874),
            make_entry("cbam.onnx", cpu, 1, 0.0264, slower),
            make_entry("cbam.onnx", cpu, 8, 0.1955, slower),
        ),
        settings={"input": "noise, seed 0"},
        environment={
            "cpu": "Some Processor",
            "cores": 2,
            "memory_bytes": 8 * 2**30,
            "gpus": [
                {"name": "Some GPU", "compute_capability": [8, 9], "memory_bytes": 24 * 2**30}
            ],
            "driver": "580.1",
            "os": "Some Linux",
            "kernel": "6.1",
            "python": "3.11.2",
            "packages": {"torch": "2.13.0"},
            "threads": {"OMP_NUM_THREADS": "2"},
        },
        clocks_before={"cpu_mhz": [2000.0, 2200.0], "gpu_sm_mhz": []},
        clocks_after={"cpu_mhz": [1900.0, 1900.0], "gpu_sm_mhz": []},
        relative_to="plain.onnx",
        comparison=Comparison(
            "old.json", 0.01, (Verdict("cbam.onnx", cpu, 8, slower, held=False),), ("a caution",)
        ),
        notes=("a note",),
    )


def output_error(name, **changes):
    return {
        "name": name,
        "elements": 640,
        "reference_max": 12.5,
        "max_abs": 3.4e-6,
        "max_relative": 2.7e-7,
        "cosine": 0.9999999,
        "snr_db": 131.2,
        "top1_agreement": 0.984375,
        "nonfinite": 0,
        "reference_nonfinite": 0,
        "failures": [],
        **changes,
    }


PARITY = {
    "artefact": "digits.onnx",
    "passed": True,
    "failures": [],
    "runtime": "onnxruntime-cpu",
    "reference": "resnet20 + cbam",
    "precision": "fp32",
    "inputs": "pictures of digits",
    "tolerance": {"max_relative": 1e-4},
    "batches": [
        {"batch": 1, "samples": 64, "seconds": 0.1, "outputs": [output_error("logits")]},
        {"batch": 8, "samples": 64, "seconds": 0.1, "outputs": [output_error("logits")]},
    ],
    "layers": None,
}

ACCURACY = {
    "data": "digits",
    "images": 360,
    "skipped": [],
    "passed": True,
    "max_drop": 0.01,
    "networks": [
        {
            "name": "pytorch",
            "runtime": "pytorch-cpu",
            "top1": 0.9889,
            "top5": 1.0,
            "drop": 0.0,
            "disagreements": 0,
            "images_per_second": 1234.0,
        },
        {
            "name": "digits.onnx",
            "runtime": "onnxruntime-cpu",
            "top1": 0.9861,
            "top5": None,
            "drop": 0.0028,
            "disagreements": 1,
            "images_per_second": 5678.0,
        },
    ],
}

TRAINING = {
    "seconds": 125.0,
    "best_epoch": 2,
    "epochs": [
        {
            "number": number,
            "train_loss": 2.0 / number,
            "train_accuracy": 0.4 * number,
            "val_loss": 1.9 / number,
            "val_accuracy": 0.45 * number,
        }
        for number in (1, 2)
    ],
}

ENGINE = {
    "path": "digits.engine",
    "bytes": 122_400_000,
    "sha256": "ab" * 32,
    "seconds": 3.21,
    "runtime": "tensorrt-rtx",
    "version": "1.7.1",
    "targets": ["sm_89"],
    "profile": {"input": {"min": [1, 3, 32, 32], "opt": [8, 3, 32, 32], "max": [64, 3, 32, 32]}},
    "gates": {"gate1": "native", "gate2": "native"},
}

PROVENANCE = {
    "model": {
        "name": "resnet20",
        "attention": "cbam",
        "gate": {"channel_pool": "avg+max", "reduction": 16},
        "num_classes": 10,
        "stem": "cifar",
        "seed": 0,
        "weights": "run/best.safetensors",
        "weights_sha256": "cd" * 32,
    },
    "preprocessing": {
        "image_size": 32,
        "resize": 32,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    },
    "precision": "fp32",
    "gates": {"CbamGateAddRelu": 9},
    "versions": {"torch": "2.13.0"},
}


@pytest.fixture
def results():
    """Everything that a page can report on, as JSON, free to be changed."""
    return copy.deepcopy(
        {
            "training": TRAINING,
            "parity": PARITY,
            "accuracy": ACCURACY,
            "engine": ENGINE,
            "provenance": PROVENANCE,
        }
    )
