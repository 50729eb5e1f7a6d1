"""Checkpoints that are whole or absent: plain tensors, written beside the target and renamed."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from companion.errors import CompanionError


def atomic_write(path: Path, write: Any) -> None:
    """Call `write(file)` on a new binary file and rename it to `path`; a kill leaves the old file whole.

    Raises CompanionError when the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise CompanionError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from None
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # the bytes must be there before the name is
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise CompanionError(
            f"cannot write {path}: {error.strerror}; free some space or choose another folder"
        ) from None
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, and lists and dictionaries of them) to `path`."""
    atomic_write(path, lambda file: torch.save(state, file))
    for leftover in path.parent.glob(f".{path.name}.*"):  # of a run that was killed while it wrote
        leftover.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any] | None:
    """Return the state saved at `path`, on the CPU, or None where there is none.

    Raises CompanionError when the file is no checkpoint. Never unpickles code (`weights_only=True`).
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different class for each kind of damage
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CompanionError(f"{path} is not a readable checkpoint ({reason}); remove it to start over") from None
    return state
