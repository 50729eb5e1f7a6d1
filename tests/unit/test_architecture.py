"""The rooms of the package and the arrows between them: an import always points down, and files stay short."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "companion"
ROOMS = ("cli", "chapters", "analysis", "train", "models", "nn", "data")  # from the top down
COMMON = {"errors", "files", "seeds"}  # anyone may use them
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def rooms(source: str) -> set[str]:
    """Return the rooms that `source` imports, wherever the import stands."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports inside the package are absolute"
            names += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    parts = [name.split(".") for name in names]
    return {name[1] for name in parts if name[0] == "companion" and len(name) > 1 and name[1] in ROOMS}


def wrong_arrows(file: str, source: str) -> list[str]:
    """Return the rooms that `file` may not enter."""
    room = file.split("/")[0].removesuffix(".py")
    if room in COMMON or room == "__init__":
        return sorted(rooms(source))
    below = ROOMS[ROOMS.index(room) :]
    forbidden = {"train"} if room == "models" else {"models", "nn"} if room == "train" else set()
    return sorted(entered for entered in rooms(source) if entered not in below or entered in forbidden)


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file: str) -> None:
    assert not wrong_arrows(file, (PACKAGE / file).read_text("utf-8"))


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_readable_in_one_sitting(file: str) -> None:
    assert len((PACKAGE / file).read_text("utf-8").splitlines()) <= 300


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("models/x.py", "from companion.train import fit", ["train"]),
        ("models/x.py", "def f():\n    import companion.chapters.paths", ["chapters"]),
        ("train/x.py", "from companion.models import harmonic_vae", ["models"]),
        ("nn/x.py", "from companion import analysis", ["analysis"]),
        ("seeds.py", "from companion.data import load", ["data"]),
        ("analysis/x.py", "from companion.models import harmonic_vae\nfrom companion.seeds import generator", []),
    ],
)
def test_an_arrow_up_is_found(file: str, source: str, wrong: list[str]) -> None:
    assert wrong_arrows(file, source) == wrong
