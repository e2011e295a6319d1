"""Our declaration of TensorRT's plugin interface against NVIDIA's own headers.

Where the environment variable TENSORRT_INCLUDE_DIR names the folder of NvInferRuntime.h, of any
version from 10.0 on: the same layout, and library and host that each know the interface from the
other of the two work together. Of CUDA's headers TensorRT's need two typedefs.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from native_build import (
    LIBRARY,
    NATIVE,
    Programs,
    build_driver,
    build_host,
    build_library,
    compiled,
)
from native_cases import CAPABILITY, CASES, STAGED

CUDA = """
typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
"""
CASE = CASES[0]


@pytest.fixture(scope="session")
def headers(built) -> list[str]:
    """Options that find NVIDIA's headers."""
    named = os.environ.get("TENSORRT_INCLUDE_DIR")
    if not named:
        pytest.skip("TENSORRT_INCLUDE_DIR names no folder of TensorRT's headers")
    folder = Path(named).resolve()
    assert (folder / "NvInferRuntime.h").is_file(), f"{folder} has no NvInferRuntime.h"
    stub = built / "cuda_typedefs"
    stub.mkdir(exist_ok=True)
    (stub / "cuda_runtime_api.h").write_text(CUDA)
    return ["-isystem", str(folder), "-isystem", str(stub)]


def test_layout_is_the_same(headers, built):
    program = compiled(
        built,
        "layout",
        [NATIVE / "layout.cpp"],
        *("-std=c++17", "-Wno-deprecated-declarations", f"-I{LIBRARY}", *headers),
        depends=[LIBRARY / "tensorrt.h"],
    )
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("theirs", ["host", "library", "both"])
def test_library_and_host_understand_each_other(theirs, headers, built, tmp_path):
    flags = {
        name: ["-DCBAM_DEPLOY_NVIDIA_HEADERS", *headers] if theirs in (name, "both") else []
        for name in ("host", "library")
    }
    driver = build_driver(built, set().union(*(case.kernels for case in CASES)))
    library, host = (
        build_library(built, "-O0", *flags["library"]),
        build_host(built, *flags["host"]),
    )
    programs = Programs(library, host, driver).on(CAPABILITY)
    lines = [*CASE.input_lines(tmp_path, "HWC8"), *CASE.node.field_lines(tmp_path), "offers"]
    lines += ["build float16 HWC8 1 2 4", f"run {STAGED} {tmp_path}/y 1@0 2@0,3@1"]
    said = programs.run(lines)
    assert said[-1] == f"ran {STAGED}"
    assert sum(line.startswith("offer") for line in said) == len(CASE.formats)
