"""Where artefacts come from, as sections of a page: an ONNX file and an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cbam_deploy.provenance import ModelIdentity
from cbam_deploy.report.content import KeyFigure, Section, Table
from cbam_deploy.report.units import duration, size


def onnx_section(path: str | Path, provenance: Mapping[str, Any]) -> Section:
    """An exported ONNX file: its size, its gates, and the model it was made from.

    Args:
        path: the file.
        provenance: as `Provenance.to_json` gives it.
    """
    gates = provenance["gates"]
    rows = [
        ("file", str(path)),
        *_model_rows(provenance["model"] or {}),
        ("precision", provenance["precision"]),
        ("input", _input(provenance["preprocessing"])),
        ("made with", _versions(provenance["versions"])),
    ]
    return Section(
        title="ONNX file",
        key_figures=(
            KeyFigure("Size", size(Path(path).stat().st_size)),
            KeyFigure(
                "Fused gates",
                str(sum(gates.values())),
                ", ".join(f"{count} {name}" for name, count in gates.items()),
            ),
        ),
        tables=(_names_and_values(rows),),
    )


def engine_section(build: Mapping[str, Any]) -> Section:
    """A built engine: how large, how long, for which GPUs and shapes.

    Args:
        build: as `BuildResult.to_json` gives it.
    """
    lowered = list(build["gates"].values())
    gates = ", ".join(f"{lowered.count(way)} {way}" for way in sorted(set(lowered)))
    rows = [
        ("file", build["path"]),
        ("runtime", f"{build['runtime']} {build['version']}"),
        ("targets", ", ".join(build["targets"]) or "portable: compute capability 8.0 and later"),
        *(
            (f"shapes of {name}", " / ".join(_shape(shapes[end]) for end in ("min", "opt", "max")))
            for name, shapes in build["profile"].items()
        ),
        ("gates", gates or "none"),
        ("sha256", build["sha256"]),
    ]
    return Section(
        title="TensorRT engine",
        key_figures=(
            KeyFigure("Size", size(build["bytes"])),
            KeyFigure("Build time", duration(build["seconds"])),
        ),
        tables=(_names_and_values(rows),),
    )


def _names_and_values(rows: list[tuple[str, str]]) -> Table:
    return Table(("", ""), tuple((name, value) for name, value in rows if value), text_columns=2)


def _model_rows(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    gate = model.get("gate")
    fields = [
        ("model", model.get("name")),
        ("attention", model.get("attention")),
        ("gate", gate and ", ".join(f"{key} {value}" for key, value in gate.items())),
        ("classes", model.get("num_classes")),
        ("stem", model.get("stem")),
        ("weights", model.get("weights") or _initial_weights(model)),
        ("hash of the weights", model.get("weights_sha256")),
    ]
    return [(name, str(value)) for name, value in fields if value is not None]


def _initial_weights(model: Mapping[str, Any]) -> str:
    return ModelIdentity(str(model.get("name")), seed=model.get("seed", 0)).weights_origin


def _input(preprocessing: Mapping[str, Any] | None) -> str:
    if preprocessing is None:
        return ""
    side = preprocessing["image_size"]
    mean, std = (", ".join(f"{x:g}" for x in preprocessing[key]) for key in ("mean", "std"))
    return f"{side}×{side} RGB, mean ({mean}), standard deviation ({std})"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _shape(shape: list[int]) -> str:
    return "×".join(map(str, shape))
