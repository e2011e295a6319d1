"""How a function becomes a command.

Its parameters are the command's own arguments and options, its docstring the help, and what it
returns the result. A parameter that is a dataclass stands for an option for each of its fields.
What every command has besides, for its result and its messages, is added here.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from cbam_deploy.command_files import declarations
from cbam_deploy.commands.options import (
    DebugOption,
    JsonOption,
    QuietOption,
    ReportOption,
    VerboseOption,
)
from cbam_deploy.commands.outcome import deliver

Panels = dict[str, list[tuple[str, str]]]  # Rows of the help, by heading.


def _common(
    report: ReportOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    debug: DebugOption = False,
) -> None:
    """The options that every command has."""


def register(app: typer.Typer, panel: str, functions: Sequence[Callable[..., Any]]) -> None:
    """Add a command for each of `functions`, of its name, under the heading `panel`."""
    for function in functions:
        name = function.__name__.replace("_", "-")
        app.command(name, cls=Command, rich_help_panel=panel)(_with_common_options(function))


def _with_common_options(function: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(function)
    def command(**values: Any) -> None:
        result = _call(function, values)
        if result is not None:
            deliver(result, values["as_json"], values["report"])

    parameters = [*_options(function), *_options(_common)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())


def _is_group(kind: Any) -> bool:
    """Whether a parameter of this type stands for several options."""
    return is_dataclass(kind)


def _options(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of `function`, those of a dataclass in its place, all given by name."""
    return [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for one in _parameters(function)
        for option in (_parameters(one.annotation) if _is_group(one.annotation) else [one])
    ]


def _call(function: Callable[..., Any], values: dict[str, Any]) -> Any:
    """What `function` returns, given its share of `values`."""
    given = {
        one.name: _call(one.annotation, values) if _is_group(one.annotation) else values[one.name]
        for one in _parameters(function)
    }
    return function(**given)


class Command(TyperCommand):
    """A command whose help lists options under the headings that they name, in plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options."""
        panels: Panels = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            record = parameter.get_help_record(ctx)
            if record is not None:
                panel = getattr(parameter, "rich_help_panel", None) or kind
                panels.setdefault(panel, []).append(record)
        _write(panels, formatter)


class Commands(TyperGroup):
    """The commands; each declares the files it reads and writes while its line is parsed."""

    def invoke(self, ctx: Any) -> Any:
        """Run one command."""
        with declarations():
            return super().invoke(ctx)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the commands, under their headings."""
        room = formatter.width - 6 - max(map(len, self.commands))
        panels: Panels = {}
        for name, command in self.commands.items():
            panel: str = getattr(command, "rich_help_panel", None) or "Commands"
            panels.setdefault(panel, []).append((name, command.get_short_help_str(room)))
        _write(panels, formatter)


def _write(panels: Panels, formatter: Any) -> None:
    for title, rows in panels.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)
