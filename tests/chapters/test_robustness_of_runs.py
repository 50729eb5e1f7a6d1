"""Runs that are killed, find the disk full or the results damaged, or meet another run: nothing is lost."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from companion.chapters import paths, publish, results, runner, stage
from companion.errors import CompanionError
from companion.files import write_together

COMMAND = [sys.executable, "-c", "from companion.cli import app; app()", "run", "02", "--profile", "smoke"]

# It notes its start, may wait for a file `go`, and needs no import of PyTorch.
QUICK = """# %% tags=["parameters"]
profile = "smoke"
seed = 0

# %%
import json, os, time
from pathlib import Path

root = Path(os.environ["COMPANION_ROOT"])
with open(root / "starts", "a") as starts:
    starts.write(f"{os.getpid()}\\n")
while (root / "hold").exists():
    time.sleep(0.05)
target = Path(os.environ["COMPANION_RESULTS"], profile, "02_quick.json")
target.parent.mkdir(parents=True, exist_ok=True)
target.write_text(json.dumps({"profile": profile, "claims": [], "provenance": {"data": []}, "filler": "x" * FILLER}))
"""


@contextmanager
def full_disk(after: int) -> Iterator[None]:
    """No file may grow beyond `after` bytes: writing more fails, as on a full disk; child processes inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def quick(book: Path) -> Path:
    (book / "notebooks" / "02_quick.py").write_text(QUICK.replace("FILLER", "10"))
    return book


def starts(book: Path) -> list[int]:
    noted = book / "starts"
    return [int(line) for line in noted.read_text().split()] if noted.exists() else []


def until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def good(book: Path) -> dict[Path, bytes]:
    """What a finished run of the quick chapter has left."""
    kept = [paths.executed_file("02_quick", "smoke"), paths.results_file("02_quick", "smoke")]
    return {path: path.read_bytes() for path in kept}


@pytest.mark.parametrize("after", [100, 6_000])
def test_a_full_disk_keeps_the_last_good_copy_and_says_why(quick: Path, after: int) -> None:
    assert runner.run(["02"], "smoke")[0].state == "done"
    before = good(quick)
    (quick / "notebooks" / "02_quick.py").write_text(QUICK.replace("FILLER", "100_000"))
    with full_disk(after):
        (outcome,) = runner.run(["02"], "smoke")
    assert outcome.state == "failed"
    assert "File too large" in outcome.error
    assert good(quick) == before
    assert not list((quick / "_build" / "running").rglob("*.ipynb"))
    (outcome,) = runner.run(["02"], "smoke")  # once there is room again
    assert outcome.state == "done"


def test_recording_on_a_full_disk_changes_nothing(quick: Path) -> None:
    def ran(filler: str) -> int:
        made = {"chapter": "02_quick", "profile": "cpu", "claims": [], "provenance": {"data": []}, "filler": filler}
        paths.run_file("02_quick", "cpu").parent.mkdir(parents=True, exist_ok=True)
        paths.run_file("02_quick", "cpu").write_text('{"minutes": 1.5, "finished": "now"}')
        return results.write(made).stat().st_size

    files = [paths.recorded_file("02_quick", "cpu"), paths.previous_file("02_quick", "cpu")]
    for filler in ("A", "B" * 100):
        ran(filler)
        results.record("02_quick", "cpu")
    before = [file.read_bytes() for file in files]
    size = ran("C" * 1_000)  # its record, with the minutes, is longer; that of B, which has to move, is not
    with full_disk(size), pytest.raises(CompanionError, match="File too large; nothing was changed"):
        results.record("02_quick", "cpu")
    assert [file.read_bytes() for file in files] == before
    assert sorted(path for path in files[0].parent.rglob("*") if path.is_file()) == sorted(files)
    results.record("02_quick", "cpu")
    assert [json.loads(file.read_text())["filler"][0] for file in files] == ["C", "B"]


