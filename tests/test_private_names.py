"""Tests and benchmarks use public names alone, so that each room is free to change inside."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def trees(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def private_names() -> set[str]:
    """Those that the package and the benchmarks define; other people's are theirs to keep."""
    names = set()
    for _, tree in trees("cbam_deploy", "benchmarks"):
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    # Python's and IPython's own, such as `__str__` and `_repr_html_`, end in what they begin with.
    return {name for name in names if name.startswith("_") and not name.endswith("_")}


def reached(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of all that is reached for in something else, also by a text that names it."""
    formatted = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    endings = {part for text in formatted for part in text.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            _, dot, name = node.value.rpartition(".")
            if dot or node not in endings:
                yield node.lineno, name


def test_no_test_and_no_benchmark_reaches_for_a_private_name():
    private = private_names()
    assert len(private) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, tree in trees("tests", "benchmarks")
        for line, name in reached(tree)
        if name in private
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "from cbam_deploy.room import _inner",
        "room._inner()",
        "monkeypatch.setattr(room, '_inner', None)",
        "monkeypatch.setattr('cbam_deploy.room._inner', None)",
        "monkeypatch.setattr(f'cbam_deploy.{room}._inner', None)",
    ],
)
def test_every_way_of_reaching_for_a_name_is_seen(code):
    assert "_inner" in {name for _, name in reached(ast.parse(code))}
