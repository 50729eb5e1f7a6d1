"""Checkpoints that are whole or absent: plain tensors in files that are replaced in one go."""

from pathlib import Path
from typing import Any

import torch

from companion.errors import CompanionError
from companion.files import clear_stale, write_atomic


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, and lists and dictionaries of them) to `path`."""
    write_atomic(path, lambda file: torch.save(state, file))
    clear_stale(path)


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
