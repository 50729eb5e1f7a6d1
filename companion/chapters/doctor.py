"""What this machine can run: one (name, finding) pair per line of `companion doctor`."""

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.util import find_spec

import torch

from companion import data
from companion.chapters import paths, profiles, results

_BOOK_GB = 3  # the environment, the data sets that the chapters load, and the rendered book


def examine() -> Iterator[tuple[str, str]]:
    """Yield what was found: interpreter, devices, memory, disk, tools, profiles, data sets."""
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "torch", f"{torch.__version__}, {_cuda()}"
    yield "cpu cores", str(profiles.cores())
    yield "memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    free = shutil.disk_usage(paths.root()).free / 1e9
    yield (
        "disk",
        f"{free:.1f} GB free in {paths.root()}" + ("" if free > _BOOK_GB else f"; {_BOOK_GB} GB are needed"),
    )
    yield "chapters", f"{len(paths.chapters())} in {paths.root() / 'notebooks'}"
    missing = [name for name in ("jupyter_book", "papermill", "nbval") if find_spec(name) is None]
    yield "tools", f"missing {', '.join(missing)}: pip install -e .[book,test]" if missing else "all there"
    for name in profiles.PROFILES:
        yield f"profile {name}", _expected(name)
    yield "data folder", str(data.cache_dir())
    for name in data.names():
        state = data.status(name)
        yield (
            f"data {name}",
            state + (f": get it with `companion data fetch {name}`" if state == "missing" else ""),
        )


def _cuda() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    return f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB"


def _expected(profile: str) -> str:
    if profile == "gpu" and not torch.cuda.is_available():
        return "needs a CUDA device; recorded runs, where there are any, are shown in the book"
    notes = {chapter: results.run_note(chapter, profile) for chapter in paths.chapters()}
    budget = profiles.get(profile).budget / 60
    minutes = sum(note["minutes"] if note else budget for note in notes.values())
    source = "measured here" if notes and all(notes.values()) else "at most, by its budget"
    return f"{minutes:.1f} min for all chapters, {source}"
