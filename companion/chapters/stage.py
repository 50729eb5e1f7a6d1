"""The tree that Sphinx reads: pages, configuration and executed chapters, rewritten only where changed."""

import os
import re
import subprocess
from collections.abc import Callable, Collection
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from companion.chapters import compare, crossrefs, errata, measured, notebooks, paths, quotes, scoreboard
from companion.chapters.present import numbers_file, present
from companion.errors import CompanionError

_MATHJAX = "tex-svg-full.js"  # one file, all TeX extensions, no fonts: works from file:// in every browser
_GENERATED = "<!-- generated -->"  # where a page that is written by hand takes in what is made for it
_REMOTE = re.compile(
    r"(?:https?://|ssh://|)(?:[^@/]+@)?(?P<host>[\w.-]*github[\w.-]*)(?::\d+)?[:/](?P<path>.+?)(?:\.git)?/?"
)


def stage(profile: str) -> dict[str, NotebookNode]:
    """Bring `_build/stage` up to date; return each chapter's notebook with outputs, as readers download it.

    A file whose content is as before keeps its time, so that Sphinx reads only what changed.
    Raises CompanionError when a chapter of the table of contents has no (or an outdated) executed copy.
    """
    files: dict[str, bytes] = {
        "_toc.yml": (paths.root() / "_toc.yml").read_bytes(),
        "_config.yml": _config().encode(),
        f"_mathjax/_static/mathjax/{_MATHJAX}": _mathjax().read_bytes(),
    }
    for path in sorted((paths.root() / "book").rglob("*")):
        name = path.relative_to(paths.root()).as_posix()
        if path.is_file() and not name.startswith(("book/claims/", "book/results/")):
            files[name] = path.read_bytes()
    files |= _pages(profile)
    files |= measured.pages()
    whole = {}
    for chapter in paths.contents():
        whole[chapter] = executed(chapter, profile)
        drawn = {p.stem: p.read_bytes() for p in paths.figures_dir(chapter, profile).glob("*.csv")}
        drawn = {name: text for name, text in drawn.items() if text.count(b"\n") > 1}  # a picture has a head only
        files |= {f"notebooks/{numbers_file(chapter, name)}": text for name, text in drawn.items()}
        staged = page(nbformat.from_dict(whole[chapter]), chapter, profile, drawn)
        files[f"notebooks/{chapter}.ipynb"] = notebooks.dumps(staged).encode()
    _update(paths.stage_dir(), files)
    return whole


def page(copy: NotebookNode, chapter: str, profile: str, numbers: Collection[str]) -> NotebookNode:
    """Return the page of a chapter, from a copy of its executed notebook: with chips, boxes, index and links.

    Figures named in `numbers` get a link to their CSV.
    """
    if also := crossrefs.see_also(chapter):
        copy.cells.append(new_markdown_cell(quotes.expand(also, "book/links.yml")))
    return present(crossrefs.index(copy), chapter, scoreboard.chips(chapter, profile), numbers)


def executed(chapter: str, profile: str) -> NotebookNode:
    """Return the chapter as its source now reads, with the outputs of its last run at `profile`.

    Raises CompanionError when it was not run, or when its code has changed since.
    """
    mend = f"run `companion run {chapter} --profile {profile}`"
    path = paths.executed_file(paths.check_chapter(chapter), profile)
    if not path.is_file():
        raise CompanionError(f"{chapter} has no executed copy at profile {profile}: {mend}")
    source = notebooks.read_source(paths.notebook(chapter))
    try:
        ran = nbformat.read(path, as_version=4)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # nbformat's ways to meet damage
        raise CompanionError(f"{path} is damaged: {mend.removesuffix('`')} --force`") from error
    grafted = notebooks.graft(source, ran)
    if grafted is None:
        raise CompanionError(f"the code of {chapter} has changed since its run at profile {profile}: {mend}")
    return grafted


def _update(folder: Path, files: dict[str, bytes]) -> None:
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        if path.relative_to(folder).as_posix() not in files:
            path.unlink()
    for name, content in files.items():
        target = folder / name
        if not target.is_file() or target.read_bytes() != content:
            paths.write_atomic(target, content)


def _pages(profile: str) -> dict[str, bytes]:
    """Return the book's pages with what is generated for them, and with quotes of recorded numbers filled in."""
    made: dict[str, Callable[[], str]] = {
        "scoreboard": scoreboard.page,
        "errata": errata.page,
        "comparison": compare.page,
        "environment": lambda: scoreboard.environment_page(profile),
        "api": _api,
    }
    # Sphinx writes the index itself; this page only gives it a place in the table of contents.
    pages = {"genindex.md": b"# Index\n"}
    for path in sorted((paths.root() / "book").glob("*.md")):
        name, text = f"book/{path.name}", path.read_text("utf8")
        if text.count(_GENERATED) != (path.stem in made):
            raise CompanionError(
                f"{name}: the line {_GENERATED} stands once on {', '.join(made)}, and on no other page"
            )
        if path.stem in made:
            text = text.replace(_GENERATED, made[path.stem]())
        pages[name] = quotes.expand(text, name).encode()
    return pages


def _api() -> str:
    parts = []
    for path in sorted(paths.package().rglob("*.py")):
        name = ".".join(("companion", *path.relative_to(paths.package()).with_suffix("").parts))
        name = name.removesuffix(".__init__")
        if name == "companion.cli" or not path.read_text("utf8").strip():
            continue  # `companion --help` documents the command line
        options = "   :members:\n   :undoc-members:\n   :ignore-module-all:"
        parts.append(f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n{options}\n```")
    return "\n\n".join(parts)


def repository_url(default: str) -> str:
    """Return the address for the launch buttons: the CI's repository, else the remote's, else `default`."""
    remote = ""
    if "GITHUB_REPOSITORY" in os.environ:
        server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
        remote = f"{server}/{os.environ['GITHUB_REPOSITORY']}"
    else:
        command = ["git", "-C", str(paths.root()), "remote", "get-url", "origin"]
        try:
            remote = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        except FileNotFoundError:  # no git on this machine
            return default
    # Only host and path are kept: a remote may carry a token. The theme refuses hosts that it doesn't know.
    match = _REMOTE.fullmatch(remote)
    return f"https://{match['host']}/{match['path']}" if match else default


def _config() -> str:
    config: dict[str, Any] = yaml.safe_load((paths.root() / "_config.yml").read_text("utf8"))
    repository = config.setdefault("repository", {})
    repository["url"] = repository_url(repository.get("url", ""))
    config["execute"] = {**config.get("execute", {}), "execute_notebooks": "off"}
    sphinx = config.setdefault("sphinx", {}).setdefault("config", {})
    sphinx["mathjax_path"] = f"mathjax/{_MATHJAX}"
    # Not in `_static`: jupyter-book would load every script that it finds there.
    sphinx["html_extra_path"] = [*sphinx.get("html_extra_path", []), "_mathjax"]
    return yaml.safe_dump(config, sort_keys=True, allow_unicode=True)


def _mathjax() -> Path:
    package = "sphinx-mathjax-offline"
    if find_spec(package) is None:
        raise CompanionError("the book needs sphinx-mathjax-offline: install with `pip install -e .[book]`")
    return Path(str(import_module(package).__file__)).parent / "static" / "mathjax" / _MATHJAX
