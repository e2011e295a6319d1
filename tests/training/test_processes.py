"""Two processes learn what one learns; when one ends early, the run says so and can go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from cbam_deploy.data import open_source
from cbam_deploy.errors import BadInput
from cbam_deploy.models import load_state
from cbam_deploy.models.factory import call_factory
from cbam_deploy.preprocessing import Preprocessing
from cbam_deploy.training.processes import Processes, batch_share
from cbam_deploy.training.result import TrainResult

# Neither BatchNorm, whose statistics are those of one process's pictures, nor dropout.
SMOOTH = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 2),
    )
"""
# Process 1 of a run with DIES_AT in its environment is killed in that training step.
MORTAL = """
import os, signal
from itertools import count
from network import build as healthy

def build():
    network = healthy()
    steps = count(1)
    def die(module, inputs):
        if os.environ["RANK"] == "1" and module.training:
            if next(steps) == int(os.environ.get("DIES_AT", 0)):
                os.kill(os.getpid(), signal.SIGKILL)
    network.register_forward_pre_hook(die)
    return network
"""

# Runs commands one after the other, each in two processes that find each other as torchrun's do.
# They are forked, because importing PyTorch takes longer than all they do.
LAUNCHER = """
import json, os, signal, socket, sys
import PIL.Image, safetensors.torch, torch._dynamo, torch.distributed.fsdp
import cbam_deploy.training.run
from cbam_deploy.cli import main

def start(number, rank, arguments, variables):
    child = os.fork()
    if child:
        return child
    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(f"{name}-{number}-{rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream)
    os.environ.update(variables, RANK=str(rank))
    signal.alarm(110)  # A process that waits in vain leaves nothing behind.
    sys.argv = ["cbam-deploy", *arguments]
    main()

for number, (arguments, variables) in enumerate(json.loads(sys.argv[1])):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ.update(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    children = [start(number, rank, arguments, variables) for rank in range(2)]
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    out: str
    err: str


Two = Callable[..., list[list[Ended]]]


@pytest.fixture
def options(tmp_path: Path, pictures: Path, network: str) -> list[str]:
    """Command line of the quick run, but for model and output; 11 pictures to be tested on."""
    folder = pictures / "val" / "red"
    (folder / "more.png").write_bytes((folder / "0.png").read_bytes())
    (tmp_path / "smooth.py").write_text(SMOOTH)
    (tmp_path / "mortal.py").write_text(MORTAL)
    sizes = ["--image-size", "8", "--epochs", "3", "--batch-size", "8", "--workers", "1"]
    return ["--data", "pictures", *sizes, "--lr-step", "2", "--device", "cpu", "--quiet"]


@pytest.fixture
def two(tmp_path: Path, options: list[str]) -> Two:
    """``train`` with the given arguments in two processes; once for each list of them."""

    def run(*commands: list[str], **variables: str) -> list[list[Ended]]:
        # The variables are the first command's.
        jobs = [
            (["train", *arguments, *options], {} if number else variables)
            for number, arguments in enumerate(commands)
        ]
        launched = subprocess.run(
            [sys.executable, "-c", LAUNCHER, json.dumps(jobs)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )

        def ended(number: int, rank: int, code: str) -> Ended:
            out, err = (tmp_path / f"{name}-{number}-{rank}" for name in ("out", "err"))
            return Ended(int(code), out.read_text(), err.read_text())

        return [
            [ended(number, rank, code) for rank, code in enumerate(codes.split())]
            for number, codes in enumerate(launched.stdout.splitlines())
        ]

    return run


def history(folder: Path) -> list[dict[str, Any]]:
    epochs = json.loads((folder / "history.json").read_text())["epochs"]
    return [{**epoch, "seconds": 0} for epoch in epochs]


@pytest.mark.slow
def test_two_processes_of_torchrun_learn_what_one_does_with_the_whole_batch(
    tmp_path: Path, options: list[str], quick: Callable[..., TrainResult]
) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "cbam_deploy", "train", "smooth.py:build", "-o", "together", "--json"]
    ended = subprocess.run(
        [sys.executable, "-m", *torchrun, *command, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    together, alone = tmp_path / "together", tmp_path / "alone"
    assert len(json.loads(ended.stdout)["epochs"]) == 3  # Printed once.
    quick("alone", model=f"{tmp_path}/smooth.py:build", epochs=3)

    # Float32 sums of eight pictures in another order, over nine steps.
    for one, other in zip(history(alone), history(together), strict=True):
        assert other == pytest.approx(one, rel=1e-5)
        assert other["val_accuracy"] * 11 == pytest.approx(round(other["val_accuracy"] * 11))
    expected = load_state(alone / "last.pt").state_dict
    found = load_state(together / "last.pt").state_dict
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_what_ends_one_process_or_all_is_told_once_and_resuming_gives_the_whole_run(
    tmp_path: Path, pictures: Path, two: Two
) -> None:
    # One process has fewer pictures to learn from than the other: 12 and 11, in batches of 4.
    (pictures / "train" / "red" / "0.png").write_bytes(b"no picture")
    killed, resumed, uninterrupted, without_weights = two(
        ["mortal.py:build", "-o", "run"],
        ["mortal.py:build", "-o", "run", "--resume"],
        ["mortal.py:build", "-o", "whole"],
        ["smooth.py:build", "-o", "never", "--weights", "missing.pt"],
        DIES_AT="4",  # Two steps are an epoch then.
    )
    assert [ended.code for ended in killed] == [1, -signal.SIGKILL]
    assert killed[0].err.splitlines()[0] == (
        "error: the training stopped: one of its 2 processes ended early"
    )
    assert "--resume" in killed[0].err.splitlines()[1]
    assert len(killed[0].err.splitlines()) == 2
    assert killed[0].out == ""
    assert [ended.code for ended in (*resumed, *uninterrupted)] == [0] * 4
    assert history(tmp_path / "run") == history(tmp_path / "whole")
    whole = load_state(tmp_path / "whole" / "last.pt").state_dict
    for name, tensor in load_state(tmp_path / "run" / "last.pt").state_dict.items():
        assert torch.equal(tensor, whole[name]), name

    assert [process.code for process in without_weights] == [2, 2]
    assert "".join(process.err for process in without_weights).splitlines() == [
        "error: missing.pt: no such checkpoint",
        "hint: give an existing file with --weights",
    ]

    # What was tested, by both processes, are the weights and statistics that were saved.
    network = call_factory(f"{tmp_path}/network.py:build").eval()
    network.load_state_dict(whole)
    losses = []
    for batch in open_source(str(pictures), Preprocessing.for_size(8), split="test").batches(11):
        assert batch.labels is not None
        with torch.no_grad():
            logits = network(torch.from_numpy(batch.images))
        losses.append(cross_entropy(logits, torch.from_numpy(batch.labels)).item())
    assert history(tmp_path / "whole")[-1]["val_loss"] == pytest.approx(losses[0], rel=1e-5)


def test_a_batch_is_divided_equally_or_not_at_all() -> None:
    assert batch_share(256, Processes(count=8)) == 32
    with pytest.raises(BadInput, match="--batch-size 256 cannot be divided by 3 processes"):
        batch_share(256, Processes(count=3))


def test_threads_that_read_are_shared_by_the_processes_of_a_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 24)
    assert Processes(0, 8, 0, 8).workers(None) == 3
    assert Processes(0, 8, 0, 1).workers(None) is None
    assert Processes(0, 8, 0, 8).workers(5) == 5
