"""The whole road in one call: train, export, build, validate, evaluate, explain, bench, report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cbam_deploy.progress import announce
from cbam_deploy.report.content import Section
from cbam_deploy.report.result import Result

if TYPE_CHECKING:
    from cbam_deploy.benchmarking.result import BenchReport
    from cbam_deploy.engines.build import BuildResult
    from cbam_deploy.explain.result import GradCamReport
    from cbam_deploy.exporters.export_result import ExportResult
    from cbam_deploy.training.result import TrainResult
    from cbam_deploy.validation.accuracy_report import AccuracyReport
    from cbam_deploy.validation.parity_report import ParityReport

BATCHES = (1, 8, 64)


@dataclass(frozen=True)
class DemoResult(Result):
    """What each step came to, and the page that shows it."""

    title: ClassVar[str] = "From training to a measured engine"
    schema: ClassVar[str] = "cbam_deploy.demo"

    page: str
    seconds: float
    training: TrainResult
    export: ExportResult
    engine: BuildResult
    parity: ParityReport
    accuracy: AccuracyReport
    gradcam: GradCamReport
    bench: BenchReport

    @property
    def passed(self) -> bool:
        """Whether the network kept its outputs on the way."""
        return self.parity.passed

    def failure(self) -> tuple[str, str]:
        """Message and hint of the parity check."""
        return self.parity.failure()

    @property
    def subtitle(self) -> str:
        """The network."""
        return "A CBAM-ResNet-20 that reads handwritten digits"

    def sections(self) -> tuple[Section, ...]:
        """Those of every step; the machine comes last, with `bench`."""
        steps: tuple[Result, ...] = (
            self.training,
            self.export,
            self.parity,
            self.accuracy,
            self.gradcam,
            self.engine,
            self.bench,
        )
        return tuple(section for step in steps for section in step.sections())


def demo(output: str | Path = "demo", *, seed: int = 0) -> DemoResult:
    """Train a CBAM-ResNet-20 on handwritten digits and take it to a measured engine.

    The engine is TensorRT-RTX's, for compute capability 8.9, which a machine without a GPU can
    build; what runs here, and is validated and measured, is the ONNX file it was built from.

    Args:
        output: folder for every artefact and report. In that of an earlier demo, training goes on
            where it stopped and the other files are replaced.
        seed: of everything random.

    Raises:
        BadInput: `output` cannot be a folder, or has a demo of another seed.
        MissingCapability: a package of the extras ``rtx`` or ``demo`` is not installed.
    """
    from cbam_deploy import (
        bench,
        build_engine,
        convert,
        evaluate,
        export_onnx,
        gradcam,
        train,
        validate,
    )
    from cbam_deploy.report.html import write_page
    from cbam_deploy.report.json_file import write_json
    from cbam_deploy.training.recipes import DIGITS

    started = time.perf_counter()
    folder = Path(output)
    model, plain = folder / "model.onnx", folder / "plain.onnx"
    with _step("train a CBAM-ResNet-20 on handwritten digits"):
        training = train(**DIGITS, output=folder / "run", seed=seed, resume=True)
    with _step("export it to ONNX, gates fused"):
        export = export_onnx("resnet20", model, weights=training.weights)
        export_onnx(
            "resnet20",
            plain,
            attention="none",
            num_classes=10,
            image_size=DIGITS["image_size"],
            seed=seed,
        )
    with _step("build a TensorRT-RTX engine"):
        engine = build_engine(
            model, folder / "model.engine", runtime="tensorrt-rtx", targets=("sm_89",)
        )
    with _step("compare with PyTorch, gate by gate"):
        parity = validate(model, weights=training.weights, data="digits", layers="gates", seed=seed)
        write_json(folder / "parity.json", parity.to_json())
    with _step("measure accuracy"):
        accuracy = evaluate([model], data="digits", weights=training.weights)
        write_json(folder / "accuracy.json", accuracy.to_json())
    with _step("show where it looks, in FP32 and in INT8"):
        int8 = folder / "model.int8.onnx"
        convert(model, int8, precision="int8", calibration="digits", seed=seed)
        explained = gradcam(
            training.weights, folder / "gradcam", data="digits", artefacts=[model, int8], seed=seed
        )
    with _step("measure latency, against the same network without gates"):
        measured = bench(
            [model], weights=training.weights, relative_to=plain, batch_sizes=BATCHES, seed=seed
        )
        write_json(folder / "bench.json", measured.to_json())
    result = DemoResult(
        page=str(folder / "report.html"),
        seconds=time.perf_counter() - started,
        training=training,
        export=export,
        engine=engine,
        parity=parity,
        accuracy=accuracy,
        gradcam=explained,
        bench=measured,
    )
    write_page(result, result.page)
    return result


@contextmanager
def _step(title: str) -> Iterator[None]:
    """Say on stderr what happens now, and in the end how long it took."""
    started = time.perf_counter()
    announce(title)
    yield
    announce(f"    {time.perf_counter() - started:.1f} s")
