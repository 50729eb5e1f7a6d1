"""What leads from chapter to chapter: See also, from one table of claims that belong together, and the index."""

import re
from itertools import dropwhile, takewhile
from typing import Annotated, Self

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from pydantic import BaseModel, ConfigDict, Field, model_validator

from companion.chapters import paths
from companion.chapters.tables import entries

_EXERCISES = re.compile(r"^## Exercises", re.MULTILINE)
# Code, mathematics and roles are no prose: a term inside them is no place to send a reader to.
_NO_PROSE = re.compile(r"```.*?```|\$\$.*?\$\$|\{[\w:]+\}`[^`]*`|`[^`]*`|\$[^$]*\$", re.DOTALL)


class Link(BaseModel):
    """Claims of different chapters that belong together, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    claims: list[Annotated[str, Field(pattern=r"^\d\d [A-Z]\d+[a-z]?$")]] = Field(min_length=2)
    why: str = Field(min_length=20)

    @model_validator(mode="after")
    def _between_chapters(self) -> Self:
        if len({claim[:2] for claim in self.claims}) < 2:
            raise ValueError("a link goes from one chapter to another")
        return self


def links() -> list[Link]:
    """Return the links of `book/links.yml`; raises CompanionError for a table that is not well formed."""
    return entries("links.yml", Link)


def see_also(chapter: str) -> str:
    """Return the section that closes a chapter's page, with unexpanded verdicts; empty without a link.

    Claims of chapters that have no page yet are left out.
    """
    here = chapter[:2]
    there = {name[:2]: name for name in paths.contents() if name != chapter}
    rows = []
    for link in links():
        others = [claim for claim in link.claims if claim[:2] in there]
        if others and any(claim.startswith(here) for claim in link.claims):
            pages = {claim[:2]: there[claim[:2]] for claim in others}
            titles = ", ".join(f"{{doc}}`Chapter {int(n)} </notebooks/{name}>`" for n, name in pages.items())
            marks = " ".join(f"{{verdict}}`{claim}`" for claim in link.claims if claim[:2] in {here, *there})
            rows.append(f"- {titles}: {link.why.strip()} {marks}")
    return "\n".join(["## See also", "", *rows]) if rows else ""


def terms() -> list[str]:
    """Return the terms of the glossary page: the lines of its glossary that are not indented."""
    file = paths.root() / "book" / "glossary.md"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    inside = list(dropwhile(lambda line: "{glossary}" not in line, lines))[1:]
    inside = list(takewhile(lambda line: not line.startswith("```"), inside))
    return [line for line in inside if line.strip() and not line.startswith((" ", ":"))]


def index(notebook: NotebookNode) -> NotebookNode:
    """Return the page with an index entry where each term of the glossary first stands in its prose.

    The first cell holds the title, which nothing may precede; exercises are not searched.
    """
    waiting = {term: re.compile(rf"(?<!\w){re.escape(term)}(?:s|es)?(?!\w)", re.IGNORECASE) for term in terms()}
    cells, searching = notebook.cells[:1], True
    for cell in notebook.cells[1:]:
        prose = _NO_PROSE.sub(" ", cell.source) if cell.cell_type == "markdown" else ""
        searching = searching and not _EXERCISES.search(prose)
        found = [term for term, pattern in waiting.items() if searching and pattern.search(" ".join(prose.split()))]
        if found:
            cells.append(new_markdown_cell(f"```{{index}} {', '.join(found)}\n```"))
        waiting = {term: pattern for term, pattern in waiting.items() if term not in found}
        cells.append(cell)
    notebook.cells = cells
    return notebook
