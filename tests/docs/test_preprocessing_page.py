"""The page on preprocessing says what the code does."""

import re
from pathlib import Path

import numpy as np

from cbam_deploy.preprocessing.choice import understood
from cbam_deploy.preprocessing.own_function import import_function
from cbam_deploy.preprocessing.text import parse

PAGE = Path(__file__).parents[2].joinpath("docs", "preprocessing.md").read_text(encoding="utf-8")


def test_every_step_of_the_table_is_understood():
    rows = re.findall(r"^\| (`.+?) \|", PAGE, re.M)
    steps = [step for row in rows for step in re.findall(r"`([^`]+)`", row)]
    assert len(steps) > 15
    for step in steps:
        fit = "" if re.match("letterbox|resize|stretch|keep|pad", step) else "stretch 8, "
        fit = "letterbox 8, " if step.startswith("pad") else fit
        says_values = re.match("/|mean|std|imagenet|raw", step)
        assert parse(f"{fit}{step}" + ("" if says_values else ", raw"))


def test_the_file_and_the_function_work(tmp_path):
    (table,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    (tmp_path / "p.toml").write_text(table)
    assert understood(tmp_path / "p.toml") == parse("letterbox 384x640, bgr, imagenet")
    (function,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (tmp_path / "own.py").write_text(function)
    sample = import_function(f"{tmp_path / 'own.py'}:prepare").sample(np.full((2, 3, 3), 255, "u1"))
    np.testing.assert_array_equal(sample[""], np.ones((3, 2, 3)))
