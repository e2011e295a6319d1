"""The command line: parses, calls one function of the package, prints its result.

Each command imports what it calls when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from cbam_deploy.command_files import declarations
from cbam_deploy.commands import studying
from cbam_deploy.commands.files import read, updated, written, written_in
from cbam_deploy.commands.options import (
    BATCHES,
    EPOCHS,
    MIBS,
    PICTURES,
    SECONDS,
    THREADS,
    Artefact,
    Artefacts,
    AttentionOption,
    AugmentationOption,
    CalibrationImagesOption,
    CalibrationOption,
    ClassesOption,
    DataOption,
    DeviceOption,
    EngineOutput,
    GateOption,
    InitialGatesOption,
    InputsOption,
    IoDtypeOption,
    JsonOption,
    MethodOption,
    Model,
    OnnxIn,
    OnnxInPlace,
    Output,
    ReferenceOption,
    ReportOption,
    RuntimeOption,
    SeedOption,
    SizeOption,
    StemOption,
    WeightsOption,
    gate_spec,
    percentage,
    real,
)
from cbam_deploy.commands.outcome import DEBUG, deliver, run
from cbam_deploy.version import __version__

# What `train` writes: the names of training/run_folder.py, which this module must not load.
RUN_FILES = ("best.safetensors", "last.pt", "history.json")


class Commands(TyperGroup):
    """The commands; each declares the files it reads and writes while its line is parsed."""

    def invoke(self, context: Any) -> Any:
        """Run one command."""
        with declarations():
            return super().invoke(context)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Deploy CNNs with attention gates: PyTorch to ONNX to TensorRT, proven and measured.",
)


@app.command("export")
def export_command(
    model: Model,
    output: Output,
    attention: AttentionOption = None,
    weights: WeightsOption = None,
    stem: StemOption = None,
    num_classes: ClassesOption = None,
    image_size: SizeOption = None,
    inputs: InputsOption = None,
    gate: GateOption = None,
    initial_gates: InitialGatesOption = False,
    no_fuse: Annotated[bool, typer.Option("--no-fuse", help="Leave gates as plain ops.")] = False,
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "int8+fp32"],
        typer.Option(help="int8 leaves the rest in FP16, int8+fp32 in FP32."),
    ] = "fp32",
    calibration: CalibrationOption = None,
    method: MethodOption = "percentile",
    images: CalibrationImagesOption = 64,
    io_dtype: IoDtypeOption = "fp32",
    tolerance: Annotated[
        float | None,
        typer.Option(
            parser=real(0, math.inf),
            metavar="ERROR",
            help="Largest error to allow, over the largest output [default: FP32's own].",
        ),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Export a PyTorch model to ONNX, gates fused."""
    from cbam_deploy import export_onnx

    deliver(
        export_onnx(
            model,
            output,
            attention=attention,
            weights=weights,
            stem=stem,
            num_classes=num_classes,
            image_size=image_size,
            inputs=tuple(inputs or ()),
            gate=gate_spec(gate),
            initial_gates=initial_gates,
            fuse=not no_fuse,
            precision=precision,
            calibration=calibration,
            method=method,
            images=images,
            io_dtype=io_dtype,
            tolerance=tolerance,
            seed=seed,
        ),
        as_json,
    )


@app.command("fuse")
def fuse_command(source: OnnxInPlace, output: Output, as_json: JsonOption = False) -> None:
    """Make each attention gate of an ONNX file one node."""
    from cbam_deploy import fuse

    deliver(fuse(source, output), as_json)


