"""Checks as a JUnit file, which CI systems show test by test.

Format: the common subset that GitHub Actions reporters, GitLab and Jenkins read: one
``<testsuite>`` in ``<testsuites>``, one ``<testcase>`` per check, ``<failure>`` inside those that
did not hold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from cbam_deploy.outputs import write_text

# What XML 1.0 allows is tab, newline, carriage return and these ranges (its production 2, Char).
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Case:
    """One check: what it is about, whether it held, why not, and how long it took in seconds."""

    name: str
    passed: bool
    message: str = ""
    seconds: float = 0.0


def write_junit(path: str | Path, suite: str, cases: Sequence[Case]) -> None:
    """Write `cases` to `path` as the JUnit test suite named `suite`, atomically.

    Characters that XML cannot hold become U+FFFD.

    Raises:
        BadInput: `path` cannot be written.
    """
    totals = {
        "tests": str(len(cases)),
        "failures": str(sum(not case.passed for case in cases)),
        "errors": "0",
        "skipped": "0",
        "time": f"{sum(case.seconds for case in cases):.3f}",
    }
    root = ElementTree.Element("testsuites", totals)
    parent = ElementTree.SubElement(root, "testsuite", {"name": _xml(suite), **totals})
    for case in cases:
        _add(parent, suite, case)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    write_text(path, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n')


def _add(parent: ElementTree.Element, suite: str, case: Case) -> None:
    attributes = {"classname": suite, "name": case.name, "time": f"{case.seconds:.3f}"}
    element = ElementTree.SubElement(
        parent, "testcase", {key: _xml(value) for key, value in attributes.items()}
    )
    if not case.passed:
        first_line = case.message.partition("\n")[0]
        failure = ElementTree.SubElement(element, "failure", {"message": _xml(first_line)})
        failure.text = _xml(case.message)


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
