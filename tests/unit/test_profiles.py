"""Profiles and places: order, names, and one clear line for a wrong one."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from companion.chapters import paths, profiles
from companion.errors import CompanionError


def test_a_larger_profile_decides_what_a_smaller_one_can():
    for small, large in pairwise(["smoke", "cpu", "gpu"]):
        assert profiles.reaches(large, small)
        assert profiles.reaches(small, small)
        assert not profiles.reaches(small, large)


def test_budgets_and_threads():
    found = {name: (p.threads, p.budget) for name, p in profiles.PROFILES.items()}
    assert found == {"smoke": (1, 40), "cpu": (2, 180), "gpu": (len(os.sched_getaffinity(0)), 600)}


def test_the_cores_are_those_that_this_process_may_use():
    one = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); import companion.chapters.profiles as p"
    code = f"{one}; print(p.cores(), p.get('gpu').threads)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1 1\n"


def test_a_wrong_profile_names_the_right_ones():
    with pytest.raises(CompanionError, match=r"no profile named 'fast'.*smoke, cpu, gpu"):
        profiles.get("fast")


def test_a_wrong_chapter_names_the_right_ones(book: Path):
    (book / "notebooks" / "scratch.py").write_text("")  # not a chapter: no number
    assert paths.chapters() == ["01_small"]
    with pytest.raises(CompanionError, match="no chapter named '02_big': choose one of 01_small"):
        paths.check_chapter("02_big")


def test_root_is_found_from_inside_a_build_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COMPANION_ROOT", raising=False)
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "companion").mkdir()
    stage = tmp_path / "_build" / "stage"
    stage.mkdir(parents=True)
    (stage / "_toc.yml").touch()  # the staged tree has a table of contents too, but no package
    monkeypatch.chdir(stage)
    assert paths.root() == tmp_path.resolve()


def test_results_and_figures_can_be_sent_elsewhere(book: Path, monkeypatch: pytest.MonkeyPatch):
    assert paths.results_file("01_small", "cpu") == book / "_build" / "results" / "cpu" / "01_small.json"
    monkeypatch.setenv("COMPANION_RESULTS", str(book / "r"))
    monkeypatch.setenv("COMPANION_FIGURES", str(book / "f"))
    assert paths.results_file("01_small", "cpu") == book / "r" / "cpu" / "01_small.json"
    assert paths.run_file("01_small", "cpu") == book / "r" / "cpu" / "01_small.run.json"
    assert paths.figures_dir("01_small", "cpu") == book / "f" / "cpu" / "01_small"


def test_claims_come_with_the_installed_package(book: Path):
    written, packed = book / "book/claims/01_small.yml", book / "companion/claims/01_small.yml"
    (book / "companion/claims").mkdir(parents=True)
    (book / "companion/__init__.py").touch()
    packed.touch()
    assert paths.claims_file("01_small") == written
    written.unlink()
    assert paths.claims_file("01_small") == packed
