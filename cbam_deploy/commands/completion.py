"""What a shell offers for an argument or option when its user presses TAB."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import quote

Completion = Callable[[str], list[str]]

# The networks of models/zoo.py, which takes PyTorch to load.
ZOO = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
    "resnext101_32x4d", "wide_resnet18_1_5", "wide_resnet18_2_0", "resnet8", "resnet20",
    "mobilenet",
)  # fmt: skip

# The runtimes of files in runtimes/__init__.py, and the variants of studies/variants.py.
RUNTIMES = ("onnxruntime", "openvino", "tensorrt-rtx", "tensorrt")
VARIANTS = (
    "plain", "se", "max", "avg-max", "pool-3", "cbam", "conv-3", "conv-7", "spatial-first",
    "parallel",
)  # fmt: skip


def offer(*values: str) -> Completion:
    """A completion by names, and by files of the suffixes, such as ``.onnx``, among `values`.

    Where there are suffixes, the folders on the way to files are offered too; ``/`` stands for
    folders alone. A folder that is the only one is entered: a shell would put a space after it.
    """
    suffixes = tuple(value for value in values if value[0] in "./")

    def complete(incomplete: str) -> list[str]:
        found = [name for name in values if name.startswith(incomplete) and name not in suffixes]
        if suffixes:
            found += _paths(incomplete, suffixes)
        if len(found) == 1 and found[0].endswith("/"):
            return complete(found[0]) or found
        return found

    return complete


def metrics(incomplete: str) -> list[str]:
    """For ``--metric``: what networks are judged by, and files with functions."""
    from cbam_deploy.validation.metrics import METRICS

    return [name for name in METRICS if name.startswith(incomplete)] + offer(".py")(incomplete)


def _paths(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    """Files with one of `suffixes`, and folders with a slash at their end.

    Names that need quotes are left to the shell's own completion.
    """
    head, slash, start = incomplete.rpartition("/")
    try:
        entries = sorted(Path(head + slash).expanduser().iterdir())
    except OSError:
        return []
    found = []
    for entry in entries:
        if quote(entry.name) != entry.name or entry.name.startswith(".") > start.startswith("."):
            continue
        if entry.name.startswith(start):
            if entry.is_dir():
                found.append(f"{head}{slash}{entry.name}/")
            elif entry.suffix in suffixes:
                found.append(f"{head}{slash}{entry.name}")
    return found
