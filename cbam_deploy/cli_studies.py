"""The commands that study a network: what it costs, where it looks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cbam_deploy.cli_options import (
    AttentionOption,
    ClassesOption,
    GateOption,
    JsonOption,
    ReportOption,
    SeedOption,
    SizeOption,
    StemOption,
    WeightsOption,
    gate_spec,
)
from cbam_deploy.exits import deliver

ModelOrFile = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|FILE.onnx",
        help="Zoo name, package.module:factory, path/file.py:factory, or an ONNX file.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("complexity")(complexity_command)
    app.command("gradcam")(gradcam_command)


def complexity_command(
    model: ModelOrFile,
    attention: AttentionOption = None,
    gate: GateOption = None,
    stem: StemOption = None,
    num_classes: ClassesOption = None,
    image_size: SizeOption = None,
    weights: WeightsOption = None,
    by_module: Annotated[bool, typer.Option("--by-module", help="Show each module.")] = False,
    report: ReportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count parameters and multiply-adds."""
    from cbam_deploy import complexity

    counted = complexity(
        model,
        attention=attention,
        gate=gate_spec(gate),
        stem=stem,
        num_classes=num_classes,
        image_size=image_size,
        weights=weights,
        by_module=by_module,
    )
    deliver(counted, as_json, report)


def gradcam_command(
    networks: Annotated[
        list[str],
        typer.Argument(
            metavar="NETWORK...", help="Checkpoint of train, MODEL=CHECKPOINT, or MODEL."
        ),
    ],
    data: Annotated[str, typer.Option(metavar="SOURCE", help="Pictures to explain.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")] = Path(
        "gradcam"
    ),
    artefact: Annotated[
        list[Path] | None,
        typer.Option(help="ONNX file whose attention to show; repeat, the most exact first."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=12, help="How many pictures.")] = 6,
    image_size: SizeOption = None,
    layer: Annotated[
        str | None, typer.Option(help="Module to explain [default: last convolutional output].")
    ] = None,
    seed: SeedOption = 0,
    report: ReportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where networks and their files look."""
    from cbam_deploy import gradcam

    explained = gradcam(
        networks,
        output,
        data=data,
        artefacts=tuple(artefact or ()),
        images=images,
        image_size=image_size,
        layer=layer,
        seed=seed,
    )
    deliver(explained, as_json, report)
