"""What MkDocs adds to docs/: pages of the repository's root, and the commands as Typer has them.

Links to files that the site does not have become their paths, to be looked up in the clone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from cbam_deploy.cli import app
from cbam_deploy.commands.registration import Command, Commands, Panels

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OF_THE_ROOT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])+)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for name, page in OF_THE_ROOT.items():
        text = relinked((ROOT / name).read_text(encoding="utf-8"), ROOT)
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "commands.md", content="\n".join(commands())))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """The text of a page of docs/, with links that the site can follow."""
    if page.file.generated_by:
        return markdown
    # An error has text, cause and remedy on lines of their own; Markdown elsewhere has lists alone.
    lines = r"\1\n:   \2<br>→ \3\n"
    entries = re.sub(r"^- (`.+`)\n  (.+) → (.+)$", lines, markdown, flags=re.M)
    return relinked(entries, DOCS)


def relinked(text: str, folder: Path) -> str:
    """`text` of a page in `folder` with its links as they are in the site."""

    def link(found: re.Match[str]) -> str:
        words, target, anchor = found[1], found[2], found[3] or ""
        path = Path(os.path.normpath(folder / target))
        inside = path.relative_to(ROOT).as_posix()
        if inside in OF_THE_ROOT:
            return f"[{words}]({OF_THE_ROOT[inside]}{anchor})"
        if path.is_relative_to(DOCS):
            words = _title(path) if words == inside else words
            return f"[{words}]({path.relative_to(DOCS).as_posix()}{anchor})"
        return f"`{inside}`" if words in (inside, target) else f"{words} (`{inside}`)"

    return LINK.sub(link, text)


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def commands() -> Iterator[str]:
    """The lines of the page of the commands."""
    group = typer.main.get_command(app)
    assert isinstance(group, Commands)
    shown = {name: _help(name, command) for name, command in group.commands.items()}
    every = [
        row for row in _rows(*shown.values()) if all(row in _rows(one) for one in shown.values())
    ]
    yield "# Commands\n\nAs `cbam-deploy COMMAND --help` says it. Every command also takes:\n"
    yield from _definitions(list(dict.fromkeys(every)))
    heading = ""
    for name, (command, usage, panels) in shown.items():
        if command.rich_help_panel != heading:
            heading = command.rich_help_panel or ""
            yield f"\n## {heading}\n"
        example, _, page = (command.epilog or "").partition("More: docs/")
        yield f"\n### {name}\n\n{command.help}\n\n```text\n{usage}\n```\n"
        yield f"Example:\n\n```text\n{dedent(example)}```\n"
        yield f"More: [{_title(DOCS / page)}]({page}).\n"
        for panel, rows in panels.items():
            own = [row for row in rows if row not in every]
            if own:
                yield f"**{panel}**\n"
                yield from _definitions(own)


Help = tuple[Command, str, Panels]


def _help(name: str, command: object) -> Help:
    """A command, its usage line, and its arguments and options by heading."""
    assert isinstance(command, Command)
    context = command.make_context(
        name, [], resilient_parsing=True, help_option_names=["-h", "--help"]
    )
    usage = " ".join(("cbam-deploy", name, *command.collect_usage_pieces(context)))
    return command, usage, command.panels(context)


def _rows(*shown: Help) -> list[tuple[str, str]]:
    return [row for _, _, panels in shown for rows in panels.values() for row in rows]


def _definitions(rows: list[tuple[str, str]]) -> Iterator[str]:
    for name, text in rows:
        escaped = re.sub(r"([<>*_\[\]])", r"\\\1", text)
        yield f"`{name}`\n:   {escaped}\n"
