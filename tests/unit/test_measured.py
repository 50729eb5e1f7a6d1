"""The pages on scaling and speed: numbers from the committed files or none, and measurements that must agree."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from companion.chapters import cost_figure, measured
from companion.errors import CompanionError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """The two pages in a folder of their own, with what was measured for them."""
    for name in ("scaling", "speed"):
        for file in (f"book/{name}.md", f"book/results/{name}.json"):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    monkeypatch.setenv("COMPANION_ROOT", str(tmp_path))
    return tmp_path


def test_what_is_committed_fits_the_schema_and_says_that_results_were_equal(pages):
    scaling = measured.read("scaling")
    arms = {arm.arm: arm for arm in scaling.sweep}
    assert list(arms) == ["one process", "one program", "loky", "dask"]
    assert arms["loky"].difference == arms["dask"].difference == 0
    assert arms["loky"].workers == arms["dask"].workers == 2
    assert max(arms["one program"].difference, scaling.torchrun.difference) <= scaling.problem.tolerance
    assert scaling.torchrun.repeatable and scaling.torchrun.processes == 2
    assert [case.backend for case in scaling.killed] == ["loky", "dask"]
    assert scaling.killed[0].kept > 0 and "a sweep worker was killed" in scaling.killed[0].message
    assert {"joblib", "distributed"} <= set(scaling.provenance["libraries"])
    speed = measured.read("speed")
    steps = [row for row in speed.rows if row.group == "Training step of each model"]
    assert len(steps) >= 7 and all(row.parameters and row.ms for row in steps if not row.note)
    assert [curve.against for curve in speed.curves] == ["seeds", "samples", "parameters"]
    assert all(len(ms) == len(curve.x) for curve in speed.curves for ms in curve.series.values())
    for note in (scaling.provenance, speed.provenance):
        assert len(note["commit"]) == 40 and note["cores"] >= 1 and note["versions"]["torch"]
        assert str(Path.home()) not in json.dumps(note)


def test_the_figure_is_drawn_again_only_for_other_numbers(pages, monkeypatch):
    drawings = []
    monkeypatch.setattr(cost_figure, "draw", lambda curves: drawings.append(len(curves)) or b"%d" % len(drawings))
    assert measured.pages()["book/cost-curves.png"] == measured.pages()["book/cost-curves.png"] == b"1"
    content = json.loads(measured.file("speed").read_text())
    content["curves"].pop()
    measured.write("speed", content)
    assert measured.pages()["book/cost-curves.png"] == b"2"
    assert drawings == [3, 2]


@pytest.mark.parametrize(("panels", "widths"), [(1, [2]), (2, [1, 1]), (3, [1, 1, 2])])
def test_the_panels_fill_the_figure(monkeypatch, panels, widths):
    figures = []
    monkeypatch.setattr(cost_figure.figures, "png", lambda figure: figures.append(figure) or b"")
    curve = measured.Curve(against="seeds", what="a step", x=[1, 2], series={"ours": [1.0, 2.0]})
    cost_figure.draw([curve] * panels)
    spans = [axes.get_subplotspec() for axes in figures[0].axes]
    assert [len(span.colspan) for span in spans] == widths
    assert sum(widths) == 2 * spans[0].get_gridspec().nrows


def test_pages_take_their_numbers_from_the_files(pages):
    made = measured.pages()
    assert set(made) == {"book/scaling.md", "book/speed.md", "book/cost-curves.png"}
    assert made["book/cost-curves.png"].startswith(b"\x89PNG")
    text = made["book/scaling.md"].decode() + made["book/speed.md"].decode()
    assert "<!-- measured" not in text and "Not measured" not in text
    (alt,) = (line for line in text.splitlines() if line.startswith(":alt:"))
    first = measured.read("speed").curves[0]
    for name, ms in first.series.items():
        assert f"{name} {measured._size(ms[0])} to {measured._size(ms[-1])} ms" in alt
    content = json.loads(measured.file("scaling").read_text())
    content["sweep"][2]["seconds"] = 98765.4
    content["provenance"]["dirty"] = True
    measured.write("scaling", content)
    again = measured.pages()["book/scaling.md"].decode()
    assert "98765.4" in again and "98765.4" not in text
    assert "with uncommitted changes" in again
    assert measured.pages()["book/speed.md"] == made["book/speed.md"]


@pytest.mark.parametrize("name", ["scaling", "speed"])
def test_a_page_without_measurements_says_so(pages, name):
    measured.file(name).unlink()
    made = measured.pages()
    text = made[f"book/{name}.md"].decode()
    assert text.count("Not measured yet") == len(measured._MARK.findall((pages / f"book/{name}.md").read_text()))
    assert measured._COMMAND[name] in text
    assert ("book/cost-curves.png" in made) == (name == "scaling")


def test_a_book_without_the_pages_has_none(pages):
    (pages / "book/scaling.md").unlink()
    (pages / "book/speed.md").unlink()
    assert measured.pages() == {}


def test_a_mark_that_nobody_fills_is_an_error(pages):
    page = pages / "book/speed.md"
    page.write_text(page.read_text() + "\n<!-- measured:sweep -->\n")
    with pytest.raises(CompanionError, match=r"book/speed\.md: no measured part 'sweep': choose one of groups"):
        measured.pages()


@pytest.mark.parametrize(
    ("text", "found"),
    [("{", "Invalid JSON"), ("[]", "should be an object"), ('{"rows": []}', "provenance: Field required")],
)
def test_a_broken_file_is_one_clear_line(pages, text, found):
    measured.file("speed").write_text(text)
    with pytest.raises(CompanionError, match=found) as caught:
        measured.pages()
    assert "make bench" in str(caught.value) and "\n" not in str(caught.value)


def test_what_does_not_fit_is_not_written(pages):
    before = measured.file("speed").read_bytes()
    content = json.loads(before)
    content["rows"][0]["ms"] = float("nan")
    with pytest.raises(ValidationError):
        measured.write("speed", content)
    assert measured.file("speed").read_bytes() == before


@pytest.fixture(scope="module")
def scaling():
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("scaling_script", ROOT / "benchmarks" / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(loss):
    return [{"loss": loss, "weights": "a"}] * 8


def test_the_script_stops_when_workers_give_other_rows(scaling, monkeypatch):
    monkeypatch.setattr(scaling, "ready", lambda config: config)
    monkeypatch.setattr(scaling, "together", lambda steps: [1.0] * 8)
    monkeypatch.setattr(scaling, "sweep", lambda f, c, n_jobs=1, **_: rows(1.0 if n_jobs == 1 else 1.0 + 1e-9))
    with pytest.raises(AssertionError, match="loky's rows differ"):
        scaling.sweeps(1)
    monkeypatch.setattr(scaling, "together", lambda steps: [1.1] * 8)
    with pytest.raises(AssertionError, match="the ensemble's losses are off by"):
        scaling.sweeps(1)


def test_the_script_stops_when_processes_give_other_weights(scaling, monkeypatch, tmp_path):
    def launched(processes, steps, target):
        return {"seconds": 1.0, "weights": str(target), "tensors": {"w": torch.ones(2)}}

    monkeypatch.setattr(scaling, "launched", launched)
    with pytest.raises(AssertionError, match="two launches differ"):
        scaling.parallel(1, tmp_path)
    off = {1: torch.ones(2), 2: torch.full((2,), 1.01)}
    monkeypatch.setattr(scaling, "launched", lambda n, *_: {"seconds": 1.0, "weights": "a", "tensors": {"w": off[n]}})
    with pytest.raises(AssertionError, match="the weights of one and two processes differ"):
        scaling.parallel(1, tmp_path)


def test_the_script_stops_when_no_worker_was_killed_or_a_row_changed(scaling, monkeypatch, tmp_path):
    monkeypatch.setattr(scaling, "sweep", lambda *_, **__: rows(1.0))
    (tmp_path / "log").write_text("0\n" * 9)
    with pytest.raises(AssertionError, match="no worker was killed"):
        scaling.killed("loky", 1, tmp_path)
