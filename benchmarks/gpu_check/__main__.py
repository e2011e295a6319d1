"""``python -m benchmarks.gpu_check``, from the folder that holds cbam_deploy and benchmarks."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from benchmarks.gpu_check.job import Job, Options
from benchmarks.gpu_check.parts import PARTS, part_called
from benchmarks.gpu_check.process import ROOT
from benchmarks.gpu_check.report import check, files_in, is_correct
from benchmarks.gpu_check.table import markdown
from benchmarks.gpu_check.targets import judged
from cbam_deploy.errors import DeployError

RESULTS = ROOT / "benchmarks" / "results"


def main(arguments: list[str] | None = None) -> int:
    """Run the check; 1 where results are wrong, 3 without a GPU."""
    given = _parser().parse_args(arguments)
    engines = given.engines and given.engines.resolve()
    options = Options(given.dry_run, given.every, tuple(given.share), engines)
    if given.part:
        Job(given.file, options, given.seconds).carry_out(part_called(given.part).run)
        return 0
    parts = [part for part in PARTS if given.only is None or part.name in given.only]
    command = shlex.join(["python", "-m", "benchmarks.gpu_check", *(arguments or sys.argv[1:])])
    try:
        folder = given.output or (None if options.dry else RESULTS)
        report = check(parts, options, command, folder)
        print(markdown(report))
        if folder is not None:
            print("written:", *files_in(folder, report), file=sys.stderr)
        for row in judged(report):
            print(f"{row['met']}: {row['target']}; worst {row['worst']}", file=sys.stderr)
    except DeployError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0 if is_correct(report, parts) else 1


def _parser() -> argparse.ArgumentParser:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check")
    parser.add_argument("-o", "--output", type=Path, help="folder (default: benchmarks/results)")
    parser.add_argument("--dry-run", action="store_true", help="all but launching and timing")
    parser.add_argument("--engines", type=Path, help="folder of TensorRT-RTX engines or ONNX files")
    parser.add_argument("--only", action="append", choices=names, help="a part to run; repeatable")
    parser.add_argument("--every", type=int, default=1, help="take every so-manieth case only")
    inner = parser.add_argument_group("one part in this process, as the check itself starts it")
    inner.add_argument("--part", help=argparse.SUPPRESS)
    inner.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    inner.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    inner.add_argument("--share", type=int, nargs=2, default=(0, 1), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
