"""Recording: what may be recorded, what is refused, and when a record is stale."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from companion.chapters import paths, provenance, results
from companion.chapters.claims import LedgerError
from companion.errors import CompanionError

Finished = Callable[..., dict[str, Any]]


def claim(claim_id: str, status: str, passes: bool | None = False) -> dict[str, Any]:
    return {"id": claim_id, "status": status, "control": None if passes is None else {"passes": passes}}


@pytest.fixture
def finished(book: Path) -> Finished:
    """Write the results of a finished run, with changes planted."""

    def make(profile: str = "cpu", note: str = '{"minutes": 1.5, "finished": "now"}', **changes: Any) -> dict:
        digest = provenance.digest("01_small", profile)
        result = {
            "chapter": "01_small",
            "profile": profile,
            "claims": [
                claim("C1", "verified"),
                claim("C2", "reproduced"),
                claim("C3", "not attempted", None),
            ],
            "provenance": {"digest": digest, "dirty": False, "data": []},
        } | changes
        results.write(result)
        paths.run_file("01_small", profile).write_text(note)
        return result

    return make


def test_a_finished_run_is_recorded_with_its_minutes(finished: Finished, book: Path):
    result = finished()
    assert results.record("01_small", "cpu") == book / "book/results/cpu/01_small.json"
    recorded = results.recorded("01_small", "cpu")
    assert recorded == result | {"provenance": result["provenance"] | {"minutes": 1.5}}
    assert results.remarks("01_small", "cpu") == []


def recorded_in(finished: Finished, device: str, status: str, minutes: float = 1.5) -> None:
    origin = {"digest": "d", "dirty": False, "data": [], "device": device}
    note = f'{{"minutes": {minutes}, "finished": "now"}}'
    finished(note=note, claims=[claim("C1", status)], provenance=origin)
    results.record("01_small", "cpu")


def kept(what: str = "device") -> object:
    found = results.previous("01_small", "cpu")
    if found is None:
        return None
    return found["provenance"]["device"] if what == "device" else found["claims"][0]["status"]


def test_recording_keeps_what_another_run_recorded_and_no_repetition(finished: Finished, book: Path):
    recorded_in(finished, "A", "verified")
    assert kept() is None
    recorded_in(finished, "A", "verified", minutes=2.5)
    assert kept() is None  # the same numbers again, only slower
    assert results.recorded("01_small", "cpu")["provenance"]["minutes"] == 2.5
    recorded_in(finished, "A", "reproduced")
    assert (kept(), kept("status")) == ("A", "verified")
    assert (book / "book/results/cpu/previous/01_small.json").is_file()


def test_a_second_run_in_one_environment_does_not_push_out_another_environment(finished: Finished):
    recorded_in(finished, "A", "verified")
    recorded_in(finished, "B", "verified")
    recorded_in(finished, "B", "reproduced")
    assert (kept(), kept("status")) == ("A", "verified")
    recorded_in(finished, "C", "verified")
    assert (kept(), kept("status")) == ("B", "reproduced")


def test_within_one_environment_the_last_run_is_kept(finished: Finished):
    for status in ("verified", "reproduced", "direction only"):
        recorded_in(finished, "A", status)
    assert kept("status") == "reproduced"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"profile": "smoke"}, CompanionError, "smoke results are not recorded: choose one of cpu, gpu"),
        ({"note": "{}"}, CompanionError, r"run\.json is damaged, without minutes, finished: delete it and run"),
        ({"claims": [claim("C1", "verified", True)]}, LedgerError, "the control of C1 passes"),
        ({"claims": [claim("C1", "surely true")]}, LedgerError, "no valid status for C1"),
    ],
)
def test_what_is_not_fit_to_be_recorded_is_refused(finished: Finished, changes, error, message):
    profile = changes.get("profile", "cpu")
    finished(**changes)
    with pytest.raises(error, match=message):
        results.record("01_small", profile)
    assert results.recorded("01_small", profile) is None


def test_a_run_that_is_missing_or_was_not_the_runners_is_refused(finished: Finished):
    with pytest.raises(CompanionError, match="no cpu results of 01_small to record"):
        results.record("01_small", "cpu")
    finished()
    paths.run_file("01_small", "cpu").unlink()
    with pytest.raises(CompanionError, match="did not finish"):
        results.record("01_small", "cpu")


@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff\xfe", b"{}", b'{"profile": "cpu"}', b'{"claims": {}}'])
def test_a_broken_file_is_one_clear_line(finished: Finished, text: bytes):
    finished()
    results.record("01_small", "cpu")
    paths.results_file("01_small", "cpu").write_bytes(text)
    with pytest.raises(CompanionError, match=r"01_small\.json is .*: delete it and run the chapter again"):
        results.read("01_small", "cpu")
    paths.recorded_file("01_small", "cpu").write_bytes(text)
    with pytest.raises(CompanionError, match=r"results/cpu/01_small\.json is .*: restore it with `git checkout -- /"):
        results.recorded("01_small", "cpu")


def test_the_hero_is_recorded_with_the_numbers_that_it_shows(finished: Finished, book: Path):
    hero = paths.figures_dir("01_small", "cpu") / "hero.png"
    hero.parent.mkdir(parents=True)
    hero.write_bytes(b"drawn")
    finished()
    results.record("01_small", "cpu")
    assert (book / "book/_static/hero.png").read_bytes() == b"drawn"


def test_a_record_is_stale_once_the_source_moves_on(finished: Finished, book: Path):
    assert not results.stale("01_small", "cpu")  # nothing recorded
    assert results.remarks("01_small", "cpu") == ["not recorded"]
    finished()
    results.record("01_small", "cpu")
    assert not results.stale("01_small", "cpu")
    source = book / "notebooks/01_small.py"
    source.write_text(source.read_text().replace("Prose", "Other prose"))
    assert not results.stale("01_small", "cpu")
    source.write_text(source.read_text().replace("value = 1.0", "value = 2.0"))
    assert results.stale("01_small", "cpu")
    assert results.remarks("01_small", "cpu") == ["stale: the source has changed since"]


def test_uncommitted_sources_and_stand_ins_are_recorded_and_said(finished: Finished):
    digest = provenance.digest("01_small", "cpu")
    cards = [{"name": "digits", "stands_in_for": "mnist"}, {"name": "digits", "stands_in_for": None}]
    result = finished(provenance={"digest": digest, "dirty": True, "data": cards})
    results.record("01_small", "cpu")
    assert results.remarks("01_small", "cpu") == ["run from uncommitted sources", "digits stood in for mnist"]
    assert results.stand_ins(result | {"profile": "smoke"}) == {}  # there by design


def test_counts_are_in_display_order_with_zeros(finished: Finished):
    found = results.counts(finished())
    assert list(found) == list(results.STATUSES)
    assert {status: n for status, n in found.items() if n} == {
        "verified": 1,
        "reproduced": 1,
        "not attempted": 1,
    }


def test_what_is_not_a_number_never_enters_a_file(book: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.dumps({"value": float("nan")})
