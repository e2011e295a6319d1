"""A run says what it learns from, how each epoch went, and which pictures it had to leave out."""

import json
import re

import numpy as np
import pytest
from PIL import Image

NETWORK = """
from torch import nn
def build():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
"""


@pytest.fixture
def line(tmp_path):
    """A training of two epochs on five pictures of one class and seven of another, one broken."""
    (tmp_path / "net.py").write_text(NETWORK)
    for name, count in (("a", 5), ("b", 6)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((8, 8, 3), 20 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    (tmp_path / "pictures" / "b" / "broken.png").write_bytes(b"\x89PNG")
    model, data = f"{tmp_path}/net.py:build", tmp_path / "pictures"
    options = ("--image-size", 8, "--epochs", 2, "--augmentation", "none")
    return ("train", model, "--data", data, "-o", tmp_path / "run", *options)


def test_a_run_in_a_pipe_has_a_line_for_its_pictures_and_one_for_each_epoch(cli, line):
    shown = cli(*line, "--batch-size", 1, "--json")
    assert shown.code == 0
    first, *others = shown.err.splitlines()
    assert first == "12 pictures in 2 classes of 5 to 7 each, none held out"
    epochs = [text for text in others if text.startswith("epoch ")]
    history = json.loads(shown.out)["epochs"]
    for text, epoch in zip(epochs, history, strict=True):
        said = re.fullmatch(r"epoch (\d)/2: loss ([\d.]+), accuracy ([\d.]+)%; .*", text)
        assert said is not None
        assert [float(value) for value in said.groups()] == pytest.approx(
            [epoch["number"], epoch["train_loss"], 100 * epoch["train_accuracy"]], abs=5e-3
        )


def test_a_picture_that_cannot_be_read_is_named_once(cli, line):
    shown = cli(*line, "--batch-size", 1, "--json")
    assert shown.err.count("broken.png: left out") == 1
    assert [name for name, _ in json.loads(shown.out)["skipped"]] == [
        str(line[3] / "b" / "broken.png")
    ]


@pytest.mark.parametrize(("batch", "said"), [(2, "6 steps of 2"), (64, "one step of 12")])
def test_an_epoch_of_few_steps_is_warned_of(cli, line, batch, said):
    assert f"warning: an epoch has {said} pictures" in cli(*line, "--batch-size", batch).err


def test_quiet_says_none_of_it(cli, line):
    assert cli(*line, "--batch-size", 2, "--quiet").err == ""
