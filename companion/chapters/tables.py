"""Tables of the book's pages: entries read from YAML into models, and Markdown."""

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


def markdown(head: Iterable[str], rows: Iterable[Iterable[object]], *, left: int | None = None) -> str:
    """Return a Markdown table; bars in its cells are escaped; columns after the first `left` go to the right."""
    head = list(head)
    rule = ["---" if left is None else ":--" if k < left else "--:" for k in range(len(head))]
    lines = [head, rule, *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
