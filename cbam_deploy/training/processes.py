"""Several processes that train one network, each with a share of every batch.

``torchrun`` starts them and says by environment variables who is who. They keep the same weights,
because their gradients are averaged before each step (DistributedDataParallel); the first one
alone writes files and prints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from cbam_deploy.data.source import Share
from cbam_deploy.errors import BadInput, CheckFailed, DeployError

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TERMINATED = 128 + 15  # Exit code of a command that SIGTERM ended.
# What errors of the libraries between processes have in their text, whatever their type.
_CONNECTION_WORDS = ("gloo", "NCCL", "Connection closed", "Connection reset")

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        local_rank: its number on this machine, from 0.
        local_count: how many there are on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this one writes the files and prints."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """Which pictures it takes."""
        return self.rank, self.count

    def workers(self, asked: int | None) -> int | None:
        """Threads that decode pictures: as asked for, else this process's part of the cores."""
        if asked is not None or self.local_count == 1:
            return asked
        return max(min((os.cpu_count() or 1) // self.local_count, 8), 1)

    def wrap(self, network: nn.Module) -> nn.Module:
        """`network` with its gradients averaged over all processes; weights start as the first's.

        Wrapped anew for each epoch: the order in which a wrapper adds gradients up settles in its
        first step, and a resumed run must add in the same order as an uninterrupted one.
        """
        return network if self.count == 1 else DistributedDataParallel(network)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the CPU."""
        values = values.cpu()
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def all(self, ready: bool) -> bool:
        """Whether all processes are `ready`."""
        if self.count == 1:
            return ready
        return int(self.sum(torch.tensor(int(ready)))) == self.count

    def from_first(self, value: T) -> T:
        """What the first process has as `value`."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def equalize_buffers(self, network: nn.Module) -> None:
        """Give every process the first one's buffers, such as BatchNorm's statistics."""
        if self.count > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


def batch_share(batch_size: int, processes: Processes) -> int:
    """Pictures a step for each process; raises `BadInput` where they are not equally many."""
    if batch_size % processes.count:
        raise BadInput(
            f"--batch-size {batch_size} cannot be divided by {processes.count} processes",
            "it counts the pictures of all processes together: give a multiple",
        )
    return batch_size // processes.count


def leads() -> bool:
    """Whether this process is the one that prints, before or after it has joined the others."""
    return not _started_together() or os.environ["RANK"] == "0"


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, or be the only one.

    However many fail, one of them tells why, the others end silently.

    Raises:
        CheckFailed: another process ended early, killed or by an error of its own.
        BadInput: the environment variables of ``torchrun`` cannot work.
    """
    if not _started_together():
        yield Processes()
        return
    try:
        processes = _from_environment()
        store, _, _ = next(iter(rendezvous("env://")))
    except (ValueError, RuntimeError) as error:
        raise BadInput(
            f"cannot join the other processes ({' '.join(str(error).split())})",
            "start them with torchrun, which sets RANK, WORLD_SIZE and the rest",
        ) from error
    # Small facts travel over gloo on CPUs, where no kernel has to wait for them.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(
            backend, store=store, rank=processes.rank, world_size=processes.count
        )
        yield processes
        processes.all(True)  # The first one's files are there when any of them goes on.
        dist.destroy_process_group()
    except (DeployError, KeyboardInterrupt, RuntimeError, SystemExit) as error:
        told = _as_told(error, processes)
        if told is None:
            raise
        if not _first_to_tell(store):
            code = told.exit_code if isinstance(told, DeployError) else 130
            raise SystemExit(code) from error
        raise told from error


def _started_together() -> bool:
    return all(name in os.environ for name in _VARIABLES) and os.environ["WORLD_SIZE"] != "1"


def _from_environment() -> Processes:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Processes(
        int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), local_rank, local_count
    )


def _as_told(error: BaseException, processes: Processes) -> DeployError | KeyboardInterrupt | None:
    """The error in words for a person; None for a defect, which shows its own traceback."""
    if isinstance(error, (DeployError, KeyboardInterrupt)):
        return error
    if isinstance(error, SystemExit):
        # torchrun ends the others so when one has failed; so does whoever stops the whole job.
        lost = error.code == _TERMINATED
        what = f"the training was told to stop, or one of its {processes.count} processes failed"
    else:
        # Most of them are plain RuntimeErrors.
        lost = isinstance(error, dist.DistError) or any(w in str(error) for w in _CONNECTION_WORDS)
        what = f"the training stopped: one of its {processes.count} processes ended early"
    if not lost:
        return None
    return CheckFailed(
        what,
        "its own message, if any, says why; the same command with --resume goes on after the last"
        " whole epoch",
    )


def _first_to_tell(store: Any) -> bool:
    try:
        return int(store.add("cbam_deploy/told", 1)) == 1
    except RuntimeError:  # The store went with the process that held it.
        return True
