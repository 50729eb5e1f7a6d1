"""One run of a chapter and profile at a time, whichever process it is in."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from companion.errors import CompanionError


@contextmanager
def alone(path: Path, stop: threading.Event, say: Callable[[], None]) -> Iterator[bool]:
    """Hold the lock at `path`, which the system releases when its holder dies; yield whether it had to be waited for.

    Calls `say` before it waits. Raises CompanionError when told to `stop` meanwhile, or where it cannot be written.
    """
    lock, waited = FileLock(path), False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not lock.is_locked:
            if stop.is_set():
                raise CompanionError("interrupted")
            try:
                lock.acquire(timeout=0.5)
            except Timeout:
                if not waited:
                    say()
                waited = True
    except OSError as error:
        raise CompanionError(f"cannot write under {path.parent}: {error}") from error
    try:
        yield waited
    finally:
        lock.release()
