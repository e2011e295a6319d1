"""``make gpu-check``'s correctness part and the PyTorch operator, on a stand-in for the driver.

The genuine ``cuda.bindings`` load ``libcuda.so.1`` from ``host/driver.cpp``, which runs the kernels
on C++20 threads: what is asked of the driver, every parameter, buffer and grid, has to be right for
the results to be. What it does not show is that a GPU's driver takes the machine code.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from gpu_check_jobs import ROOT
from native_build import build_driver

from benchmarks.gpu_check import cases, plugin_library
from benchmarks.gpu_check.job import PASSED, read_outcome
from cbam_deploy.plugins.cuda_launch import compile_plan
from cbam_deploy.plugins.geometry import KNOWN_DEVICES
from cbam_deploy.plugins.tactics import tactics

DEVICE = KNOWN_DEVICES[80]
"""What the stand-in says it is."""

EVERY = 241


@pytest.fixture(scope="module")
def chosen():
    """The cases that the part is going to take."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs the extra kernels")
    return [case for case in cases.all_cases(DEVICE) if case.is_small][::EVERY]


@pytest.fixture(scope="module")
def driver(built, chosen, cache):
    """Folder of a ``libcuda.so.1`` that can launch the kernels of the cases."""
    for case in chosen:
        compile_plan(case.plan, DEVICE.capability)
    plans = [case.plan for case in chosen]
    lowered = plugin_library.GATES[0]
    plans += tactics(lowered.gate(lowered.formats[0]), DEVICE).values()
    launches = [launch for one in plans for launch in one.launches]
    return build_driver(
        built, {(one.kernel, one.cluster, one.threads) for one in launches}, warp=32
    )


@pytest.fixture(scope="module")
def cache(pytestconfig):
    """Where NVRTC's results are kept; the part finds them there again."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(pytestconfig.cache.mkdir("kernels"))
        patch.setenv("XDG_CACHE_HOME", folder)
        yield folder


def run_python(driver, *arguments):
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, check=True)


def test_correctness_part_launches_and_judges(driver, chosen, tmp_path):
    file = tmp_path / "rows"
    arguments = ["--file", str(file), "--seconds", "100", "--every", str(EVERY)]
    run_python(driver, "-m", "benchmarks.gpu_check", "--part", "small cases", *arguments)
    found = read_outcome("small cases", file, None, "no word")
    assert found.status == PASSED, found
    assert [row["case"] for row in found.rows] == [str(case) for case in chosen]
    assert all(row["agrees"] and row["largest_error_over_bound"] <= 1 for row in found.rows)
    assert [len(case.plan.launches) for case in chosen] == [1, 4, 1]


OPERATOR = """
from contextlib import nullcontext
from types import SimpleNamespace
import torch
from benchmarks.gpu_check.cases import all_cases, draw
from benchmarks.gpu_check.storage import decode
from cbam_deploy.plugins import torch_cuda
from cbam_deploy.plugins.geometry import KNOWN_DEVICES, ranked_plans
from cbam_deploy.gates.reference import apply_gate, disagreement
from cbam_deploy.plugins.torch_inputs import bind

# The stand-in's device memory is this process's, so tensors on the CPU can play the GPU's part.
torch.cuda.device = lambda device: nullcontext()
torch.cuda.current_stream = lambda device: SimpleNamespace(cuda_stream=0)
planned = torch_cuda.planned
torch_cuda.planned = lambda gate, batch, device: planned(gate, batch, 0)

for case in [case for case in all_cases(KNOWN_DEVICES[80]) if case.is_small][::EVERY]:
    gate, inputs = case.gate, draw(case)
    strategy = "auto" if len(case.plan.launches) == 1 else "staged"
    torch_cuda.ranked_plans = lambda *given, **named: ranked_plans(
        *given, **named, strategy=strategy
    )
    maps = [decode(one, gate.dtype) for one in (inputs.x, inputs.r) if one is not None]
    layouts = [torch.contiguous_format, torch.channels_last]
    if gate.layout == "nhwc":
        layouts.reverse()
    tensors = [  # r unlike x, and so to be converted
        torch.tensor(one).to(getattr(torch, gate.dtype)).contiguous(memory_format=layout)
        for one, layout in zip(maps, layouts)
    ]
    weights = vars(inputs.weights)
    tensors += [torch.tensor(weights[name.lower()]) for name in gate.operator.weights]
    y = torch_cuda.run(gate.operator, bind(gate.operator, tuple(tensors)))
    assert y.is_contiguous(memory_format=layouts[0])
    problem = disagreement(gate, y.double().numpy(), apply_gate(gate, inputs.weights, *maps))
    assert problem is None, f"{case}: {problem}"
"""


def test_operator_launches_fused_and_staged_kernels(driver):
    run_python(driver, "-c", f"EVERY = {EVERY}\n{OPERATOR}")


PLUGIN_LIBRARY = """
import sys
from pathlib import Path
from benchmarks.gpu_check import plugin_library
from benchmarks.gpu_check.job import Job, Options
from cbam_deploy.plugins import images
from cbam_deploy.plugins.compile import CompiledKernels

def compiled(kernels, architecture):  # what the stand-in takes for a kernel's images
    code, ptx = b"\\x7fELF " + architecture.encode(), b"// compute_80\\n.version 9.0\\n"
    return CompiledKernels(architecture, code, (kernels[0].name,), "", ptx)

images.compile_kernels = compiled
# Blocks of hundreds of threads take a while.
plugin_library.CONTEXTS = ("1@2",)
plugin_library.FORMATS = {"float16": plugin_library.FORMATS["float16"][:1]}
Job(Path(sys.argv[1]), Options(every=len(plugin_library.GATES)), 100).carry_out(plugin_library.run)
"""


def test_plugin_library_part_runs_every_tactic_and_judges(driver, tmp_path):
    run_python(driver, "-c", PLUGIN_LIBRARY, str(tmp_path / "rows"))
    found = read_outcome("plugin library", tmp_path / "rows", None, "no word")
    assert found.status == PASSED, found
    gate = plugin_library.GATES[0]
    form = gate.formats[0]
    expected = [(f"{gate} {form.name}", number) for number in tactics(gate.gate(form), DEVICE)]
    expected += [(f"{case} from PTX", number) for case, number in expected]
    assert [(row["case"], row["tactic"]) for row in found.rows] == expected
    assert all(row["agrees"] for row in found.rows)
