"""`ablation`: train every variant, export it, build it, measure it, and set all in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cbam_deploy.benchmarking import bench
from cbam_deploy.benchmarking.result import Entry
from cbam_deploy.costs import complexity
from cbam_deploy.data import open_source
from cbam_deploy.errors import BadInput
from cbam_deploy.machine import environment, gpus
from cbam_deploy.outputs import write_text
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.progress import progress
from cbam_deploy.report.html import write_page
from cbam_deploy.report.json_file import write_json
from cbam_deploy.studies.result import (
    DIGITS_NOTE,
    AblationReport,
    Latency,
    SeedResult,
    VariantResult,
)
from cbam_deploy.studies.variant_training import build_variant, export_variant, train_variant
from cbam_deploy.studies.variants import Variant, chosen_variants
from cbam_deploy.training.recipes import DIGITS

_NOTES = (
    "Error: mean and standard deviation over seeds, of the held-out pictures after the last epoch;"
    " no epoch is chosen by them. Parameters, engine and latency do not depend on the seed.",
    "Latency at batch 1, all variants interleaved in one run (`bench`).",
)


def ablation(
    output: str | Path,
    *,
    data: str = "digits",
    model: str = "resnet20",
    variants: Sequence[str] | None = None,
    epochs: int | None = None,
    seeds: int = 2,
    image_size: int | None = None,
    batch_size: int | None = None,
    seconds: float = 1.0,
    device: str | None = None,
) -> AblationReport:
    """Compare variants of the gate by accuracy, cost and deployed latency.

    Writes ablation.json, ablation.md and ablation.html to `output`, beside each variant's training
    runs, ONNX file and engine. A study that was stopped goes on where it was when called again with
    the same options: finished cells are not trained again, a cell in between resumes at its epoch.

    Args:
        output: folder of the study.
        data: SOURCE with held-out pictures.
        model: name in the zoo.
        variants: names out of `variants.VARIANTS`, or gates as `parse_gate` describes them; None
            for the paper's. The network without gates is always among them.
        epochs: of each cell; by default those of the recipe, 10 for ``digits``, else 90.
        seeds: how many cells each variant has, seeds counted from 0.
        image_size: side of the input in pixels; by default the recipe's.
        batch_size: pictures a step; by default the recipe's.
        seconds: of timing for each variant.
        device: to train on, ``cpu`` or ``cuda``.

    Raises:
        BadInput: an option cannot work, or `output` holds a study with other options.
        MissingCapability: a package is missing.
    """
    if seeds < 1:
        raise BadInput(f"{seeds} seeds", "give at least 1")
    chosen = chosen_variants(variants)
    settings = training_settings(model, data, epochs, image_size, batch_size)
    folder = Path(output)
    cells: dict[str, list[SeedResult]] = {variant.name: [] for variant in chosen}
    with progress() as bar:
        task = bar.add_task("train", total=seeds * len(chosen))
        for seed in range(seeds):
            for variant in chosen:
                bar.update(task, description=f"{variant.name}, seed {seed}")
                cells[variant.name].append(
                    train_variant(folder, variant, seed, {**settings, "device": device})
                )
                bar.update(task, advance=1)
        bar.update(task, description="export and build", total=len(chosen), completed=0)
        files: dict[str, tuple[Path, Path | None]] = {}
        for variant in chosen:
            onnx = export_variant(folder, variant, _first(cells[variant.name]), model)
            if onnx is not None:
                files[variant.name] = (onnx, build_variant(onnx))
            bar.update(task, advance=1)
    entries = _measure(files, seconds)
    rows = tuple(
        _row(variant, cells[variant.name], files.get(variant.name), entries, settings)
        for variant in chosen
    )
    report = AblationReport(
        page=str(folder / "ablation.html"),
        model=model,
        data=data,
        epochs=settings["epochs"],
        seeds=tuple(range(seeds)),
        rows=rows,
        settings=settings,
        environment=environment(),
        notes=(*_NOTES, *([DIGITS_NOTE] if data == "digits" else [])),
    )
    write_json(folder / "ablation.json", report.to_json())
    write_text(folder / "ablation.md", report.markdown())
    write_page(report, report.page)
    return report


def training_settings(
    model: str, data: str, epochs: int | None, image_size: int | None, batch_size: int | None
) -> dict[str, Any]:
    """Arguments of `train`: the recipe for digits, else the paper's, with what was asked for."""
    recipe = {"epochs": 90, "batch_size": 256, "image_size": None}
    if data == "digits":
        recipe = {key: DIGITS[key] for key in recipe}
    asked = {"epochs": epochs, "batch_size": batch_size, "image_size": image_size}
    settings = {**recipe, **{key: value for key, value in asked.items() if value is not None}}
    total = settings["epochs"] or 0
    # The recipes' share of the way: a third of the paper's 90 epochs, half of the digits' 10.
    step = max(-(-total // (2 if data == "digits" else 3)), 1)
    return {"model": model, "data": data, **settings, "lr_step": step}


def _first(cells: Sequence[SeedResult]) -> int:
    """Seed of the first cell that did not fail, else of the first."""
    return next((cell.seed for cell in cells if not cell.failure), cells[0].seed)


def _measure(files: dict[str, tuple[Path, Path | None]], seconds: float) -> list[Entry]:
    """Latencies of all files, and of their engines where a GPU can run them."""
    if "plain" not in files:
        return []
    entries: list[Entry] = []
    engines = [path for _, path in files.values() if path is not None]
    groups = [[onnx for onnx, _ in files.values()], engines if gpus() else []]
    for paths in filter(None, groups):
        baseline = next(path for path in paths if path.stem == "plain")
        others = [path for path in paths if path != baseline]
        measured = bench(others or paths, batch_sizes=(1,), seconds=seconds, relative_to=baseline)
        entries += measured.entries
    return entries


def _row(
    variant: Variant,
    cells: Sequence[SeedResult],
    files: tuple[Path, Path | None] | None,
    entries: Sequence[Entry],
    settings: dict[str, Any],
) -> VariantResult:
    counted = complexity(
        settings["model"],
        **variant.options(),
        num_classes=_classes(settings["data"]),
        image_size=settings["image_size"],
    )
    built = files[1] if files else None
    # Only the baseline, the plain network, has no ratio to it.
    return VariantResult(
        name=variant.name,
        label=variant.label,
        study=variant.study,
        cells=tuple(cells),
        parameters=counted.parameters,
        multiply_adds=counted.multiply_adds,
        engine_bytes=built.stat().st_size if built else None,
        latencies=tuple(
            Latency(
                runtime=entry.runtime,
                median_seconds=entry.median_seconds,
                p90_seconds=entry.p90_seconds,
                p99_seconds=entry.p99_seconds,
                round_seconds=entry.round_seconds,
                of_plain=entry.relative.value if entry.relative else 1.0,
            )
            for entry in entries
            if Path(entry.artefact).stem == variant.name
        ),
    )


def _classes(data: str) -> int:
    return len(open_source(data, Preprocessing(), split="train").class_names)
