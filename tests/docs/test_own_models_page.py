"""The page on people's own networks says what the code does."""

import re
from pathlib import Path

from cbam_deploy.models.checkpoint_names import NAMINGS, PLAIN
from cbam_deploy.tracing.network_inputs import parse_inputs

PAGE = Path(__file__).parents[2].joinpath("docs", "own-models.md").read_text(encoding="utf-8")


def test_namings_of_the_page_are_those_of_the_table():
    rows = re.findall(r"^\| (.+?) \| `layer1\.0\.(\S+)` \|", PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == [*(naming.name for naming in NAMINGS), PLAIN]
    for (_, example), naming in zip(rows, NAMINGS, strict=False):
        assert example in {theirs for theirs, _, _ in naming.rows}


def test_inputs_of_the_page_are_understood():
    commands = [line for line in PAGE.splitlines() if "--input " in line and "export" in line]
    assert [len(parse_inputs(re.findall(r"--input (\S+)", line)).specs) for line in commands] == [
        1,
        2,
    ]
