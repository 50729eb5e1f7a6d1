"""Runs: cached by digest, failing loudly without hurting what was there, stopping cleanly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from companion import data
from companion.chapters import notebooks, paths, recheck, results, runner
from companion.cli import app
from companion.errors import CompanionError

# Needs no import of PyTorch, so it runs in a second.
QUICK = """# %% tags=["parameters"]
profile = "smoke"
seed = 0
scale = 1.0

# %%
import json, os
from pathlib import Path

target = Path(os.environ["COMPANION_RESULTS"], profile, "02_quick.json")
target.parent.mkdir(parents=True, exist_ok=True)
result = {"profile": profile, "claims": [], "provenance": {"data": []}, "seed": seed, "scale": scale}
target.write_text(json.dumps(result))
"""


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf8")
    assert old in text
    path.write_text(text.replace(old, new), "utf8")


def _tree(folder: Path) -> dict[str, bytes]:
    """The files under `folder`, but for the empty ones that runs lock."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"
    }


def _quick(book: Path) -> Path:
    path = book / "notebooks" / "02_quick.py"
    path.write_text(QUICK)
    return path


def test_a_run_leaves_copy_results_figures_and_nothing_else(executed_book: Path) -> None:
    assert set(_tree(executed_book / "_build")) == {
        "executed/smoke/01_tiny.ipynb",
        "executed/smoke/01_tiny.digest",
        "results/smoke/01_tiny.json",
        "results/smoke/01_tiny.run.json",
        "figures/smoke/01_tiny/first-line.csv",
        "figures/smoke/01_tiny/first-line.png",
        "figures/smoke/01_tiny/second-line.csv",
        "figures/smoke/01_tiny/second-line.png",
    }
    assert set(results.run_note("01_tiny", "smoke") or {}) == {"minutes", "finished"}


def test_a_relative_data_folder_is_meant_from_here(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(book)
    monkeypatch.setenv("COMPANION_DATA", "../data")
    assert runner.environment("smoke", book, book)["COMPANION_DATA"] == str(book / ".." / "data")
    monkeypatch.delenv("COMPANION_DATA")
    assert "COMPANION_DATA" not in runner.environment("smoke", book, book)


def test_prose_is_cached_and_code_is_not(executed_book: Path) -> None:
    source = executed_book / "notebooks" / "01_tiny.py"
    _edit(source, "Prose of the first cell", "Other prose")
    (outcome,) = runner.run(["01"], "smoke")
    assert outcome.state == "cached"
    _edit(source, "value = 2.0", "value = 2.5")
    assert not runner.is_current("01_tiny", "smoke")


def test_a_stand_in_is_run_again_once_the_data_is_there(executed_book, monkeypatch) -> None:
    monkeypatch.setattr(results, "stand_ins", lambda result: {"mnist": "digits"})
    states = {"mnist": "missing"}
    monkeypatch.setattr(data, "status", states.__getitem__)
    assert runner.is_current("01_tiny", "smoke")
    states["mnist"] = "cached"
    assert not runner.is_current("01_tiny", "smoke")


def test_parameters_reach_the_notebook_and_the_cache_key(book: Path) -> None:
    _quick(book)
    states = [runner.run(["02"], "smoke", parameters=p)[0].state for p in ({"seed": 3, "scale": 2}, {}, {})]
    assert states == ["done", "done", "cached"]
    assert json.loads(paths.results_file("02_quick", "smoke").read_text())["seed"] == 0
    (outcome,) = runner.run(["02"], "smoke", parameters={"seed": 3}, force=True)
    assert outcome.state == "done"
    assert json.loads(paths.results_file("02_quick", "smoke").read_text())["seed"] == 3


@pytest.mark.parametrize(
    ("pair", "word"),
    [
        ("sead=1", "choose from seed, scale"),
        ("profile=gpu", "use --profile"),
        ("seed=one", "of type int"),
        ("seed", "name=value"),
        ("seed=[1", "no literal"),
    ],
)
def test_a_wrong_parameter_is_one_line_and_runs_nothing(book: Path, pair: str, word: str) -> None:
    _quick(book)
    answer = CliRunner().invoke(app, ["run", "02", "--profile", "smoke", "-p", pair])
    assert answer.exit_code == 2
    assert word in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert not (book / "_build").exists()


def test_a_failing_chapter_stops_nobody_and_hurts_nothing(executed_book: Path) -> None:
    _quick(executed_book)
    before = _tree(executed_book / "_build")
    _edit(executed_book / "notebooks" / "01_tiny.py", "value = 2.0 + seed", "value = 2.0 / seed")
    answer = CliRunner().invoke(app, ["run", "--profile", "smoke", "-j", "2"])
    assert answer.exit_code == 1
    assert "ZeroDivisionError" in answer.stderr
    assert "1 of 2 chapters failed: 01_tiny" in answer.stderr
    after = _tree(executed_book / "_build")
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "executed/smoke/01_tiny.failed.ipynb",
        "executed/smoke/02_quick.ipynb",
        "executed/smoke/02_quick.digest",
        "results/smoke/02_quick.json",
        "results/smoke/02_quick.run.json",
    }


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('chapter.claim("C1", ratio=1.0, control=dict(ratio=2.0))\nchapter.ledger()', "pass", "C1"),
        ("control=dict(ratio=2.0)", "control=dict(ratio=1.0)", "LedgerError"),
        ("alt=alt, ", 'alt="", ', "alt text"),
    ],
    ids=["claim without status", "control that passes", "figure without alt text"],
)
def test_planted_faults_fail_the_run(book: Path, old: str, new: str, word: str) -> None:
    _edit(book / "notebooks" / "01_tiny.py", old, new)
    (outcome,) = runner.run([], "smoke")
    assert outcome.state == "failed"
    assert word in outcome.error
    assert not paths.executed_file("01_tiny", "smoke").exists()


