"""Self-contained HTML pages: style and plots are inside, nothing is fetched."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbam_deploy import __version__
from cbam_deploy.outputs import write_text
from cbam_deploy.report.content import Figure, Section

if TYPE_CHECKING:
    from cbam_deploy.benchmarking.result import BenchReport
    from cbam_deploy.explain.result import GradCamReport


def render_page(
    title: str,
    sections: Sequence[Section],
    *,
    path: str | Path,
    subtitle: str = "",
) -> None:
    """Write `sections` as one page to `path`, atomically.

    Everything but the figures' SVG is escaped. The page carries a badge when a section does:
    failed if any failed.

    Raises:
        BadInput: `path` cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("cbam_deploy.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    numbers = itertools.count(1)

    def svg(figure: Figure) -> Markup:
        return Markup(_with_own_ids(figure.svg, f"plot-{next(numbers)}-"))

    outcomes = [section.passed for section in sections if section.passed is not None]
    page = environment.get_template("page.html").render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        passed=all(outcomes) if outcomes else None,
        svg=svg,
        version=__version__,
        made_on=datetime.date.today().isoformat(),
    )
    # File names may hold bytes that are not UTF-8; they come here as lone surrogates.
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))


def _with_own_ids(svg: str, prefix: str) -> str:
    """`svg` with `prefix` before every id and every reference to one: a page holds several."""
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    return re.sub(r"url\(#", f"url(#{prefix}", svg)


def bench_page(report: BenchReport, path: str | Path) -> None:
    """Write what `bench` found as a page with a latency plot and a throughput plot.

    Raises:
        BadInput: `path` cannot be written.
        MissingCapability: matplotlib is not installed.
    """
    from cbam_deploy.report.bench_section import bench_section

    artefacts = dict.fromkeys(entry.artefact for entry in report.entries)
    sections = [bench_section(report), _environment_section(report)]
    render_page("Benchmark", sections, path=path, subtitle=", ".join(artefacts))


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
    from cbam_deploy.report.accuracy_section import accuracy_section
    from cbam_deploy.report.artefact_section import engine_section, onnx_section
    from cbam_deploy.report.bench_section import bench_section
    from cbam_deploy.report.gradcam_section import gradcam_sections
    from cbam_deploy.report.parity_section import parity_section
    from cbam_deploy.report.training_section import training_section

    sections = [
        training and training_section(training),
        onnx and onnx_section(*onnx),
        parity and parity_section(parity),
        accuracy and accuracy_section(accuracy),
        *(gradcam_sections(gradcam) if gradcam else ()),
        engine and engine_section(engine),
        bench and bench_section(bench),
        bench and _environment_section(bench),
    ]
    render_page(title, [section for section in sections if section], path=path, subtitle=subtitle)


def _environment_section(report: BenchReport) -> Section:
    from cbam_deploy.report.environment_section import environment_section

    return environment_section(report.environment, report.clocks_before, report.clocks_after)
