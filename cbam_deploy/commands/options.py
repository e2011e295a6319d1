"""Arguments and options that several commands share, and how their texts are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cbam_deploy.commands.files import (
    read,
    read_and_replaced,
    read_as_model,
    written,
    written_artefact,
    written_engine,
)
from cbam_deploy.errors import BadInput

if TYPE_CHECKING:
    from cbam_deploy.gates.description import GateSpec


# The largest number that an option takes: far above any use, far below what overflows anywhere.
BATCHES = 2**20
PIXELS = 2**13
CLASSES = 10**6
PICTURES = 10**9
EPOCHS = 10**6
THREADS = 1024
MIBS = 2**20
SECONDS = 86_400.0
SEEDS = 2**32 - 1

Attention = Literal["cbam", "se", "none"]
Stem = Literal["imagenet", "cifar"]
Device = Literal["cpu", "cuda"]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        callback=read_as_model,
        help="Zoo name such as resnet50, package.module:factory, or path/file.py:factory.",
    ),
]
Artefact = Annotated[
    Path, typer.Argument(metavar="ARTEFACT", callback=read, help="An .onnx or .engine file.")
]
Artefacts = Annotated[
    list[Path], typer.Argument(metavar="ARTEFACT...", callback=read, help=".onnx or .engine.")
]
OnnxIn = Annotated[
    Path, typer.Argument(metavar="IN.onnx", callback=read, help="The ONNX file to read.")
]
OnnxInPlace = Annotated[
    Path,
    typer.Argument(metavar="IN.onnx", callback=read_and_replaced, help="The ONNX file to read."),
]
Output = Annotated[
    Path, typer.Option("-o", "--output", callback=written_artefact, help="File to write.")
]
EngineOutput = Annotated[
    Path, typer.Option("-o", "--output", callback=written_engine, help="File to write.")
]
AttentionOption = Annotated[
    Attention | None, typer.Option("--attention", help="Gate after each block [default: cbam].")
]
InputsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME:AXES",
        help="An input such as image:Nx3xH=640xW=640: N, H and W free. Repeat for several.",
    ),
]
StemOption = Annotated[
    Stem | None, typer.Option("--stem", help="First layers [default: imagenet].")
]
ClassesOption = Annotated[
    int | None, typer.Option("--num-classes", min=1, max=CLASSES, help="Outputs of the classifier.")
]
SizeOption = Annotated[
    int | None, typer.Option("--image-size", min=1, max=PIXELS, help="Side of the input in pixels.")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights", callback=read, help="Checkpoint: .safetensors, or a torch state dict."
    ),
]
InitialGatesOption = Annotated[
    bool,
    typer.Option("--initial-gates", help="Leave gates initial where the checkpoint has none."),
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=SEEDS, help="Seed of everything random.")
]
GateOption = Annotated[
    str | None,
    typer.Option(
        "--gate",
        metavar="FIELD=VALUE,...",
        help="Another variant of the gate, such as kernel_size=3,channel_pool=avg.",
    ),
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(
        "--calibration", metavar="SOURCE", callback=read, help="Typical images, for INT8."
    ),
]
MethodOption = Annotated[
    Literal["minmax", "entropy", "percentile"],
    typer.Option("--method", help="How INT8 ranges are found."),
]
CalibrationImagesOption = Annotated[
    int, typer.Option("--images", min=1, max=PICTURES, help="Images to calibrate on.")
]
IoDtypeOption = Annotated[
    Literal["fp32", "fp16"], typer.Option("--io-dtype", help="Type of inputs and outputs.")
]
AugmentationOption = Annotated[
    Literal["auto", "crop-flip", "shift", "none"],
    typer.Option("--augmentation", help="How training images are varied."),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="SOURCE", callback=read, help="Image directory, 'digits' or 'photos'."
    ),
]
RuntimeOption = Annotated[
    str | None, typer.Option("--runtime", help="Runtime instead of the one the file implies.")
]
DeviceOption = Annotated[Device | None, typer.Option("--device", help="cpu or cuda.")]
ReferenceOption = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="MODEL",
        callback=read_as_model,
        help="PyTorch model, if not one of the zoo.",
    ),
]
ReportOption = Annotated[
    Path | None, typer.Option("--report", callback=written, help="Also write JSON.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def real(low: float, high: float) -> Callable[[str], float]:
    """A reader of numbers from `low` to `high`, for options; it refuses nan."""

    def read_number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise typer.BadParameter(f"{text} is not between {low:g} and {high:g}")
        return value

    return read_number


def percentage(text: str) -> float:
    """``"5%"`` or ``"0.05"`` as 0.05; raises `BadInput` for anything else."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise BadInput(f"{text!r} is not a percentage", "write it as 5% or 0.05") from None
    if not 0 <= value <= 1:
        raise BadInput(f"{text!r} is not between 0% and 100%", "write it as 5% or 0.05")
    return value


def gate_spec(text: str | None) -> GateSpec | None:
    """The gate that ``--gate`` describes; None without it."""
    if text is None:
        return None
    from cbam_deploy.gates.description import parse_gate

    return parse_gate(text)
