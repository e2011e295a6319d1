"""Arguments and options that several commands share, and how their texts are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cbam_deploy.commands.completion import ZOO, offer, runtimes
from cbam_deploy.commands.files import (
    read,
    read_and_replaced,
    read_as_model,
    written,
    written_artefact,
    written_engine,
    written_in,
)
from cbam_deploy.commands.messages import be_quiet, be_verbose, show_tracebacks
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

ARTEFACTS = (".onnx", ".engine")
CHECKPOINTS = (".safetensors", ".pt", ".pth")

# The headings under which long commands list their options.
MODEL = "Model"
INPUT = "Data"
PRECISION = "Precision"
RUNNING = "Where it runs"
LIMITS = "Limits"
RESULT = "Result and messages"


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


def number(low: float, high: float, help_text: str, panel: str | None = None) -> Any:
    """An option that takes a number from `low` to `high`."""
    return typer.Option(
        parser=real(low, high), metavar="NUMBER", help=help_text, rich_help_panel=panel
    )


def percent(help_text: str, panel: str | None = None) -> Any:
    """An option that takes a percentage."""
    return typer.Option(parser=percentage, metavar="PERCENT", help=help_text, rich_help_panel=panel)


def count(low: int, high: int, help_text: str, panel: str | None = None) -> Any:
    """An option that takes an integer from `low` to `high`."""
    return typer.Option(min=low, max=high, metavar="N", help=help_text, rich_help_panel=panel)


def file_option(
    callback: Callable[..., Any], *suffixes: str, help_text: str, panel: str | None = None
) -> Any:
    """An option that names a file, of one of `suffixes`, which `callback` declares."""
    complete = offer(suffixes=suffixes)
    return typer.Option(
        callback=callback, help=help_text, rich_help_panel=panel, autocompletion=complete
    )


def source(help_text: str, panel: str = INPUT) -> Any:
    """An option that takes a SOURCE of pictures."""
    return typer.Option(
        metavar="SOURCE",
        callback=read,
        help=help_text,
        rich_help_panel=panel,
        autocompletion=offer("digits", "photos", folders=True),
    )


def folder(*names: str, help_text: str) -> Any:
    """``--output`` as a folder in which the files `names` are written."""
    return typer.Option(
        "-o",
        "--output",
        callback=written_in(*names),
        help=help_text,
        autocompletion=offer(folders=True),
    )


Attention = Literal["cbam", "se", "none"]
Stem = Literal["imagenet", "cifar"]
Device = Literal["cpu", "cuda"]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        callback=read_as_model,
        help="Zoo name such as resnet50, package.module:factory, or path/file.py:factory.",
        autocompletion=offer(*ZOO, suffixes=(".py",)),
    ),
]
ModelOrFile = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|FILE.onnx",
        callback=read,
        help="Zoo name, package.module:factory, path/file.py:factory, or an ONNX file.",
        autocompletion=offer(*ZOO, suffixes=(".py", ".onnx")),
    ),
]
Networks = Annotated[
    list[str],
    typer.Argument(
        metavar="NETWORK...",
        callback=read,
        help="Checkpoint of train, MODEL=CHECKPOINT, or MODEL.",
        autocompletion=offer(*ZOO, suffixes=CHECKPOINTS),
    ),
]
Artefact = Annotated[
    Path,
    typer.Argument(
        metavar="ARTEFACT",
        callback=read,
        help="An .onnx or .engine file.",
        autocompletion=offer(suffixes=ARTEFACTS),
    ),
]
Artefacts = Annotated[
    list[Path],
    typer.Argument(
        metavar="ARTEFACT...",
        callback=read,
        help=".onnx or .engine.",
        autocompletion=offer(suffixes=ARTEFACTS),
    ),
]
OnnxIn = Annotated[
    Path,
    typer.Argument(
        metavar="IN.onnx",
        callback=read,
        help="The ONNX file to read.",
        autocompletion=offer(suffixes=(".onnx",)),
    ),
]
OnnxInPlace = Annotated[
    Path,
    typer.Argument(
        metavar="IN.onnx",
        callback=read_and_replaced,
        help="The ONNX file to read.",
        autocompletion=offer(suffixes=(".onnx",)),
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "-o",
        "--output",
        callback=written_artefact,
        help="File to write.",
        autocompletion=offer(suffixes=(".onnx",)),
    ),
]
EngineOutput = Annotated[
    Path,
    typer.Option(
        "-o",
        "--output",
        callback=written_engine,
        help="File to write.",
        autocompletion=offer(suffixes=(".engine",)),
    ),
]
AttentionOption = Annotated[
    Attention | None,
    typer.Option(help="Gate after each block [default: cbam].", rich_help_panel=MODEL),
]
InputsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME:AXES",
        help="An input such as image:Nx3xH=640xW=640: N, H and W free. Repeat for several.",
        rich_help_panel=MODEL,
    ),
]
StemOption = Annotated[
    Stem | None, typer.Option(help="First layers [default: imagenet].", rich_help_panel=MODEL)
]
ClassesOption = Annotated[int | None, count(1, CLASSES, "Outputs of the classifier.", MODEL)]
SizeOption = Annotated[int | None, count(1, PIXELS, "Side of the input in pixels.", MODEL)]
WeightsOption = Annotated[
    Path | None,
    file_option(
        read,
        *CHECKPOINTS,
        help_text="Checkpoint: .safetensors, or a torch state dict.",
        panel=MODEL,
    ),
]
InitialGatesOption = Annotated[
    bool,
    typer.Option(
        "--initial-gates",
        help="Leave gates initial where the checkpoint has none.",
        rich_help_panel=MODEL,
    ),
]
GateOption = Annotated[
    str | None,
    typer.Option(
        metavar="FIELD=VALUE,...",
        help="Another variant of the gate, such as kernel_size=3,channel_pool=avg.",
        rich_help_panel=MODEL,
    ),
]
ReferenceOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        callback=read_as_model,
        help="PyTorch model, if not one of the zoo.",
        rich_help_panel=MODEL,
        autocompletion=offer(*ZOO, suffixes=(".py",)),
    ),
]
SeedOption = Annotated[int, count(0, SEEDS, "Seed of everything random.")]
CalibrationOption = Annotated[str | None, source("Typical images, for INT8.", panel=PRECISION)]
MethodOption = Annotated[
    Literal["minmax", "entropy", "percentile"],
    typer.Option(help="How INT8 ranges are found.", rich_help_panel=PRECISION),
]
CalibrationImagesOption = Annotated[int, count(1, PICTURES, "Images to calibrate on.", PRECISION)]
IoDtypeOption = Annotated[
    Literal["fp32", "fp16"],
    typer.Option(help="Type of inputs and outputs.", rich_help_panel=PRECISION),
]
DataOption = Annotated[str | None, source("Image directory, 'digits' or 'photos'.")]
BatchOption = Annotated[
    list[int] | None, count(1, BATCHES, "Batch size; repeat for several.", INPUT)
]
RuntimeOption = Annotated[
    str | None,
    typer.Option(
        help="Runtime instead of the one the file implies.",
        rich_help_panel=RUNNING,
        autocompletion=runtimes,
    ),
]
DeviceOption = Annotated[Device | None, typer.Option(help="cpu or cuda.", rich_help_panel=RUNNING)]
PyTorchOption = Annotated[
    bool, typer.Option("--pytorch", help="PyTorch as well.", rich_help_panel=MODEL)
]
ReportOption = Annotated[
    Path | None,
    file_option(written, ".json", help_text="Also write JSON.", panel=RESULT),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print JSON instead of a table.", rich_help_panel=RESULT),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        callback=be_quiet,
        is_eager=True,
        help="Say nothing but the result and errors.",
        rich_help_panel=RESULT,
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose",
        callback=be_verbose,
        is_eager=True,
        help="Name files read and written; show warnings of libraries.",
        rich_help_panel=RESULT,
    ),
]
DebugOption = Annotated[
    bool,
    typer.Option(
        "--debug",
        callback=show_tracebacks,
        is_eager=True,
        help="Show tracebacks of errors.",
        rich_help_panel=RESULT,
    ),
]


def gate_spec(text: str | None) -> GateSpec | None:
    """The gate that ``--gate`` describes; None without it."""
    if text is None:
        return None
    from cbam_deploy.gates.description import parse_gate

    return parse_gate(text)
