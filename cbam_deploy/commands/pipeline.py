"""The command that runs others, as a file declares them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import cbam_deploy
from cbam_deploy.commands.files import read
from cbam_deploy.commands.options import argument, option


def run(
    file: Annotated[Path, argument("FILE.toml", "The steps, as docs/run.md says.", read, ".toml")],
    dry_run: Annotated[
        bool, option("Say what would run and why; run nothing.", None, "--dry-run")
    ] = False,
    force: Annotated[bool, option("Run every step.", None, "--force")] = False,
) -> Any:
    """Run the steps of a file, each when something it depends on changed.

    Example:
      cbam-deploy run examples/deploy.toml
    More: docs/run.md
    """
    return cbam_deploy.run(file, dry_run=dry_run, force=force)


COMMANDS = (run,)
