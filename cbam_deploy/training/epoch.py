"""One pass through the pictures, to learn or to be tested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cbam_deploy.data.source import Augment, ImageSource
from cbam_deploy.errors import BadInput, CheckFailed
from cbam_deploy.foreign_code import foreign_code
from cbam_deploy.training.feed import Pairs, memory_format_of, on_device
from cbam_deploy.training.precision import MixedPrecision
from cbam_deploy.training.processes import Processes, batch_share
from cbam_deploy.training.settings import Settings

# Called after each step with the means so far: loss and accuracy in 0..1.
Report = Callable[[float, float], None]
# Steps between two looks at the loss: each makes the host wait for the device.
_STEPS_BETWEEN_LOOKS = 10


@dataclass(frozen=True)
class Means:
    """Means over pictures: loss, accuracy in 0..1; and their count."""

    loss: float
    accuracy: float
    count: int


class Sums:
    """Loss and right answers over pictures, kept on the device until asked for."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: `loss` its mean, `logits` [N, classes], `labels` [N]."""
        right = (logits.argmax(1) == labels).sum()
        count = torch.full_like(right, len(labels))
        self._sums += torch.stack((loss.double() * len(labels), right.double(), count.double()))

    def means(self, processes: Processes) -> Means:
        """Over the pictures of all processes; every process has to ask."""
        loss, right, count = processes.sum(self._sums.clone()).tolist()
        return Means(loss / max(count, 1), right / max(count, 1), int(count))


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: MixedPrecision,
    source: ImageSource,
    settings: Settings,
    epoch: int,
    augment: Augment | None,
    processes: Processes,
    workers: int | None,
    report: Report,
) -> Means:
    """Learn from every picture once; chance depends on `settings.seed` and `epoch` alone.

    A last batch that is not full is left out, for the sake of BatchNorm; the next epoch's order
    gives its pictures another place.

    Raises:
        CheckFailed: the loss is no longer a number.
        BadInput: the network refuses a batch, or several processes have fewer pictures than one
            batch between them.
    """
    device = next(network.parameters()).device
    network.train()
    wrapped = processes.wrap(network)
    for group in optimizer.param_groups:
        group["lr"] = settings.lr_at(epoch)
    sums = Sums(device)
    size = batch_share(settings.batch_size, processes)
    batches = source.batches(
        size,
        shuffle_seed=(settings.seed, epoch),
        augment=augment,
        drop_incomplete=True,
        share=processes.share,
        workers=workers,
    )
    pairs = on_device(batches, device, memory_format_of(network))
    with (
        _seeded(settings.seed, epoch, processes.rank, device),
        closing(_in_step(pairs, size, processes)) as together,
    ):
        for step, (images, labels) in enumerate(together):
            what = f"a step of training on a batch of {len(labels)}"
            hint = "give another --batch-size or --image-size"
            with foreign_code(what, hint), precision.forward():
                logits = wrapped(images).float()
                loss = cross_entropy(logits, labels)
            precision.step(loss, optimizer)
            sums.add(loss.detach(), logits.detach(), labels)
            if step % _STEPS_BETWEEN_LOOKS == 0:
                means = _checked(sums.means(processes), settings, epoch)
            report(means.loss, means.accuracy)
    means = _checked(sums.means(processes), settings, epoch)
    if means.count == 0:
        raise BadInput(
            f"{source.name}: has too few pictures that can be read for a batch of"
            f" {settings.batch_size} in {processes.count} processes",
            "give a smaller --batch-size",
        )
    processes.equalize_buffers(network)
    return means


@torch.no_grad()
def evaluate_epoch(
    network: nn.Module,
    source: ImageSource,
    batch_size: int,
    processes: Processes,
    workers: int | None,
) -> Means:
    """Loss and accuracy over every picture, each counted once, in evaluation mode and FP32.

    Raises:
        BadInput: no picture can be read.
    """
    device = next(network.parameters()).device
    network.eval()
    sums = Sums(device)
    size = batch_share(batch_size, processes)
    batches = source.batches(size, share=processes.share, workers=workers)
    with closing(on_device(batches, device, memory_format_of(network))) as pairs:
        for images, labels in pairs:
            logits = network(images)
            sums.add(cross_entropy(logits, labels), logits, labels)
    means = sums.means(processes)
    if means.count == 0:
        raise BadInput(
            f"{source.name}: none of {len(source)} pictures can be read",
            "give a folder of JPEG or PNG pictures",
        )
    return means


def _in_step(batches: Pairs, size: int, processes: Processes) -> Pairs:
    """`batches` as long as every process has a full one; of a single process, all there are.

    Their numbers differ where pictures cannot be read, and no process may wait for another's
    gradients in vain.
    """
    with closing(batches):
        while True:
            batch = next(batches, None)
            full = batch is not None and (processes.count == 1 or len(batch[1]) == size)
            if not processes.all(full) or batch is None:
                return
            yield batch


def _checked(means: Means, settings: Settings, epoch: int) -> Means:
    if not np.isfinite(means.loss):
        raise CheckFailed(
            f"the loss became {means.loss} in epoch {epoch + 1}",
            f"try a learning rate below {settings.lr_at(epoch):g} with --lr",
        )
    return means


@contextmanager
def _seeded(seed: int, epoch: int, rank: int, device: torch.device) -> Iterator[None]:
    """Make what the model draws itself (dropout) repeatable too, and leave no trace of it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seeds = np.random.SeedSequence((seed, epoch)).generate_state(rank + 1)
        torch.manual_seed(int(seeds[rank]))
        yield