def test_a_notebook_without_results_fails(book: Path) -> None:
    _quick(book).write_text("# %%\nprint(1)\n")
    (outcome,) = runner.run(["02"], "smoke")
    assert outcome.state == "failed"
    assert "chapter.finish()" in outcome.error


def test_a_folder_that_cannot_be_written_is_one_line(book: Path) -> None:
    _quick(book)
    (book / "_build").write_text("a file where the folder should be")
    (outcome,) = runner.run(["02"], "smoke")
    assert outcome.state == "failed"
    assert outcome.error.startswith("cannot write under")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_half_written(book: Path, how: signal.Signals) -> None:
    started = book / "started"
    wait = f"open({str(started)!r}, 'w').write(str(os.getpid()))\nimport threading\nthreading.Event().wait()\n"
    _quick(book).write_text(f"{QUICK}\n# %%\n{wait}")
    command = [
        sys.executable,
        "-c",
        "from companion.cli import app; app()",
        "run",
        "02",
        "--profile",
        "smoke",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (started.exists() and started.read_text()) and process.poll() is None:
        time.sleep(0.05)
    kernel = int(started.read_text())
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
    assert _tree(book / "_build") == {}
    deadline = time.monotonic() + 20  # a signalled process is gone when the system has collected it
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(kernel, 0)
            time.sleep(0.05)


def test_names_and_profiles_are_checked(book: Path) -> None:
    with pytest.raises(CompanionError, match="01_tiny"):
        runner.run(["07"], "smoke")
    with pytest.raises(CompanionError, match="smoke, cpu, gpu"):
        runner.run([], "fast")
    with pytest.raises(CompanionError, match="at least 1"):
        runner.run([], "smoke", jobs=0)


def test_threads_follow_the_profile_alone(book: Path) -> None:
    for profile, threads in (("smoke", "1"), ("cpu", "2")):
        found = runner.environment(profile, book, book)
        assert {found[f"{name}_NUM_THREADS"] for name in ("OMP", "MKL", "OPENBLAS")} == {threads}


def test_no_more_chapters_run_at_once_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [runner.jobs_at_once(*pair) for pair in ((8, 2), (2, 8), (1, 5), (4, 1), (3, 0))] == [2, 2, 1, 1, 1]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert runner.jobs_at_once(8, 2) == 1


def test_recheck_agrees(executed_book: Path) -> None:
    assert recheck.recheck([]) == []


def test_recheck_sees_a_changed_value_in_a_checked_cell(executed_book: Path) -> None:
    _edit(paths.executed_file("01_tiny", "smoke"), '"2.0\\n"', '"2.5\\n"')
    (problem,) = recheck.recheck(["01"])
    assert "2.5" in problem
    assert "2.0" in problem


def test_recheck_sees_results_and_figures_that_differ_between_runs(executed_book: Path) -> None:
    copy = paths.executed_file("01_tiny", "smoke")
    # The same cell gives another number, and another line, in every process.
    _edit(copy, "ratio=1.0,", "ratio=1.0 + 1e-9 * __import__('os').getpid(),")
    _edit(copy, "[0, slope]", "[0, slope * __import__('os').getpid()]")
    problems = recheck.recheck([])
    assert "different results" in problems[0]
    drawn = [f"{name}-line.{kind}" for name in ("first", "second") for kind in ("csv", "png")]
    assert [name in problem for name, problem in zip(drawn, problems[1:], strict=True)] == [True] * 4


def test_recheck_needs_an_executed_copy(book: Path) -> None:
    (problem,) = recheck.recheck([])
    assert "companion run 01_tiny --profile smoke" in problem


def test_executed_copy_is_a_valid_notebook_with_the_profile_injected(executed_book: Path) -> None:
    text = paths.executed_file("01_tiny", "smoke").read_text()
    assert notebooks.INJECTED in text
    assert "C1 verified" in text
