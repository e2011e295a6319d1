"""Which runtime this CPU should use for which precision, from a measurement of a few seconds.

What is measured is one network in three precisions: a stem and `BLOCKS` bottlenecks of ResNet-50's
first stage (He et al., CVPR 2016, table 1) with a CBAM gate each, at batch 1, on all cores. Its
weights are random: speed does not depend on them. For a network of one's own, `bench` tells.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from cbam_deploy.benchmarking.interleaving import measure_in_rounds, plan_turns
from cbam_deploy.benchmarking.statistics import paired_ratio
from cbam_deploy.benchmarking.warm_up import warm_up
from cbam_deploy.exporters.half.conversion import to_half
from cbam_deploy.exporters.int8.quantization import quantize
from cbam_deploy.gates.operators import DOMAIN, operator_named
from cbam_deploy.graphs.gate_functions import set_functions
from cbam_deploy.graphs.onnx_file import write_model
from cbam_deploy.machine import CpuRuntimes
from cbam_deploy.outputs import scratch_folder
from cbam_deploy.progress import progress
from cbam_deploy.runtimes import open_runtime

BLOCKS = 3
SIZE = 224  # of the picture in pixels
SECONDS = 0.8  # of timed runs of each file in each runtime
RUNTIMES = ("onnxruntime", "openvino")
_GATE = "CbamGateAddRelu"
_OPSET = 18


def measure_cpu_runtimes() -> tuple[CpuRuntimes, ...]:
    """Measure ONNX Runtime and OpenVINO on the CPU, interleaved, in each precision.

    Raises:
        MissingCapability: one of the two is not installed.
    """
    picture = np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE), dtype=np.float32)
    with progress() as bar, scratch_folder() as folder, ExitStack() as stack:
        task = bar.add_task("making a network to measure", total=None)
        files = _write_networks(folder, picture)
        bar.update(task, description="measuring", total=len(files) * len(RUNTIMES))
        executions, warm = [], []
        for file in files.values():
            for runtime in RUNTIMES:
                runner = stack.enter_context(open_runtime(file, runtime=runtime, checked=True))
                executions.append(runner.prepare({"input": picture}))
                warm.append(warm_up(executions[-1], SECONDS).run_seconds)
                bar.advance(task)
        plans = plan_turns(executions, [1] * len(executions), warm, SECONDS)
        rounds = [
            [float(np.median(turn)) for turn in turns] for turns in measure_in_rounds(plans, 0)
        ]
    found = []
    for index, precision in enumerate(files):
        theirs, ours = (np.array(rounds[len(RUNTIMES) * index + n]) for n in range(2))
        medians = [float(np.median(seconds)) for seconds in (theirs, ours)]
        ratio = paired_ratio(ours, theirs, seed=0)
        found.append(CpuRuntimes(precision, dict(zip(RUNTIMES, medians, strict=True)), ratio))
    return tuple(found)


def _write_networks(folder: Path, picture: NDArray[np.float32]) -> dict[str, Path]:
    """The network in each precision, as `convert` makes it."""
    int8, _ = quantize(_network(), [picture], method="minmax")
    half = _network()
    to_half(half)
    to_half(int8)
    files = {}
    for precision, model in (("fp32", _network()), ("fp16", half), ("int8", int8)):
        files[precision] = folder / f"{precision}.onnx"
        write_model(model, files[precision])
    return files


def _network() -> ir.Model:
    """Stem, `BLOCKS` bottlenecks of 256 channels at a quarter of the size, classifier."""
    weights: dict[str, NDArray[np.float64]] = {}
    random = np.random.default_rng(0)
    lines = []

    def convolution(name: str, x: str, channels: tuple[int, int], kernel: int, stride: int) -> str:
        """A convolution that keeps variance, He et al.'s initialization."""
        out, into = channels
        deviation = (2 / (into * kernel**2)) ** 0.5
        weights[f"{name}_w"] = random.normal(0, deviation, (out, into, kernel, kernel))
        pads = ", ".join([str(kernel // 2)] * 4)
        lines.append(
            f"{name} = Conv <strides = [{stride}, {stride}], pads = [{pads}]> ({x}, {name}_w)"
        )
        return name

    def rectified(x: str) -> str:
        lines.append(f"{x}_relu = Relu ({x})")
        return f"{x}_relu"

    x = rectified(convolution("stem", "input", (64, 3), 7, 2))
    lines.append(f"pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> ({x})")
    x = convolution("widened", "pooled", (256, 64), 1, 1)
    operator = operator_named(_GATE)
    assert operator is not None
    for block in range(BLOCKS):
        y = rectified(convolution(f"reduced{block}", x, (64, 256), 1, 1))
        y = rectified(convolution(f"middle{block}", y, (64, 64), 3, 1))
        y = convolution(f"expanded{block}", y, (256, 64), 1, 1)
        names = []
        for name, shape in operator.weight_shapes(256, 16, 7).items():
            names.append(f"gate{block}_{name}")
            weights[names[-1]] = random.normal(0, 0.1, shape)
        lines.append(f"block{block} = {DOMAIN}.{_GATE} ({', '.join([y, x, *names])})")
        x = f"block{block}"
    weights["classifier"] = random.normal(0, 0.1, (10, 256))
    lines += [f"mean = GlobalAveragePool ({x})", "flat = Flatten (mean)"]
    lines.append("logits = Gemm <transB = 1> (flat, classifier)")
    model = parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {_OPSET}, "{DOMAIN}" : 1]>\n'
        f"network (float[batch,3,{SIZE},{SIZE}] input) => (float[batch,10] logits)\n"
        "{\n" + "\n".join(lines) + "\n}"
    )
    for name, values in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    made = ir.from_proto(model)
    set_functions(made)
    return made
