"""The command line. A command parses, calls one function of the package and shows its result.

Nothing is loaded before it is needed, so that ``--help`` answers at once.
"""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from cbam_deploy.commands import (
    checking,
    engines,
    onnx_files,
    pipeline,
    serving,
    studying,
    training,
)
from cbam_deploy.commands.options import DebugOption, QuietOption, VerboseOption
from cbam_deploy.commands.outcome import run
from cbam_deploy.commands.registration import Commands, register
from cbam_deploy.errors import MissingCapability
from cbam_deploy.version import __version__

app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Deploy CNNs with attention gates: PyTorch to ONNX to TensorRT, proven and measured.",
)
for making in (onnx_files, engines, training, serving, pipeline):
    register(app, "Make", making.COMMANDS)
register(app, "Check", checking.COMMANDS)
register(app, "Study", studying.COMMANDS)


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    quiet: QuietOption = False,  # noqa: ARG001 - their callbacks did it
    verbose: VerboseOption = False,  # noqa: ARG001
    debug: DebugOption = False,  # noqa: ARG001
) -> None:
    if version:
        typer.echo(f"cbam-deploy {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit


def main() -> NoReturn:
    """Entry point of ``cbam-deploy``."""
    run(_run_app)


def _run_app() -> int | None:
    code: int | None = app(standalone_mode=False, prog_name="cbam-deploy")
    if code == 1:  # Typer's own, of completion; what checks find is raised.
        raise MissingCapability(
            "no shell that completion is made for was found", "run it in bash, zsh or fish"
        )
    return code


if __name__ == "__main__":
    main()
