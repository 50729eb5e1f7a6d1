"""Where a number came from: the digest of its source; a deterministic record of code, machine and data."""

import ast
import hashlib
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jupytext
from IPython.core.inputtransformer2 import TransformerManager

from companion.chapters import paths, profiles
from companion.errors import CompanionError

if TYPE_CHECKING:
    import torch

_LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "matplotlib")
# What a result depends on; a change elsewhere (a page, the README) leaves the tree clean in this sense.
_SOURCES = ("companion", "notebooks", "book/claims", "requirements.lock")


@cache  # a build asks for each chapter several times
def parsed(text: str) -> Any:
    """Return the notebook that a text in percent format is; copy it before changing it."""
    return jupytext.reads(text, fmt="py:percent")


def code_cells(chapter: str) -> list[str]:
    """Return the sources of the chapter's code cells; prose is not part of a result."""
    file = paths.notebook(chapter)
    if not file.is_file():
        raise CompanionError(f"no source for chapter {chapter!r}: expected {file}")
    return [cell.source for cell in parsed(file.read_text(encoding="utf-8")).cells if cell.cell_type == "code"]


def _module_file(name: str) -> Path | None:
    """Return the source file of the dotted `companion` module, or None if there is none of that name."""
    first, *rest = name.split(".")
    base = paths.package().joinpath(*rest)
    if first != "companion" or not base.parent.is_dir():
        return None
    # Compared with the listing: on a case-blind disk `chapters.Chapter` would otherwise find chapter.py.
    beside = {file.name for file in base.parent.iterdir()}
    if f"{base.name}.py" in beside:
        return base.with_suffix(".py")
    return base / "__init__.py" if base.name in beside and (base / "__init__.py").is_file() else None


@cache
def _imports(source: str, package: str) -> tuple[str, ...]:
    """Return every dotted name that `source`, a module of `package`, may import (a name may be no module)."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(found)


@cache
def _imports_of_cell(cell: str) -> tuple[str, ...]:
    try:
        return _imports(cell, "")
    except SyntaxError:  # %magics and !commands, which IPython turns into Python
        return _imports(TransformerManager().transform_cell(cell), "")


def modules(cells: Iterable[str]) -> dict[str, Path]:
    """Return the `companion` modules that the cells import, directly or not, found by reading alone."""
    waiting = [name for cell in cells for name in _imports_of_cell(cell)]
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        file = _module_file(name)
        if file is None or name in found:
            continue
        found[name] = file
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        waiting.extend(_imports(file.read_text(encoding="utf-8"), package))
        waiting.append(name.rpartition(".")[0])  # importing a module runs its packages too
    return dict(sorted(found.items()))


def digest(chapter: str, profile: str) -> str:
    """Return the SHA-256 of what a chapter's results depend on: code, package, claims, lock and profile."""
    cells = code_cells(chapter)
    parts = [profiles.get(profile).name, *cells]
    parts += [f"{name}\n{file.read_text(encoding='utf-8')}" for name, file in modules(cells).items()]
    for file in (paths.claims_file(chapter), paths.root() / "requirements.lock"):
        parts.append(file.read_text(encoding="utf-8") if file.is_file() else "")
    total = hashlib.sha256()
    for part in parts:  # each part's own hash, so that text cannot wander from one part to the next unseen
        total.update(hashlib.sha256(part.encode()).digest())
    return total.hexdigest()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=paths.root(), capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit() -> dict[str, Any]:
    """Return the commit and whether the sources differ from it; "unknown" and None without git."""
    head = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", *_SOURCES) if head else None
    return {"commit": head or "unknown", "dirty": None if changes is None else bool(changes)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(device: "torch.device") -> dict[str, Any]:
    """Return the device, library versions and determinism settings in force; no host name, path or time."""
    import torch  # only here: digests are compared without waiting for it

    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else _processor(),
        "device_type": device.type,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{library: version(library) for library in _LIBRARIES},
            **({"cuda": torch.version.cuda} if gpu else {}),
        },
        "threads": torch.get_num_threads(),
        "deterministic": {
            "algorithms": torch.are_deterministic_algorithms_enabled(),
            "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
            "float32_matmul": torch.get_float32_matmul_precision(),
            "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG") if gpu else None,
        },
    }


def data_card(card: Any, split: str) -> dict[str, Any]:
    """Return what the results say about one loaded data set (its `companion.data.Card`)."""
    return {
        "name": card.name,
        "split": split,
        "title": card.title,
        "source": card.source,
        "licence": card.licence,
        "sha256": dict(sorted(card.sha256.items())),
        "shape": card.shape,
        "stands_in_for": card.stands_in_for,
        # The note of a stand-in says where this machine looked, which is no part of a result.
        "note": "" if card.stands_in_for else card.note,
    }


def settled(number: float) -> float:
    """Return `number` to nine digits and twelve decimals: what two runs of one program on one machine agree in.

    The last digits of float64 depend on where the allocator puts an array, since libraries sum its aligned
    blocks first. A number that is not zero stays so, with its sign: at least 1e-12.
    """
    kept = round(float(f"{number:.9g}"), 12)
    return math.copysign(1e-12, number) if kept == 0 and number != 0 else kept


def plain(value: Any) -> Any:
    """Return settings as JSON can hold them: tuples as lists, not finite as null, the unknown as its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)
