"""The whole book at the smoke profile, built once in a scratch copy: a reader's `_build` stays as it is."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

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


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium that finds no other host."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        message = f"no browser: install one of {', '.join(names)} (.ci/run does)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_playwright() as playwright:
        offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu", offline])
        yield chromium
        chromium.close()
