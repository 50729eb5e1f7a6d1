"""From an executed notebook to the notebook that becomes a page: captions, claim boxes, chips."""

import re
from collections.abc import Collection
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from companion.chapters.notebooks import tags
from companion.errors import CompanionError

CHIPS = "<!-- chips -->"


def numbers_file(chapter: str, name: str) -> str:
    """Return where, seen from the chapter's page, the numbers behind the figure `name` lie."""
    return f"numbers/{chapter}/{name}.csv"


def present(notebook: NotebookNode, chapter: str, chips: str, numbers: Collection[str] = ()) -> NotebookNode:
    """Return `notebook` (source with grafted outputs) as the page of `chapter`.

    Figures get alt text, name (for numref) and caption as `mystnb` cell metadata, and those named in `numbers`
    a link to their CSV. myst-nb reads it per cell,
    so each figure beyond a cell's first moves to a cell of its own. Claims become boxes with anchors.
    Raises CompanionError on an image without alt text.
    """
    cells: list[NotebookNode] = []
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code":
            cells += _code(cell, f"{chapter}, cell {number}", chapter, numbers)
        else:
            cell.source = cell.source.replace(CHIPS, chips)
            cells.append(cell)
    notebook.cells = cells
    for position, cell in enumerate(cells):
        cell.id = f"cell-{position}"
    return notebook


def _code(cell: NotebookNode, where: str, chapter: str, numbers: Collection[str]) -> list[NotebookNode]:
    if {"remove-cell", "remove-output"} & set(tags(cell)):
        return [cell]
    outputs, cell.outputs = cell.outputs, []
    cells = [cell]
    for output in outputs:
        ours = output.get("metadata", {}).get("companion", {})
        if "claim" in ours:
            title, _, body = output.data["text/markdown"].partition("\n\n")
            anchor = f"claim-{chapter[:2]}-{ours['claim'].lower()}"
            kind = f"claim claim-{ours['status'].replace(' ', '-')}"
            cells.append(_box(title.strip("* "), body, kind, anchor))
        elif "stand_in" in ours:
            cells.append(_box("Not the real data", output.data["text/markdown"], "warning", None))
        else:
            image = any(kind.startswith("image/") for kind in output.get("data", {}))
            shows = output.output_type != "stream"
            last = cells[-1]
            # A figure node wraps every display of its cell, so a figure shares a cell with no other display.
            closed = last.cell_type != "code" or "mystnb" in last.metadata
            if closed or (image and any(o.output_type != "stream" for o in last.outputs)):
                cells.append(_continued(cell))
            if image and shows:
                cells[-1].metadata["mystnb"] = _figure(ours.get("figure", {}), where, chapter, numbers)
            cells[-1].outputs.append(output)
    return cells


def _continued(cell: NotebookNode) -> NotebookNode:
    kept = [tag for tag in tags(cell) if tag == "hide-output"]
    # Hidden, but not empty: myst-nb drops cells without source.
    return new_code_cell("# (continued)", metadata={"tags": ["remove-input", *kept]})


def _figure(figure: dict[str, str], where: str, chapter: str, numbers: Collection[str]) -> dict[str, Any]:
    if not figure.get("alt", "").strip():
        raise CompanionError(f"{where}: a figure without alt text; draw it with chapter.show(fig, name, alt=..., ...)")
    caption = figure["caption"]
    if figure.get("answers"):
        caption += f" *Answers to {figure['answers']} of the paper.*"
    if figure["name"] in numbers:
        caption += f" {{download}}`Numbers (CSV) <{numbers_file(chapter, figure['name'])}>`"
    return {"image": {"alt": figure["alt"]}, "figure": {"name": figure["name"], "caption": caption}}


def _box(title: str, body: str, classes: str, name: str | None) -> NotebookNode:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", body)), default=0))
    options = [f":class: {classes}", *([f":name: {name}"] if name else [])]
    return new_markdown_cell("\n".join([f"{fence}{{admonition}} {title}", *options, "", body, fence]))
