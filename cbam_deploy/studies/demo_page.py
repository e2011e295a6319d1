"""The whole road from training to measurement as one page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cbam_deploy.benchmarking.result import BenchReport
from cbam_deploy.benchmarking.section import bench_environment, bench_section
from cbam_deploy.explain.result import GradCamReport
from cbam_deploy.explain.section import gradcam_sections
from cbam_deploy.report.html import render_page
from cbam_deploy.studies.artefact_section import engine_section, onnx_section
from cbam_deploy.training.section import training_section
from cbam_deploy.validation.accuracy_section import accuracy_section
from cbam_deploy.validation.parity_section import parity_section


def demo_page(
    path: str | Path,
    *,
    title: str,
    subtitle: str = "",
    training: Mapping[str, Any] | None = None,
    onnx: tuple[str | Path, Mapping[str, Any]] | None = None,
    parity: Mapping[str, Any] | None = None,
    accuracy: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
    bench: BenchReport | None = None,
    gradcam: GradCamReport | None = None,
) -> None:
    """Write the whole road from training to measurement as one page; what is None is left out.

    Args:
        path: file to write.
        title: of the page.
        subtitle: a line below it.
        training: `TrainResult.to_json()`.
        onnx: the ONNX file and `Provenance.to_json()` of it.
        parity: `ParityReport.to_json()`.
        accuracy: `AccuracyReport.to_json()`.
        engine: `BuildResult.to_json()`.
        bench: what `bench` returned; it brings the environment.
        gradcam: what `gradcam` returned.

    Raises:
        BadInput: `path` cannot be written.
        MissingCapability: matplotlib is not installed.
    """
    sections = [
        training and training_section(training),
        onnx and onnx_section(*onnx),
        parity and parity_section(parity),
        accuracy and accuracy_section(accuracy),
        *(gradcam_sections(gradcam) if gradcam else ()),
        engine and engine_section(engine),
        bench and bench_section(bench),
        bench and bench_environment(bench),
    ]
    render_page(title, [section for section in sections if section], path=path, subtitle=subtitle)
