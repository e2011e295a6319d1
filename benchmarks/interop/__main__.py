"""Give our files to other people's tools, each in its own environment: `docs/interop.md`.

    python -m benchmarks.interop -o docs/interop.md [--work build/interop] [--tool onnxslim]

`make interop` does it. Environments are made by pip as it is configured here and kept in the
working folder, so a second run is quicker; remove the folder for new versions. A tool gets the
fused files, and the portable ones where it refuses any of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.interop.files import FORMS, File, make_files
from benchmarks.interop.page import page
from benchmarks.interop.tools import Tool, tools
from cbam_deploy.errors import BadInput
from cbam_deploy.numerics.metrics import TensorError, tensor_error
from cbam_deploy.numerics.tolerances import OUTPUTS, check
from cbam_deploy.outputs import write_text
from cbam_deploy.provenance import package_versions
from cbam_deploy.runtimes.onnxruntime import OnnxRuntimeRunner

PROBE = Path(__file__).with_name("probe.py")
TIMEOUT = 900  # seconds for all files of one tool in one form


@dataclass(frozen=True)
class Outcome:
    """What one tool made of one file.

    Attributes:
        tool: its name.
        network: of the file, like the next two.
        precision: ``fp32``, ``fp16`` or ``int8``.
        form: ``fused`` or ``portable``.
        refusal: the tool's words; None where it took the file.
        error: of its outputs, over the largest output of ONNX Runtime on our fused file; None
            where it computes nothing.
        held: whether that lies within what `validate` allows the precision.
    """

    tool: str
    network: str
    precision: str
    form: str
    refusal: str | None
    error: float | None = None
    held: bool = True


@dataclass(frozen=True)
class Study:
    """All of it: versions by tool, None where pip cannot install it, and why in `missing`."""

    versions: dict[str, str | None]
    missing: dict[str, str]
    outcomes: tuple[Outcome, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/interop"))
    parser.add_argument("--tool", action="append", help="only this one; repeat for several")
    given = parser.parse_args()
    work = given.work.resolve()
    (work / "files").mkdir(parents=True, exist_ok=True)
    files = make_files(work / "files")
    newest = package_versions("onnxruntime")["onnxruntime"]
    chosen = [tool for tool in tools(newest) if given.tool is None or tool.probe in given.tool]
    study = run(chosen, files, work)
    (work / "study.json").write_text(json.dumps(asdict(study), indent=1))
    write_text(given.output, page(chosen, study, newest))


def run(chosen: Sequence[Tool], files: Sequence[File], work: Path) -> Study:
    """Install each tool and give it the files."""
    versions: dict[str, str | None] = {}
    missing: dict[str, str] = {}
    outcomes: list[Outcome] = []
    for tool in chosen:
        print(f"{tool.name} ...", file=sys.stderr, flush=True)
        try:
            python = environment(tool, work / "environments")
        except BadInput as error:
            versions[tool.name], missing[tool.name] = None, error.message
            continue
        versions[tool.name] = version(python, tool.package)
        for form in FORMS:
            mine = [file for file in files if file.form == form]
            mine = [file for file in mine if file.precision in tool.precisions]
            found = given_to(tool, python, mine, work)
            outcomes += found
            if not any(outcome.refusal for outcome in found):
                break
    return Study(versions, missing, tuple(outcomes))


def environment(tool: Tool, folder: Path) -> Path:
    """The Python of an environment that has what `tool` requires.

    Raises:
        BadInput: pip cannot install it; the message has its words.
    """
    name = "+".join(part.translate(str.maketrans("=<*[]", "_____")) for part in tool.requirements)
    place = folder / name
    python, ready = place / "bin" / "python", place / "ready"
    if ready.exists():
        return python
    venv.create(place, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, *tool.requirements, "numpy"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        errors = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")]
        raise BadInput((errors or ["ERROR: pip failed"])[0].removeprefix("ERROR: "), "")
    ready.touch()
    return python


def version(python: Path, package: str) -> str:
    program = f"from importlib.metadata import version; print(version({package!r}))"
    answer = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    return answer.stdout.strip()


def given_to(tool: Tool, python: Path, files: Sequence[File], work: Path) -> list[Outcome]:
    """What `tool` made of each of `files`."""
    folder = work / "outputs" / tool.name.replace(" ", "-").replace(",", "")
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("*.*"):
        if earlier.is_file() and any(earlier.name.startswith(file.path.stem) for file in files):
            earlier.unlink()
    refusals: dict[Path, str | None] = {}
    while len(refusals) < len(files):
        left = [file for file in files if file.path not in refusals]
        ended, answers = _probe(tool, python, left, folder)
        refusals |= {Path(answer["model"]): answer["refusal"] for answer in answers}
        if len(answers) < len(left):
            refusals[left[len(answers)].path] = ended
    return [_outcome(tool, file, refusals[file.path], folder) for file in files]


def _probe(
    tool: Tool, python: Path, files: Sequence[File], folder: Path
) -> tuple[str, list[dict[str, str]]]:
    """How the process ended, and its answers, one for each file that it got to the end of."""
    tasks, results = folder / "tasks.json", folder / "results.jsonl"
    results.unlink(missing_ok=True)
    entries = [
        {"model": str(f.path), "feeds": str(f.feeds), "output": str(folder / f.path.stem)}
        for f in files
    ]
    tasks.write_text(json.dumps(entries))
    command = [python, PROBE, tool.probe, tasks, results]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT, cwd=folder
        )
        words = [line for line in done.stderr.splitlines() if line.strip()]
        ended = f"the process ended with {done.returncode}: {words[-1] if words else ''}"
    except subprocess.TimeoutExpired:
        ended = f"not done within {TIMEOUT} s"
    lines = results.read_text().splitlines() if results.exists() else []
    return ended, [json.loads(line) for line in lines]


def _outcome(tool: Tool, file: File, refusal: str | None, folder: Path) -> Outcome:
    facts = (tool.name, file.network, file.precision, file.form)
    if refusal is not None:
        return Outcome(*facts, refusal)
    written, made = (folder / f"{file.path.stem}{suffix}" for suffix in (".npz", ".onnx"))
    if made.exists():
        try:
            with OnnxRuntimeRunner(made) as runner:
                found = runner.infer(dict(np.load(file.feeds)))
        except BadInput as error:
            return Outcome(*facts, f"what it writes is refused: {error.message.split(': ', 1)[-1]}")
    elif written.exists():
        found = dict(np.load(written))
    else:
        return Outcome(*facts, None)
    errors = [
        tensor_error(name, expected, found[name])
        for name, expected in np.load(file.expected).items()
    ]
    tolerance = OUTPUTS["int8" if tool.converts else file.precision]
    held = not any(check(error, tolerance) for error in errors)
    return Outcome(*facts, None, max(map(_relative, errors)), held)


def _relative(error: TensorError) -> float:
    return float(error.max_relative)


if __name__ == "__main__":
    main()
