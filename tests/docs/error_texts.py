"""Every text that an `error:` line can have, as the code writes it, with … for what varies."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "cbam_deploy"
# What makes an error: classes of errors.py, Typer's, and `imports_for`, which says what it is for.
MAKERS = (
    *("BadInput", "MissingCapability", "CheckFailed", "BadParameter", "imports_for", "complain"),
)
VARIES = "…"


@dataclass(frozen=True)
class ErrorText:
    """A text, the hint where one text stands beside it, and the module of both."""

    text: str
    hint: str
    module: str


def error_texts() -> list[ErrorText]:
    """All of them, but for those that only pass another text on."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = Module(ast.parse(path.read_text(encoding="utf-8")))
        name = path.relative_to(PACKAGE).as_posix()
        found += [ErrorText(text, hint, name) for text, hint in module.errors()]
    return [one for one in found if any(letter.isalpha() for letter in one.text)]


class Module:
    """The errors of a module; names in their texts are followed to literals in the same module."""

    def __init__(self, tree: ast.Module) -> None:
        self.functions: dict[ast.AST, ast.FunctionDef] = {}
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            self.functions.update(dict.fromkeys(ast.walk(function), function))
        # A result that is a check says so in its method `failure`.
        self.said = [
            node.value.elts
            for node, function in self.functions.items()
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple)
            if function.name == "failure"
        ]
        self.calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]

    def errors(self) -> Iterator[tuple[str, str]]:
        """Text and hint of each."""
        made = (call.args for call in self.calls if _name(call) in MAKERS and call.args)
        for text, *hint in (*made, *self.said):
            hints = self.texts(hint[0]) if hint else []
            for one in self.texts(text):
                yield one, hints[0] if len(hints) == 1 else ""

    def texts(self, value: ast.expr) -> list[str]:
        """What an expression can be."""
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return [value.value]
        if isinstance(value, ast.JoinedStr):
            parts = [self.texts(part) for part in value.values]
            if sum(len(part) > 1 for part in parts) > 1:  # Which goes with which is not followed.
                parts = [part if len(part) == 1 else [VARIES] for part in parts]
            return ["".join(one) for one in itertools.product(*parts)]
        if isinstance(value, ast.FormattedValue) and value.conversion == -1:
            return self.texts(value.value) if isinstance(value.value, ast.Name) else [VARIES]
        if isinstance(value, ast.IfExp):
            return [*self.texts(value.body), *self.texts(value.orelse)]
        if isinstance(value, ast.BinOp):
            return [a + b for a in self.texts(value.left) for b in self.texts(value.right)]
        if isinstance(value, ast.Name) and value in self.functions:
            given = self.given(value.id, self.functions[value])
            return list(dict.fromkeys(given)) or [VARIES]
        return [VARIES]

    def given(self, name: str, function: ast.FunctionDef) -> Iterator[str]:
        """The texts that a name of `function` gets there, or as a parameter from its callers."""
        values = [
            node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            and [name] == [target.id for target in node.targets if isinstance(target, ast.Name)]
        ]
        parameters = [one.arg for one in function.args.args if one.arg != "self"]
        if name in parameters:
            place = parameters.index(name)
            for call in self.calls:
                if _name(call) == function.name and self.functions.get(call) is not function:
                    values += call.args[place : place + 1]
        for value in values:
            itself = any(isinstance(one, ast.Name) and one.id == name for one in ast.walk(value))
            if isinstance(value, ast.JoinedStr) and itself:
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else VARIES
                    for part in value.values
                )
            elif isinstance(value, ast.Constant | ast.JoinedStr | ast.IfExp) and not itself:
                yield from self.texts(value)
            else:
                yield VARIES


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func).rpartition(".")[2]
