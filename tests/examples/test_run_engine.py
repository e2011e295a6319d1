"""The C++ example compiles against NVIDIA's headers, where TENSORRT_INCLUDE_DIR names their folder.

CUDA's headers come from pip, which leaves out the one that says what `__host__` and the like mean.
"""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp" / "run_engine.cpp"
EMPTY = (
    "__host__", "__device__", "__device_builtin__", "__cudart_builtin__", "__location__(where)",
    "__forceinline__ inline", "CUDARTAPI", "CUDARTAPI_CDECL", "CUDA_CB", "__CUDA_DEPRECATED",
)  # fmt: skip
ALIGNED = ("__align__(bytes)", "__builtin_align__(bytes)")


def test_it_compiles_without_a_warning(tmp_path):
    named = os.environ.get("TENSORRT_INCLUDE_DIR")
    if not named:
        pytest.skip("TENSORRT_INCLUDE_DIR names no folder of TensorRT's headers")
    spec = importlib.util.find_spec("nvidia.cu13")
    assert spec is not None
    places = [Path(place, "include") for place in spec.submodule_search_locations or ()]
    defines = [f"#define {name}" for name in EMPTY]
    defines += [f"#define {name} __attribute__((aligned(bytes)))" for name in ALIGNED]
    (tmp_path / "crt").mkdir()
    (tmp_path / "crt" / "host_defines.h").write_text("\n".join((*defines, "")))
    includes = [part for folder in (named, *places, tmp_path) for part in ("-isystem", folder)]
    done = subprocess.run(
        ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", *includes, EXAMPLE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
