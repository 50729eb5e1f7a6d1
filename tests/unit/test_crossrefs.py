"""See also and the index: from one table to both ends of a link, from a glossary to the pages that use a word."""

from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from companion.chapters import claims, crossrefs, paths
from companion.errors import CompanionError

TOC = "chapters:\n  - file: notebooks/01_small\n  - file: notebooks/02_other\n"
LINKS = """
- claims: [01 C1, 02 C3a]
  why: The same calculation in two places.
- claims: [01 C2, 09 C1]
  why: A chapter that is still to be written.
"""


@pytest.fixture
def linked(book: Path) -> Path:
    """The small book with a second chapter in its contents, and the table of links."""
    (book / "_toc.yml").write_text(TOC)
    (book / "book/links.yml").write_text(LINKS)
    return book / "book/links.yml"


def test_a_link_stands_at_both_ends(linked: Path):
    both = "The same calculation in two places. {verdict}`01 C1` {verdict}`02 C3a`"
    assert crossrefs.see_also("01_small") == (
        f"## See also\n\n- {{doc}}`Chapter 2 </notebooks/02_other>`: {both}"  # nothing of chapter 9, which has no page
    )
    assert crossrefs.see_also("02_other") == f"## See also\n\n- {{doc}}`Chapter 1 </notebooks/01_small>`: {both}"


def test_a_chapter_that_lands_is_taken_up(linked: Path, book: Path):
    (book / "_toc.yml").write_text(f"{TOC}  - file: notebooks/09_late\n")
    assert "Chapter 9 </notebooks/09_late>" in crossrefs.see_also("01_small")
    assert crossrefs.see_also("09_late").count("\n- ") == 1


def test_no_link_no_section(linked: Path, book: Path):
    (book / "_toc.yml").write_text("chapters:\n  - file: notebooks/01_small\n")
    assert crossrefs.see_also("01_small") == ""
    linked.unlink()
    assert crossrefs.links() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- claims: [01 C1, 01 C2]\n  why: Two claims of one chapter.", "from one chapter to another"),
        ("- claims: [01 C1]\n  why: Only one claim stands here.", "at least 2"),
        ("- claims: [1 C1, 02 C1]\n  why: A number of one digit.", "should match pattern"),
        ("- {", "links.yml"),
    ],
)
def test_a_table_that_is_not_well_formed_is_refused(linked: Path, text: str, message: str):
    linked.write_text(text)
    with pytest.raises(CompanionError, match=message):
        crossrefs.links()


def test_the_books_links_name_claims_that_exist():
    known = {f"{c[:2]} {claim.id}" for c in paths.contents() for claim in claims.load(c).claims}
    numbers = {c[:2] for c in paths.contents()}
    named = [claim for link in crossrefs.links() for claim in link.claims if claim[:2] in numbers]
    assert named and set(named) <= known
    ten = {f"{n:02}" for n in range(1, 11)}
    assert ten <= {claim[:2] for claim in named}, "every chapter of the book is linked with another"


GLOSSARY = """\
# Words

```{glossary}
mean degree
  Of a function.

margin
  Of a point.
```

```{glossary}
claim
  Ours.
```
"""


def test_terms_are_those_of_the_first_glossary(book: Path):
    assert crossrefs.terms() == []
    (book / "book/glossary.md").write_text(GLOSSARY)
    assert crossrefs.terms() == ["mean degree", "margin"]


def test_a_term_is_indexed_where_it_first_stands_in_prose(book: Path):
    (book / "book/glossary.md").write_text(GLOSSARY)
    texts = [
        "# A title with a margin",
        "Only `margin` in code, $margin$, {ref}`margin <m>`, and marginal or submargins.",
        "Here the Mean\ndegree stands, and margins too.",
        "The margin again.",
        "## Exercises\nmean degree",
    ]
    notebook = new_notebook(cells=[new_markdown_cell(text) for text in texts])
    notebook.cells.insert(1, new_code_cell("margin = 1"))
    sources = [cell.source for cell in crossrefs.index(notebook).cells]
    assert sources == [texts[0], "margin = 1", texts[1], "```{index} mean degree, margin\n```", *texts[2:]]


def test_exercises_are_not_searched(book: Path):
    (book / "book/glossary.md").write_text(GLOSSARY)
    notebook = new_notebook(cells=[new_markdown_cell(t) for t in ("# T", "## Exercises\nThe margin.", "A margin.")])
    assert len(crossrefs.index(notebook).cells) == 3
