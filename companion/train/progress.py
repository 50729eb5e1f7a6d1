"""The progress bar: for a person who watches, and for nobody else."""

import builtins
import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable[Any], *, desc: str = "", total: int | None = None, start: int = 0) -> "tqdm[Any]":
    """Wrap `items` in a bar on stderr; silent under CI, off rank 0, and where nobody watches."""
    watched = sys.stderr.isatty() or hasattr(builtins, "__IPYTHON__")
    silent = bool(os.environ.get("CI")) or os.environ.get("RANK", "0") != "0" or not watched
    return tqdm(items, desc=desc or None, total=total, initial=start, disable=silent, leave=False, file=sys.stderr)
