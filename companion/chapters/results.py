"""Results files: the last run's under `_build/results`, the committed ones under `book/results`."""

import json
from pathlib import Path
from typing import Any

from companion.chapters import paths, profiles, provenance
from companion.chapters.claims import STATUSES, LedgerError
from companion.errors import CompanionError
from companion.files import write_together

Result = dict[str, Any]
RECORDED = ("cpu", "gpu")  # smoke runs are for CI: too small to be worth keeping
_RESULT: dict[str, type] = {"profile": str, "claims": list, "provenance": dict}
_NOTE: dict[str, type] = {"minutes": float, "finished": str}


def _read(file: Path, parts: dict[str, type]) -> Result | None:
    """Return the dictionary in `file` if it has `parts`, each of its type; None without the file."""
    if not file.is_file():
        return None
    committed = file.is_relative_to(paths.root() / "book")
    mend = f"restore it with `git checkout -- {file}`" if committed else "delete it and run the chapter again"
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # bytes that are no text too
        raise CompanionError(f"{file} is not valid JSON: {mend}") from error
    if not isinstance(tree, dict):
        raise CompanionError(f"{file} is not a results file: {mend}")
    if wrong := [name for name, kind in parts.items() if not isinstance(tree.get(name), kind)]:
        raise CompanionError(f"{file} is damaged, without {', '.join(wrong)}: {mend}")
    return tree


def dumps(result: Result) -> bytes:
    """Return the bytes of a results file: the same result gives the same bytes."""
    return (json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read(chapter: str, profile: str) -> Result | None:
    """Return the results of the last run, or None if there are none; CompanionError for a broken file."""
    return _read(paths.results_file(chapter, profiles.get(profile).name), _RESULT)


def run_note(chapter: str, profile: str) -> Result | None:
    """Return the runner's note on the last run ({"minutes", "finished"}), or None; CompanionError for a broken one."""
    return _read(paths.run_file(chapter, profiles.get(profile).name), _NOTE)


def recorded(chapter: str, profile: str) -> Result | None:
    """Return the committed results, or None if there are none; raises CompanionError for a broken file."""
    return _read(paths.recorded_file(chapter, profiles.get(profile).name), _RESULT)


def previous(chapter: str, profile: str) -> Result | None:
    """Return what was recorded before the committed results, or None; CompanionError for a broken file."""
    return _read(paths.previous_file(chapter, profiles.get(profile).name), _RESULT)


def write(result: Result) -> Path:
    """Write the results of a run where `read` finds them, and return the file."""
    file = paths.results_file(result["chapter"], result["profile"])
    paths.write_atomic(file, dumps(result))
    return file


def record(chapter: str, profile: str) -> Path:
    """Copy a finished run, with its minutes, to `book/results/<profile>/` and return the file.

    Raises CompanionError for a profile that is not recorded, a run that is missing or unfinished, and a run
    whose claim has no status or a control that passed. A run of uncommitted sources is recorded and says so.
    What was recorded in another environment, or by another run in this one, moves to `previous/`, to be compared with;
    the first chapter's figure "hero" goes to `book/_static`. When the disk is full, nothing changes.
    """
    if profiles.get(profile).name not in RECORDED:
        raise CompanionError(f"{profile} results are not recorded: choose one of {', '.join(RECORDED)}")
    result, note = read(chapter, profile), run_note(chapter, profile)
    again = f"run `companion run {chapter} --profile {profile}` first"
    if result is None:
        raise CompanionError(f"no {profile} results of {chapter} to record: {again}")
    if note is None:
        raise CompanionError(f"the {profile} run of {chapter} did not finish: {again}")
    if unknown := [c["id"] for c in result["claims"] if c["status"] not in STATUSES]:
        raise LedgerError(f"{chapter}: no valid status for {', '.join(unknown)}: {again}")
    if toothless := [c["id"] for c in result["claims"] if c["control"] and c["control"]["passes"]]:
        raise LedgerError(f"{chapter}: the control of {', '.join(toothless)} passes: mend the rule before recording")
    file = paths.recorded_file(chapter, profile)
    merged = result | {"provenance": result["provenance"] | {"minutes": note["minutes"]}}
    written = {file: dumps(merged)}
    former, kept = recorded(chapter, profile), previous(chapter, profile)
    if former is not None and _without_minutes(former) != _without_minutes(merged):
        here = _environment(merged)
        # A second run in one environment must not push out what was recorded in another.
        if kept is None or _environment(former) != here or _environment(kept) == here:
            written[paths.previous_file(chapter, profile)] = file.read_bytes()
    hero = paths.figures_dir(chapter, profile) / "hero.png"  # the first chapter's opens README and introduction
    if (chapter, profile) == (paths.chapters()[0], "cpu") and hero.is_file():
        written[paths.root() / "book" / "_static" / "hero.png"] = hero.read_bytes()
    write_together(written)
    return file


def _without_minutes(result: Result) -> Result:
    return result | {"provenance": {k: v for k, v in result["provenance"].items() if k != "minutes"}}


def _environment(result: Result) -> list[Any]:
    names = ("device", "device_type", "cpu_capability", "system", "versions", "threads", "deterministic")
    return [result["provenance"].get(name) for name in names]


def stale(chapter: str, profile: str) -> bool:
    """Say whether the source has moved on since the results were recorded; False if nothing is recorded."""
    result = recorded(chapter, profile)
    return result is not None and result["provenance"]["digest"] != provenance.digest(chapter, profile)


def counts(result: Result) -> dict[str, int]:
    """Return the number of claims of each status, in display order, zeros included."""
    found = [claim["status"] for claim in result["claims"]]
    return {status: found.count(status) for status in STATUSES}


def stand_ins(result: Result) -> dict[str, str]:
    """Return the data sets that were missing and what stood in for each.

    At smoke it is empty: there embedded sets stand in by design, and fetching the real ones changes nothing.
    """
    cards = result["provenance"]["data"] if result["profile"] != "smoke" else []
    return {card["stands_in_for"]: card["name"] for card in cards if card["stands_in_for"]}


def remarks(chapter: str, profile: str) -> list[str]:
    """Return what a reader of the recorded results must know: stale, uncommitted sources, stand-ins."""
    result = recorded(chapter, profile)
    if result is None:
        return ["not recorded"]
    found = ["stale: the source has changed since"] if stale(chapter, profile) else []
    if result["provenance"]["dirty"]:
        found.append("run from uncommitted sources")
    return found + [f"{used} stood in for {wanted}" for wanted, used in stand_ins(result).items()]
