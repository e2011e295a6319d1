"""The commands that study networks: variants, what they cost, where they look."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cbam_deploy.commands.files import read, written_in
from cbam_deploy.commands.options import (
    BATCHES,
    EPOCHS,
    SECONDS,
    AttentionOption,
    ClassesOption,
    DeviceOption,
    GateOption,
    JsonOption,
    ReportOption,
    SeedOption,
    SizeOption,
    StemOption,
    WeightsOption,
    gate_spec,
    real,
)
from cbam_deploy.commands.outcome import deliver

ModelOrFile = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|FILE.onnx",
        callback=read,
        help="Zoo name, package.module:factory, path/file.py:factory, or an ONNX file.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("ablation")(ablation_command)
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
            metavar="NETWORK...",
            callback=read,
            help="Checkpoint of train, MODEL=CHECKPOINT, or MODEL.",
        ),
    ],
    data: Annotated[
        str, typer.Option(metavar="SOURCE", callback=read, help="Pictures to explain.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", callback=written_in("gradcam.html"), help="Folder to write."
        ),
    ] = Path("gradcam"),
    artefact: Annotated[
        list[Path] | None,
        typer.Option(
            callback=read, help="ONNX file whose attention to show; repeat, the most exact first."
        ),
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


def ablation_command(
    data: Annotated[
        str,
        typer.Option(metavar="SOURCE", callback=read, help="Pictures with a held-out part."),
    ] = "digits",
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", callback=written_in(), help="Folder of the study; goes on in it."
        ),
    ] = Path("ablation"),
    model: Annotated[str, typer.Option(help="Network of the zoo.")] = "resnet20",
    variant: Annotated[
        list[str] | None, typer.Option(help="Only this one and plain; repeat for several.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, max=EPOCHS, help="Of each cell [default: 10 for digits, else 90]."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=EPOCHS, help="Cells of each variant.")] = 2,
    image_size: SizeOption = None,
    batch_size: Annotated[int | None, typer.Option(min=1, max=BATCHES)] = None,
    seconds: Annotated[
        float,
        typer.Option(parser=real(0.1, SECONDS), metavar="NUMBER", help="Of timing per variant."),
    ] = 1.0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the gate's variants, resumably."""
    from cbam_deploy import ablation

    study = ablation(
        output,
        data=data,
        model=model,
        variants=variant,
        epochs=epochs,
        seeds=seeds,
        image_size=image_size,
        batch_size=batch_size,
        seconds=seconds,
        device=device,
    )
    deliver(study, as_json)
