"""One pass through the pictures, to learn or to be tested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cbam_deploy.data.source import Augment, Batch, ImageSource
from cbam_deploy.errors import CheckFailed
from cbam_deploy.training.settings import Settings

# Called after each step with the means so far: loss and accuracy in 0..1.
Report = Callable[[float, float], None]


@dataclass
class Means:
    """Running means over pictures."""

    loss_sum: float = 0.0
    correct: int = 0
    count: int = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: `loss` its mean, `logits` [N, classes], `labels` [N]."""
        self.loss_sum += loss.item() * len(labels)
        self.correct += int((logits.argmax(1) == labels).sum().item())
        self.count += len(labels)

    @property
    def loss(self) -> float:
        """Mean loss."""
        return self.loss_sum / self.count

    @property
    def accuracy(self) -> float:
        """Share of pictures whose highest logit is their label's, in 0..1."""
        return self.correct / self.count


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    source: ImageSource,
    settings: Settings,
    epoch: int,
    augment: Augment | None,
    workers: int | None,
    report: Report,
) -> Means:
    """Learn from every picture once; chance depends on `settings.seed` and `epoch` alone.

    A last batch that is not full is left out, for the sake of BatchNorm; the next epoch's order
    gives its pictures another place.

    Raises:
        CheckFailed: the loss is no longer a number.
    """
    device = next(model.parameters()).device
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = settings.lr_at(epoch)
    means = Means()
    batches = source.batches(
        settings.batch_size,
        shuffle_seed=(settings.seed, epoch),
        augment=augment,
        drop_incomplete=True,
        workers=workers,
    )
    with _seeded(settings.seed, epoch):
        for batch in batches:
            images, labels = _tensors(batch, device)
            logits = model(images)
            loss = cross_entropy(logits, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            means.add(loss.detach(), logits.detach(), labels)
            if not np.isfinite(means.loss_sum):
                raise CheckFailed(
                    f"the loss became {loss.item()} in epoch {epoch + 1}",
                    f"try a learning rate below {settings.lr_at(epoch):g} with --lr",
                )
            report(means.loss, means.accuracy)
    return means


@torch.no_grad()
def test_epoch(
    model: nn.Module, source: ImageSource, batch_size: int, workers: int | None
) -> Means:
    """Loss and accuracy over every picture, in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    means = Means()
    for batch in source.batches(batch_size, workers=workers):
        images, labels = _tensors(batch, device)
        logits = model(images)
        means.add(cross_entropy(logits, labels), logits, labels)
    return means


def _tensors(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    assert batch.labels is not None  # `train` takes labelled sets only
    # Convolutions learn a quarter faster so, on CPUs as on GPUs.
    images = torch.from_numpy(batch.images).to(device, memory_format=torch.channels_last)
    return images, torch.from_numpy(batch.labels).to(device)


@contextmanager
def _seeded(seed: int, epoch: int) -> Iterator[None]:
    """Make what the model draws itself (dropout) repeatable too, and leave no trace of it."""
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))
        yield
