"""Arguments and options that several commands share, and how their texts are read.

What belongs together is one dataclass, which a command passes on whole as keyword arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cbam_deploy.commands.completion import RUNTIMES, ZOO, metrics, offer
from cbam_deploy.commands.files import (
    read,
    read_and_replaced,
    read_as_function,
    read_as_model,
    written,
    written_artefact,
    written_engine,
)
from cbam_deploy.commands.messages import be_quiet, be_verbose, show_tracebacks
from cbam_deploy.errors import BadInput
from cbam_deploy.gates.description import GATES, GateSpec, parse_gate

# The largest number that an option takes: far above any use, far below what overflows anywhere.
BATCHES = 2**20
PIXELS = 2**13
CLASSES = 10**6
PICTURES = 10**9
EPOCHS = 10**6
LAYERS = 10**6
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


def option(help_text: str, panel: str | None = None, *flags: str, **more: Any) -> Any:
    """An option, listed under the heading `panel`."""
    return typer.Option(*flags, help=help_text, rich_help_panel=panel, **more)


def number(low: float, high: float, help_text: str, panel: str | None = None) -> Any:
    """An option that takes a number from `low` to `high`."""
    return option(help_text, panel, parser=real(low, high), metavar="NUMBER")


def percent(help_text: str, panel: str | None = None) -> Any:
    """An option that takes a percentage."""
    return option(help_text, panel, parser=percentage, metavar="PERCENT")


def drop(help_text: str, panel: str) -> Any:
    """An option that takes a fall of a metric: a percentage, or a number in the metric's unit."""
    return option(help_text, panel, parser=_fall, metavar="PERCENT|NUMBER")


def _fall(text: str) -> float:
    """``"0.5%"`` or ``"0.005"`` as 0.005, and ``"2"`` as 2; raises `BadInput`."""
    return percentage(text) if text.endswith("%") else real(0, math.inf)(text)


def count(low: int, high: int, help_text: str, panel: str | None = None) -> Any:
    """An option that takes an integer from `low` to `high`."""
    return option(help_text, panel, min=low, max=high, metavar="N")


def file_option(
    help_text: str, declare: Callable[..., Any], *offers: str, panel: str | None = None
) -> Any:
    """An option that names a file, which `declare` declares; a shell offers `offers`."""
    complete = offer(*offers)
    return option(help_text, panel, metavar="FILE", callback=declare, autocompletion=complete)


def source(help_text: str, panel: str = INPUT) -> Any:
    """An option that takes a SOURCE of pictures."""
    complete = offer("digits", "photos", "/", ".npy", ".npz")
    return option(help_text, panel, metavar="SOURCE", callback=read, autocompletion=complete)


def output(help_text: str, declare: Callable[..., Any], *offers: str) -> Any:
    """``--output``: a file or folder, which `declare` declares."""
    return option(
        help_text,
        None,
        "-o",
        "--output",
        metavar="FOLDER" if "/" in offers else "FILE",
        callback=declare,
        autocompletion=offer(*offers),
    )


def argument(metavar: str, help_text: str, declare: Callable[..., Any], *offers: str) -> Any:
    """An argument that names files or networks, which `declare` declares."""
    complete = offer(*offers)
    return typer.Argument(
        metavar=metavar, help=help_text, callback=declare, autocompletion=complete
    )


def message(help_text: str, flag: str, callback: Callable[[bool], None]) -> Any:
    """A flag for what is said beside the result; it counts from the first argument on."""
    return option(help_text, RESULT, flag, callback=callback, is_eager=True)


_MODEL = f"Network of the zoo ({', '.join(ZOO)}), package.module:factory, or path/file.py:factory."
_MODEL_OR_FILE = f"{_MODEL[:-1]}; or an ONNX file."
_NETWORK = "Checkpoint of train, MODEL=CHECKPOINT, or MODEL: as of export."
_ONNX = "The ONNX file to read."
_RUNTIME = f"Instead of the one the file implies: {', '.join(RUNTIMES)}"

