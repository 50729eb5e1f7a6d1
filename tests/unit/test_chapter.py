"""A chapter from the notebook's side: settings, data, claims, and the results file at its end."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import pyplot

import companion.chapters
from companion import data
from companion.chapters import figures, results
from companion.chapters.chapter import Chapter
from companion.chapters.claims import LedgerError
from companion.data import cache
from companion.errors import CompanionError

PARTS = {"profile": "gpu", "claims": [], "provenance": {}}
SLOPE = {"slope": [3.98, 4.02], "control": {"slope": 2.0}}


@dataclass(frozen=True)
class Card:
    name: str
    title: str = "A set"
    source: str = "https://example.org"
    licence: str = "CC0"
    sha256: dict[str, str] = field(default_factory=dict)
    shape: str = "n × 8"
    note: str = ""
    stands_in_for: str | None = None


@dataclass(frozen=True)
class Set:
    card: Card


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Data sets that can be had; remove one and its fallback stands in."""
    there = {"digits", "mnist"}

    def load(name: str, split: str, *, fallback: str | None, withheld: str | None, device: torch.device) -> Set:
        if name in there - ({"mnist"} if withheld else set()):
            return Set(Card(name))
        assert fallback is not None
        return Set(replace(Card(fallback), stands_in_for=name, note=f"{name} is missing."))

    monkeypatch.setattr(data, "load", load)
    return there


def finish(chapter: Chapter) -> dict[str, Any]:
    chapter.finish()
    found = results.read(chapter.name, chapter.profile.name)
    assert found is not None
    return found


def test_the_package_hands_out_the_chapter():
    assert companion.chapters.Chapter is Chapter
    with pytest.raises(AttributeError, match="no attribute 'Chaptre'"):
        companion.chapters.Chaptre  # noqa: B018


def test_bad_names_and_seeds_are_one_clear_line(start):
    with pytest.raises(CompanionError, match="no profile named 'fast'"):
        start("fast")
    with pytest.raises(CompanionError, match="no claims for chapter '02_big'"):
        Chapter("02_big", profile="smoke", seed=0)
    for seed in (-1, 0.5, "0", True):
        with pytest.raises(CompanionError, match="expected a whole number"):
            start(seed=seed)


def test_threads_and_determinism_follow_the_profile(start, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = torch.random.get_rng_state()
    start("cpu")
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    start("smoke")
    assert torch.get_num_threads() == 1
    assert torch.equal(torch.random.get_rng_state(), before)  # a draw outside a named stream stays visible


def test_settings_are_this_profiles_and_all_three_must_agree(start):
    chapter = start("cpu")
    sizes = {"smoke": {"steps": 1}, "cpu": {"steps": 2}, "gpu": {"steps": 3}}
    assert chapter.settings(**sizes).steps == 2
    with pytest.raises(CompanionError, match="same names: smoke lacks width; gpu lacks width"):
        chapter.settings(**sizes | {"cpu": {"steps": 2, "width": 8}})


# Data


def test_loaded_cards_are_recorded_once(start, store, displayed):
    chapter = start("cpu")
    for split in ("train", "test", "test"):
        chapter.load("mnist", split, fallback="digits")
    assert [(c["name"], c["split"]) for c in chapter._cards.values()] == [
        ("mnist", "train"),
        ("mnist", "test"),
    ]
    assert displayed == []


def test_a_stand_in_is_announced_and_stops_the_claim_that_rests_on_it(start, store, displayed):
    store.remove("mnist")
    chapter = start("cpu")
    assert chapter.load("mnist", fallback="digits").card.name == "digits"
    chapter.load("mnist", "test", fallback="digits")  # the other split: said once
    assert displayed == [("**Stand-in data: digits for mnist.** mnist is missing.", {"stand_in": "mnist"})]
    chapter.claim("C2", base=1.0, noisy=0.5, control={"base": 1.0, "noisy": 1.0})
    chapter.claim("C1", **SLOPE)
    assert [entry["status"] for entry in chapter.entries()][:2] == ["verified", "needs cpu"]
    assert results.stand_ins(finish(chapter)) == {"mnist": "digits"}


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch):
    """Looking for a file of a data set fails."""
    monkeypatch.setattr(cache, "ensure_all", lambda files, name: pytest.fail(name) if files else [])


def test_smoke_reads_embedded_sets_only(start, displayed, no_files):
    chapter = start("smoke")
    assert chapter.load("mnist", fallback="digits").card.name == "digits"  # wherever mnist may be
    ((words, marks),) = displayed
    assert words.startswith("**Stand-in data: digits for mnist.** Stands in for MNIST")
    assert "The smoke profile reads embedded data only." in words and marks == {"stand_in": "mnist"}
    assert chapter.load("digits").card.name == "digits"
    assert [card["stands_in_for"] for card in chapter._cards.values()] == ["mnist", None]
    with pytest.raises(data.DataMissing, match="smoke profile reads embedded data only: give 'mnist' a fallback"):
        chapter.load("mnist")


def test_smoke_treats_a_fallback_as_every_profile_does(start, displayed, no_files):
    chapter = start("smoke")
    tabled = chapter.load("yacht", fallback="digits", fold=1)  # an option that the fallback does not have
    assert tabled.card.name == "digits"
    with pytest.raises(CompanionError, match="fallback 'fashion_mnist' is not embedded"):
        chapter.load("mnist", fallback="fashion_mnist")
    with pytest.raises(CompanionError, match="'mnist' has no option correlation"):
        chapter.load("mnist", fallback="coloured_digits", correlation=0.5)


def test_the_real_data_room_is_called_as_it_is(start):
    found = start("smoke").load("digits", "test")
    assert found.x.device.type == found.y.device.type and len(found.x) == len(found.y) > 0


