"""The commands that study networks: what they cost, where they look, which gate is best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import cbam_deploy
from cbam_deploy.commands.completion import ZOO, offer
from cbam_deploy.commands.files import read, written_in
from cbam_deploy.commands.options import (
    BATCHES,
    EPOCHS,
    MODEL,
    SECONDS,
    ClassesOption,
    DeviceOption,
    ModelOptions,
    ModelOrFile,
    Networks,
    PreprocessOption,
    SeedOption,
    SizeOption,
    SizesOption,
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
    """Count parameters and multiply-adds."""
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
        str | None, option("Module to explain [default: last convolutional output].")
    ] = None,
    seed: SeedOption = 0,
) -> Any:
    """Show where networks and their files look."""
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
        option("Network of the zoo.", MODEL, autocompletion=offer(*ZOO)),
    ] = "resnet20",
    variant: Annotated[
        list[str] | None,
        option("A variant of the paper, or a gate as for --gate; repeat for several."),
    ] = None,
    epochs: Annotated[
        int | None, count(1, EPOCHS, "Of each cell [default: 10 for digits, else 90].")
    ] = None,
    seeds: Annotated[int, count(1, EPOCHS, "Cells of each variant.")] = 2,
    image_size: SizeOption = None,
    batch_size: Annotated[int | None, count(1, BATCHES, "Images a step.")] = None,
    seconds: Annotated[float, number(0.1, SECONDS, "Of timing per variant.")] = 1.0,
    device: DeviceOption = None,
) -> Any:
    """Compare the gate's variants, resumably."""
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
