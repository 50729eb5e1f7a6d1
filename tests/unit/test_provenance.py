"""Provenance: what moves a digest and what does not, and a record without times, paths or host names."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from companion.chapters import paths, provenance
from companion.errors import CompanionError

PACKAGE = {
    "__init__.py": "",
    "seeds.py": "import hashlib\n",
    "nn/__init__.py": "",
    "nn/blocks.py": "from companion import seeds\n",
    "models/__init__.py": "",
    "models/mlp.py": "def make():\n    from ..nn.blocks import thing\n",
    "models/other.py": "",
    "analysis/__init__.py": "from .spectra import power\n",
    "analysis/spectra.py": "import companion.models.mlp as mlp\n",
}


@pytest.fixture
def tree(book: Path) -> Path:
    for name, text in PACKAGE.items():
        (book / "companion" / name).parent.mkdir(parents=True, exist_ok=True)
        (book / "companion" / name).write_text(text)
    source = paths.notebook("01_small")
    source.write_text(source.read_text().replace("companion.seeds import generator", "companion.analysis import power"))
    return book


def digest() -> str:
    return provenance.digest("01_small", "cpu")


def test_modules_are_followed_through_packages_relative_and_late_imports(tree: Path):
    assert list(provenance.modules(provenance.code_cells("01_small"))) == [
        "companion",
        "companion.analysis",
        "companion.analysis.spectra",
        "companion.models",
        "companion.models.mlp",
        "companion.nn",
        "companion.nn.blocks",
        "companion.seeds",
    ]


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("import companion.models.other", "companion.models.other"),
        ("from companion.models import other, nothing", "companion.models.other"),
        ("%time import companion.models.other", None),  # a magic's text is no import
        ("%matplotlib inline\nimport companion.models.other", "companion.models.other"),
        ("import numpy, companionship.models.other", None),
    ],
)
def test_cells_are_read_like_ipython_reads_them(tree: Path, cell: str, found: str | None):
    modules = provenance.modules([cell])
    assert ("companion.models.other" in modules) == (found is not None)


@pytest.mark.parametrize(
    "file",
    [
        "companion/nn/blocks.py",
        "companion/seeds.py",
        "companion/nn/__init__.py",
        "book/claims/01_small.yml",
        "requirements.lock",
    ],
)
def test_the_digest_moves_with_all_that_results_depend_on(tree: Path, file: str):
    before = digest()
    assert digest() == before
    (tree / file).write_text((tree / file).read_text() + "# changed\n")
    assert digest() != before


def test_the_digest_moves_with_code_and_profile_but_not_with_prose_or_other_modules(tree: Path):
    before, source = digest(), paths.notebook("01_small")
    assert provenance.digest("01_small", "gpu") != before
    (tree / "companion/models/other.py").write_text("x = 1\n")
    source.write_text(source.read_text().replace("# Prose.", "# Better prose."))
    assert digest() == before
    source.write_text(source.read_text().replace("value = 1.0", "value = 2.0"))
    assert digest() != before


def test_text_cannot_wander_between_parts(tree: Path):
    lock, claims = tree / "requirements.lock", tree / "book/claims/01_small.yml"
    lock.write_text("b\n")
    claims.write_text("a\n")
    before = digest()
    claims.write_text("a\nb\n")
    lock.write_text("")
    assert digest() != before


def test_a_digest_of_nothing_is_refused(book: Path):
    with pytest.raises(CompanionError, match="no source for chapter '02_big'"):
        provenance.digest("02_big", "cpu")
    with pytest.raises(CompanionError, match="no profile named 'fast'"):
        provenance.digest("01_small", "fast")


def test_a_chapter_does_not_depend_on_the_machinery_that_runs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMPANION_ROOT", str(Path(provenance.__file__).parents[2]))
    found = set(provenance.modules(["from companion.chapters import Chapter"]))
    assert {"companion.chapters.chapter", "companion.chapters.ledger", "companion.data"} <= found
    assert not found & {f"companion.chapters.{name}" for name in ("runner", "site", "scoreboard", "notebooks")}
    assert "companion.cli" not in found


def test_names_and_results_are_read_without_waiting_for_the_plotting_library():
    code = "import sys, companion.chapters.paths, companion.chapters.profiles; print('seaborn' in sys.modules)"
    root = Path(provenance.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def _git(book: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=book, check=True, capture_output=True)


def test_the_commit_and_whether_the_sources_differ(book: Path):
    assert provenance.commit() == {"commit": "unknown", "dirty": None}  # a folder, not a repository
    _git(book, "init", "-q")
    assert provenance.commit() == {"commit": "unknown", "dirty": None}  # no commit yet
    _git(book, "add", ".")
    _git(book, "commit", "-qm", "first")
    first = provenance.commit()
    assert len(first["commit"]) == 40 and first["dirty"] is False
    (book / "README.md").write_text("new words")  # no result depends on it
    assert provenance.commit() == first
    (book / "notebooks" / "01_small.py").write_text("")
    assert provenance.commit() == first | {"dirty": True}


def test_without_git_the_commit_is_unknown(book: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() == {"commit": "unknown", "dirty": None}


def test_the_record_of_the_machine_is_the_same_twice_and_names_no_place():
    first = provenance.machine(torch.device("cpu"))
    assert first == provenance.machine(torch.device("cpu"))
    assert first["device"] and first["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert first["versions"]["torch"] == torch.__version__
    assert set(first["versions"]) == {"python", "torch", "numpy", "scipy", "scikit-learn", "matplotlib"}
    text = json.dumps(first)
    assert str(Path.home()) not in text and str(Path.cwd()) not in text


def test_a_stand_ins_card_leaves_out_where_this_machine_looked():
    card = SimpleNamespace(
        name="digits",
        title="Digits",
        source="https://example.org",
        licence="CC0",
        sha256={"b": "2", "a": "1"},
        shape="1797 × 8 × 8",
        note="looked in /somewhere",
        stands_in_for="mnist",
    )
    found = provenance.data_card(card, "train")
    assert found["note"] == "" and found["stands_in_for"] == "mnist"
    assert list(found["sha256"]) == ["a", "b"]
    card.stands_in_for, card.note = None, "a JPEG copy"
    assert provenance.data_card(card, "train")["note"] == "a JPEG copy"


def test_settings_become_plain_json():
    found = provenance.plain({"n": 3, "rates": (0.1, float("nan")), 2: None, "f": Path("x"), "on": True})
    assert found == {"n": 3, "rates": [0.1, None], "2": None, "f": "x", "on": True}
    json.dumps(found, allow_nan=False)
