"""Results with values that tests can find again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cbam_deploy.benchmarking.result import BenchReport, Comparison, Entry, Verdict
from cbam_deploy.engines.build import BuildResult
from cbam_deploy.engines.manifest import ShapeRange
from cbam_deploy.explain.result import Answer, Explained, GradCamReport
from cbam_deploy.exporters.export_check import ExportError
from cbam_deploy.exporters.export_result import ExportResult
from cbam_deploy.gates.description import CBAM
from cbam_deploy.numerics.metrics import TensorError
from cbam_deploy.numerics.tolerances import Tolerance
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.provenance import ModelIdentity, Provenance
from cbam_deploy.report.units import TOP1, Estimate, MetricUnit
from cbam_deploy.studies.demonstration import DemoResult
from cbam_deploy.training.result import Epoch, TrainResult
from cbam_deploy.validation.accuracy_report import AccuracyReport, NetworkScore
from cbam_deploy.validation.metrics.metric import Reading, Score
from cbam_deploy.validation.parity_report import BatchParity, OutputParity, ParityReport


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
    error = TensorError(
        name=name,
        elements=640,
        reference_max=12.5,
        max_abs=3.4e-6,
        max_relative=2.7e-7,
        cosine=0.9999999,
        snr_db=131.2,
        top1_agreement=0.984375,
        nonfinite=0,
        reference_nonfinite=0,
    )
    return replace(error, **changes)


PARITY = ParityReport(
    artefact="digits.onnx",
    runtime="onnxruntime-cpu",
    reference="resnet20 + cbam",
    precision="fp32",
    inputs="pictures of digits",
    tolerance=Tolerance(max_relative=1e-4),
    batches=tuple(
        BatchParity(batch, 64, 0.1, (OutputParity(output_error("logits"), ()),)) for batch in (1, 8)
    ),
    layers=None,
    environment={},
)


def score(top1, top5):
    return Score((Reading("top1", TOP1, top1), Reading("top5", MetricUnit("top-5"), top5)))


ACCURACY = AccuracyReport(
    data="digits",
    images=360,
    skipped=(),
    networks=(
        NetworkScore("pytorch", "pytorch-cpu", score(0.9889, 1.0), 0.0, 0, 1234.0, "by name"),
        NetworkScore(
            "digits.onnx", "onnxruntime-cpu", score(0.9861, None), 0.0028, 1, 5678.0, "by name"
        ),
    ),
    max_drop=0.01,
    environment={},
)

PROVENANCE = Provenance(
    model=ModelIdentity(
        "resnet20",
        attention="cbam",
        gate=CBAM,
        num_classes=10,
        stem="cifar",
        weights="run/best.safetensors",
        weights_sha256="cd" * 32,
    ),
    preprocessing=Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    class_names=("0", "1"),
    gates={"CbamGateAddRelu": 9},
    versions={"torch": "2.13.0"},
)

TRAINING = TrainResult(
    output="run",
    weights="run/best.safetensors",
    provenance=PROVENANCE,
    epochs=tuple(
        Epoch(
            number=number,
            lr=0.1,
            train_loss=2.0 / number,
            train_accuracy=0.4 * number,
            val_loss=1.9 / number,
            val_accuracy=0.45 * number,
            seconds=62.5,
        )
        for number in (1, 2)
    ),
    started_from="initial, seed 0",
    pictures=1_442,
    held_out=355,
)

EXPORT = ExportResult(
    path=Path("digits.onnx"),
    sha256="ef" * 32,
    bytes=1_470_000,
    gates={"CbamGateAddRelu": 9},
    refused=(),
    error=ExportError(1e-6, 2e-7, 1e-4),
    seconds=2.0,
    provenance=PROVENANCE,
)

ENGINE = BuildResult(
    path=Path("digits.engine"),
    bytes=122_400_000,
    sha256="ab" * 32,
    seconds=3.21,
    runtime="tensorrt-rtx",
    version="1.7.1",
    targets=("sm_89",),
    profile={"input": ShapeRange((1, 3, 32, 32), (8, 3, 32, 32), (64, 3, 32, 32))},
    gates={"gate1": "native", "gate2": "native"},
    precision="fp32",
    manifest_path=Path("digits.engine.json"),
)


@pytest.fixture
def results(bench_report):
    """The road from training to measurement."""
    answer = Answer(0.9, "7", right=True)
    return DemoResult(
        page="demo.html",
        seconds=150.0,
        training=TRAINING,
        export=EXPORT,
        engine=ENGINE,
        parity=PARITY,
        accuracy=ACCURACY,
        gradcam=GradCamReport(
            page="gradcam.html",
            figures=(),
            data="digits",
            labels=("7",),
            networks=(Explained("resnet20 CBAM", "layer3", (answer,)),),
            artefacts=(),
            agreements=(),
            svgs={"gradcam": "<svg></svg>"},
        ),
        bench=bench_report,
    )
