"""Steps of a run file, given to the commands as the command line gives them theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from cbam_deploy.command_files import declarations
from cbam_deploy.commands import checking, engines, onnx_files, serving, studying, training
from cbam_deploy.commands.files import companions
from cbam_deploy.commands.outcome import results_kept
from cbam_deploy.commands.registration import Commands, register
from cbam_deploy.errors import BadInput, DeployError
from cbam_deploy.pipeline.result import RunReport
from cbam_deploy.pipeline.run import ParsedStep, run_steps
from cbam_deploy.pipeline.run_file import Step

_OF_THE_RUN = ("--json", "--quiet", "--verbose", "--debug", "--help", "-h")


def run(path: str | Path, *, dry_run: bool = False, force: bool = False) -> RunReport:
    """Run the commands that a file declares, each only when what it depends on has changed.

    The file is trusted like a script: its steps read, write and import what they name. Paths in it
    begin in its folder. See `pipeline.run_file` for its form.

    Args:
        path: of the run file, TOML or YAML.
        dry_run: say what would run and why; run and write nothing.
        force: run every step.

    Raises:
        BadInput: the file is wrong, a command refuses its step, or another run is at work.
        MissingCapability: what reads the file is not installed.
    """
    app = typer.Typer(cls=Commands)
    for room in (onnx_files, engines, training, serving, checking, studying):
        register(app, "", room.COMMANDS)
    commands: Any = typer.main.get_command(app)
    return run_steps(
        path, lambda step: _parsed(step, commands.commands), dry_run=dry_run, force=force
    )


def _parsed(step: Step, commands: dict[str, Any]) -> ParsedStep:
    command = commands.get(step.command)
    if command is None:
        known = ", ".join(commands)
        raise BadInput(f"step {step.name}: no command {step.command!r}", f"one of {known}")
    words = _words(step, command)
    if other := [word for word in words if word in _OF_THE_RUN]:
        raise BadInput(f"step {step.name}: {other[0]} is for the whole run", "give it to run")
    with declarations(makes_folders=True) as declared:
        context = _context(step, command, words)

    def call() -> tuple[Any, DeployError | None]:
        with declarations() as own, results_kept() as results:
            own.inputs, own.outputs = declared.inputs, declared.outputs
            error = None
            try:
                with context:
                    command.invoke(context)
            except DeployError as raised:
                error = raised
            return (results[0] if results else None), error

    return ParsedStep(
        line=(step.command, *words),
        inputs=tuple(str(known.path) for known in declared.inputs),
        outputs=tuple(str(output) for output, _ in declared.outputs),
        call=call,
        companions=companions,
    )


def _context(step: Step, command: Any, words: list[str]) -> Any:
    """The command's line, read by the command line's own parser."""
    try:
        return command.make_context(step.command, list(words))
    except DeployError as error:
        raise type(error)(f"step {step.name}: {error.message}", error.hint) from error
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise BadInput(
            f"step {step.name}: {error.format_message()}",
            f"see 'cbam-deploy {step.command} --help'",
        ) from error


def _words(step: Step, command: Any) -> list[str]:
    """The step's arguments and options as a person would type them."""
    negations = {
        flag: parameter.secondary_opts[0]
        for parameter in command.params
        for flag in parameter.opts
        if parameter.secondary_opts
    }
    known = {flag for parameter in command.params for flag in parameter.opts}
    words = list(step.arguments)
    for name, values in step.options.items():
        flag = f"--{name}"
        for value in values:
            if value is not False:
                words.append(flag if value is True else f"{flag}={value}")
            elif flag in negations or flag not in known:
                words.append(negations.get(flag, flag))
    return words
