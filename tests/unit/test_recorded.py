"""What the committed results say: statuses follow from the numbers, and no rule lets its wrong twin through."""

import pytest

from companion.chapters import claims, ledger, paths, results

RECORDED = [
    (chapter, profile, entry)
    for chapter in paths.chapters()
    for profile in results.RECORDED
    if (result := results.recorded(chapter, profile)) is not None
    for entry in result["claims"]
]
DECIDED = [case for case in RECORDED if case[2]["control"]]


def name(case):
    return f"{case[0][:2]}-{case[1]}-{case[2]['id']}"


def read(measured):
    return {key: ledger.Measure.of(key, value["values"]) for key, value in measured.items()}


def rule_of(chapter, entry):
    return next(claim for claim in claims.load(chapter).claims if claim.id == entry["id"])


@pytest.mark.parametrize("chapter", paths.chapters())
def test_every_chapter_has_recorded_cpu_results_for_every_claim(chapter):
    result = results.recorded(chapter, "cpu")
    assert result is not None, f"run `companion run {chapter} --profile cpu` and `companion record {chapter}`"
    assert [entry["id"] for entry in result["claims"]] == [claim.id for claim in claims.load(chapter).claims]


@pytest.mark.parametrize(("chapter", "profile", "entry"), DECIDED, ids=map(name, DECIDED))
def test_the_wrong_twin_fails_and_the_status_follows_from_the_numbers(chapter, profile, entry):
    claim = rule_of(chapter, entry)
    assert not ledger.lets_through(claim, read(entry["control"]["measured"]))
    measured = read(entry["measured"])
    if ledger.passes(claim.rule, measured):
        expected = "verified" if claim.kind == "theorem" else "reproduced"
    elif claim.direction and ledger.passes(claim.direction, measured):
        expected = "direction only"
    else:
        expected = "not reproduced"
    assert entry["status"] == expected


@pytest.mark.parametrize(("chapter", "profile", "entry"), DECIDED, ids=map(name, DECIDED))
def test_a_rule_needs_its_numbers(chapter, profile, entry):
    """Measures that are not finite, as of a diverged run, pass nothing."""
    claim = rule_of(chapter, entry)
    broken = {key: ledger.Measure.of(key, [float("nan")] * m.n) for key, m in read(entry["measured"]).items()}
    assert not ledger.passes(claim.rule, broken)


def test_theorems_are_verified():
    """A theorem that stops holding is a bug in this repository, not a finding."""
    theorems = [case for case in DECIDED if case[2]["kind"] == "theorem"]
    assert theorems
    assert [name(case) for case in theorems if case[2]["status"] != "verified"] == []
