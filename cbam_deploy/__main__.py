"""``python -m cbam_deploy``, and the entry point of ``cbam-deploy``."""

import os
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; Ctrl-C is quiet from here on, before anything else is imported."""
    signal.signal(signal.SIGINT, _leave)
    from cbam_deploy.cli import main as command_line

    command_line()


def _leave(*_: object) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
