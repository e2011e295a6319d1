"""The commands that make TensorRT engines, and what TensorRT builds them from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import cbam_deploy
from cbam_deploy.commands.files import updated, written_in
from cbam_deploy.commands.options import (
    BATCHES,
    MIBS,
    EngineOutput,
    OnnxIn,
    Output,
    count,
    file_option,
    option,
    output,
)

LIBRARY = "libcbam_deploy_plugin.so"  # plugins/native_library.py likewise

SHAPES = "Shapes"
BUILDER = "Builder"


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


COMMANDS = (lower, build_plugin, build_engine)
