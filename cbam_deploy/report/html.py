"""Self-contained HTML pages: style and plots are inside, nothing is fetched."""

from __future__ import annotations

import datetime
import itertools
import re
from pathlib import Path

from cbam_deploy.outputs import write_text
from cbam_deploy.report.content import Figure
from cbam_deploy.report.result import Result
from cbam_deploy.version import __version__


def write_page(result: Result, path: str | Path) -> None:
    """Write all that `result` says as one page to `path`, atomically.

    Everything but the figures' SVG is escaped. The page carries a badge when a section does:
    failed if any failed.

    Raises:
        BadInput: `path` cannot be written.
        MissingCapability: the result has plots and matplotlib is not installed.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("cbam_deploy.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    numbers = itertools.count(1)

    def svg(figure: Figure) -> Markup:
        return Markup(_with_own_ids(figure.draw(), f"plot-{next(numbers)}-"))

    sections = result.sections()
    outcomes = [section.passed for section in sections if section.passed is not None]
    page = environment.get_template("page.html").render(
        title=result.title,
        subtitle=result.subtitle,
        sections=sections,
        passed=all(outcomes) if outcomes else None,
        svg=svg,
        version=__version__,
        made_on=datetime.date.today().isoformat(),
    )
    # File names may hold bytes that are not UTF-8; they come here as lone surrogates.
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))


def _with_own_ids(svg: str, prefix: str) -> str:
    """`svg` with `prefix` before every id and every reference to one: a page holds several."""
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    return re.sub(r"url\(#", f"url(#{prefix}", svg)
