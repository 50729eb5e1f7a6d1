"""The pages and pictures made from recorded results."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from companion.chapters import paths, provenance, results, scoreboard
from companion.errors import CompanionError


def result(profile: str = "cpu", **origin: Any) -> dict[str, Any]:
    claims = [
        ("C1", "theorem", "verified"),
        ("C2", "experiment", "not reproduced"),
        ("C3", "beyond", "needs gpu"),
    ]
    return {
        "chapter": "01_small",
        "profile": profile,
        "claims": [
            {
                "id": i,
                "kind": kind,
                "title": f"Title |{i}|",
                "status": s,
                "words": {"m": "1 ± 0.1 (n=2)"},
                "measured": {"m": {"value": 1.0, "ci95": [0.1, 1.9], "n": 2}},
                "control": None,
            }
            for i, kind, s in claims
        ],
        "provenance": {
            "commit": "0123456789abcdef",
            "dirty": False,
            "digest": provenance.digest("01_small", profile),
            "device": "Fast <chip>",
            "cpu_capability": "AVX2",
            "threads": 2,
            "system": "Linux x86_64",
            "versions": {"python": "3.12.1", "torch": "2.13.0"},
            "deterministic": {"algorithms": True},
            "seed": 0,
            "parameters": {"steps": 10},
            "data": [],
        }
        | origin,
    }


CARD = {
    "name": "digits",
    "split": "train",
    "title": "Digits",
    "source": "https://example.org",
    "licence": "CC0",
    "sha256": {"digits.gz": "abcdef0123456789"},
    "shape": "8 × 8",
    "stands_in_for": "mnist",
    "note": "",
}


def recorded(profile: str = "cpu", **origin: Any) -> None:
    results.write(result(profile, **origin))
    paths.run_file("01_small", profile).write_text('{"minutes": 1.52, "finished": "now"}')
    results.record("01_small", profile)


def test_the_summary_links_counts_and_says_what_is_missing(book: Path):
    recorded()
    head, _, cpu, gap, missing = scoreboard.summary("notebooks/").splitlines()
    # Statuses that no claim has get no column.
    assert [cell.strip() for cell in head.split("|")[3:6]] == ["Verified", "Not reproduced", "Needs gpu"]
    assert cpu == "| [1. A small paper](notebooks/01_small.ipynb) | cpu | 1 | 1 | 1 | Fast <chip> | 1.5 | – |"
    assert (gap, missing) == ("", "Not recorded at the gpu profile: chapter 1.")


def test_the_summary_says_stale_uncommitted_and_stand_in(book: Path):
    recorded(digest="old", dirty=True, data=[CARD])
    row = scoreboard.summary("").splitlines()[2]
    assert row.endswith(
        "| stale: the source has changed since; run from uncommitted sources; digits stood in for mnist |"
    )


def test_the_page_lists_each_claim_at_each_recorded_profile_with_intervals(book: Path):
    recorded("cpu")
    one = "[verified]{.chip .chip-verified} | m = 1 [0.1, 1.9] (n=2) |"
    assert f"| 1 | C1 | Title \\|C1\\| | theorem | {one}\n" in scoreboard.page()
    recorded("gpu")
    page = scoreboard.page()
    assert "](../notebooks/01_small.ipynb)" in page and ":::{container} filterable\n| Chapter" in page
    assert f"| theorem | {one} {one}\n" in page
    assert not page.startswith("# ")  # the page that holds it has its own heading


def test_claims_lead_to_their_boxes_where_the_chapter_has_a_page(book: Path):
    recorded()
    (book / "_toc.yml").write_text("chapters:\n  - file: notebooks/01_small\n")
    assert "| 1 | {ref}`C2 <claim-01-c2>` | Title" in scoreboard.page()


def test_several_numbers_fold_away_and_what_is_not_finite_says_so(book: Path):
    made = result()
    made["claims"][0]["measured"]["k"] = {"value": None, "ci95": None, "n": 1}
    results.write(made)
    paths.run_file("01_small", "cpu").write_text('{"minutes": 1.5, "finished": "now"}')
    results.record("01_small", "cpu")
    folded = "<details><summary>2 numbers</summary>m = 1 [0.1, 1.9] (n=2)<br>k not finite</details>"
    assert folded in scoreboard.page()


def test_cases_are_listed_as_they_are(book: Path):
    made = result()
    made["claims"][0]["measured"] = {"m": {"value": 1.5, "ci95": None, "n": 2, "cases": "data sets"}}
    made["claims"][0]["words"] = {"m": "1, 2 (data sets)"}
    results.write(made)
    paths.run_file("01_small", "cpu").write_text('{"minutes": 1.5, "finished": "now"}')
    results.record("01_small", "cpu")
    assert "m = 1, 2 (data sets)" in scoreboard.page()


def test_nothing_recorded_is_a_page_too(book: Path):
    page = scoreboard.page()
    assert "Not recorded at the cpu profile: chapter 1." in page and "None recorded." in page and "|" not in page
    assert "none yet" in scoreboard.badge()


def test_the_title_falls_back_to_the_name(book: Path):
    (book / "notebooks/12_other_thing.py").write_text("# %%\n1\n")
    assert scoreboard.title("12_other_thing") == "12. Other thing"


def test_the_environment_page_shows_this_build_and_the_record(book: Path):
    recorded("gpu", dirty=True)
    results.write(result("smoke", data=[CARD]))
    page = scoreboard.environment_page("smoke")
    assert "### 1. A small paper, smoke profile\n" in page
    assert "### 1. A small paper, gpu profile, recorded\n" in page
    assert "| Commit | `0123456789ab` with uncommitted changes |" in page
    assert "| Versions | python 3.12.1, torch 2.13.0 |" in page
    assert "| Settings | steps = 10 |" in page and "| Minutes | 1.5 |" in page and "| Minutes | – |" in page
    assert (
        "| Data: digits (train) | Digits, standing in for mnist; 8 × 8; CC0; <https://example.org>; "
        "`digits.gz` abcdef012345 |" in page
    )


def test_chips_say_profile_device_minutes_counts_and_stand_ins(book: Path):
    results.write(result("smoke", data=[CARD, CARD | {"split": "test"}]))
    chips = scoreboard.chips("01_small", "smoke")
    tree = ElementTree.fromstring(chips)
    assert [(span.get("class"), span.text) for span in tree] == [
        ("chip chip-profile", "profile smoke"),
        ("chip chip-device", "Fast <chip>"),
        ("chip chip-verified", "1 verified"),
        ("chip chip-not-reproduced", "1 not reproduced"),
        ("chip chip-needs-gpu", "1 needs gpu"),
        ("chip chip-stand-in", "digits stands in for mnist"),
    ]
    assert "\n" not in chips
    paths.run_file("01_small", "smoke").write_text('{"minutes": 0.25, "finished": "now"}')
    assert '<span class="chip chip-minutes">0.2 min</span>' in scoreboard.chips("01_small", "smoke")


def test_chips_of_a_chapter_that_was_not_run_say_what_to_do(book: Path):
    with pytest.raises(CompanionError, match="no cpu results of 01_small: run `companion run 01_small"):
        scoreboard.chips("01_small", "cpu")


def test_the_badge_counts_what_holds_of_what_was_judged(book: Path):
    recorded()
    svg = ElementTree.fromstring(scoreboard.badge())
    assert svg.get("aria-label") == "claims that hold: 1 of 2"  # what needs a larger profile is not judged


def test_publishing_replaces_the_section_and_writes_the_badge(book: Path):
    recorded()
    scoreboard.publish()
    once = (book / "README.md").read_text()
    assert once.startswith("# Book\n") and once.endswith("The end.\n") and "old" not in once
    assert scoreboard.summary("notebooks/") in once
    assert (book / "book/_static/badge.svg").read_text() == scoreboard.badge()
    scoreboard.publish()
    assert (book / "README.md").read_text() == once


@pytest.mark.parametrize("text", ["# Book\n", "<!-- scoreboard:start -->\n", "<!-- scoreboard:end -->\n"])
def test_a_readme_without_its_markers_is_refused(book: Path, text: str):
    (book / "README.md").write_text(text)
    with pytest.raises(CompanionError, match="no scoreboard section"):
        scoreboard.publish()
    assert (book / "README.md").read_text() == text
    (book / "README.md").unlink()
    with pytest.raises(CompanionError, match=r"no README\.md"):
        scoreboard.publish()
