"""Tables of the book's pages: entries read from YAML into models, and Markdown."""

import re
from collections.abc import Iterable
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from companion.chapters import paths
from companion.errors import CompanionError


def entries(name: str, kind: type[BaseModel]) -> list[Any]:
    """Return the entries of `book/<name>` in their order, none without the file; raises CompanionError if malformed."""
    file = paths.root() / "book" / name
    if not file.is_file():
        return []
    try:
        return [kind.model_validate(entry) for entry in yaml.safe_load(file.read_text(encoding="utf-8")) or []]
    except (yaml.YAMLError, ValidationError) as error:
        raise CompanionError(f"{name}: {' '.join(str(error).split())}") from error


def cell(text: object) -> str:
    """Return `text` as a cell of a Markdown table: an unescaped bar would end the cell, a line break the table."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(str(text).split()))


def markdown(head: Iterable[str], rows: Iterable[Iterable[object]], *, left: int | None = None) -> str:
    """Return a Markdown table; see `cell`; columns after the first `left` go to the right."""
    head = list(head)
    rule = ["---" if left is None else ":--" if k < left else "--:" for k in range(len(head))]
    lines = [head, rule, *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)
