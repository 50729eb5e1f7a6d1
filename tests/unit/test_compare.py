"""Two recorded runs side by side, with made-up files."""

import re
from pathlib import Path
from typing import Any

import pytest

from companion.chapters import compare, paths, results


def made(device: str, **claims: tuple[str, dict[str, float | None]]) -> dict[str, Any]:
    return {
        "chapter": "01_small",
        "profile": "cpu",
        "claims": [
            {"id": i, "status": status, "measured": {name: {"value": v} for name, v in values.items()}}
            for i, (status, values) in claims.items()
        ],
        "provenance": {
            "device": device,
            "cpu_capability": "AVX2",
            "threads": 2,
            "system": "Linux",
            "versions": {"torch": "2.13.0"},
            "deterministic": {"algorithms": True},
            "commit": "0123456789abcdef",
            "dirty": False,
            "digest": "fedcba9876543210",
            "seed": 0,
            "parameters": {},
            "data": [],
        },
    }


def keep(before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    files = {paths.previous_file("01_small", "cpu"): before, paths.recorded_file("01_small", "cpu"): now}
    for file, result in files.items():
        if result is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(results.dumps(result))


BEFORE = made(
    "old chip",
    C1=("verified", {"slope": 4.0, "error": 1e-16}),
    C2=("reproduced", {"ratio": -2.0, "gone": 1.0}),
    C3=("verified", {"equal": 0.25}),
)
NOW = made(
    "new chip",
    C1=("verified", {"slope": 4.1, "error": 3e-16}),
    C2=("direction only", {"ratio": -1.0, "fresh": 2.0}),
    C3=("verified", {"equal": 0.25}),
    C4=("verified", {"late": None}),
)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (4.0, 5.0, 0.25),
        (-2.0, -1.0, 0.5),  # upwards, as a share of the size
        (2.0, 2.0, 0.0),
        (1e-16, 3e-16, None),
        (0.0, 0.5, None),
        (1e-16, 0.5, pytest.approx(5e15)),
        (None, 1.0, None),
        (1.0, None, None),
    ],
)
def test_the_relative_difference(before: float | None, now: float | None, expected: float | None):
    assert compare.relative(before, now) == expected


def test_every_number_stands_with_its_difference_and_every_status_with_its_change(book: Path):
    keep(BEFORE, NOW)
    rows = [line for line in compare.page().splitlines() if re.match(r"\| C\d", line)]
    assert rows == [
        "| C1 | slope | 4 | 4.1 | +2.5% | verified |",
        "| C1 | error | 1e-16 | 3e-16 | – | verified |",
        "| C2 | ratio | -2 | -1 | +50% | **reproduced → direction only** |",
        "| C2 | fresh | – | 2 | – | **reproduced → direction only** |",
        "| C2 | gone | 1 | – | – | **reproduced → direction only** |",
        "| C3 | equal | 0.25 | 0.25 | 0 | verified |",
        "| C4 | late | – | – | – | **absent → verified** |",
    ]


def test_the_environments_stand_side_by_side(book: Path):
    keep(BEFORE, NOW)
    page = compare.page()
    assert "| Device | **differs** | old chip (AVX2, 2 threads) | new chip (AVX2, 2 threads) |" in page
    assert "| Versions | same | torch 2.13.0 | torch 2.13.0 |" in page


def test_the_summary_counts_numbers_equal_ones_and_changed_statuses(book: Path):
    keep(BEFORE, NOW)
    assert "| [1. A small paper](../notebooks/01_small.ipynb) | cpu | 7 | 1 | 50% | 2 |" in compare.page()


def test_equal_runs_have_no_difference(book: Path):
    keep(BEFORE, BEFORE)
    page = compare.page()
    assert "| cpu | 5 | 5 | 0 | 0 |" in page and "differs" not in page and "→" not in page


def test_claims_lead_to_their_boxes(book: Path):
    (book / "_toc.yml").write_text("chapters:\n  - file: notebooks/01_small\n")
    keep(BEFORE, NOW)
    assert "| {ref}`C1 <claim-01-c1>` | slope |" in compare.page()


def test_one_record_is_no_comparison(book: Path):
    assert compare.page() == "No chapter has been recorded twice yet.\n"
    keep(None, NOW)
    assert compare.page() == "No chapter has been recorded twice yet.\n"


@pytest.mark.parametrize(("change", "text"), [(None, "–"), (0.0, "0"), (-0.5, "-50%"), (1e7, "more than 10 times")])
def test_changes_in_words(change, text):
    assert compare._percent(change) == text
