"""Pairing: stable ids, no outputs, and one line that says how to mend what differs."""

import json
from pathlib import Path

import nbformat
import pytest

from companion.chapters import notebooks
from companion.errors import CompanionError


def _source(book: Path) -> Path:
    return book / "notebooks" / "01_tiny.py"


def test_pair_is_stable_and_valid(book: Path) -> None:
    assert notebooks.pair("01_tiny")
    target = book / "notebooks" / "01_tiny.ipynb"
    first = target.read_bytes()
    assert not notebooks.pair("01_tiny")
    target.unlink()
    notebooks.pair("01_tiny")
    assert target.read_bytes() == first
    pair = nbformat.read(target, as_version=4)
    nbformat.validate(pair)
    assert notebooks.tags(pair.cells[1]) == ["parameters"]
    assert notebooks.check_pairs() == []


def test_equal_cells_get_different_ids(book: Path) -> None:
    _source(book).write_text("# %%\nprint(1)\n\n# %%\nprint(1)\n\n# %%\nprint(2)\n")
    before = [cell.id for cell in notebooks.read_source(_source(book)).cells]
    assert len(set(before)) == 3
    # A new cell leaves the ids of the others alone.
    _source(book).write_text("# %%\nprint(0)\n\n# %%\nprint(1)\n\n# %%\nprint(1)\n\n# %%\nprint(2)\n")
    assert [cell.id for cell in notebooks.read_source(_source(book)).cells][1:] == before


def _plant_output(pair: dict) -> None:
    pair["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["7\n"]}]


def _plant_count(pair: dict) -> None:
    pair["cells"][1]["execution_count"] = 3


def _plant_code(pair: dict) -> None:
    pair["cells"][3]["source"] = ["value = 3.0 + seed"]


def _plant_id(pair: dict) -> None:
    pair["cells"][3]["id"] = "another"


@pytest.mark.parametrize(
    ("plant", "word"),
    [
        (_plant_output, "outputs"),
        (_plant_count, "outputs"),
        (_plant_code, "other cells"),
        (_plant_id, "other ids"),
    ],
)
def test_check_names_file_and_command(book: Path, plant, word: str) -> None:
    notebooks.pair("01_tiny")
    target = book / "notebooks" / "01_tiny.ipynb"
    pair = json.loads(target.read_text())
    plant(pair)
    target.write_text(json.dumps(pair))
    (problem,) = notebooks.check_pairs()
    assert word in problem
    assert "notebooks/01_tiny.ipynb" in problem
    assert "companion pair" in problem


def test_check_finds_the_unpaired_the_stray_and_the_broken(book: Path) -> None:
    (problem,) = notebooks.check_pairs()
    assert "01_tiny.ipynb" in problem
    notebooks.pair("01_tiny")
    (book / "notebooks" / "01_tiny.ipynb").write_text("{half")
    (book / "notebooks" / "scratch.ipynb").write_text("{}")
    broken, stray = notebooks.check_pairs()
    assert "is no notebook" in broken
    assert "scratch.ipynb has no .py" in stray


def test_an_edit_in_jupyter_can_win(book: Path) -> None:
    notebooks.pair("01_tiny")
    target = book / "notebooks" / "01_tiny.ipynb"
    pair = json.loads(target.read_text())
    _plant_code(pair)
    _plant_output(pair)
    target.write_text(json.dumps(pair))
    assert notebooks.unpair("01_tiny")
    assert "value = 3.0 + seed" in _source(book).read_text()
    assert 'tags=["nbval-check-output"]' in _source(book).read_text()
    assert notebooks.check_pairs() == []


def test_parameters_are_those_of_the_tagged_cell(book: Path) -> None:
    assert notebooks.parameters(notebooks.read_source(_source(book))) == {"profile": "smoke", "seed": 0}


@pytest.mark.parametrize("line", ["seed = 1 + int(2)", "seed += 1", "import os"])
def test_parameters_are_plain_literals(book: Path, line: str) -> None:
    notebook = notebooks.read_source(_source(book))
    tagged = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    tagged.source = "seed: int = 3"
    assert notebooks.parameters(notebook) == {"seed": 3}
    tagged.source = line
    with pytest.raises(CompanionError, match="name = literal"):
        notebooks.parameters(notebook)


def test_unreadable_source_is_one_line(book: Path) -> None:
    _source(book).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CompanionError, match=r"cannot read .*01_tiny\.py"):
        notebooks.read_source(_source(book))


def test_graft_takes_new_prose_and_refuses_new_code(book: Path) -> None:
    source = notebooks.read_source(_source(book))
    executed = notebooks.read_source(_source(book))
    executed.cells[1].metadata["papermill"] = {"duration": 1.0}
    executed.cells.insert(2, nbformat.v4.new_code_cell("seed = 1", metadata={"tags": [notebooks.INJECTED]}))
    executed.cells[4].outputs = [nbformat.v4.new_output("stream", text="2.0\n")]
    source.cells[0].source = "# New title"
    grafted = notebooks.graft(source, executed)
    assert grafted is not None
    assert grafted.cells[0].source == "# New title"
    assert grafted.cells[3].outputs[0].text == "2.0\n"
    assert "papermill" not in notebooks.dumps(grafted)
    assert "seed = 1" not in notebooks.dumps(grafted)
    source.cells[3].source += "  # changed"
    assert notebooks.graft(source, executed) is None
