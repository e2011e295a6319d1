"""Part: what gates cost a whole network, and what fusing them saves.

CBAM-ResNet-50 in FP16, channels-last, under CUDA graphs: without gates (plain), with gates as
standard operators (unfused), with fused gates. The fused network's logits are checked against FP32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.gpu_check.gate_cases import BATCHES
from benchmarks.gpu_check.job import Failed, Job
from benchmarks.gpu_check.timing import Timer, described_clocks
from cbam_deploy.models import create_model

PLAIN, UNFUSED, FUSED = "plain", "unfused", "fused"
_SLACK = 2.0
"""FP16 errors of two correct networks differ by chance; a wrong gate is off by far more."""


@torch.no_grad()
def run(job: Job) -> None:
    """Check, then time every batch size."""
    device, dtype, name, size = "cuda", torch.float16, "resnet50", 224
    if job.dry:  # something small in its place
        device, dtype, name, size = "cpu", torch.float32, "resnet20", 32
    torch.backends.cudnn.benchmark = True  # slow convolutions would make gates look cheap
    networks = {
        PLAIN: create_model(name, attention="none", seed=0),
        UNFUSED: create_model(name, seed=0),
        FUSED: create_model(name, seed=0, fused=True),
    }
    pictures = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = networks[UNFUSED].eval().to(device)(pictures.to(device))
    for network in networks.values():
        network.eval().to(device, dtype, memory_format=torch.channels_last)
    errors = {
        kind: _error(networks[kind], pictures.to(device, dtype), expected)
        for kind in (UNFUSED, FUSED)
    }
    if not errors[FUSED] <= _SLACK * errors[UNFUSED] + 1e-3:
        raise Failed(
            f"logits are off by {errors[FUSED]:.2g} fused, by {errors[UNFUSED]:.2g} unfused"
        )
    if job.dry:
        for batch in job.each(BATCHES):
            job.row(network=name, batch=batch)
        return
    job.note(
        f"Logits of FP16 networks relative to FP32: off by {errors[FUSED]:.2g} fused, "
        f"by {errors[UNFUSED]:.2g} unfused."
    )
    timer = Timer()
    for batch in job.in_time(job.each(BATCHES)):
        x = torch.randn(batch, 3, size, size, dtype=dtype, device=device)
        x = x.contiguous(memory_format=torch.channels_last)
        seconds = timer.seconds([_call(network, x) for network in networks.values()])
        for kind, one in zip(networks, seconds, strict=True):
            job.row(
                network=kind,
                batch=batch,
                ms=one * 1e3,
                images_per_s=batch / one,
                over_plain=one / seconds[0],
            )
    job.note(f"Clocks after the last batch: {described_clocks()}.")


def _call(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: network(x)


def _error(network: nn.Module, x: Tensor, expected: Tensor) -> float:
    y = network(x.contiguous(memory_format=torch.channels_last)).float()
    return float((y - expected).norm() / expected.norm())
