"""The errata: data that name their proofs, and proofs that exist and hold as recorded."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from companion.chapters import errata, paths, results
from companion.chapters.scoreboard import HELD
from companion.errors import CompanionError

CASES = [e for e in errata.load() if any(name.startswith(e.chapter) for name in paths.contents())]

GOOD: dict[str, Any] = {
    "chapter": "01",
    "of": "paper",
    "title": "The missing half",
    "where": "eq. (3)",
    "says": "The sum has no factor in front.",
    "right": "It has a factor of one half in front.",
    "claims": ["C1"],
    "tests": ["tests/unit/test_half.py::test_half"],
}


def unproved(erratum: errata.Erratum) -> list[str]:
    """Return one line for each claim that does not hold as recorded and each test that does not exist."""
    chapter = next((name for name in paths.contents() if name.startswith(erratum.chapter)), "")
    result = results.recorded(chapter, "cpu") or {"claims": []}
    status = {entry["id"]: entry["status"] for entry in result["claims"]}
    found = [
        f"{erratum.chapter} {claim}: {status.get(claim, 'not recorded')}"
        for claim in erratum.claims
        if status.get(claim) not in HELD
    ]
    for test in erratum.tests:
        name, _, function = test.partition("::")
        file = paths.root() / name
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if not re.search(rf"^def {function}\(", text, re.MULTILINE):
            found.append(f"{test}: no such test")
    return found


@pytest.mark.parametrize("erratum", CASES, ids=lambda erratum: f"{erratum.chapter}-{erratum.title}")
def test_every_correction_is_proved(erratum: errata.Erratum):
    assert unproved(erratum) == []


def test_the_list_is_there():
    assert len(CASES) > 10


def write(book: Path, *entries: dict[str, Any], status: str = "verified") -> None:
    (book / "_toc.yml").write_text("chapters:\n  - file: notebooks/01_small\n")
    (book / "book/errata.yml").write_text(yaml.safe_dump(list(entries)))
    claims = [{"id": "C1", "status": status, "words": {}}]
    made = {"chapter": "01_small", "profile": "cpu", "claims": claims, "provenance": {}}
    file = paths.recorded_file("01_small", "cpu")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(results.dumps(made))
    (book / "tests/unit").mkdir(parents=True, exist_ok=True)
    (book / "tests/unit/test_half.py").write_text(
        "def test_half():\n    pass\n\n\ndef test_half_and_more():\n    pass\n"
    )


@pytest.mark.parametrize(
    ("change", "status", "found"),
    [
        ({}, "verified", []),
        ({}, "reproduced", []),
        ({}, "direction only", ["01 C1: direction only"]),
        ({}, "needs cpu", ["01 C1: needs cpu"]),
        ({"claims": ["C7"]}, "verified", ["01 C7: not recorded"]),
        ({"chapter": "09"}, "verified", ["09 C1: not recorded"]),
        (
            {"tests": ["tests/unit/test_half.py::test_hal"]},
            "verified",
            ["tests/unit/test_half.py::test_hal: no such test"],
        ),
        (
            {"tests": ["tests/unit/test_none.py::test_half"]},
            "verified",
            ["tests/unit/test_none.py::test_half: no such test"],
        ),
    ],
)
def test_a_proof_that_does_not_hold_or_exist_is_found(book: Path, change: dict, status: str, found: list[str]):
    write(book, GOOD | change, status=status)
    (erratum,) = errata.load()
    assert unproved(erratum) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claims": [], "tests": []}, "name the claims or tests that prove it"),
        ({"chapter": "1"}, "should match pattern"),
        ({"of": "rumour"}, "paper"),
        ({"tests": ["test_half"]}, "should match pattern"),
        ({"seen": "yes"}, "Extra inputs"),
    ],
)
def test_an_entry_that_is_not_well_formed_is_refused(book: Path, change: dict, message: str):
    write(book, GOOD | change)
    with pytest.raises(CompanionError, match=message):
        errata.load()


def test_the_page_has_a_box_for_each_correction_and_skips_chapters_without_a_page(book: Path):
    write(book, GOOD, GOOD | {"chapter": "09", "title": "Of a later chapter"})
    page = errata.page()
    assert "## 1. A small paper" in page and ":::{admonition} The missing half\n:class: erratum" in page
    assert "**Paper** (eq. (3)): The sum has no factor in front." in page
    assert "**Checked by:** {verdict}`01 C1`, `test_half` in `tests/unit/test_half.py`" in page
    assert "Of a later chapter" not in page


def test_without_a_file_the_page_says_so(book: Path):
    assert errata.load() == [] and errata.page() == "Nothing recorded.\n"
