"""From a finished run to the place where it is looked for: all of it, or, when the disk is full, nothing."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from companion.chapters import paths
from companion.errors import CompanionError
from companion.files import write_together


@contextmanager
def _aside(path: Path) -> Iterator[None]:
    """Move a file or folder aside, and back when what should take its place fails; else remove it in the end."""
    old = path.with_name(f".{path.name}.old")
    _remove(old)  # of a publisher that was killed
    if path.exists():
        path.rename(old)
    try:
        yield
    except BaseException:
        _remove(path)
        if old.exists():
            old.rename(path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def publish(chapter: str, profile: str, key: str, folder: Path, seconds: float) -> None:
    """Move a whole run from `folder` to its places, with the `key` of what it was made from, or nothing of it.

    The key is there last, so that a publisher that is killed means running again. CompanionError without results.
    """
    result = folder / "results" / profile / f"{chapter}.json"
    drawn = folder / "figures" / profile / chapter
    if not result.is_file():
        raise CompanionError(f"{chapter} wrote no results: end the notebook with `chapter.finish()`")
    note = {"minutes": round(seconds / 60, 2), "finished": datetime.now(UTC).isoformat(timespec="seconds")}
    figures, digest = paths.figures_dir(chapter, profile), paths.digest_file(chapter, profile)
    executed = paths.executed_file(chapter, profile)
    with _aside(digest), _aside(figures):
        if drawn.is_dir():
            figures.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(drawn, figures)
        write_together(
            {
                paths.results_file(chapter, profile): result.read_bytes(),
                paths.run_file(chapter, profile): json.dumps(note).encode(),
                executed: (folder / "executed.ipynb").read_bytes(),
                digest: key.encode(),
            }
        )
    executed.with_suffix(".failed.ipynb").unlink(missing_ok=True)
