"""What turns a notebook into a chapter of the book."""

import sys
from typing import TYPE_CHECKING, Any

# jsonschema (which nbformat imports) would compile a grammar that nobody here uses: 3 s in every process.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

if TYPE_CHECKING:
    from companion.chapters.chapter import Chapter

__all__ = ["Chapter"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the command line lists names and reads results without waiting for PyTorch.
    if name == "Chapter":
        from companion.chapters.chapter import Chapter

        return Chapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