# Claims


def test_a_claim_prints_one_stable_line(start, capsys):
    start().claim("C1", **SLOPE)
    line = "C1 verified: slope = 4 ± 0.028 (n=2); rule: slope in [3.7, 4.3] (mean); control fails as it must\n"
    assert capsys.readouterr().out == line


def test_an_unknown_claim_is_refused(start):
    with pytest.raises(LedgerError, match="no claim C9 in 01_small: the file has C1, C2, C3"):
        start().claim("C9", slope=4.0)


def test_a_claim_may_be_judged_again_as_a_reader_edits(start):
    chapter = start()
    chapter.claim("C1", slope=3.0, control={"slope": 2.0})
    chapter.claim("C1", **SLOPE)
    chapter.claim("C2", base=1.0, noisy=0.5)
    assert [entry["status"] for entry in chapter.entries()] == ["verified", "needs cpu", "not attempted"]


def test_a_claim_without_status_stops_the_ledger_and_the_end_and_writes_nothing(start, displayed):
    chapter = start()
    chapter.claim("C1", **SLOPE)
    for act in (chapter.ledger, chapter.finish):
        with pytest.raises(LedgerError, match="no computed status for C2"):
            act()
    assert displayed == [] and results.read("01_small", "smoke") is None


def test_a_control_that_passes_fails_the_chapter_after_writing(start):
    chapter = start()
    chapter.claim("C1", slope=4.0, control={"slope": 4.1})
    chapter.claim("C2", base=1.0, noisy=0.5)
    with pytest.raises(LedgerError, match="the control of C1 passes its rule"):
        chapter.finish()
    written = results.read("01_small", "smoke")
    assert written is not None and written["claims"][0]["control"]["passes"] is True


# The end


def test_results_carry_claims_series_and_provenance_without_paths(start, book, store, displayed):
    chapter = start(seed=3)
    chapter.settings(smoke={"steps": 1, "rates": (0.1,)}, cpu={"steps": 2, "rates": ()}, gpu={"steps": 3, "rates": ()})
    chapter.load("mnist", fallback="digits")
    chapter.keep(curve=torch.tensor([1.0, math.nan]), counts=[1, 2])
    chapter.claim("C1", **SLOPE)
    chapter.claim("C2", base=1.0, noisy=math.inf)
    found = finish(chapter)
    assert (found["chapter"], found["profile"]) == ("01_small", "smoke")
    assert [claim["id"] for claim in found["claims"]] == ["C1", "C2", "C3"]
    assert found["series"] == {"counts": [1, 2], "curve": [1.0, None]}
    origin = found["provenance"]
    assert {"commit", "dirty", "digest", "device", "versions", "threads", "deterministic"} <= set(origin)
    assert (origin["seed"], origin["parameters"]) == (3, {"steps": 1, "rates": [0.1]})
    assert origin["data"][0]["name"] == "digits" and origin["data"][0]["stands_in_for"] == "mnist"
    assert str(book) not in json.dumps(found) and str(Path.home()) not in json.dumps(found)


def test_two_runs_write_the_same_bytes(start, book):
    def run() -> bytes:
        chapter = start()
        chapter.claim("C1", **SLOPE)
        chapter.claim("C2", base=1.0, noisy=0.5)
        chapter.finish()
        return (book / "_build/results/smoke/01_small.json").read_bytes()

    assert run() == run()


def test_the_digest_is_the_one_at_the_start(start, book):
    chapter = start()
    (book / "notebooks/01_small.py").write_text("# %%\nedited = True\n")
    chapter.claim("C1", **SLOPE)
    chapter.claim("C2", base=1.0, noisy=0.5)
    assert finish(chapter)["provenance"]["digest"] != finish(restart(start))["provenance"]["digest"]


def restart(start: Callable[..., Chapter]) -> Chapter:
    chapter = start()
    chapter.claim("C1", **SLOPE)
    chapter.claim("C2", base=1.0, noisy=0.5)
    return chapter


def test_without_a_checkout_the_digest_is_unknown_and_the_chapter_runs(start, book):
    (book / "notebooks/01_small.py").unlink()
    assert finish(restart(start))["provenance"]["digest"] == "unknown"


def test_recorded_results_can_be_redrawn(start, book):
    chapter = start()
    assert chapter.recorded() is None
    (book / "book/results/gpu").mkdir(parents=True)
    (book / "book/results/gpu/01_small.json").write_text(json.dumps(PARTS | {"series": {"curve": [1.0]}}))
    assert chapter.recorded()["series"]["curve"] == [1.0]


def test_what_is_not_recorded_at_paper_scale_says_how_it_would_be(start, book, displayed):
    chapter = start()
    assert chapter.paper_scale("ten seeds") is None
    (book / "book/results/gpu").mkdir(parents=True)
    content = PARTS | {"provenance": {"device": "a large GPU", "commit": "0123456789abcdef"}}
    (book / "book/results/gpu/01_small.json").write_text(json.dumps(content))
    assert chapter.paper_scale("ten seeds") == content
    missing, recorded = [words for words, _ in displayed]
    assert "(ten seeds) has not been recorded" in missing and "companion record 01_small --profile gpu" in missing
    assert recorded == "Recorded on a large GPU, commit `0123456789`."


def test_a_figure_goes_to_the_chapters_folder(start, book, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(figures, "display", lambda shown, metadata: None)
    chapter = start()
    figure, _ = pyplot.subplots()
    alt = "An empty pair of axes, drawn only to see where the file goes."
    chapter.show(figure, "empty", alt=alt, caption="Nothing is to be seen here.")
    assert (book / "_build/figures/smoke/01_small/empty.png").is_file()
