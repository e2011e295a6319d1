"""The commands that make ONNX files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import cbam_deploy
from cbam_deploy.commands.completion import RUNTIMES, metrics, offer
from cbam_deploy.commands.files import read_as_model
from cbam_deploy.commands.options import (
    BATCHES,
    INPUT,
    LIMITS,
    MODEL,
    PICTURES,
    PRECISION,
    RUNNING,
    SECONDS,
    CalibrationOptions,
    ClassesOption,
    DataOption,
    InitialGatesOption,
    MetricOption,
    Model,
    ModelOptions,
    OnnxIn,
    OnnxInPlace,
    Output,
    SeedOption,
    SizesOption,
    count,
    drop,
    number,
    option,
    real,
    source,
)


def export(
    model: Model,
    output: Output,
    *,
    which: ModelOptions,
    num_classes: ClassesOption = None,
    inputs: Annotated[
        list[str] | None,
        option(
            "An input such as image:Nx3xH=640xW=640: N, H and W free. Repeat for several.",
            MODEL,
            "--input",
            metavar="NAME:AXES",
        ),
    ] = None,
    output_name: Annotated[
        list[str] | None,
        option("Name of an output; repeat for each, in order.", MODEL, metavar="NAME"),
    ] = None,
    opset: Annotated[
        int | None, count(11, 99, "Version of ONNX's operators [default: torch's own].")
    ] = None,
    initial_gates: InitialGatesOption = False,
    no_fuse: Annotated[bool, option("Leave gates as plain ops.", None, "--no-fuse")] = False,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8", "int8+fp32", "fp8"] | None,
        option(
            "int8 and fp8 leave the rest in FP16, int8+fp32 in FP32 [default: fp32; int8+fp32 for"
            " a checkpoint of train --quantize].",
            PRECISION,
        ),
    ] = None,
    ranges: CalibrationOptions,
    portable: Annotated[
        bool,
        option("Write gates as standard operators, for tools like OpenVINO.", None, "--portable"),
    ] = False,
    tolerance: Annotated[
        float | None,
        option(
            "Largest error to allow, over the largest output [default: FP32's own].",
            parser=real(0, math.inf),
            metavar="ERROR",
        ),
    ] = None,
    seed: SeedOption = 0,
) -> Any:
    """Export a PyTorch model to ONNX, gates fused.

    Example:
      cbam-deploy export resnet50 -o r50.onnx
    More: docs/own-models.md
    """
    return cbam_deploy.export_onnx(
        model,
        output,
        **vars(which),
        **vars(ranges),
        num_classes=num_classes,
        inputs=tuple(inputs or ()),
        output_names=tuple(output_name or ()),
        opset=opset,
        initial_gates=initial_gates,
        fuse=not no_fuse,
        portable=portable,
        precision=precision,
        tolerance=tolerance,
        seed=seed,
    )


def fuse(source: OnnxInPlace, output: Output) -> Any:
    """Make each attention gate of an ONNX file one node.

    Example:
      cbam-deploy fuse yolo.onnx -o yolo.fused.onnx
    More: docs/any-onnx.md
    """
    return cbam_deploy.fuse(source, output)


def inline(source: OnnxIn, output: Output) -> Any:
    """Write gates as standard operators, for tools that know no functions.

    Example:
      cbam-deploy inline r50.onnx -o r50.portable.onnx
    More: docs/interop.md
    """
    return cbam_deploy.inline(source, output)


def convert(
    source: OnnxIn,
    output: Output,
    *,
    precision: Annotated[
        Literal["fp16", "bf16", "int8", "int8+fp32", "fp8"],
        option("int8 and fp8 leave the rest in FP16, int8+fp32 in FP32.", PRECISION),
    ] = "fp16",
    ranges: CalibrationOptions,
    max_accuracy_drop: Annotated[
        float | None,
        drop("Give the noisiest layers back to FP16 until --metric on --data holds.", PRECISION),
    ] = None,
    size: SizesOption = None,
    data: DataOption = None,
    metric: MetricOption = "top1",
    seed: SeedOption = 0,
) -> Any:
    r"""Convert an ONNX file to FP16, BF16, INT8 or FP8.

    Example:
      cbam-deploy convert r50.onnx -o r50.int8.onnx --precision int8 \
        --calibration photos
    More: docs/any-onnx.md
    """
    return cbam_deploy.convert(
        source,
        output,
        precision=precision,
        **vars(ranges),
        sizes=tuple(size or ()),
        max_accuracy_drop=max_accuracy_drop,
        data=data,
        metric=metric,
        seed=seed,
    )


def search(
    source: OnnxIn,
    output: Output,
    data: Annotated[str, source("Pictures to judge on, best with labels, masks or boxes.")],
    *,
    metric: Annotated[
        str | None,
        option(
            "What must hold: top1, miou, map, map-xyxy, package:function of your own, or fidelity"
            " to the original's outputs [default: top1 with labels, else fidelity].",
            INPUT,
            "--metric",
            metavar="METRIC",
            callback=read_as_model,
            autocompletion=metrics,
        ),
    ] = None,
    max_drop: Annotated[
        float | None, drop("How far the metric may fall [default: 0.5%].", LIMITS)
    ] = None,
    precision: Annotated[
        Literal["fp16", "bf16", "int8", "int8+fp32", "fp8"],
        option("The lowest; int8 and fp8 are over FP16, int8+fp32 over FP32.", PRECISION),
    ] = "int8",
    ranges: CalibrationOptions,
    size: SizesOption = None,
    limit: Annotated[
        int | None,
        count(1, PICTURES, "Pictures of a trial [default: 256, for fidelity 32].", INPUT),
    ] = None,
    latency: Annotated[
        bool, option("Time each choice too; write the fastest that holds.", RUNNING, "--latency")
    ] = False,
    runtime: Annotated[
        str | None,
        option(
            "Runtime to time in [default: TensorRT with a GPU, else OpenVINO, ONNX Runtime].",
            RUNNING,
            metavar="RUNTIME",
            autocompletion=offer(*RUNTIMES),
        ),
    ] = None,
    batch: Annotated[int, count(1, BATCHES, "Pictures of a timed run.", RUNNING)] = 1,
    seconds: Annotated[float, number(0.1, SECONDS, "Of each timing.", RUNNING)] = 1.0,
    time_limit: Annotated[
        float | None, number(0.1, SECONDS, "Seconds after which no trial begins.", LIMITS)
    ] = None,
    cache: Annotated[
        Path | None,
        option(
            "Folder of trials, to go on from [default: one in the user's cache].",
            None,
            metavar="FOLDER",
            autocompletion=offer("/"),
        ),
    ] = None,
    seed: SeedOption = 0,
) -> Any:
    r"""Find the fewest operations to keep in a higher precision, by measurement.

    Example:
      cbam-deploy search r50.onnx -o r50.int8.onnx --data photos --max-drop 0.5% \
        --html search.html
    More: docs/search.md
    """
    return cbam_deploy.search_precision(
        source,
        output,
        data=data,
        precision=precision,
        **vars(ranges),
        metric=metric,
        max_drop=0.005 if max_drop is None else max_drop,
        sizes=tuple(size or ()),
        limit=limit,
        latency=latency,
        runtime=runtime,
        batch_size=batch,
        seconds=seconds,
        time_limit=time_limit,
        cache=cache,
        seed=seed,
    )


COMMANDS = (export, fuse, inline, convert, search)
