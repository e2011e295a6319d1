"""Self-contained HTML pages: style and plots are inside, nothing is fetched."""

from __future__ import annotations

import datetime
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING

from cbam_deploy.outputs import write_text
from cbam_deploy.report.content import Figure
from cbam_deploy.report.result import Result
from cbam_deploy.version import __version__

if TYPE_CHECKING:
    from jinja2 import Template


def write_page(result: Result, path: str | Path) -> None:
    """Write all that `result` says as one page to `path`, atomically.

    Everything but the figures' SVG is escaped. The page carries a badge when a section does:
    failed if any failed.

    Raises:
        BadInput: `path` cannot be written.
        MissingCapability: the result has plots and matplotlib is not installed.
    """
    from markupsafe import Markup

    numbers = itertools.count(1)

    def svg(figure: Figure) -> Markup:
        return Markup(_with_own_ids(figure.draw(), f"plot-{next(numbers)}-"))

    sections = result.sections()
    outcomes = [section.passed for section in sections if section.passed is not None]
    page = _template("page.html").render(
        title=result.title or sections[0].title,
        subtitle=result.subtitle,
        sections=sections,
        passed=all(outcomes) if outcomes else None,
        svg=svg,
        version=__version__,
        made_on=datetime.date.today().isoformat(),
    )
    # File names may hold bytes that are not UTF-8; they come here as lone surrogates.
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))


def fragment(result: Result) -> str:
    """The tables of `result`, for a notebook to show in its own style; no plots, no background."""
    shown = [section for section in result.sections() if not section.background]
    return _template("fragment.html").render(sections=shown)


def _template(name: str) -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cbam_deploy.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(name)


def _with_own_ids(svg: str, prefix: str) -> str:
    """`svg` with `prefix` before every id and every reference to one: a page holds several."""
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}', svg)
    return re.sub(r"url\(#", f"url(#{prefix}", svg)
