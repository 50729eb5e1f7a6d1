"""Run the executed copies once more, with nbval: checked outputs, results and figures must be the same."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from companion.chapters import paths, runner


def recheck(names: Sequence[str], profile: str = "smoke", jobs: int = 1) -> list[str]:
    """Re-execute the executed copies of `names` (all when empty); return one text per difference found.

    nbval compares the outputs of cells tagged `nbval-check-output`; results and figures are compared byte
    for byte, since two runs on one machine must agree. `jobs` chapters run at once.
    """
    chapters = runner.chosen(names)
    with ThreadPoolExecutor(max_workers=runner.jobs_at_once(jobs, len(chapters))) as pool:
        found = pool.map(lambda chapter: _differences(chapter, profile), chapters)
        return [problem for problems in found for problem in problems]


def _differences(chapter: str, profile: str) -> list[str]:
    executed = paths.executed_file(chapter, profile)
    if not executed.is_file():
        return [f"{chapter} has no executed copy: run `companion run {chapter} --profile {profile}`"]
    with tempfile.TemporaryDirectory() as name:
        results, figures = Path(name) / "results", Path(name) / "figures"
        code, log = _nbval(executed, runner.environment(profile, results, figures))
        if code:
            return [f"{chapter}: a second run ends differently\n{log}"]
        problems = []
        first, again = paths.results_file(chapter, profile), results / profile / f"{chapter}.json"
        if _bytes(first) != _bytes(again):
            change = _first_change(first, again)
            problems.append(f"{chapter}: two {profile} runs wrote different results: {change}")
        drawn = figures / profile / chapter
        return problems + _figure_changes(chapter, paths.figures_dir(chapter, profile), drawn)


def _nbval(notebook: Path, env: dict[str, str]) -> tuple[int, str]:
    # `-c /dev/null`: the project's own pytest settings are about its unit tests.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "--nbval-kernel-name",
        "python3",
        "-q",
        "--tb=short",
    ]
    command += ["-c", "/dev/null", "--rootdir", str(notebook.parent), "-p", "no:cacheprovider", str(notebook)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _first_change(first: Path, again: Path) -> str:
    if not again.is_file():
        return "the second wrote none"
    old, new = first.read_text().splitlines(), again.read_text().splitlines()
    return next((f"{a.strip()} -> {b.strip()}" for a, b in zip(old, new, strict=False) if a != b), "length")


def _figure_changes(chapter: str, first: Path, second: Path) -> list[str]:
    names = sorted({p.name for folder in (first, second) for p in folder.glob("*")})
    changed = [name for name in names if _bytes(first / name) != _bytes(second / name)]
    return [f"{chapter}: two runs drew {name} differently" for name in changed]
