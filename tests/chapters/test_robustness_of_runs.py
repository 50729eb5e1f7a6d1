"""Runs that are killed, find the disk full or the results damaged, or meet another run: nothing is lost."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from companion.chapters import paths, results, runner
from companion.errors import CompanionError

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
    target = quick / "kept.json"
    target.write_text("old")
    with full_disk(100), pytest.raises(CompanionError, match="File too large; nothing was changed"):
        paths.write_atomic(target, bytes(10_000))
    assert target.read_text() == "old"
    assert [path.name for path in quick.iterdir() if "kept" in path.name] == ["kept.json"]


@pytest.mark.parametrize("damage", ["{", "[1]", ""])
def test_a_damaged_results_file_is_made_anew(quick: Path, damage: str) -> None:
    assert runner.run(["02"], "smoke")[0].state == "done"
    paths.results_file("02_quick", "smoke").write_text(damage)
    assert not runner.is_current("02_quick", "smoke")
    assert runner.run(["02"], "smoke")[0].state == "done"
    assert results.read("02_quick", "smoke") is not None
    assert runner.run(["02"], "smoke")[0].state == "cached"


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