def test_a_full_disk_while_a_run_is_put_in_its_place_changes_nothing(
    executed_book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tree() -> dict[Path, bytes]:
        folders = ("executed", "results", "figures")
        found = [path for name in folders for path in (executed_book / "_build" / name).rglob("*")]
        return {path: path.read_bytes() for path in found if path.is_file()}

    def full(contents: object) -> None:
        drawn = (paths.figures_dir("01_tiny", "smoke") / "second-line.csv").read_text()
        assert "3" in drawn.splitlines()[-1]  # the new figures are in their place: they have to go again
        with full_disk(1_000):
            write_together(contents)

    before, source = tree(), executed_book / "notebooks" / "01_tiny.py"
    kept = source.read_text()
    source.write_text(kept.replace('"second-line": 2', '"second-line": 3'))
    monkeypatch.setattr(publish, "write_together", full)
    (outcome,) = runner.run([], "smoke")
    assert outcome.state == "failed" and "File too large; nothing was changed" in outcome.error
    assert tree() == before
    monkeypatch.undo()
    monkeypatch.setenv("COMPANION_ROOT", str(executed_book))
    assert runner.run([], "smoke")[0].state == "done"
    assert tree().keys() == before.keys() and tree() != before


def test_what_a_killed_publisher_put_aside_is_cleared_away(quick: Path) -> None:
    aside = [paths.figures_dir("02_quick", "smoke"), paths.digest_file("02_quick", "smoke")]
    aside = [path.with_name(f".{path.name}.old") for path in aside]
    for path in aside:
        path.parent.mkdir(parents=True)
    (aside[0] / "nested").mkdir(parents=True)
    aside[1].write_text("a key")
    assert runner.run(["02"], "smoke")[0].state == "done"
    assert not any(path.exists() for path in aside)


@pytest.mark.parametrize(
    ("file", "damages"),
    [
        (paths.results_file, [b"{", b"[1]", b"", b"\xff", b"{}", b'{"profile": "smoke"}', None]),
        (paths.run_file, [b"", b"\xff", b"{}", b'{"minutes": 1.5}', None]),
        (paths.executed_file, [b"", b'{"cells": ', b"[]", b"{}", b"\xff\xfe", None]),
        (paths.digest_file, [b"", None, b"\xff\xfe"]),
    ],
    ids=["results", "note", "copy", "digest"],
)
def test_what_a_run_left_is_made_anew_when_it_is_damaged(
    quick: Path, file: Callable[[str, str], Path], damages: list[bytes | None]
) -> None:
    assert runner.run(["02"], "smoke")[0].state == "done"
    path = file("02_quick", "smoke")
    whole = path.read_bytes()
    for damage in damages:
        path.write_bytes(whole)
        assert runner.is_current("02_quick", "smoke")
        path.unlink() if damage is None else path.write_bytes(damage)
        assert not runner.is_current("02_quick", "smoke"), damage
    assert runner.run(["02"], "smoke")[0].state == "done"
    assert results.read("02_quick", "smoke") is not None and results.run_note("02_quick", "smoke") is not None
    assert runner.run(["02"], "smoke")[0].state == "cached"


def test_a_build_of_a_damaged_copy_is_one_line_with_a_way_out(executed_book: Path) -> None:
    for damage in (b"\xff\xfe", b"{", b'{"cells": 3}'):
        paths.executed_file("01_tiny", "smoke").write_bytes(damage)
        with pytest.raises(CompanionError, match=r"is damaged: run `companion run 01_tiny --profile smoke --force`"):
            stage.executed("01_tiny", "smoke")


def test_two_builds_at_once_take_turns(executed_book: Path) -> None:
    command = [*COMMAND[:3], "build", "--profile", "smoke"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted("waiting for another build" in errors for _, errors in said) == [False, True]
    assert (paths.html_dir() / "notebooks" / "01_tiny.html").is_file()


def test_two_runs_at_once_share_one_result(quick: Path) -> None:
    (quick / "hold").touch()
    first = subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True)
    until(lambda: starts(quick))
    second = subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True)
    heard = ""
    while "waiting for another run" not in heard:
        heard += second.stderr.readline()
    (quick / "hold").unlink()
    assert first.wait(60) == second.wait(60) == 0
    assert len(starts(quick)) == 1
    assert json.loads(paths.results_file("02_quick", "smoke").read_text())["filler"] == "x" * 10
    assert runner.run(["02"], "smoke")[0].state == "cached"
    first.stderr.close()
    second.stderr.close()


def test_whoever_waits_can_be_interrupted_and_hurts_nobody(quick: Path) -> None:
    (quick / "hold").touch()
    first = subprocess.Popen(COMMAND, stderr=subprocess.DEVNULL)
    until(lambda: starts(quick))
    second = subprocess.Popen(COMMAND, stderr=subprocess.PIPE, text=True)
    heard = ""
    while "waiting for another run" not in heard:
        heard += second.stderr.readline()
    second.send_signal(signal.SIGINT)
    _, rest = second.communicate(timeout=60)
    assert second.returncode == 130 and "FAILED" not in rest
    (quick / "hold").unlink()
    assert first.wait(60) == 0
    assert runner.run(["02"], "smoke")[0].state == "cached"


def test_a_killed_runner_leaves_nothing_that_hurts_the_next(quick: Path) -> None:
    (quick / "hold").touch()
    process = subprocess.Popen(COMMAND, stderr=subprocess.DEVNULL)
    until(lambda: starts(quick))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not paths.executed_file("02_quick", "smoke").exists()
    (kernel,) = starts(quick)  # nobody could stop it: it goes on, and writes where nobody looks
    os.kill(kernel, 0)
    (quick / "hold").unlink()
    (outcome,) = runner.run(["02"], "smoke")
    assert outcome.state == "done", outcome.error
    assert runner.run(["02"], "smoke")[0].state == "cached"
