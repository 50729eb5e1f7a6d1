"""Corrections to the papers and their code, as data in `book/errata.yml`, and the page made of them."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from companion.chapters import paths
from companion.chapters.scoreboard import title
from companion.chapters.tables import entries

_OF = {"paper": "Paper", "code": "Code", "post": "Post by an author", "related": "Related work"}


class Erratum(BaseModel):
    """One correction: where, what stands there, what is right, and the claims and tests that prove it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    chapter: Annotated[str, Field(pattern=r"^\d\d$")]
    of: Literal["paper", "code", "post", "related"]
    title: str = Field(min_length=5)
    where: str = Field(min_length=5)
    says: str = Field(min_length=20)
    right: str = Field(min_length=20)
    claims: list[Annotated[str, Field(pattern=r"^[A-Z]\d+[a-z]?$")]] = Field(default_factory=list)
    tests: list[Annotated[str, Field(pattern=r"^tests/[\w/]+\.py::test_\w+$")]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _proved(self) -> Self:
        if not (self.claims or self.tests):
            raise ValueError(f"{self.title}: name the claims or tests that prove it")
        return self


def load() -> list[Erratum]:
    """Return the errata in the order of the file; raises CompanionError for a file that is not well formed."""
    return entries("errata.yml", Erratum)


def page() -> str:
    """Return the errata page's body, chapter by chapter, with unexpanded verdicts."""
    parts = []
    for chapter in paths.contents():
        if found := [erratum for erratum in load() if chapter.startswith(erratum.chapter)]:
            parts.append(f"## {title(chapter)}")
            parts += [_box(erratum) for erratum in found]
    return "\n\n".join(parts or ["Nothing recorded."]) + "\n"


def _box(erratum: Erratum) -> str:
    proof = [f"{{verdict}}`{erratum.chapter} {claim}`" for claim in erratum.claims]
    proof += [f"`{test.partition('::')[2]}` in `{test.partition('::')[0]}`" for test in erratum.tests]
    lines = [
        f"**{_OF[erratum.of]}** ({erratum.where.strip()}): {erratum.says.strip()}",
        f"**Right:** {erratum.right.strip()}",
        f"**Checked by:** {', '.join(proof)}",
    ]
    body = "\n\n".join(lines)
    return f":::{{admonition}} {erratum.title}\n:class: erratum\n\n{body}\n:::"
