"""Meet the plugin library through TensorRT's own Python bindings and the genuine plugin registry.

A program, run in a process of its own because the bindings load stand-ins for TensorRT's libraries
(`stand_ins`); the registry behind them is TensorRT-RTX's. It takes how the library comes to the
process (load, dlopen, before: dlopen while TensorRT is not there yet, preload: LD_PRELOAD names
it), its file, and files with a node's fields, and prints what the registry says after each step, as
JSON.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

if sys.argv[1] == "before":
    ctypes.CDLL(sys.argv[2])
import tensorrt_bindings as trt

SAID: list[tuple[str, Any]] = []


def note(step: str, answer: Any = None) -> None:
    """Keep what a step answers, and which creators of ours the registry has now."""
    names = [
        f"{one.plugin_namespace} {one.name} {one.plugin_version}"
        for one in trt.get_plugin_registry().all_creators
        if one.name == "FusedGate"
    ]
    SAID.append((step, {"answer": answer, "creators": names}))


def describe(program: bytes, images: bytes) -> None:
    """What creator and plugin say of themselves."""
    creator = trt.get_plugin_registry().get_creator("FusedGate", "1", "cbam_deploy")
    kind = creator.interface_info
    note("creator", [kind.kind, kind.major, kind.minor])
    note("fields", [[one.name, one.type.name] for one in creator.field_names])

    def create(text: bytes) -> Any:
        fields = trt.PluginFieldCollection(
            [
                trt.PluginField("program", np.frombuffer(text, np.int8), trt.PluginFieldType.CHAR),
                trt.PluginField("images", np.frombuffer(images, np.int8), trt.PluginFieldType.INT8),
            ]
        )
        return creator.create_plugin("a gate", fields, trt.TensorRTPhase.BUILD)

    plugin = create(program)
    types = trt.PluginCapabilityType
    core, build, runtime = (
        plugin.get_capability_interface(one) for one in (types.CORE, types.BUILD, types.RUNTIME)
    )
    note("core", [core.plugin_namespace, core.plugin_name, core.plugin_version])
    note("build", [build.num_outputs, build.format_combination_limit, build.metadata_string])
    note("runtime", runtime.interface_info.kind)
    note("damaged", create(program[:-5]))


def main(how: str, library: str, program: str, images: str) -> None:
    """Load, and ask."""
    registry = trt.get_plugin_registry()
    note("start")
    if how == "dlopen":
        note("dlopen", bool(ctypes.CDLL(library)))
    handle = registry.load_library(library) if how == "load" else None
    if how == "load":
        note("load", handle is not None)
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(library, Path(folder) / "copy.so")
        note("copy", bool(ctypes.CDLL(copy)))
    describe(Path(program).read_bytes(), Path(images).read_bytes())
    if how != "load":
        handle = registry.load_library(library)
        note("load", handle is not None)
    note("load again", registry.load_library(library) is not None)
    registry.deregister_library(handle)
    note("deregister")
    note("load anew", registry.load_library(library) is not None)
    print(json.dumps(SAID))


if __name__ == "__main__":
    main(*sys.argv[1:])
