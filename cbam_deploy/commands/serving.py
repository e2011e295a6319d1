"""The command between an artefact and a server of other people's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import cbam_deploy
from cbam_deploy.commands.completion import offer
from cbam_deploy.commands.files import read, written_in
from cbam_deploy.commands.options import (
    BATCHES,
    INPUT,
    PICTURES,
    THREADS,
    Artefacts,
    BatchOption,
    DataOption,
    DeviceOption,
    PreprocessOption,
    SeedOption,
    SizesOption,
    count,
    file_option,
    option,
)
from cbam_deploy.errors import BadInput

SERVER = "Server"
CHECK = "Check"
VERSIONS = 2**31 - 1


def folder_option(help_text: str) -> Any:
    """An option that names a folder to write files into."""
    return option(
        help_text, None, metavar="FOLDER", callback=written_in(), autocompletion=offer("/")
    )


@dataclass(frozen=True)
class ServerOptions:
    """How Triton serves a model."""

    backend: Annotated[
        Literal["auto", "python"],
        option("python: ONNX Runtime in Triton's Python backend.", SERVER),
    ] = "auto"
    model_version: Annotated[
        int, count(1, VERSIONS, "Number of the version in the repository.", SERVER)
    ] = 1
    max_batch: Annotated[
        int | None, count(1, BATCHES, "Largest batch [default: the engine's, else 64].", SERVER)
    ] = None
    instances: Annotated[int, count(1, THREADS, "Copies that run at once.", SERVER)] = 1
    threads: Annotated[int | None, count(1, THREADS, "CPU threads of each.", SERVER)] = None
    container: Annotated[
        str | None,
        option("Month of Triton's container, whose TensorRT must fit.", SERVER, metavar="YY.MM"),
    ] = None
    plugin: Annotated[
        Path | None,
        file_option("Plugin library [default: this machine's].", read, ".so", panel=SERVER),
    ] = None
    tensorrt: Annotated[
        str | None, option("TensorRT of the server, such as 10.9.", SERVER, metavar="VERSION")
    ] = None


def package(
    artefacts: Artefacts,
    server: ServerOptions,
    triton: Annotated[
        Path | None, folder_option("Write a model repository for Triton into this folder.")
    ] = None,
    deepstream: Annotated[
        Path | None, folder_option("Write a configuration of DeepStream's nvinfer into it.")
    ] = None,
    check: Annotated[
        str | None,
        option(
            "Compare a running Triton server with the artefact; exit 1 when they differ.",
            metavar="HOST:PORT",
        ),
    ] = None,
    model_name: Annotated[
        str | None, option("Name of the model [default: the file's].", metavar="NAME")
    ] = None,
    pictures: Annotated[
        bool, option("Also a model that takes encoded pictures.", None, "--pictures")
    ] = False,
    data: DataOption = None,
    preprocess: PreprocessOption = None,
    size: SizesOption = None,
    grpc: Annotated[
        str | None,
        option("gRPC of the server [default: the next port].", CHECK, metavar="HOST:PORT"),
    ] = None,
    batch: BatchOption = None,
    limit: Annotated[int, count(1, PICTURES, "Pictures for each batch size.", INPUT)] = 16,
    device: DeviceOption = None,
    seed: SeedOption = 0,
) -> Any:
    """Make a folder that Triton or DeepStream serves; check a server.

    Example:
      cbam-deploy package r50.onnx --triton models
    More: docs/serving.md
    """
    inputs: dict[str, Any] = {
        "data": data,
        "preprocessing": preprocess,
        "sizes": tuple(size or ()),
        "device": device,
        "pictures": pictures,
        "model_name": model_name,
        "seed": seed,
    }
    if check is None:
        asked = {"grpc": grpc, "batch": batch or None, "limit": limit}
        _refuse_idle(asked, {"grpc": None, "batch": None, "limit": 16}, "how --check asks a server")
        return cbam_deploy.package(
            artefacts, triton=triton, deepstream=deepstream, **inputs, **vars(server)
        )
    _refuse_idle({**vars(server)}, vars(ServerOptions()), "how a package is made")
    if triton is not None or deepstream is not None:
        raise BadInput(
            "--check asks a server that runs already",
            "package first, start the server, then check",
        )
    if len(artefacts) != 1:
        raise BadInput("--check compares one artefact with a server", "give one artefact")
    return cbam_deploy.check_server(
        artefacts[0], check, grpc=grpc, batch_sizes=batch or None, limit=limit, **inputs
    )


def _refuse_idle(given: dict[str, Any], silent: dict[str, Any], what: str) -> None:
    """Raise `BadInput` for an option that would change nothing."""
    for name, value in given.items():
        if value != silent[name]:
            option = f"--{name.replace('_', '-')}"
            raise BadInput(f"{option} says {what}", f"leave {option} out")


COMMANDS = (package,)
