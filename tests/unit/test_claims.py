"""The claims file: what is refused, always in one line that names file, claim and field."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from companion.chapters import claims
from companion.chapters.claims import LedgerError


def rewrite(book: Path, **changes: Any) -> None:
    """Change fields of claim C2 (None removes one)."""
    file = book / "book/claims/01_small.yml"
    tree = yaml.safe_load(file.read_text())
    tree["claims"][1] = {k: v for k, v in (tree["claims"][1] | changes).items() if v is not None}
    file.write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statuss": "verified"}, "claim C2: statuss: Extra inputs are not permitted"),
        ({"status": "reproduced"}, "claim C2: status: Extra inputs"),  # nobody types a status
        ({"control": None}, "claim C2: needs control"),
        ({"rule": None, "reason": None}, "claim C2: needs rule, reason"),
        ({"not_attempted": "too hard"}, "claim C2: not_attempted excludes measures, rule"),
        ({"profile": "fast"}, "claim C2: profile: Input should be 'smoke', 'cpu' or 'gpu'"),
        ({"id": "C1"}, "ids used twice: C1"),
        ({"id": "second"}, "claim second: id: "),
        ({"rule": [{"measure": "loss", "at_most": 1}]}, "the rule or its cases read undeclared measures: loss"),
        ({"rule": [{"measure": "base"}]}, r"claim C2: rule.0: a condition needs exactly one form, not none"),
        ({"rule": [{"measure": "base", "above": 1, "below": 2}]}, "exactly one form"),
        ({"rule": [{"above": 1}]}, "`measure` goes with a bound"),
        ({"rule": [{"measure": "base", "decreasing": ["base", "noisy"]}]}, "`measure` goes with a bound"),
        ({"rule": [{"measure": "base", "within": [2, 1]}]}, "is empty"),
        ({"rule": [{"measure": "base", "within": [1, math.inf]}]}, "finite"),
        ({"rule": [{"measure": "base", "above": 1, "over": "median"}]}, "claim C2: rule.0.over"),
    ],
)
def test_a_faulty_file_is_refused_in_one_line(book, changes, message):
    rewrite(book, **changes)
    with pytest.raises(LedgerError, match=message) as caught:
        claims.load("01_small")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("01_small.yml: ")


def test_a_file_for_another_chapter_or_no_yaml_or_nothing(book):
    file = book / "book/claims/01_small.yml"
    file.rename(file.with_name("02_big.yml"))
    with pytest.raises(LedgerError, match="chapter is '01_small', but the file is named for '02_big'"):
        claims.load("02_big")
    with pytest.raises(LedgerError, match=r"no claims for chapter '01_small'.*chapters with claims: 02_big"):
        claims.load("01_small")
    file.write_text("claims: [")
    with pytest.raises(LedgerError, match=r"01_small\.yml: not YAML"):
        claims.load("01_small")
    file.write_text("just words")
    with pytest.raises(LedgerError, match=r"01_small\.yml: Input should be"):
        claims.load("01_small")


def test_numbers_that_yaml_reads_as_text_are_numbers(book):
    (book / "book/claims/01_small.yml").write_text(
        (book / "book/claims/01_small.yml").read_text().replace("times: 0.8", "times: 8e-1")
    )
    bound = claims.load("01_small").claims[1].rule[0].bound
    assert bound is not None and bound[1] == claims.Multiple(measure="base", times=0.8)
