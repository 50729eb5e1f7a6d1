"""Where everything lies: one function per place, all relative to the repository root."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import companion
from companion.errors import CompanionError
from companion.files import write_atomic

_NAME = re.compile(r"\d\d_[a-z0-9_]+")


def _holds_book(folder: Path) -> bool:
    return (folder / "_toc.yml").is_file() and (folder / "companion").is_dir()


def root() -> Path:
    """Return $COMPANION_ROOT, else the nearest checkout above the working folder or above the package.

    Where there is no checkout at all (the package was installed into Colab), it is the working folder.
    """
    if "COMPANION_ROOT" in os.environ:
        return Path(os.environ["COMPANION_ROOT"]).resolve()
    here, there = Path.cwd().resolve(), Path(companion.__file__).resolve()
    return next((folder for folder in [here, *here.parents, *there.parents] if _holds_book(folder)), here)


def package() -> Path:
    """Return the source folder of `companion`: the checkout's, else the installed one."""
    source = root() / "companion"
    return source if (source / "__init__.py").is_file() else Path(companion.__file__).resolve().parent


def notebook(chapter: str, suffix: str = ".py") -> Path:
    """Return the chapter's source (`.py`) or its pair (`.ipynb`)."""
    return root() / "notebooks" / f"{chapter}{suffix}"


def chapters() -> list[str]:
    """Return the names of all chapters, in reading order."""
    return sorted(p.stem for p in (root() / "notebooks").glob("*.py") if _NAME.fullmatch(p.stem))


def contents() -> list[str]:
    """Return the names of the chapters in the table of contents: only these have a page to link to."""
    text = (root() / "_toc.yml").read_text(encoding="utf-8")
    return re.findall(r"^[^#\n]*file:\s*[\"']?notebooks/(\w+)", text, flags=re.MULTILINE)


def check_chapter(name: str) -> str:
    """Return `name` if a chapter has it; raises CompanionError listing the valid names."""
    if name not in chapters():
        raise CompanionError(f"no chapter named {name!r}: choose one of {', '.join(chapters()) or '(none)'}")
    return name


def claims_file(chapter: str) -> Path:
    """Return `book/claims/<chapter>.yml`, else the copy inside the installed package."""
    source = root() / "book" / "claims" / f"{chapter}.yml"
    installed = package() / "claims" / f"{chapter}.yml"
    return installed if installed.is_file() and not source.is_file() else source


def build_dir() -> Path:
    """Return the folder of everything that is made, not written."""
    return root() / "_build"


def results_file(chapter: str, profile: str) -> Path:
    """Return the results of the last run ($COMPANION_RESULTS replaces `_build/results`)."""
    folder = Path(os.environ.get("COMPANION_RESULTS", build_dir() / "results"))
    return folder / profile / f"{chapter}.json"


def run_file(chapter: str, profile: str) -> Path:
    """Return the runner's note beside the results: {"minutes", "finished"}."""
    return results_file(chapter, profile).with_suffix(".run.json")


def recorded_file(chapter: str, profile: str) -> Path:
    """Return the committed results of the chapter at `profile`."""
    return root() / "book" / "results" / profile / f"{chapter}.json"


def previous_file(chapter: str, profile: str) -> Path:
    """Return the results that the committed ones have replaced."""
    return root() / "book" / "results" / profile / "previous" / f"{chapter}.json"


def figures_dir(chapter: str, profile: str) -> Path:
    """Return the folder of the chapter's figures ($COMPANION_FIGURES replaces `_build/figures`)."""
    return Path(os.environ.get("COMPANION_FIGURES", build_dir() / "figures")) / profile / chapter


def executed_file(chapter: str, profile: str) -> Path:
    """Return the executed copy of the chapter's notebook."""
    return build_dir() / "executed" / profile / f"{chapter}.ipynb"


def digest_file(chapter: str, profile: str) -> Path:
    """Return the note beside an executed copy that says what it was made from."""
    return executed_file(chapter, profile).with_suffix(".digest")


def stage_dir() -> Path:
    """Return the tree that Sphinx reads."""
    return build_dir() / "stage"


def html_dir() -> Path:
    """Return the rendered book."""
    return build_dir() / "html"


def kept(key: str, make: Callable[[], bytes]) -> bytes:
    """Return what `make` gave the last time for the same `key`, which says all that it depends on, else call it."""
    file = build_dir() / "kept" / hashlib.sha256(key.encode()).hexdigest()
    if not file.is_file():
        write_atomic(file, make())
    return file.read_bytes()
