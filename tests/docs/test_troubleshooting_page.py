"""The page of errors has every text of the code, and no other, each with cause and remedy."""

import ast
import re
from pathlib import Path

import pytest
from error_texts import Module, error_texts

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
ENTRY = re.compile(r"^- `(.+)`\n  (\S.*\.) → (\S.*[.`])$", re.M)
HOW = (
    "docs/troubleshooting.md lacks {}, raised in cbam_deploy/{}. Add under the fitting heading:"
    "\n\n- `{}`\n  CAUSE. → {}.\n"
)


@pytest.fixture(scope="module")
def page():
    """Cause and remedy of each text on the page."""
    text = PAGE.read_text(encoding="utf-8")
    entries = ENTRY.findall(text)
    beginnings = re.findall(r"^- `(.+)`$", text, re.M)
    assert [entry[0] for entry in entries] == beginnings, (
        "an entry is not: - `TEXT`, CAUSE. → REMEDY."
    )
    assert len(set(beginnings)) == len(beginnings)
    assert len(re.findall(r"^  ", text, re.M)) == len(beginnings), "a line belongs to no entry"
    return {entry: (cause, remedy) for entry, cause, remedy in entries}


def test_every_text_of_the_code_is_on_the_page(page):
    missing = {
        one.text: HOW.format(repr(one.text), one.module, one.text, one.hint or "REMEDY")
        for one in error_texts()
        if one.text not in page
    }
    assert not missing, "\n".join(missing.values())


def test_nothing_is_on_the_page_that_the_code_no_longer_says(page):
    gone = set(page) - {one.text for one in error_texts()}
    assert not gone, f"take these entries from docs/troubleshooting.md: {sorted(gone)}"


@pytest.mark.parametrize(
    ("code", "texts"),
    [
        ("raise BadInput(f'{path}: is no file', 'x')", ["…: is no file"]),
        ("raise errors.BadInput('a' if one else f'b {c!r}', 'x')", ["a", "b …"]),
        (
            "def f(b):\n what = 'no' if b else 'one'\n raise BadInput(f'{b.c}: {what} file', 'x')",
            ["…: no file", "…: one file"],
        ),
        (
            "def g():\n raise h(1, 'lost')\ndef h(a, why):\n return CheckFailed(f'is {why}', 'x')",
            ["is lost"],
        ),
        ("def failure(self):\n return f'{self.a} fails', 'x'", ["… fails"]),
        ("with imports_for('plots need it', 'demo'):\n pass", ["plots need it"]),
        ("f('nothing of an error')", []),
    ],
)
def test_texts_are_found_as_code_spells_them(code, texts):
    assert [text for text, _ in Module(ast.parse(code)).errors()] == texts
