"""The commands that make something: ONNX files, engines, trained networks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import cbam_deploy
from cbam_deploy.commands.completion import RUNTIMES, metrics, offer
from cbam_deploy.commands.files import read_as_model, updated, written_in
from cbam_deploy.commands.options import (
    BATCHES,
    EPOCHS,
    INPUT,
    LIMITS,
    MIBS,
    MODEL,
    PICTURES,
    PRECISION,
    RUNNING,
    SECONDS,
    THREADS,
    CalibrationImagesOption,
    CalibrationOptions,
    ClassesOption,
    DataOption,
    EngineOutput,
    InitialGatesOption,
    MetricOption,
    Model,
    ModelOptions,
    OnnxIn,
    OnnxInPlace,
    Output,
    SeedOption,
    SizesOption,
    TrainingDeviceOption,
    count,
    drop,
    file_option,
    number,
    option,
    output,
    real,
    source,
)

# What `train` writes: the names of training/run_folder.py, which this module must not load.
RUN_FILES = ("best.safetensors", "last.pt", "history.json")
LIBRARY = "libcbam_deploy_plugin.so"  # plugins/native_library.py likewise

SHAPES = "Shapes"
BUILDER = "Builder"
RECIPE = "Recipe"


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


@dataclass(frozen=True)
class BuilderOptions:
    """How an engine is built."""

    runtime: Annotated[
        Literal["auto", "tensorrt", "tensorrt-rtx"], option("Which TensorRT builds.")
    ] = "auto"
    min_batch: Annotated[
        int | None,
        count(1, BATCHES, "Smallest batch [default: 1].", SHAPES),
    ] = None
    opt_batch: Annotated[
        int | None, count(1, BATCHES, "Batch to be fastest at [default: 8].", SHAPES)
    ] = None
    max_batch: Annotated[
        int | None,
        count(1, BATCHES, "Largest batch [default: 64].", SHAPES),
    ] = None
    gate: Annotated[Literal["auto", "plugin", "native"], option("How gates are lowered.")] = "auto"
    embed_plugin: Annotated[
        bool,
        option(
            "Put the plugin library into the engine.", BUILDER, "--embed-plugin/--no-embed-plugin"
        ),
    ] = True
    timing_cache: Annotated[
        Path | None, file_option("Tactic timings to reuse.", updated, panel=BUILDER)
    ] = None
    optimization_level: Annotated[
        int | None,
        count(0, 5, "Builder effort, 0 to 5.", BUILDER),
    ] = None
    workspace_mib: Annotated[
        int | None,
        option(
            "Scratch memory for tactics, in MiB.",
            BUILDER,
            "--workspace",
            min=1,
            max=MIBS,
            metavar="MIB",
        ),
    ] = None
    strip_weights: Annotated[bool, option("Leave weights out; refit later.", BUILDER)] = False
    version_compatible: Annotated[
        bool,
        option("Run on later TensorRT versions too.", BUILDER),
    ] = False


def build_engine(
    source: OnnxIn,
    output: EngineOutput,
    builder: BuilderOptions,
    size: Annotated[
        list[str] | None,
        option(
            "Size of a free axis such as H=640, or its range H=320,640,1280; repeat for several.",
            SHAPES,
            metavar="AXIS=SIZE|MIN,OPT,MAX",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        option(
            "Compute capability such as sm_89; repeat for several (TensorRT-RTX).",
            metavar="sm_NN",
        ),
    ] = None,
) -> Any:
    """Build a TensorRT engine and its manifest.

    Example:
      cbam-deploy build-engine r50.onnx -o r50.engine --target sm_89
    More: docs/tensorrt.md
    """
    return cbam_deploy.build_engine(
        source, output, **vars(builder), sizes=tuple(size or ()), targets=tuple(target or ())
    )


def lower(
    source: OnnxIn,
    output: Output,
    target: Annotated[
        list[str],
        option(
            "Compute capability such as sm_87 (Jetson Orin); repeat for several.",
            metavar="sm_NN",
        ),
    ],
    tensorrt: Annotated[
        str, option("TensorRT that builds the engine.", metavar="VERSION")
    ] = "10.3",
    batch: Annotated[int, count(1, BATCHES, "Batch to be fastest at.")] = 8,
) -> Any:
    """Write gates as nodes of a TensorRT plugin, for trtexec, Triton, DeepStream.

    Example:
      cbam-deploy lower r50.onnx -o r50.lowered.onnx --target sm_87
    More: docs/tensorrt.md
    """
    return cbam_deploy.lower(source, output, targets=target, tensorrt=tensorrt, batch_size=batch)


def build_plugin(
    output: Annotated[
        Path | None,
        output("Folder to write to [default: one in the user's cache].", written_in(LIBRARY), "/"),
    ] = None,
    arch: Annotated[
        Literal["x86_64", "aarch64"] | None,
        option("Processors that it is for [default: this machine's]."),
    ] = None,
) -> Any:
    """Compile the TensorRT plugin library.

    Example:
      cbam-deploy build-plugin -o lib --arch aarch64
    More: docs/tensorrt.md
    """
    return cbam_deploy.build_plugin(output, arch=arch)


@dataclass(frozen=True)
class RecipeOptions:
    """How a network is trained."""

    epochs: Annotated[
        int | None,
        count(1, EPOCHS, "Passes over the pictures [default: 90; 20 with --quantize].", RECIPE),
    ] = None
    batch_size: Annotated[
        int, count(1, BATCHES, "Pictures a step, of all processes together.", RECIPE)
    ] = 256
    lr: Annotated[
        float | None,
        number(0, 1e6, "Initial learning rate [default: 0.1; 0.001 with --quantize].", RECIPE),
    ] = None
    lr_step: Annotated[
        int | None,
        count(1, EPOCHS, "Epochs between decays [default: 30; 10 with --quantize].", RECIPE),
    ] = None
    lr_gamma: Annotated[float, number(0, 1e6, "Factor of each decay.", RECIPE)] = 0.1
    momentum: Annotated[float, number(0, 1, "Momentum of SGD.", RECIPE)] = 0.9
    weight_decay: Annotated[float, number(0, 1e6, "Weight decay of SGD.", RECIPE)] = 1e-4
    augmentation: Annotated[
        Literal["auto", "crop-flip", "shift", "none"],
        option("How pictures are varied.", RECIPE),
    ] = "auto"
    amp: Annotated[
        Literal["none", "bf16", "fp16"], option("Mixed precision; fp16 on GPUs only.", RECIPE)
    ] = "none"


@dataclass(frozen=True)
class QuantizeOptions:
    """How a network is trained for INT8."""

    quantize: Annotated[
        bool,
        option("Fine-tune --weights with INT8 rounding in place.", PRECISION, "--quantize"),
    ] = False
    calibration: Annotated[
        str | None,
        source("Pictures that INT8 ranges start from [default: those of --data].", PRECISION),
    ] = None
    method: Annotated[
        Literal["minmax", "entropy", "percentile"], option("How ranges are found.", PRECISION)
    ] = "percentile"
    images: CalibrationImagesOption = 64


def train(
    model: Model,
    output: Annotated[Path, output("Folder for the run.", written_in(*RUN_FILES), "/")],
    data: Annotated[str, source("Pictures to train on, a folder for each class; or digits.")],
    *,
    val_data: Annotated[str | None, source("Held-out pictures: a SOURCE as of --data.")] = None,
    which: ModelOptions,
    initial_gates: InitialGatesOption = False,
    recipe: RecipeOptions,
    int8: QuantizeOptions,
    workers: Annotated[int | None, count(0, THREADS, "Threads that read pictures.")] = None,
    resume: Annotated[bool, option("Go on with an earlier run.", None, "--resume")] = False,
    seed: SeedOption = 0,
    device: TrainingDeviceOption = None,
) -> Any:
    r"""Train by the paper's recipe, resumably; on GPUs by torchrun.

    Example:
      cbam-deploy train resnet20 --data digits --image-size 16 \
        --epochs 10 --batch-size 64 --lr-step 5 -o run
    More: docs/training.md
    """
    from cbam_deploy.training.processes import leads

    result = cbam_deploy.train(
        model,
        data=data,
        output=output,
        **vars(which),
        **vars(recipe),
        **vars(int8),
        val_data=val_data,
        initial_gates=initial_gates,
        workers=workers,
        resume=resume,
        seed=seed,
        device=device,
    )
    return result if leads() else None


def demo(
    output: Annotated[Path, output("Folder to write.", written_in(), "/")] = Path("demo"),
    seed: SeedOption = 0,
) -> Any:
    """Walk the whole road on a small CBAM-ResNet.

    Example:
      cbam-deploy demo -o demo
    More: docs/tutorial.md
    """
    return cbam_deploy.demo(output, seed=seed)


COMMANDS = (export, fuse, inline, convert, search, lower, build_plugin, build_engine, train, demo)
