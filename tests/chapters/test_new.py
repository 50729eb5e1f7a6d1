"""A new chapter passes from its first minute: in a copy of the book it is paired, linted, run, recorded, tested."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from companion.chapters import claims, new, notebooks, runner
from companion.cli import app
from companion.errors import CompanionError

ROOT = Path(__file__).parents[2]
CHAPTER = "11_linear_maps"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of every file that git would commit."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setenv("COMPANION_ROOT", str(tmp_path))
    for name in ("COMPANION_RESULTS", "COMPANION_FIGURES"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run(copy: Path, *command: str) -> None:
    env = os.environ | {"PYTHONPATH": str(copy), "COMPANION_ROOT": str(copy)}
    done = subprocess.run([sys.executable, "-m", *command], cwd=copy, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_chapter_passes_the_tests(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(copy))  # for the kernels: the model is in the copy only
    answer = CliRunner().invoke(app, ["new", CHAPTER, "--title", "Linear maps"])
    assert answer.exit_code == 0, answer.output
    assert f"companion run {CHAPTER} --profile cpu" in answer.output
    assert notebooks.check_pairs() == []
    assert [claim.id for claim in claims.load(CHAPTER).claims] == ["C1", "C2"]
    outcomes = [runner.run(["11"], profile)[0] for profile in ("smoke", "cpu")]
    assert [(outcome.state, outcome.error) for outcome in outcomes] == [("done", "")] * 2
    assert CliRunner().invoke(app, ["record", "11"]).exit_code == 0
    sources = [f"notebooks/{CHAPTER}.py", "companion/models/linear_maps.py", "tests/unit/test_linear_maps.py"]
    run(copy, "ruff", "check", *sources)
    run(copy, "ruff", "format", "--check", *sources)
    of_the_book = ("architecture", "crossrefs", "errata", "measured", "project_files", "quotes", "recorded")
    tests = [f"tests/unit/test_{name}.py" for name in ("linear_maps", *of_the_book)]
    run(copy, "pytest", "-q", "-p", "no:cacheprovider", *tests)


INTRO = """\
| | paper | about | chapter |
|---|---|---|---|
| 1 | *One* {cite:p}`one` | noise | {doc}`read </notebooks/01_one>` |
| 2 | *Two* {cite:p}`two` | hierarchy | planned |

The end.
"""


def test_a_planned_paper_gets_its_link_and_keeps_its_citation() -> None:
    changed, key = new._with_row(INTRO, "02_other", "Another title")
    assert key == "two"
    assert changed == INTRO.replace("| planned |", "| {doc}`read </notebooks/02_other>` |")
    with pytest.raises(CompanionError, match="the row of paper 2 cites nothing"):
        new._with_row(INTRO.replace("{cite:p}`two`", ""), "02_other", "Another title")


def test_a_paper_without_a_row_gets_one_behind_the_last() -> None:
    changed, key = new._with_row(INTRO, "03_my_paper", "Three")
    row = "| 3 | *Three* {cite:p}`mypaper` | what it is about, in ten words | {doc}`read </notebooks/03_my_paper>` |"
    assert key == "mypaper"
    assert changed == INTRO.replace("planned |\n", f"planned |\n{row}\n")
    with pytest.raises(CompanionError, match="no list of papers"):
        new._with_row("# Nothing\n", "03_my_paper", "Three")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("linear", "no chapter name"),
        ("00_linear", "no chapter name"),
        ("11_Linear", "no chapter name"),
        ("01_again", "chapter 01 is 01_gaussian_noise_injections"),
        ("11_harmonic_vae", "companion/models/harmonic_vae.py"),
    ],
)
def test_a_name_that_is_taken_or_wrong_changes_nothing(copy: Path, name: str, word: str) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    answer = CliRunner().invoke(app, ["new", name])
    assert answer.exit_code == 2 and word in answer.output
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_outside_a_checkout_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_ROOT", str(tmp_path))
    with pytest.raises(CompanionError, match="run this in a checkout of the book"):
        new.create(CHAPTER, "Linear maps")
