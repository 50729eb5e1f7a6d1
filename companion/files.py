"""Whole files or none: written beside the target under a temporary name, flushed to the disk, and renamed."""

import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from companion.errors import CompanionError

Content = bytes | Callable[[BinaryIO], object]  # the bytes, or what writes them into a file that is open
_STALE = 24 * 3600  # seconds after which a temporary file belongs to no running process


def write_atomic(path: Path, content: Content) -> None:
    """Write `content` to `path`, so that no reader ever sees half a file and a kill leaves the old one whole.

    Raises CompanionError when it cannot be written.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, Content]) -> None:
    """Write several files, none of which is replaced before all are on the disk; CompanionError as above."""
    made: dict[Path, str] = {}
    advice = "make the folder writable or choose another"
    try:
        for path, content in contents.items():
            advice = "make the folder writable or choose another"
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, made[path] = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
            advice = "nothing was changed: free some space or choose another folder"
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, 0o644)  # mkstemp gives 0600, which a web server could not read
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    content(file)
                file.flush()
                os.fsync(handle)  # the bytes must be there before the name is
        for path, temporary in made.items():
            os.replace(temporary, path)
            advice = "files that belong together were replaced in part"
    except OSError as error:
        raise CompanionError(f"cannot write {path}: {error.strerror}; {advice}") from error
    finally:
        for temporary in made.values():
            Path(temporary).unlink(missing_ok=True)


def clear_stale(path: Path) -> None:
    """Remove the temporary files that killed runs left beside `path`: its own, and a day old."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]+\.tmp")
    for left in path.parent.iterdir():
        if ours.fullmatch(left.name):
            with suppress(FileNotFoundError):  # its process has just renamed it
                if time.time() - left.stat().st_mtime > _STALE:
                    left.unlink()
