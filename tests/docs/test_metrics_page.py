"""The page on metrics says what the code does."""

import re
from pathlib import Path

from cbam_deploy.validation.metrics import METRICS

PAGE = Path(__file__).parents[2].joinpath("docs", "metrics.md").read_text(encoding="utf-8")


def test_metrics_of_the_page_are_those_there_are():
    rows = re.findall(r"^\| `([\w-]+)`", PAGE, re.MULTILINE)
    assert rows == list(METRICS)
