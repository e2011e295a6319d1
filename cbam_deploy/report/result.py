"""What every result can do: be printed, be a page, be JSON. It says only what its content is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cbam_deploy.report.json_file import fields_of

if TYPE_CHECKING:
    from cbam_deploy.report.content import Section
    from cbam_deploy.report.terminal import Shown


class Result(ABC):
    """Base of the frozen dataclasses that commands return.

    One that has a property `passed` is a check; one that wrote a page names it in its field `page`.

    Attributes:
        title: of its page; that of its first section where it has none of its own.
        schema: name of its JSON, where that is a document of its own.
        schema_version: goes up when a key of that document changes its meaning.
    """

    title: ClassVar[str] = ""
    schema: ClassVar[str] = ""
    schema_version: ClassVar[int] = 1

    @property
    def subtitle(self) -> str:
        """What the page is about."""
        return ""

    @abstractmethod
    def sections(self) -> Sequence[Section]:
        """The content."""

    def heading(self) -> dict[str, Any]:
        """What the JSON begins with: its schema and, for a check, whether it held."""
        if not self.schema:
            return {}
        verdict = {"passed": self.passed} if hasattr(self, "passed") else {}
        return {"schema": self.schema, "schema_version": self.schema_version, **verdict}

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data: the heading and every field."""
        return {**self.heading(), **fields_of(self)}

    def markdown(self, heading: str = "") -> str:
        """The content as Markdown, without plots and what the terminal leaves out.

        Args:
            heading: instead of the title.
        """
        from cbam_deploy.report.markdown import to_markdown

        shown = [section for section in self.sections() if not section.background]
        title = ": ".join(part for part in (self.title or shown[0].title, self.subtitle) if part)
        return to_markdown(heading or title, shown)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # The command's table, also where Python shows a value: a dataclass keeps what is there.
        cls.__repr__ = Result.__str__  # type: ignore[method-assign, assignment]

    def __str__(self) -> str:
        from cbam_deploy.terminal import plain_text

        return plain_text(self)

    def _repr_html_(self) -> str:
        """For notebooks."""
        from cbam_deploy.report.html import fragment

        return fragment(self)

    def __rich__(self) -> Shown:
        from cbam_deploy.report.terminal import Shown

        return Shown(self.sections(), getattr(self, "page", ""))
