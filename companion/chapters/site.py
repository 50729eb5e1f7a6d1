"""Render the staged book with Sphinx, executing nothing, and refuse a page that is not whole."""

import os
import shutil
import subprocess
import sys
import threading

from companion.chapters import notebooks, paths, profiles
from companion.chapters.lock import alone
from companion.chapters.scan import scan
from companion.chapters.stage import stage
from companion.errors import CompanionError

# This Python's jupyter-book, whatever PATH says, without the slow import that companion.chapters avoids too.
# Nor does it collect garbage: the trees of pages that it loads are millions of objects, all of them in use.
_JUPYTER_BOOK = (
    "import gc, sys; gc.disable(); sys.modules['rfc3987_syntax'] = None; from jupyter_book.cli.main import main; main()"
)


def build(profile: str, clean: bool = False) -> str:
    """Render the executed chapters at `profile` into `_build/html`; return the address to open.

    Waits for another build; reads again only what changed, unless `clean` or the last build failed.
    Raises CompanionError with the warnings when Sphinx has any, when a page needs the network or when an image has
    no alt text.
    """
    profiles.get(profile)
    path = paths.build_dir() / "locks" / "build.lock"
    with alone(path, threading.Event(), lambda: print("waiting for another build", file=sys.stderr)):
        return _build_alone(profile, clean)


def _build_alone(profile: str, clean: bool) -> str:
    whole_note = paths.build_dir() / "html.whole"
    made = [paths.html_dir(), paths.build_dir() / ".doctrees", paths.build_dir() / "jupyter_execute"]
    if clean:
        for folder in [*made, paths.stage_dir(), paths.build_dir() / "kept"]:
            shutil.rmtree(folder, ignore_errors=True)
    chapters = stage(profile)
    command = [
        sys.executable,
        "-c",
        _JUPYTER_BOOK,
        "build",
        str(paths.stage_dir()),
        "--path-output",
        str(paths.root()),
    ]
    command += ["-W", "-n", "--keep-going", "-q"]
    # Sphinx warns about a page only when it reads it: after a failure, all must be read again.
    last = whole_note.stat().st_mtime if whole_note.is_file() and not clean else 0.0
    command += [] if last else ["--all"]
    whole_note.unlink(missing_ok=True)
    env = os.environ | {"COMPANION_ROOT": str(paths.root())}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise CompanionError(f"the book did not build:\n{_warnings(done.stderr or done.stdout)}")
    for chapter, notebook in chapters.items():
        download = paths.html_dir() / "_sources" / "notebooks" / f"{chapter}.ipynb"
        paths.write_atomic(download, notebooks.dumps(notebook).encode())
    if problems := scan(paths.html_dir(), last):
        raise CompanionError("the book is not whole:\n" + "\n".join(problems))
    whole_note.touch()
    return (paths.html_dir() / "index.html").as_uri()


def _warnings(log: str) -> str:
    lines = [line for line in log.splitlines() if "WARNING" in line or "ERROR" in line or "Error" in line]
    return "\n".join(line.replace(f"{paths.stage_dir()}{os.sep}", "") for line in lines) or log[-4000:]
