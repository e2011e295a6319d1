"""``python -m cbam_deploy``, and the entry point of ``cbam-deploy``."""

import os
import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; Ctrl-C is quiet from here on, before anything else is imported."""
    signal.signal(signal.SIGINT, _leave)
    from cbam_deploy.cli import main as command_line

    try:
        command_line()
    except SystemExit as ended:
        # Threads of torch's process group may outlive it, and abort a process that ends in order.
        if "WORLD_SIZE" in os.environ and isinstance(ended.code, int | None):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code or 0)
        raise


def _leave(*_: object) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
