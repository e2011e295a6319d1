"""The commands that train networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import cbam_deploy
from cbam_deploy.commands.files import written_in
from cbam_deploy.commands.options import (
    BATCHES,
    EPOCHS,
    PRECISION,
    THREADS,
    CalibrationImagesOption,
    InitialGatesOption,
    Model,
    ModelOptions,
    SeedOption,
    TrainingDeviceOption,
    count,
    number,
    option,
    output,
    source,
)

# What `train` writes: the names of training/run_folder.py, which this module must not load.
RUN_FILES = ("best.safetensors", "last.pt", "history.json")

RECIPE = "Recipe"


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


COMMANDS = (train, demo)
