"""How a function becomes a command.

Its parameters are the command's own arguments and options, its docstring the help with an example
and a page at its end, and what it returns the result. A parameter that is a dataclass stands for an
option for each of its fields. What every command has besides, for its result and its messages, is
added here.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from copy import copy
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from cbam_deploy.command_files import declarations
from cbam_deploy.commands.options import (
    DebugOption,
    HtmlOption,
    JsonOption,
    QuietOption,
    ReportOption,
    SummaryOption,
    VerboseOption,
)
from cbam_deploy.commands.outcome import deliver

Panels = dict[str, list[tuple[str, str]]]  # Rows of the help, by heading.


def _common(
    report: ReportOption = None,
    html: HtmlOption = None,
    summary: SummaryOption = None,
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
        text, _, end = inspect.cleandoc(function.__doc__ or "").partition("\n\nExample:\n")
        add = app.command(name, cls=Command, rich_help_panel=panel, help=text, epilog=end)
        add(_with_common_options(function))


def _with_common_options(function: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(function)
    def command(**values: Any) -> None:
        # Standard output is the result's, which may be JSON: code of a person's own may print.
        with redirect_stdout(sys.stderr):
            result = _call(function, values)
        if result is not None:
            files = {name: values[name] for name in ("report", "html", "summary")}
            deliver(result, as_json=values["as_json"], **files)

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
        option.replace(
            kind=inspect.Parameter.KEYWORD_ONLY, annotation=_with_choices(option.annotation)
        )
        for one in _parameters(function)
        for option in (_parameters(one.annotation) if _is_group(one.annotation) else [one])
    ]


def _with_choices(annotation: Any) -> Any:
    """The annotation of an option that takes one of a few words, with these as what it shows."""
    kind, *described = get_args(annotation) if get_origin(annotation) is Annotated else [annotation]
    kinds = (kind, *get_args(kind))  # Those of a union are its arguments.
    words = [word for one in kinds if get_origin(one) is Literal for word in get_args(one)]
    if not words:
        return annotation
    info = copy(described[0])
    info.metavar = info.metavar or "|".join(words)
    return Annotated[kind, info]


def _call(function: Callable[..., Any], values: dict[str, Any]) -> Any:
    """What `function` returns, given its share of `values`."""
    given = {
        one.name: _call(one.annotation, values) if _is_group(one.annotation) else values[one.name]
        for one in _parameters(function)
    }
    return function(**given)


class Command(TyperCommand):
    """A command whose help lists options under the headings that they name, in plain text."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What follows the command's name in its usage line."""
        own = [one for one in self.get_params(ctx) if one.param_type_name == "argument"]
        shown = (str(one.metavar) if one.required else f"[{one.metavar}]" for one in own)
        return ["[OPTIONS]", *shown]

    def panels(self, ctx: Any) -> Panels:
        """The arguments and options, each as it is written and what it means, by heading."""
        panels: Panels = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            name, text = record
            text = _RANGE.sub(_range_in_words, text)
            if parameter.param_type_name == "argument":
                panels["Arguments"].append((str(parameter.metavar), text))
            else:
                panel = getattr(parameter, "rich_help_panel", None) or "Options"
                panels.setdefault(panel, []).append((name, text))
        return {title: rows for title, rows in panels.items() if rows}

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options."""
        _write(self.panels(ctx), formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the example, line by line as it stands, and the page."""
        formatter.write(f"\nExample:\n{self.epilog}\n")


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


# As Typer writes the range of a number.
_RANGE = re.compile(r"(\d+)<=x<=(\d+)")
_LARGE = 2000  # A larger bound says nothing: it only keeps absurd numbers out.


def _range_in_words(found: re.Match[str]) -> str:
    low, high = map(int, found.groups())
    return f"{low} to {high}" if high < _LARGE else f"{low} or more"


def _write(panels: Panels, formatter: Any) -> None:
    for title, rows in panels.items():
        with formatter.section(title):
            formatter.write_dl(rows)
