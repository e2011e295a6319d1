"""The commands that say of an artefact, or of this machine, what it is and whether it is right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import cbam_deploy
from cbam_deploy.commands.files import read, written
from cbam_deploy.commands.options import (
    ARTEFACTS,
    BATCHES,
    INPUT,
    LAYERS,
    LIMITS,
    PICTURES,
    RESULT,
    RUNNING,
    SECONDS,
    THREADS,
    Artefact,
    Artefacts,
    BatchOption,
    DataOption,
    MetricOption,
    PreprocessOption,
    PyTorchOption,
    RunningOptions,
    RuntimeOption,
    RuntimesOption,
    SeedOption,
    SizesOption,
    count,
    drop,
    file_option,
    number,
    option,
    percent,
    source,
)

COMPARED = "What is compared"


def validate(
    artefact: Artefact,
    running: RunningOptions,
    runtime: RuntimeOption = None,
    data: DataOption = None,
    preprocess: PreprocessOption = None,
    size: SizesOption = None,
    batch: BatchOption = None,
    layers: Annotated[
        bool,
        option("Compare every gate too.", COMPARED, "--layers"),
    ] = False,
    every_node: Annotated[
        bool,
        option("Compare every node, not only gates.", COMPARED, "--every-node"),
    ] = False,
    max_abs: Annotated[
        float | None, number(0, math.inf, "Largest max abs [default: none].", LIMITS)
    ] = None,
    max_relative: Annotated[
        float | None,
        number(
            0,
            math.inf,
            "Largest max rel, error over the largest output"
            " [default: fp32 1e-4, fp16 2e-2, bf16 0.16].",
            LIMITS,
        ),
    ] = None,
    min_cosine: Annotated[
        float | None,
        number(-1, 1, "Smallest cosine [default: fp16 0.9999, bf16 0.9936].", LIMITS),
    ] = None,
    min_snr_db: Annotated[
        float | None,
        number(-math.inf, math.inf, "Smallest SNR in dB [default: int8 20, fp8 18].", LIMITS),
    ] = None,
    min_channel_snr_db: Annotated[
        float | None,
        number(
            -math.inf,
            math.inf,
            "Smallest SNR of the worst channel, in dB"
            " [default: fp32 30, fp16 10, bf16 10, int8 3, fp8 3].",
            LIMITS,
        ),
    ] = None,
    min_top1: Annotated[
        float | None, percent("Smallest top-1 agreement [default: none].", LIMITS)
    ] = None,
    limit: Annotated[int, count(1, PICTURES, "Pictures for each batch size.", INPUT)] = 16,
    seed: SeedOption = 0,
    junit: Annotated[
        Path | None,
        file_option("Also write a JUnit file.", written, ".xml", panel=RESULT),
    ] = None,
) -> Any:
    """Prove parity with PyTorch or a file before; exit 1 without it.

    Example:
      cbam-deploy validate r50.int8.onnx --data photos --layers
    More: docs/tolerances.md
    """
    parity = cbam_deploy.validate(
        artefact,
        data=data,
        preprocessing=preprocess,
        sizes=tuple(size or ()),
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
        **vars(running),
    )
    if junit is not None:
        from cbam_deploy.report.junit import write_junit

        write_junit(junit, "cbam-deploy validate", parity.junit_cases())
    return parity


def evaluate(
    artefacts: Artefacts,
    data: Annotated[str, source("Pictures with labels, masks or boxes.")],
    running: RunningOptions,
    runtime: RuntimeOption = None,
    metric: MetricOption = "top1",
    preprocess: PreprocessOption = None,
    size: SizesOption = None,
    pytorch: PyTorchOption = False,
    batch: Annotated[int, count(1, BATCHES, "Batch size.", INPUT)] = 64,
    limit: Annotated[
        int | None, count(1, PICTURES, "Use so many pictures only [default: all].", INPUT)
    ] = None,
    max_drop: Annotated[
        float | None, drop("Exit 1 when the metric falls by more than this.", LIMITS)
    ] = None,
) -> Any:
    r"""Measure accuracy: top-1, mIoU, mAP, or your own.

    Example:
      cbam-deploy evaluate fp32.onnx int8.onnx --data shapes --metric map \
        --max-drop 0.5%
    More: docs/metrics.md
    """
    return cbam_deploy.evaluate(
        artefacts,
        data=data,
        metric=metric,
        preprocessing=preprocess,
        sizes=tuple(size or ()),
        pytorch=pytorch,
        batch_size=batch,
        limit=limit,
        max_drop=max_drop,
        runtime=runtime,
        **vars(running),
    )


def bench(
    artefacts: Artefacts,
    running: RunningOptions,
    runtime: RuntimesOption = None,
    pytorch: PyTorchOption = False,
    batch: BatchOption = None,
    size: SizesOption = None,
    seconds: Annotated[float, number(0.1, SECONDS, "Time per artefact and batch.")] = 3.0,
    threads: Annotated[int | None, count(1, THREADS, "CPU threads.", RUNNING)] = None,
    relative_to: Annotated[
        Path | None,
        file_option("Baseline artefact, measured in the same run.", read, *ARTEFACTS),
    ] = None,
    against: Annotated[
        Path | None, file_option("Earlier --report to compare with.", read, ".json")
    ] = None,
    max_slowdown: Annotated[
        float | None, percent("Exit 1 when slower by more [default: 5% with --against].", LIMITS)
    ] = None,
    seed: SeedOption = 0,
) -> Any:
    """Measure latency and throughput, interleaved.

    Example:
      cbam-deploy bench r50.int8.onnx --relative-to r50.onnx --batch 1 --batch 8
    More: docs/interleaving.md
    """
    return cbam_deploy.bench(
        artefacts,
        pytorch=pytorch,
        batch_sizes=tuple(batch or (1, 8)),
        sizes=tuple(size or ()),
        seconds=seconds,
        threads=threads,
        relative_to=relative_to,
        against=against,
        max_slowdown=max_slowdown,
        seed=seed,
        runtime=runtime or None,
        **vars(running),
    )


def profile(
    artefacts: Artefacts,
    running: RunningOptions,
    runtime: RuntimesOption = None,
    pytorch: PyTorchOption = False,
    batch: Annotated[int, count(1, BATCHES, "Batch size.", INPUT)] = 1,
    size: SizesOption = None,
    seconds: Annotated[float, number(0.1, SECONDS, "Time per artefact and way to run it.")] = 3.0,
    threads: Annotated[int | None, count(1, THREADS, "CPU threads.", RUNNING)] = None,
    top: Annotated[int, count(1, LAYERS, "Layers to show; JSON has all of them.", RESULT)] = 20,
    seed: SeedOption = 0,
) -> Any:
    """Show where the time goes, layer by layer, of one artefact or two.

    Example:
      cbam-deploy profile r50.onnx r50.int8.onnx --top 10
    More: docs/profile.md
    """
    return cbam_deploy.profile(
        artefacts,
        pytorch=pytorch,
        batch_size=batch,
        sizes=tuple(size or ()),
        seconds=seconds,
        threads=threads,
        seed=seed,
        top=top,
        runtime=runtime or None,
        **vars(running),
    )


def inspect(artefact: Artefact) -> Any:
    """Show what an artefact is; check its hashes.

    Example:
      cbam-deploy inspect r50.engine
    More: docs/any-onnx.md
    """
    return cbam_deploy.inspect(artefact)


def doctor(
    measure: Annotated[
        bool, option("Measure which runtime this CPU should use, in seconds.", None, "--measure")
    ] = False,
) -> Any:
    """Say what this machine can do, and what it lacks.

    Example:
      cbam-deploy doctor --measure
    More: docs/troubleshooting.md
    """
    return cbam_deploy.doctor(measure=measure)


COMMANDS = (validate, evaluate, bench, profile, inspect, doctor)
