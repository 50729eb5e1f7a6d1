"""The whole book at the smoke profile, built once in a scratch copy: a reader's `_build` stays as it is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "_config.yml",
    "_toc.yml",
    "README.md",
    "requirements.lock",
    "pyproject.toml",
    "book",
    "companion",
    "notebooks",
)


@pytest.fixture(scope="session")
def smoke_html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the rendered pages."""
    root = tmp_path_factory.mktemp("book")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    for name in ("executed", "results", "figures"):  # `companion run` takes what `make test` has run already
        if (ran := ROOT / "_build" / name / "smoke").is_dir():
            shutil.copytree(ran, root / "_build" / name / "smoke")
    hidden = ("COMPANION_RESULTS", "COMPANION_FIGURES")
    env = {key: value for key, value in os.environ.items() if key not in hidden} | {"COMPANION_ROOT": str(root)}
    for step in (["run"], ["build", "--clean"]):
        command = [sys.executable, "-c", "from companion.cli import app; app()", *step, "--profile", "smoke"]
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return root / "_build" / "html"
