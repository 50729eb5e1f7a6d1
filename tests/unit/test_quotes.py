"""Quotes of recorded numbers in prose, and the rules that the book's own pages keep."""

import re
from pathlib import Path

import pytest

from companion.chapters import paths, quotes, results
from companion.errors import CompanionError

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "book").glob("*.md"))


@pytest.fixture
def recorded(book: Path) -> Path:
    """The small book with its chapter in the table of contents and a recorded cpu run."""
    (book / "_toc.yml").write_text("chapters:\n  - file: notebooks/01_small\n")
    entries = [
        {"id": "C1", "status": "verified", "words": {"slope": "4 ± 0.028 (n=2)"}},
        {"id": "C2", "status": "not reproduced", "words": {"base": "1", "noisy": "2"}},
    ]
    path = paths.recorded_file("01_small", "cpu")
    path.parent.mkdir(parents=True)
    path.write_bytes(results.dumps({"chapter": "01_small", "profile": "cpu", "claims": entries, "provenance": {}}))
    return path


def test_a_number_and_a_status_lead_to_their_box(recorded: Path):
    found = quotes.expand("It is {measured}`01 C1 slope` ({verdict}`01 C2`).", "page")
    number, status = "{ref}`4 ± 0.028 (n=2) <claim-01-c1>`", "{ref}`1·C2 not reproduced <claim-01-c2>`"
    assert found == f"It is {number} ([{status}]{{.chip .chip-not-reproduced}})."


def test_a_tally_counts_what_there_is(recorded: Path):
    chips = "[1 verified]{.chip .chip-verified} [1 not reproduced]{.chip .chip-not-reproduced}"
    assert quotes.expand("{tally}`01`", "page") == chips


def test_a_passage_written_for_another_status_says_so(recorded: Path):
    assert quotes.OUTDATED not in quotes.expand("{verdict}`01 C2: not reproduced`", "page")
    found = quotes.expand("{verdict}`01 C2: reproduced`", "page")
    assert found.endswith(f"({quotes.OUTDATED} reproduced)") and "1·C2 not reproduced" in found


def test_what_is_not_recorded_says_so_and_must_still_exist(recorded: Path):
    recorded.unlink()
    assert quotes.expand("{measured}`01 C1 slope`", "page") == "{ref}`not recorded <claim-01-c1>`"
    assert "1·C1 not recorded <claim-01-c1>" in quotes.expand("{verdict}`01 C1: verified`", "page")
    assert quotes.expand("{tally}`01`", "page") == "[not recorded]{.chip .chip-not-recorded}"
    for wrong in ("{measured}`01 C1 steepness`", "{verdict}`01 C9`"):
        with pytest.raises(CompanionError, match="has no"):
            quotes.expand(wrong, "page")


def test_a_chapter_that_has_no_page_yet_is_not_recorded(recorded: Path):
    assert quotes.expand("{verdict}`10 C1: verified`", "page") == "[10·C1 not recorded]{.chip .chip-not-recorded}"
    assert quotes.expand("{measured}`10 C1 share`{tally}`10`", "page").count("[not recorded]") == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("{measured}`01 C9 slope`", r"book/x\.md: \{measured\}`01 C9 slope`: 01_small has no claim C9"),
        ("{measured}`01 C1 steepness`", "claim C1 of 01_small has no measure steepness"),
        ("{measured}`01 C1`", "is no quote: give chapter, claim, measure"),
        ("{measured}`01 C1 slope: verified`", "is no quote"),
        ("{verdict}`01 C1 slope`", "is no quote: give chapter, claim"),
        ("{tally}`1`", "is no quote: give chapter"),
    ],
)
def test_a_wrong_quote_stops_the_build(recorded: Path, wrong: str, message: str):
    with pytest.raises(CompanionError, match=message):
        quotes.expand(f"Text {wrong}.", "book/x.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_passage_of_the_book_was_written_for_another_status(page: Path):
    assert quotes.OUTDATED not in quotes.expand(page.read_text("utf-8"), page.name)


def bare_numbers(text: str) -> list[str]:
    """Return the quoted numbers that stand in a paragraph without the status of their claim."""
    found = []
    for paragraph in text.split("\n\n"):
        verdicts = set(re.findall(r"\{verdict\}`(\d\d \w+)", paragraph))
        found += [n for n in re.findall(r"\{measured\}`(\d\d \w+) \w+`", paragraph) if n not in verdicts]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_number_of_the_book_stands_without_its_status(page: Path):
    assert bare_numbers(page.read_text("utf-8")) == []


def test_bare_numbers_are_found():
    assert bare_numbers("{measured}`01 C1 a` ({verdict}`01 C1`)\n\n{measured}`01 C1 b`") == ["01 C1"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_verdict_of_the_book_names_the_status_that_it_was_written_for(page: Path):
    quoted = re.findall(r"\{verdict\}`[^`]*`", page.read_text("utf-8"))
    assert [quote for quote in quoted if ": " not in quote] == []


def test_the_synthesis_quotes_every_chapter():
    text = (ROOT / "book" / "synthesis.md").read_text("utf-8")
    assert {int(n) for n in re.findall(r"\{(?:measured|verdict|tally)\}`(\d\d)", text)} == set(range(1, 11))
