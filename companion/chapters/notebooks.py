"""Chapters as notebooks: the `.py` is the source, the `.ipynb` beside it its output-free pair for Jupyter."""

import ast
import hashlib
import json
from collections import Counter
from collections.abc import Collection
from copy import deepcopy
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode

from companion.chapters import paths, provenance
from companion.errors import CompanionError

PARAMETERS = "parameters"
INJECTED = "injected-parameters"  # papermill's tag for the cell it adds below the parameters
_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def tags(cell: NotebookNode) -> list[str]:
    """Return the tags of `cell`."""
    return cell.metadata.get("tags", [])


def read_source(path: Path) -> NotebookNode:
    """Read a percent-format `.py` as a notebook whose cell ids and metadata follow from its text alone.

    Raises CompanionError when it cannot be parsed.
    """
    try:
        notebook = deepcopy(provenance.parsed(path.read_text(encoding="utf-8")))
    except (SyntaxError, ValueError) as error:
        raise CompanionError(f"cannot read {path}: {error}") from error
    notebook.metadata = nbformat.from_dict(
        {
            "jupytext": {"formats": "ipynb,py:percent"},
            "kernelspec": _KERNEL,
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        # The same text twice needs two ids; counting keeps both stable.
        cell.id = f"{digest}-{seen[digest]}" if seen[digest] else digest
        seen[digest] += 1
    return notebook


def dumps(notebook: NotebookNode) -> str:
    """Return the one way a notebook is written to disk."""
    return nbformat.writes(notebook, version=4) + "\n"


def pair(chapter: str) -> bool:
    """Write the chapter's `.ipynb` from its `.py`; return whether anything changed."""
    text = dumps(read_source(paths.notebook(chapter)))
    target = paths.notebook(chapter, ".ipynb")
    if target.is_file() and target.read_text("utf8") == text:
        return False
    paths.write_atomic(target, text.encode())
    return True


def unpair(chapter: str) -> bool:
    """Write the chapter's `.py` from its `.ipynb`, for whoever edited in Jupyter; return whether it changed.

    The `.ipynb` is normalised afterwards. Raises CompanionError when there is no readable `.ipynb`.
    """
    source, target = paths.notebook(chapter, ".ipynb"), paths.notebook(chapter)
    notebook = _read_pair(source)
    header = jupytext.read(target, fmt="py:percent").metadata if target.is_file() else {"kernelspec": _KERNEL}
    notebook.metadata = nbformat.from_dict(header)
    text = jupytext.writes(notebook, fmt="py:percent")
    changed = not target.is_file() or target.read_text("utf8") != text
    if changed:
        paths.write_atomic(target, text.encode())
    pair(chapter)
    return changed


def _read_pair(path: Path) -> NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError as error:
        raise CompanionError(f"no {_shown(path)}: write it with `companion pair`") from error
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise CompanionError(f"{_shown(path)} is no notebook ({error}): mend it with `companion pair`") from error


def is_whole(path: Path) -> bool:
    """Say whether `path` holds a notebook: JSON with cells, which is quick to see; OSError without the file."""
    try:
        tree = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(tree, dict) and isinstance(tree.get("cells"), list)


def check_pairs(chosen: Collection[str] = ()) -> list[str]:
    """Return one line for each notebook (of `chosen`, or of all and what else lies there) that is not its source's.

    It is unpaired, differs from the source or carries outputs.
    """
    if chosen:
        return [problem for name in chosen if (problem := _pair_problem(name))]
    names = paths.chapters()
    strays = {p.stem for p in paths.notebook("any").parent.glob("*.ipynb")} - set(names)
    return [problem for name in sorted({*names, *strays}) if (problem := _pair_problem(name))]


def _pair_problem(name: str) -> str | None:
    path = paths.notebook(name, ".ipynb")
    if not paths.notebook(name).is_file():
        return f"{_shown(path)} has no .py: write it with `companion pair --from-ipynb {name}` or remove it"
    mend = f"mend it with `companion pair {name}`"
    try:
        found = _read_pair(path)
    except CompanionError as error:
        return str(error)
    wanted = read_source(paths.notebook(name))
    if any(cell.get("outputs") or cell.get("execution_count") for cell in found.cells):
        return f"{_shown(path)} carries outputs: {mend}"
    if [(c.cell_type, c.source) for c in found.cells] != [(c.cell_type, c.source) for c in wanted.cells]:
        return f"{_shown(path)} has other cells than {name}.py: {mend} (or --from-ipynb, if it is the newer)"
    if path.read_text("utf8") != dumps(wanted):
        return f"{_shown(path)} has other ids or metadata than {name}.py gives: {mend}"
    return None


def _shown(path: Path) -> Path:
    return path.relative_to(paths.root())


def parameters(notebook: NotebookNode) -> dict[str, Any]:
    """Return the names and default values of the cell tagged `parameters`; raises CompanionError if not literals."""
    found: dict[str, Any] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and PARAMETERS in tags(cell):
            for statement in ast.parse(cell.source).body:
                name, _, value = ast.unparse(statement).partition(" = ")
                name = name.partition(":")[0]  # seed: int = 1
                try:
                    found[name] = ast.literal_eval(value)
                except (ValueError, SyntaxError) as error:
                    wrong = ast.unparse(statement)
                    raise CompanionError(f"parameters cell: {wrong!r} is not `name = literal`, as seed = 1") from error
    return found


def graft(source: NotebookNode, executed: NotebookNode) -> NotebookNode | None:
    """Return `source` with the outputs of `executed`, or None when their code cells differ.

    So an edit of the prose reaches the page without a run, and nothing of papermill's (times, folders,
    its injected cell) comes along.
    """
    ran = [c for c in executed.cells if c.cell_type == "code" and INJECTED not in tags(c)]
    code = [c for c in source.cells if c.cell_type == "code"]
    if [c.source for c in code] != [c.source for c in ran]:
        return None
    for cell, copy in zip(code, ran, strict=True):
        cell.outputs = copy.outputs
        cell.execution_count = copy.execution_count
    return source