Model = Annotated[str, argument("MODEL", _MODEL, read_as_model, *ZOO, ".py")]
ModelOrFile = Annotated[
    str, argument("MODEL|FILE.onnx", _MODEL_OR_FILE, read, *ZOO, ".py", ".onnx")
]
Networks = Annotated[list[str], argument("NETWORK...", _NETWORK, read, *ZOO, *CHECKPOINTS)]
Artefact = Annotated[Path, argument("ARTEFACT", "An .onnx or .engine file.", read, *ARTEFACTS)]
Artefacts = Annotated[
    list[Path], argument("ARTEFACT...", "An .onnx or .engine file, or several.", read, *ARTEFACTS)
]
OnnxIn = Annotated[Path, argument("IN.onnx", _ONNX, read, ".onnx")]
OnnxInPlace = Annotated[Path, argument("IN.onnx", _ONNX, read_and_replaced, ".onnx")]
Output = Annotated[Path, output("File to write.", written_artefact, ".onnx")]
EngineOutput = Annotated[Path, output("File to write.", written_engine, ".engine")]
WeightsOption = Annotated[
    Path | None,
    file_option(
        "Checkpoint: .safetensors, or a torch state dict.", read, *CHECKPOINTS, panel=MODEL
    ),
]
ClassesOption = Annotated[int | None, count(1, CLASSES, "Outputs of the classifier.", MODEL)]
SizeOption = Annotated[int | None, count(1, PIXELS, "Side of the input in pixels.", MODEL)]
MetricOption = Annotated[
    str,
    option(
        "What counts: top1, miou, map, map-xyxy, or package:function of your own.",
        INPUT,
        "--metric",
        metavar="METRIC",
        callback=read_as_model,
        autocompletion=metrics,
    ),
]
InitialGatesOption = Annotated[
    bool,
    option("Leave gates initial where the checkpoint has none.", MODEL, "--initial-gates"),
]
PyTorchOption = Annotated[bool, option("PyTorch as well.", MODEL, "--pytorch")]
SeedOption = Annotated[int, count(0, SEEDS, "Seed of everything random.")]
DataOption = Annotated[
    str | None,
    source("Folder of pictures, 'digits', 'photos', or an .npy or .npz file of tensors."),
]
PreprocessOption = Annotated[
    str | None,
    option(
        "How pictures become inputs: 'letterbox 640, rgb, /255', 'resize 256, crop 224, imagenet',"
        " 'raw', a .toml or .yaml file, or package:function of your own [default: as recorded].",
        INPUT,
        "--preprocess",
        metavar="STEPS|FILE|FUNCTION",
        callback=read_as_function,
        autocompletion=offer(".toml", ".yaml", ".yml", ".py"),
    ),
]
SizesOption = Annotated[
    list[str] | None,
    option(
        "Size of a free axis, such as H=640; repeat for several.",
        INPUT,
        "--size",
        metavar="AXIS=SIZE",
    ),
]
BatchOption = Annotated[
    list[int] | None, count(1, BATCHES, "Batch size; repeat for several.", INPUT)
]
RuntimeOption = Annotated[
    str | None,
    option(f"{_RUNTIME}.", RUNNING, metavar="RUNTIME", autocompletion=offer(*RUNTIMES)),
]
RuntimesOption = Annotated[
    list[str] | None,
    option(
        f"{_RUNTIME}; repeat for several.",
        RUNNING,
        "--runtime",
        metavar="RUNTIME",
        autocompletion=offer(*RUNTIMES),
    ),
]
DeviceOption = Annotated[
    Literal["cpu", "cuda"] | None,
    option("Device [default: cpu for .onnx, cuda for .engine].", RUNNING),
]
TrainingDeviceOption = Annotated[
    Literal["cpu", "cuda"] | None, option("Device [default: cuda where there is one].", RUNNING)
]
ReportOption = Annotated[
    Path | None, file_option("Also write JSON.", written, ".json", panel=RESULT)
]
HtmlOption = Annotated[
    Path | None, file_option("Also write a page with plots.", written, ".html", panel=RESULT)
]
SummaryOption = Annotated[
    Path | None,
    file_option(
        "Also write Markdown; added to what $GITHUB_STEP_SUMMARY has.",
        written,
        ".md",
        panel=RESULT,
    ),
]
JsonOption = Annotated[bool, option("Print JSON instead of a table.", RESULT, "--json")]
QuietOption = Annotated[
    bool, message("Say nothing but the result and errors.", "--quiet", be_quiet)
]
VerboseOption = Annotated[
    bool,
    message("Name files read and written; show warnings of libraries.", "--verbose", be_verbose),
]
DebugOption = Annotated[bool, message("Show tracebacks of errors.", "--debug", show_tracebacks)]


@dataclass(frozen=True)
class ModelOptions:
    """What a MODEL is, beside its name; None is left to its checkpoint, else to the defaults."""

    attention: Annotated[
        Literal["cbam", "se", "none"] | None,
        option("Gate after each block [default: cbam].", MODEL),
    ] = None
    weights: WeightsOption = None
    stem: Annotated[
        Literal["imagenet", "cifar"] | None, option("First layers [default: imagenet].", MODEL)
    ] = None
    image_size: SizeOption = None
    gate: Annotated[
        GateSpec | None,
        option(
            f"Another gate: {', '.join(GATES)}, and fields such as kernel_size=3,channel_pool=avg.",
            MODEL,
            parser=parse_gate,
            metavar="[NAME,]FIELD=VALUE,...",
        ),
    ] = None


CalibrationImagesOption = Annotated[int, count(1, PICTURES, "Pictures to calibrate on.", PRECISION)]


@dataclass(frozen=True)
class CalibrationOptions:
    """What ranges INT8 and FP8 scales are made from."""

    calibration: Annotated[
        str | None,
        source("Typical pictures, for INT8 and FP8: a SOURCE as of --data.", PRECISION),
    ] = None
    preprocessing: PreprocessOption = None
    method: Annotated[
        Literal["minmax", "entropy", "percentile"] | None,
        option("How ranges are found [default: percentile, in FP8 minmax].", PRECISION),
    ] = None
    images: CalibrationImagesOption = 64
    io_dtype: Annotated[
        Literal["fp32", "fp16"], option("Type of inputs and outputs.", PRECISION)
    ] = "fp32"


@dataclass(frozen=True)
class RunningOptions:
    """Where an artefact runs, and which PyTorch model it is held against."""

    reference: Annotated[
        str | None,
        option(
            "PyTorch model, if not one of the zoo; for validate also the ONNX file before.",
            MODEL,
            metavar="MODEL",
            callback=read,
            autocompletion=offer(*ZOO, ".py", ".onnx"),
        ),
    ] = None
    weights: WeightsOption = None
    device: DeviceOption = None
