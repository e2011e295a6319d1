"""The correctness part of ``make gpu-check``, launches included, on a stand-in for the driver.

The genuine ``cuda.bindings`` load ``libcuda.so.1`` from ``host/driver.cpp``, which runs the kernels
on C++20 threads: what is asked of the driver, every parameter, buffer and grid, has to be right for
the results to be. What it does not show is that a GPU's driver takes the machine code.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from host_device import HOST, KERNELS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_check import cases  # noqa: E402
from benchmarks.gpu_check.job import PASSED, read_outcome  # noqa: E402
from cbam_deploy.plugins.cuda_launch import compile_plan  # noqa: E402
from cbam_deploy.plugins.geometry import KNOWN_DEVICES  # noqa: E402

DEVICE = KNOWN_DEVICES[80]
"""What the stand-in says it is."""

EVERY = 151


@pytest.fixture(scope="module")
def chosen():
    """The cases that the part is going to take."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs pip install 'cbam-deploy[kernels]'")
    return [case for case in cases.all_cases(DEVICE) if case.is_small][::EVERY]


@pytest.fixture(scope="module")
def cache(pytestconfig):
    """Where NVRTC's results are kept; the part finds them there again."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(pytestconfig.cache.mkdir("kernels"))
        patch.setenv("XDG_CACHE_HOME", folder)
        yield folder


def build_driver(built, chosen, cache):
    """Folder of a ``libcuda.so.1`` that can launch the kernels of the cases."""
    lines = {}
    for case in chosen:
        names = compile_plan(case.plan, DEVICE.capability).names
        for launch in case.plan.launches:
            shape = f"{launch.cluster}, {launch.threads}"
            line = f'KERNEL("{names[launch.kernel]}", {shape}, {launch.kernel})\n'
            lines[launch.kernel] = line
    listing = "".join(lines[name] for name in sorted(lines))
    texts = [path.read_text() for path in sorted([*KERNELS.glob("*.cuh"), *HOST.iterdir()])]
    key = hashlib.sha256("\0".join([listing, *texts]).encode()).hexdigest()[:16]
    folder = built / f"driver-{key}"
    library = folder / "libcuda.so.1"
    if not library.exists():
        folder.mkdir(exist_ok=True)
        (folder / "kernels.inc").write_text(listing)
        command = ["g++", "-std=c++20", "-O0", "-fno-strict-aliasing", "-Wall", "-Werror"]
        command += ["-Wno-unknown-pragmas", "-pthread", "-shared", "-fPIC", "-DCBAM_HOST_WARP=32"]
        command += [f'-DKERNELS="{folder}/kernels.inc"', f"-I{KERNELS}", f"-I{HOST}"]
        command += ["-o", f"{library}.part", str(HOST / "driver.cpp")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:4000]
        Path(f"{library}.part").rename(library)
    return folder


def run_part(folder, file):
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", "small cases"]
    command += ["--file", str(file), "--seconds", "100", "--every", str(EVERY)]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return read_outcome("small cases", file, None, "no word")


def test_correctness_part_launches_and_judges(built, chosen, cache, tmp_path):
    found = run_part(build_driver(built, chosen, cache), tmp_path / "rows")
    assert found.status == PASSED, found
    assert [row["case"] for row in found.rows] == [str(case) for case in chosen]
    assert all(row["agrees"] and row["largest_error_over_bound"] <= 1 for row in found.rows)
    assert [len(case.plan.launches) for case in chosen] == [1, 3]
