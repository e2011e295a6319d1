"""However a person's network fails, and wherever it is run, what is raised is one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cbam_deploy.comparison.reference import Reference
from cbam_deploy.costs import complexity
from cbam_deploy.errors import BadInput, Terminated
from cbam_deploy.explain.grad_cam import grad_cam
from cbam_deploy.foreign_code import foreign_code
from cbam_deploy.models import insert_gates
from cbam_deploy.runtimes.pytorch import PyTorchRunner
from cbam_deploy.tracing.torch_graph import trace

PICTURES = np.zeros((1, 3, 8, 8), np.float32)


class Own(BaseException):
    """Of no kind that ``except Exception`` sees."""


class Fails(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


def activate(network: nn.Module) -> None:
    with PyTorchRunner(network):
        pass


USES: dict[str, Callable[[nn.Module], object]] = {
    "export": lambda network: trace(network.eval(), 8, None, "net"),
    "reference": lambda network: Reference(network, "net").run([PICTURES]),
    "runner": activate,
    "complexity": lambda network: complexity(network, image_size=8),
    "gradcam": lambda network: grad_cam(
        network, torch.from_numpy(PICTURES), torch.zeros(1, dtype=torch.int64)
    ),
    "insertion": lambda network: insert_gates(
        network, where="stages", example=torch.ones(1, 3, 8, 8)
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("error", [SystemExit(3), Own("enough"), KeyError("x")], ids=repr)
def test_what_forward_raises_is_named_in_one_line(use: str, error: BaseException) -> None:
    with pytest.raises(BadInput) as caught:
        USES[use](Fails(error))
    assert str(error) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("use", USES)
def test_an_interrupt_of_a_run_stays_one(use: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        USES[use](Fails(KeyboardInterrupt()))


def test_a_request_to_end_the_process_is_no_failure_of_the_network() -> None:
    with pytest.raises(Terminated), foreign_code("net: running it"):
        raise Terminated(143)


FACTORIES = """
import torch
from torch import nn

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
    def forward(self, x):
        raise SystemExit(3)

class Bare(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))[:, :2]

def hollow():
    with torch.device("meta"):
        return nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten())

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
"""


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Late", "(SystemExit: 3)"),
        ("hollow", "0.weight has no values (it is on the meta device), and 1 more"),
        ("lazy", "1.weight is lazy, without a shape yet, and 1 more"),
        ("nothing", "has no 'nothing'"),
    ],
)
@pytest.mark.parametrize("command", ["export", "train", "gradcam"])
def test_commands_end_with_two_lines(cli, tmp_path, monkeypatch, command, factory, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(FACTORIES)
    options = {
        "export": ["--image-size", "8", "-o", "out.onnx"],
        "train": ["--data", "digits", "--image-size", "8", "--epochs", "1", "-o", "run"],
        "gradcam": ["--data", "digits", "--preprocess", "stretch 8, imagenet", "-o", "out"],
    }[command]
    ended = cli(command, f"net.py:{factory}", *options)
    assert ended.code == 2
    assert message in ended.error


def test_a_network_without_parameters_exports_counts_and_does_not_train(
    cli, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(FACTORIES)
    assert cli("export", "net.py:Bare", "--image-size", "8", "-o", "out.onnx").code == 0
    assert cli("complexity", "net.py:Bare", "--image-size", "8").code == 0
    ended = cli("train", "net.py:Bare", "--data", "digits", "--image-size", "8", "-o", "run")
    assert ended.code == 2
    assert "net.py:Bare: has no parameters to learn" in ended.error


def test_what_a_network_prints_is_no_part_of_the_result(cli, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(f"print('imported'){FACTORIES}")
    ended = cli("complexity", "net.py:Bare", "--image-size", "8", "--json")
    assert json.loads(ended.out)
    assert "imported" in ended.err


def test_what_a_network_prints_while_it_is_tested_is_no_part_of_the_result(
    cli, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.last = nn.Linear(3, 10)\n"
        "    def forward(self, x):\n"
        "        print('running')\n"
        "        return self.last(x.mean((2, 3)))\n"
    )
    line = ("train", "net.py:Net", "--data", "digits", "--image-size", "8", "-o", "run")
    ended = cli(*line, "--epochs", "1", "--batch-size", "512", "--json")
    assert json.loads(ended.out)["epochs"]
    assert "running" in ended.err
