"""CPU seconds that NVRTC takes for the gates of a network, without a cache of compiled kernels.

    OMP_NUM_THREADS=1 python -m benchmarks.kernel_compilation

Eight gates of Ultralytics' CBAM on the maps of a large YOLO at 640 pixels, and CBAM-ResNet-50, both
in FP16 with the channels last; as an H100 launches them (fused) and as an A100 does (staged, where
a map is large). Gates that share all kernels count once.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
from collections.abc import Iterable

from benchmarks.kernel_report import gate_of
from cbam_deploy.gates.description import CBAM, GATES, GateSpec
from cbam_deploy.gates.operators import GateOperator, operator_for
from cbam_deploy.plugins.cuda_launch import compile_plan
from cbam_deploy.plugins.geometry import KNOWN_DEVICES, plan

Maps = tuple[tuple[int, int], ...]  # channels, and height and width
_LINEAR = GATES["cbam-linear"]
_YOLO = ((64, 80), (128, 80), (256, 80), (512, 80), (256, 40), (512, 40), (512, 20), (1024, 20))
NETWORKS: dict[str, tuple[GateOperator, GateSpec, Maps]] = {
    "YOLO, 8 gates": (operator_for(_LINEAR), _LINEAR, _YOLO),
    "CBAM-ResNet-50": (
        operator_for(CBAM, residual=True, activation="relu"),
        CBAM,
        ((256, 56), (512, 28), (1024, 14), (2048, 7)),
    ),
}


def compile_gates(
    operator: GateOperator, spec: GateSpec, maps: Iterable[tuple[int, int]], capability: int
) -> tuple[int, float]:
    """Kernels compiled, and the CPU seconds that it took."""
    plans = [
        plan(gate_of(operator, spec, channels, size, size), KNOWN_DEVICES[capability])
        for channels, size in maps
    ]
    before = resource.getrusage(resource.RUSAGE_SELF)
    for one in plans:
        compile_plan(one, capability)
    after = resource.getrusage(resource.RUSAGE_SELF)
    kernels = {launch.kernel.name for one in plans for launch in one.launches}
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return len(kernels), seconds


def main() -> None:
    """Print a row for every network and GPU."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print("| network | compute capability | kernels | CPU s |\n|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for name, network in NETWORKS.items():
            for capability in (90, 80):
                kernels, seconds = compile_gates(*network, capability)
                print(f"| {name} | {capability / 10} | {kernels} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
