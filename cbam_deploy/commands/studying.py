"""The commands that study networks: what they cost, where they look, which gate is best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import cbam_deploy
from cbam_deploy.commands.completion import VARIANTS, ZOO, offer
from cbam_deploy.commands.files import read, written_in
from cbam_deploy.commands.options import (
    BATCHES,
    EPOCHS,
    MODEL,
    SECONDS,
    ClassesOption,
    ModelOptions,
    ModelOrFile,
    Networks,
    PreprocessOption,
    SeedOption,
    SizeOption,
    SizesOption,
    TrainingDeviceOption,
    count,
    file_option,
    number,
    option,
    output,
    source,
)


def complexity(
    model: ModelOrFile,
    which: ModelOptions,
    num_classes: ClassesOption = None,
    size: SizesOption = None,
    by_module: Annotated[bool, option("Show each module.", None, "--by-module")] = False,
) -> Any:
    """Count parameters and multiply-adds.

    Example:
      cbam-deploy complexity resnet50 --by-module
    More: docs/paper-tables.md
    """
    return cbam_deploy.complexity(
        model,
        **vars(which),
        num_classes=num_classes,
        sizes=tuple(size or ()),
        by_module=by_module,
    )


def gradcam(
    networks: Networks,
    data: Annotated[str, source("Pictures to explain.")],
    preprocess: PreprocessOption = None,
    output: Annotated[Path, output("Folder to write.", written_in("gradcam.html"), "/")] = Path(
        "gradcam"
    ),
    artefact: Annotated[
        list[Path] | None,
        file_option(
            "ONNX file whose attention to show; repeat, the most exact first.", read, ".onnx"
        ),
    ] = None,
    images: Annotated[int, count(1, 12, "How many pictures.")] = 6,
    image_size: SizeOption = None,
    layer: Annotated[
        str | None,
        option("Module to explain [default: last convolutional output].", metavar="MODULE"),
    ] = None,
    seed: SeedOption = 0,
) -> Any:
    """Show where networks and their files look.

    Example:
      cbam-deploy gradcam run/best.safetensors --data digits -o explained
    More: docs/gradcam.md
    """
    return cbam_deploy.gradcam(
        networks,
        output,
        data=data,
        preprocessing=preprocess,
        artefacts=tuple(artefact or ()),
        images=images,
        image_size=image_size,
        layer=layer,
        seed=seed,
    )


def ablation(
    data: Annotated[str, source("Pictures with a held-out part.")] = "digits",
    output: Annotated[
        Path, output("Folder of the study; goes on in it.", written_in(), "/")
    ] = Path("ablation"),
    model: Annotated[
        str,
        option(
            f"Network of the zoo: {', '.join(ZOO)}.",
            MODEL,
            metavar="MODEL",
            autocompletion=offer(*ZOO),
        ),
    ] = "resnet20",
    variant: Annotated[
        list[str] | None,
        option(
            f"Of the paper: {', '.join(VARIANTS)}; or a gate as for --gate of export; repeat for"
            " several [default: all of the paper].",
            metavar="VARIANT",
            autocompletion=offer(*VARIANTS),
        ),
    ] = None,
    epochs: Annotated[
        int | None, count(1, EPOCHS, "Of each cell [default: 10 for digits, else 90].")
    ] = None,
    seeds: Annotated[int, count(1, EPOCHS, "Cells of each variant.")] = 2,
    image_size: SizeOption = None,
    batch_size: Annotated[int | None, count(1, BATCHES, "Pictures a step.")] = None,
    seconds: Annotated[float, number(0.1, SECONDS, "Of timing per variant.")] = 1.0,
    device: TrainingDeviceOption = None,
) -> Any:
    """Compare the gate's variants, resumably.

    Example:
      cbam-deploy ablation --variant se --variant cbam --epochs 3 -o study
    More: docs/ablation.md
    """
    return cbam_deploy.ablation(
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


COMMANDS = (complexity, gradcam, ablation)
