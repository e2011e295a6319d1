"""The commands that study a network: what it costs, where it looks."""

from __future__ import annotations

from typing import Annotated

import typer

from cbam_deploy.cli_options import (
    AttentionOption,
    ClassesOption,
    GateOption,
    JsonOption,
    ReportOption,
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
