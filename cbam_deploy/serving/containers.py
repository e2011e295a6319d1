"""Whether the TensorRT of a server loads an engine: it must be the one that built it.

`TENSORRT_OF` has the TensorRT of NVIDIA's monthly containers, ``tritonserver:YY.MM-py3``, as far as
a source of ours names it: for 24.05 to 24.08 the compatibility matrix in Triton's repository as it
stood then (docs/compatibility.md), for 24.12 and 25.08 what users of these containers list. The
whole table is NVIDIA's `SUPPORT_MATRIX`; for other months, and for images with a TensorRT of their
own such as those of TensorRT-LLM, a person says ``--tensorrt``.
"""

from __future__ import annotations

import re

from cbam_deploy.artefacts import Artefact, Engine
from cbam_deploy.engines.backend import TENSORRT
from cbam_deploy.errors import BadInput
from cbam_deploy.provenance import Lowering

SUPPORT_MATRIX = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix"
TENSORRT_OF = {
    "24.05": "10.0.1",
    "24.06": "10.1.0",
    "24.07": "10.2.0",
    "24.08": "10.3.0",
    "24.12": "10.7.0",
    "25.08": "10.13.2",
}


def server_tensorrt(container: str | None, tensorrt: str | None) -> tuple[int, ...]:
    """The TensorRT of the server, as far as the person says so; empty where nothing is said.

    Raises:
        BadInput: it is no version, the container is not in `TENSORRT_OF`, or both are given.
    """
    if container is None and tensorrt is None:
        return ()
    if container is not None and tensorrt is not None:
        raise BadInput("--container and --tensorrt both say the TensorRT", "give one of them")
    version = tensorrt or TENSORRT_OF.get(str(container))
    if version is None:
        raise BadInput(
            f"--container {container}: its TensorRT is not known here, but that of"
            f" {', '.join(TENSORRT_OF)}",
            f"look it up in {SUPPORT_MATRIX} and say --tensorrt 10.9 instead",
        )
    if not re.fullmatch(r"\d{1,3}\.\d{1,3}(\.\d{1,3}){0,2}", version):
        raise BadInput(f"--tensorrt {version}: is no version", "write it as 10.9 or 10.9.0")
    return tuple(map(int, version.split(".")))


def check_loads(engine: Engine, server: tuple[int, ...], what: str) -> None:
    """Refuse an engine that the server cannot load.

    Args:
        engine: to be served.
        server: its version of TensorRT, as far as it is known.
        what: the server, for messages.

    Raises:
        BadInput: TensorRT-RTX built it, its weights were stripped, or another TensorRT built it.
    """
    manifest = engine.manifest
    if manifest.runtime != TENSORRT:
        raise BadInput(
            f"{engine.title}: TensorRT-RTX built it, and {what} loads engines of TensorRT alone",
            "build it with --runtime tensorrt, or package the ONNX file",
        )
    if manifest.options.get("strip_weights"):
        raise BadInput(
            f"{engine.title}: holds no weights, they were stripped, and {what} does not refit",
            "build it without --strip-weights",
        )
    built = tuple(int(part) for part in manifest.runtime_version.split(".") if part.isdigit())
    same = built[: len(server)] == server[: len(built)]
    later = bool(manifest.options.get("version_compatible")) and built[:1] == server[:1]
    if not same and not (later and server > built):
        version = ".".join(map(str, server))
        raise BadInput(
            f"{engine.title}: TensorRT {manifest.runtime_version} built it, and the server has"
            f" {version}, which cannot load it",
            f"build it with TensorRT {version}, or with --version-compatible for a later one",
        )


def check_builds(artefact: Artefact, lowered: Lowering, server: tuple[int, ...]) -> None:
    """Refuse a lowered file whose kernels are for a later TensorRT than the server's.

    Raises:
        BadInput: it is so.
    """
    needed = tuple(map(int, lowered.tensorrt.split(".")))
    if server and server < needed[: len(server)]:
        version = ".".join(map(str, server))
        raise BadInput(
            f"{artefact.title}: is lowered for TensorRT {lowered.tensorrt} and later, and the"
            f" server has {version}",
            f"lower it with --tensorrt {version}",
        )