@app.command("convert")
def convert_command(
    source: OnnxIn,
    output: Output,
    precision: Annotated[
        Literal["fp16", "int8", "int8+fp32"],
        typer.Option(help="int8 leaves the rest in FP16, int8+fp32 in FP32."),
    ] = "fp16",
    calibration: CalibrationOption = None,
    method: MethodOption = "percentile",
    images: CalibrationImagesOption = 64,
    io_dtype: IoDtypeOption = "fp32",
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            parser=percentage,
            metavar="PERCENT",
            help="Give the noisiest layers back to FP16 until top-1 on --data holds.",
        ),
    ] = None,
    data: DataOption = None,
    seed: SeedOption = 0,
    report: ReportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert an ONNX file to FP16 or INT8."""
    from cbam_deploy import convert

    deliver(
        convert(
            source,
            output,
            precision=precision,
            calibration=calibration,
            method=method,
            images=images,
            io_dtype=io_dtype,
            max_accuracy_drop=max_accuracy_drop,
            data=data,
            seed=seed,
        ),
        as_json,
        report,
    )


@app.command("build-engine")
def build_engine_command(
    source: OnnxIn,
    output: EngineOutput,
    runtime: Annotated[
        Literal["auto", "tensorrt", "tensorrt-rtx"], typer.Option(help="Which TensorRT builds.")
    ] = "auto",
    min_batch: Annotated[
        int | None, typer.Option(min=1, max=BATCHES, help="Smallest batch [default: 1].")
    ] = None,
    opt_batch: Annotated[
        int | None, typer.Option(min=1, max=BATCHES, help="Batch to be fastest at [default: 8].")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, max=BATCHES, help="Largest batch [default: 64].")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=MIN,OPT,MAX",
            help="Range of a free axis such as H=320,640,1280; repeat for several.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Compute capability such as sm_89; repeat for several (TensorRT-RTX)."),
    ] = None,
    gate: Annotated[
        Literal["auto", "plugin", "native"], typer.Option(help="How gates are lowered.")
    ] = "auto",
    timing_cache: Annotated[
        Path | None, typer.Option(callback=updated, help="Tactic timings to reuse.")
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(min=0, max=5, help="Builder effort, 0 to 5.")
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(min=1, max=MIBS, metavar="MIB", help="Scratch memory for tactics, in MiB."),
    ] = None,
    strip_weights: Annotated[bool, typer.Option(help="Leave weights out; refit later.")] = False,
    version_compatible: Annotated[
        bool, typer.Option(help="Run on later TensorRT versions too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Build a TensorRT engine and its manifest."""
    from cbam_deploy import build_engine

    deliver(
        build_engine(
            source,
            output,
            runtime=runtime,
            min_batch=min_batch,
            opt_batch=opt_batch,
            max_batch=max_batch,
            sizes=tuple(size or ()),
            targets=tuple(target or ()),
            gate=gate,
            timing_cache=timing_cache,
            optimization_level=optimization_level,
            workspace_mib=workspace,
            strip_weights=strip_weights,
            version_compatible=version_compatible,
        ),
        as_json,
    )


