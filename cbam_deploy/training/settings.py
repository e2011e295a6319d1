"""The hyperparameters of a training run; the defaults are the paper's recipe for ImageNet."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from cbam_deploy.data.source import LARGEST
from cbam_deploy.errors import BadInput

# What fine-tuning has otherwise than the recipe, where nobody says: see docs/training.md.
FINE_TUNING: dict[str, Any] = {"epochs": 20, "lr": 0.001, "lr_step": 10}
Augmentation = Literal["auto", "crop-flip", "shift", "none"]
Amp = Literal["none", "bf16", "fp16"]

FLT_MAX = 3.4028234663852886e38  # The largest number in FP32.
_LARGEST = {"epochs": LARGEST, "batch_size": LARGEST, "lr_step": LARGEST, "seed": 2**63 - 1}
_CHOICES = {"augmentation": get_args(Augmentation), "amp": get_args(Amp)}


@dataclass(frozen=True)
class Settings:
    """Stochastic gradient descent with momentum and a stepped learning rate.

    Source: CBAM paper, section 4.1: 90 epochs, learning rate 0.1 divided by 10 every 30 epochs;
    batch, momentum and weight decay are those of its code.

    Attributes:
        epochs: passes through the training pictures.
        batch_size: pictures a step, those of all processes together.
        lr: learning rate at the start.
        lr_step: epochs after which the learning rate changes.
        lr_gamma: what it is multiplied by then.
        momentum: of the gradient.
        weight_decay: on every parameter.
        augmentation: ``crop-flip`` (random resized crop, horizontal flip), ``shift`` (by up to an
            eighth of the picture) or ``none``; ``auto`` means ``shift`` for ``digits``, which a
            flip would spoil, else ``crop-flip``.
        seed: of initial weights, order and augmentation.
        amp: mixed precision, ``bf16`` or ``fp16`` (GPUs only); ``none`` for FP32 throughout.
    """

    epochs: int = 90
    batch_size: int = 256
    lr: float = 0.1
    lr_step: int = 30
    lr_gamma: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    augmentation: Augmentation = "auto"
    seed: int = 0
    amp: Amp = "none"

    def check(self) -> None:
        """Raise `BadInput` for a value that cannot work."""
        for field in fields(self):
            value = getattr(self, field.name)
            label = field.name.replace("_", "-")
            if field.name in _CHOICES:
                if value not in _CHOICES[field.name]:
                    choices = ", ".join(_CHOICES[field.name])
                    raise BadInput(f"{field.name} {value!r} is unknown", f"one of {choices}")
                continue
            positive = field.name in ("epochs", "batch_size", "lr", "lr_step", "lr_gamma")
            low = "a positive number" if positive else "a number that is not negative"
            if not (value > 0 if positive else value >= 0):
                raise BadInput(f"--{label} {value}", f"give {low}")
            largest = _LARGEST.get(field.name, FLT_MAX)
            if value > largest:
                raise BadInput(f"--{label} {value}", f"give {low}, up to {largest}")
        try:
            rates = [self.lr_at(epoch) for epoch in (0, self.epochs - 1)]
        except OverflowError:
            rates = [math.inf]
        if max(rates) > FLT_MAX:
            raise BadInput(
                f"--lr-gamma {self.lr_gamma} raises the learning rate beyond what FP32 holds",
                "give a smaller one, such as 0.1, or fewer --epochs",
            )

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.lr * float(self.lr_gamma) ** (epoch // self.lr_step)
