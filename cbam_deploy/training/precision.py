"""Mixed precision: products in 16 bits, weights, sums and the loss in 32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cbam_deploy.errors import BadInput
from cbam_deploy.training.settings import Amp

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class MixedPrecision:
    """How the steps of a run compute.

    FP16 has a small range: its loss is scaled up before the gradients are taken (Micikevicius et
    al., "Mixed Precision Training", ICLR 2018), by a factor that is part of a run's state.

    Args:
        amp: ``bf16``, ``fp16`` (GPUs only) or ``none`` for 32 bits throughout.
        device: where the network is.

    Raises:
        BadInput: FP16 on a CPU.
    """

    def __init__(self, amp: Amp, device: torch.device) -> None:
        if amp == "fp16" and device.type != "cuda":
            raise BadInput("--amp fp16 needs a GPU", "use --amp bf16, or leave it out")
        self._dtype = _DTYPES.get(amp)
        self._device = device
        self._scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def forward(self) -> AbstractContextManager[Any]:
        """The context of a forward pass while learning."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, self._dtype)

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Take the gradients of `loss` and let `optimizer` change the weights."""
        optimizer.zero_grad(set_to_none=True)
        if self._scaler.is_enabled():
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self._scaler.step(optimizer)
            self._scaler.update()
        else:
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs; empty but for FP16."""
        return dict(self._scaler.state_dict())

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        if state:
            self._scaler.load_state_dict(state)
