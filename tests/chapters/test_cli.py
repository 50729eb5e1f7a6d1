"""The command line: what it prints, and one line with exit code 2 for what the user can mend."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from companion.chapters import paths, results
from companion.cli import app


def _call(*words: str, code: int = 0) -> str:
    answer = CliRunner().invoke(app, list(words))
    assert answer.exit_code == code, answer.output
    return answer.output


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["run", "--profile", "fast"], "smoke, cpu, gpu"),
        (["run", "07_nothing"], "01_tiny"),
        (["build", "--profile", "fast"], "smoke, cpu, gpu"),
        (["build"], "companion run 01_tiny --profile cpu"),
        (["claims", "--profile", "fast"], "smoke, cpu, gpu"),
        (["record", "01", "--profile", "smoke"], "cpu, gpu"),
        (["record", "01"], "companion run 01_tiny --profile cpu"),
        (["data", "fetch", "mnits"], "mnist"),
        (["data", "check", "mnits"], "mnist"),
        (["pair", "--from-ipynb", "01_tiny"], "companion pair"),
    ],
)
def test_what_the_user_can_mend_is_one_line(book: Path, words: list[str], wanted: str) -> None:
    output = _call(*words, code=2)
    assert wanted in output
    assert len(output.strip().splitlines()) == 1


def test_outside_a_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_ROOT", str(tmp_path))
    assert "run this inside the book's folder" in _call("run", code=2)


def test_claims_as_text_and_as_json(executed_book: Path) -> None:
    text = _call("claims", "--profile", "smoke")
    assert "01 C1   verified" in text
    assert "claims at profile smoke: 1 verified" in text
    tree = json.loads(_call("claims", "--profile", "smoke", "--json"))
    assert tree["01_tiny"] == results.read("01_tiny", "smoke")
    assert "no results at cpu" in _call("claims")


def test_pair_and_check(book: Path) -> None:
    assert "01_tiny.ipynb" in _call("pair", "--check", code=1)
    assert "written" in _call("pair", "01")
    assert "as before" in _call("pair")
    assert _call("pair", "--check") == ""


def test_pair_checks_the_chapters_that_are_named(book: Path) -> None:
    _call("pair", "01")
    (book / "notebooks" / "02_other.py").write_text("# %%\nprint(1)\n")
    assert _call("pair", "--check", "01") == ""
    assert "02_other.ipynb" in _call("pair", "--check", "02", code=1)
    assert "02_other.ipynb" in _call("pair", "--check", code=1)
    assert "01_tiny" in _call("pair", "--check", "03", code=2)


def test_record_keeps_the_minutes_and_fills_the_scoreboard(executed_book: Path) -> None:
    for part in ("executed", "results", "figures"):
        (paths.build_dir() / part / "smoke").rename(paths.build_dir() / part / "cpu")
    ran = paths.results_file("01_tiny", "cpu")
    ran.write_text(ran.read_text().replace('"profile": "smoke"', '"profile": "cpu"', 1))
    (executed_book / "README.md").write_text("<!-- scoreboard:start -->\n<!-- scoreboard:end -->\n")
    assert "recorded" in _call("record", "01", "--profile", "cpu")
    recorded = results.recorded("01_tiny", "cpu")
    assert recorded is not None
    assert recorded["provenance"]["minutes"] >= 0
    assert "Tiny chapter" in (executed_book / "README.md").read_text()


def test_data_commands_without_network_or_files(book: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "empty"))
    monkeypatch.setenv("COMPANION_OFFLINE", "1")
    listed = _call("data", "list")
    assert [line.split()[:2] for line in listed.splitlines() if line.startswith(("digits", "mnist"))] == [
        ["digits", "embedded"],
        ["mnist", "missing"],
    ]
    assert "mnist: missing" in _call("data", "check", "mnist", code=1)
    assert "digits: embedded" in _call("data", "check")
    assert "mnist" in _call("data", "fetch", "mnist", code=2)


def test_doctor_says_what_can_run(book: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "empty"))
    lines = dict(line.split("  ", 1) for line in _call("doctor").splitlines() if "  " in line)
    assert {"torch", "cpu cores", "memory", "disk", "profile smoke", "data folder"} <= set(lines)
    assert "at most" in lines["profile cpu"]
    assert "companion data fetch mnist" in lines["data mnist"]


def test_the_command_line_does_not_wait_for_what_computes() -> None:
    code = "import companion.cli, sys; print({'torch', 'matplotlib', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
