"""Part: what gates cost a whole network, and what fusing them saves.

CBAM-ResNet-50 in FP16, channels-last, under CUDA graphs: without gates but with the addition and
ReLU after each block in one kernel, as fused gates have them (plain), with gates as standard
operators (unfused), with fused gates. The fused network's logits are checked against FP32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.gpu_check.gate_cases import BATCHES
from benchmarks.gpu_check.job import Failed, Job
from benchmarks.gpu_check.timing import Timer, described_clocks
from cbam_deploy import create_model
from cbam_deploy.models.gate import AttentionGate

PLAIN, UNFUSED, FUSED = "plain", "unfused", "fused"
_SLACK = 2.0
"""FP16 errors of two correct networks differ by chance; a wrong gate is off by far more."""


@dataclass(frozen=True)
class Setting:
    """Which network is compared, on what, and how large its pictures are."""

    name: str
    device: str
    dtype: torch.dtype
    size: int


ON_GPU = Setting("resnet50", "cuda", torch.float16, 224)
REHEARSAL = Setting("resnet20", "cpu", torch.float32, 32)
"""Something small in its place."""


@torch.no_grad()
def run(job: Job) -> None:
    """Check, then time every batch size."""
    setting = REHEARSAL if job.dry else ON_GPU
    networks = check(job, setting)
    if job.dry:
        for batch in job.each(BATCHES):
            job.row(network=setting.name, batch=batch)
        return
    torch.backends.cudnn.benchmark = True  # slow convolutions would make gates look cheap
    measure(job, setting, networks, Timer())
    job.note(f"Clocks after the last batch: {described_clocks()}.")


def check(job: Job, setting: Setting) -> dict[str, nn.Module]:
    """The networks by kind; raises `Failed` unless fused gates are as exact as unfused ones."""
    torch.backends.cudnn.allow_tf32 = False  # FP32 is what FP16 is compared with
    networks = {
        PLAIN: plain_network(setting),
        UNFUSED: create_model(setting.name, seed=0),
        FUSED: create_model(setting.name, seed=0, fused=True),
    }
    pictures = _pictures(4, setting).float()
    expected = networks[UNFUSED].eval().to(setting.device)(pictures)
    for network in networks.values():
        network.eval().to(setting.device, setting.dtype)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    unfused, fused = (
        _error(networks[kind], pictures.to(setting.dtype), expected) for kind in (UNFUSED, FUSED)
    )
    if not fused <= _SLACK * unfused + 1e-3:
        raise Failed(f"logits are off by {fused:.2g} fused, by {unfused:.2g} unfused")
    if not job.dry:
        job.note(
            f"Logits of FP16 networks relative to FP32: off by {fused:.2g} fused, "
            f"by {unfused:.2g} unfused."
        )
    return networks


def plain_network(setting: Setting) -> nn.Module:
    """The network with `AddRelu` in the place of each gate."""
    network = create_model(setting.name, seed=0)
    add_relu = AddRelu("inductor" if setting.device == "cuda" else "eager")
    for module in network.modules():
        if isinstance(module, AttentionGate):
            module.operators = add_relu
    return network


class AddRelu:
    """relu(x + residual) in one kernel, for the place of a gate's operators."""

    def __init__(self, backend: str) -> None:
        self._flat = torch.compile(
            lambda x, r: torch.relu(x + r), backend=backend, dynamic=True, fullgraph=True
        )

    def computes(self, gate: AttentionGate) -> bool:  # noqa: ARG002
        """Always."""
        return True

    def __call__(
        self,
        gate: AttentionGate,  # noqa: ARG002
        x: Tensor,
        residual: Tensor | None,
    ) -> Tensor:
        """Of two maps [N, C, H, W] in channels last."""
        assert residual is not None
        nhwc = x.permute(0, 2, 3, 1)
        y = self._flat(nhwc.reshape(-1), residual.permute(0, 2, 3, 1).reshape(-1))
        return y.view(nhwc.shape).permute(0, 3, 1, 2)


def measure(job: Job, setting: Setting, networks: dict[str, nn.Module], timer: Timer) -> None:
    """Time the networks in turns, at every batch size."""
    for batch in job.in_time(job.each(BATCHES)):
        x = _pictures(batch, setting)
        seconds = timer.seconds([_call(network, x) for network in networks.values()])
        for kind, one in zip(networks, seconds, strict=True):
            job.row(
                network=kind,
                batch=batch,
                ms=one * 1e3,
                images_per_s=batch / one,
                over_plain=one / seconds[0],
            )


def _pictures(batch: int, setting: Setting) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, setting.size, setting.size, generator=generator)
    return x.to(setting.device, setting.dtype, memory_format=torch.channels_last)


def _call(network: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: network(x)


def _error(network: nn.Module, x: Tensor, expected: Tensor) -> float:
    return float((network(x).float() - expected).norm() / expected.norm())
