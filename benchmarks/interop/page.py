"""The page that `python -m benchmarks.interop` writes."""

from __future__ import annotations

import datetime
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from benchmarks.interop.files import FORMS, NETWORKS, PRECISIONS
from benchmarks.interop.tools import Tool, remedy
from cbam_deploy.gates.operators import DOMAIN
from cbam_deploy.machine import environment
from cbam_deploy.provenance import package_versions

if TYPE_CHECKING:
    from benchmarks.interop.__main__ import Outcome, Study

WORDS = 120  # letters of a refusal's beginning

HEAD = """# What other tools make of our files

Written by `make interop` on {date}, with cbam-deploy {version}; {system}, Python {python}. Each
tool has an environment of its own, made by pip, and gets {networks}, each in FP32, FP16 and INT8:
first the fused files, whose gates are functions, and where it refuses one of those, the portable
ones (`export --portable`, or `inline`), whose gates are standard operators.

Cells: how many of {count} files the tool took where not all, and the largest error of an output,
over the largest output, to what ONNX Runtime {onnxruntime} computes from our fused file on the same
noise. Files that a tool writes are run in ONNX Runtime for that. **Bold**: further off than
`validate` allows the precision. FP16 is computed in FP32 by most tools on a CPU, and what runs in
INT8 and what around it in float is for each tool to choose.
"""

CUDA = """## ONNX Runtime on CUDA

Not run here: read off ONNX Runtime's own list of kernels (`docs/OperatorKernels.md` of its sources,
of 2026). Its CUDA provider takes a node where it has a kernel for that version of the operator;
other nodes run on the CPU, with copies to and fro. What `export` writes is of opset 18.
`convert --precision int8` moves it to opset 19, the first whose Q and DQ take FP16 scales. Of the
operators that opset 19 renews, the provider lacks `Pad`, `Equal` and `Size`; networks of the zoo
and the bodies of gates use none of these. A network of yours with a `Pad` between its convolutions
stays on the GPU with `--precision int8+fp32`, which keeps opset 18. No file goes beyond opset 19:
opset 20 renews `ReduceMax`, which the bodies of gates use and of which the provider has version 18.
"""


def page(chosen: Sequence[Tool], study: Study, onnxruntime: str) -> str:
    """The page in Markdown."""
    here = environment()
    head = HEAD.format(
        date=datetime.date.today().isoformat(),
        version=package_versions("cbam-deploy")["cbam-deploy"],
        system=here["os"],
        python=here["python"],
        networks=", ".join(f"{name} with {gate}" for name, gate, _ in NETWORKS),
        count=len(NETWORKS),
        onnxruntime=onnxruntime,
    )
    head = "\n\n".join(textwrap.fill(paragraph, 100) for paragraph in head.split("\n\n"))
    lines = [
        head,
        "",
        "| tool | version | files | FP32 | FP16 | INT8 |",
        "|---|---|---|---|---|---|",
    ]
    for tool in chosen:
        for form in FORMS:
            lines += _row(tool, form, study)
    refused = list(_refusals(study))
    if refused:
        lines += ["", "## What tools refuse", "", "| tool | files | its words | remedy |"]
        lines += ["|---|---|---|---|", *refused]
    if study.missing:
        lines += ["", "## What pip cannot install here", ""]
        lines += [f"- {name}: {words}" for name, words in study.missing.items()]
    return "\n".join(lines) + "\n\n" + CUDA


def _row(tool: Tool, form: str, study: Study) -> Iterator[str]:
    mine = [one for one in study.outcomes if (one.tool, one.form) == (tool.name, form)]
    if mine:
        by = {
            precision: [one for one in mine if one.precision == precision]
            for precision in PRECISIONS
        }
        cells = " | ".join(_cell(found) for found in by.values())
        yield f"| {tool.name} | {study.versions[tool.name]} | {form} | {cells} |"


def _cell(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return "–"
    took = [one for one in outcomes if one.refusal is None]
    if not took:
        return "refuses"
    count = "" if len(took) == len(outcomes) else f"{len(took)} of {len(outcomes)}"
    errors = [one.error for one in took if one.error is not None]
    figure = f"{max(errors):.1e}" if errors else "takes it" if not count else ""
    figure = figure if all(one.held for one in took) else f"**{figure}**"
    return ", ".join(part for part in (count, figure) if part)


def _refusals(study: Study) -> Iterator[str]:
    """A row for each tool and words, with the files that they were said of."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for one in study.outcomes:
        if one.refusal is not None:
            words = re.sub(r"\b[A-Z]\w*Gate\w*\b", "GATE", " ".join(one.refusal.split()))
            help_ = remedy(words) or "none of ours"
            precisions = found.setdefault((one.tool, one.form, _short(words), help_), [])
            precisions.append(one.precision)
    for (tool, form, words, help_), precisions in found.items():
        kinds = ", ".join(dict.fromkeys(precisions)).upper()
        yield f"| {tool} | {form} {kinds} | {words} | {help_} |"


def _short(words: str) -> str:
    """The beginning of `words`, and what they say of our domain; as a table's cell takes it."""
    ours = words.find(DOMAIN, WORDS)
    if ours > 0:
        words = f"{words[:WORDS]} … {words[max(WORDS, ours - WORDS // 2) : ours + WORDS // 2]}"
    else:
        words = words[: 2 * WORDS]
    return words.replace("|", "\\|").replace("<", "&lt;")