@app.command("validate")
def validate_command(
    artefact: Artefact,
    reference: ReferenceOption = None,
    weights: WeightsOption = None,
    data: DataOption = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, max=BATCHES, help="Batch size; repeat for several.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Compare every gate too.")] = False,
    every_node: Annotated[
        bool, typer.Option("--every-node", help="Compare every node, not only gates.")
    ] = False,
    max_abs: Annotated[
        float | None,
        typer.Option(parser=real(0, math.inf), metavar="NUMBER", help="Largest absolute error."),
    ] = None,
    max_relative: Annotated[
        float | None,
        typer.Option(
            parser=real(0, math.inf),
            metavar="NUMBER",
            help="Largest error over the largest output.",
        ),
    ] = None,
    min_cosine: Annotated[
        float | None, typer.Option(parser=real(-1, 1), metavar="NUMBER", help="Smallest cosine.")
    ] = None,
    min_snr_db: Annotated[
        float | None,
        typer.Option(
            parser=real(-math.inf, math.inf),
            metavar="NUMBER",
            help="Smallest signal-to-noise ratio, in dB.",
        ),
    ] = None,
    min_channel_snr_db: Annotated[
        float | None,
        typer.Option(
            parser=real(-math.inf, math.inf),
            metavar="NUMBER",
            help="Smallest one of a channel by itself, in dB.",
        ),
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(parser=percentage, metavar="PERCENT", help="Smallest top-1 agreement (99%)."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=PICTURES, help="Images per batch size.")] = 16,
    seed: SeedOption = 0,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    report: ReportOption = None,
    junit: Annotated[
        Path | None, typer.Option(callback=written, help="Also write a JUnit file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prove parity with PyTorch; exit 1 without it."""
    from cbam_deploy import validate

    parity = validate(
        artefact,
        reference=reference,
        weights=weights,
        data=data,
        batch_sizes=batch or None,
        layers="all" if every_node else "gates" if layers else None,
        max_abs=max_abs,
        max_relative=max_relative,
        min_cosine=min_cosine,
        min_snr_db=min_snr_db,
        min_top1=min_top1,
        min_channel_snr_db=min_channel_snr_db,
        limit=limit,
        seed=seed,
        runtime=runtime,
        device=device,
    )
    if junit is not None:
        from cbam_deploy.report.junit import write_junit

        write_junit(junit, "cbam-deploy validate", parity.junit_cases())
    deliver(parity, as_json, report)


@app.command("evaluate")
def evaluate_command(
    artefacts: Artefacts,
    data: Annotated[str, typer.Option(metavar="SOURCE", callback=read, help="Labelled images.")],
    pytorch: Annotated[bool, typer.Option("--pytorch", help="PyTorch as well.")] = False,
    reference: ReferenceOption = None,
    weights: WeightsOption = None,
    batch: Annotated[int, typer.Option(min=1, max=BATCHES, help="Batch size.")] = 64,
    limit: Annotated[
        int | None, typer.Option(min=1, max=PICTURES, help="Use so many images only.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            parser=percentage, metavar="PERCENT", help="Exit 1 when top-1 falls by more (0.5%)."
        ),
    ] = None,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    report: ReportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure top-1 and top-5 accuracy."""
    from cbam_deploy import evaluate

    deliver(
        evaluate(
            artefacts,
            data=data,
            reference_pytorch=pytorch,
            reference=reference,
            weights=weights,
            batch_size=batch,
            limit=limit,
            max_drop=max_drop,
            runtime=runtime,
            device=device,
        ),
        as_json,
        report,
    )


@app.command("bench")
def bench_command(
    artefacts: Artefacts,
    pytorch: Annotated[bool, typer.Option("--pytorch", help="PyTorch as well.")] = False,
    reference: ReferenceOption = None,
    weights: WeightsOption = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, max=BATCHES, help="Batch size; repeat for several.")
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            parser=real(0.1, SECONDS), metavar="NUMBER", help="Time per artefact and batch."
        ),
    ] = 3.0,
    threads: Annotated[int | None, typer.Option(min=1, max=THREADS, help="CPU threads.")] = None,
    relative_to: Annotated[
        Path | None,
        typer.Option(callback=read, help="Baseline artefact, measured in the same run."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(callback=read, help="Earlier --report to compare with.")
    ] = None,
    max_slowdown: Annotated[
        float | None,
        typer.Option(parser=percentage, metavar="PERCENT", help="Exit 1 when slower by more (5%)."),
    ] = None,
    seed: SeedOption = 0,
    runtime: RuntimeOption = None,
    device: DeviceOption = None,
    report: ReportOption = None,
    html: Annotated[
        Path | None, typer.Option(callback=written, help="Also write a page with plots.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure latency and throughput, interleaved."""
    from cbam_deploy import bench

    measured = bench(
        artefacts,
        pytorch=pytorch,
        reference=reference,
        weights=weights,
        batches=tuple(batch or (1, 8)),
        seconds=seconds,
        threads=threads,
        relative_to=relative_to,
        against=against,
        max_slowdown=max_slowdown,
        seed=seed,
        runtime=runtime,
        device=device,
    )
    if html is not None:
        from cbam_deploy.report.html import write_page

        write_page(measured, html)
    deliver(measured, as_json, report)


@app.command("train")
def train_command(
    model: Model,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", callback=written_in(*RUN_FILES), help="Folder for the run."),
    ],
    data: Annotated[
        str, typer.Option(metavar="SOURCE", callback=read, help="Labelled images to train on.")
    ],
    val_data: Annotated[
        str | None, typer.Option(metavar="SOURCE", callback=read, help="Held-out images.")
    ] = None,
    attention: AttentionOption = None,
    gate: GateOption = None,
    stem: StemOption = None,
    weights: WeightsOption = None,
    initial_gates: InitialGatesOption = False,
    image_size: SizeOption = None,
    epochs: Annotated[int, typer.Option(min=1, max=EPOCHS)] = 90,
    batch_size: Annotated[
        int, typer.Option(min=1, max=BATCHES, help="Images a step, of all processes together.")
    ] = 256,
    lr: Annotated[
        float, typer.Option(parser=real(0, 1e6), metavar="NUMBER", help="Initial learning rate.")
    ] = 0.1,
    lr_step: Annotated[int, typer.Option(min=1, max=EPOCHS, help="Epochs between decays.")] = 30,
    lr_gamma: Annotated[
        float, typer.Option(parser=real(0, 1e6), metavar="NUMBER", help="Factor of each decay.")
    ] = 0.1,
    momentum: Annotated[
        float,
        typer.Option(
            parser=real(0, 1),
            metavar="NUMBER",
        ),
    ] = 0.9,
    weight_decay: Annotated[
        float,
        typer.Option(
            parser=real(0, 1e6),
            metavar="NUMBER",
        ),
    ] = 1e-4,
    augmentation: AugmentationOption = "auto",
    amp: Annotated[
        Literal["none", "bf16", "fp16"], typer.Option(help="Mixed precision; fp16 on GPUs only.")
    ] = "none",
    workers: Annotated[
        int | None, typer.Option(min=0, max=THREADS, help="Threads that read images.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an earlier run.")] = False,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train by the paper's recipe, resumable; on several GPUs by torchrun."""
    from cbam_deploy import train
    from cbam_deploy.training.processes import leads

    result = train(
        model,
        data=data,
        output=output,
        val_data=val_data,
        attention=attention,
        gate=gate_spec(gate),
        stem=stem,
        weights=weights if weights is None else str(weights),
        initial_gates=initial_gates,
        image_size=image_size,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        lr_step=lr_step,
        lr_gamma=lr_gamma,
        momentum=momentum,
        weight_decay=weight_decay,
        augmentation=augmentation,
        amp=amp,
        workers=workers,
        resume=resume,
        seed=seed,
        device=device,
    )
    if leads():
        deliver(result, as_json)


@app.command("inspect")
def inspect_command(artefact: Artefact, as_json: JsonOption = False) -> None:
    """Show what an artefact is; check its hashes."""
    from cbam_deploy import inspect

    deliver(inspect(artefact), as_json)


@app.command("doctor")
def doctor_command(as_json: JsonOption = False) -> None:
    """Say what this machine can do, and what it lacks."""
    from cbam_deploy import doctor

    deliver(doctor(), as_json)


@app.command("demo")
def demo_command(
    output: Annotated[
        Path, typer.Option("-o", "--output", callback=written_in(), help="Folder to write.")
    ] = Path("demo"),
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Walk the whole road on a small CBAM-ResNet."""
    from cbam_deploy import demo

    deliver(demo(output, seed=seed), as_json)


studying.register(app)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    if version:
        typer.echo(f"cbam-deploy {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    if debug:
        os.environ[DEBUG] = "1"


def main() -> NoReturn:
    """Entry point of ``cbam-deploy``."""
    run(lambda: app(standalone_mode=False))


if __name__ == "__main__":
    main()
