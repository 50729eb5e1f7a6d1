"""Figures: words that a reader needs, and the same bytes each time."""

import csv
from pathlib import Path

import matplotlib
import numpy
import pytest
from matplotlib import colors, pyplot
from matplotlib.figure import Figure

from companion.chapters import figures
from companion.chapters.figure_numbers import numbers

ALT = "Two falling lines on logarithmic axes; the lower one is twice as steep."
CAPTION = "With the missing term added, the remainder is of fourth order."


@pytest.fixture
def figure() -> Figure:
    figures.style()
    drawn, axes = pyplot.subplots()
    axes.plot([1, 2, 3], [1, 4, 9], label="noise")
    axes.set(xlabel="noise [std]", ylabel="loss [nats]")
    axes.legend()
    return drawn


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list:
    found: list = []
    monkeypatch.setattr(figures, "display", lambda shown, metadata: found.append((shown, metadata)))
    return found


def test_a_figure_is_saved_displayed_and_closed(figure, displayed, tmp_path):
    file = figures.show(figure, tmp_path, "remainder", alt=ALT, caption=CAPTION, answers="Fig. 2")
    ((image, metadata),) = displayed
    assert file == tmp_path / "remainder.png" and file.read_bytes() == image.data
    words = {"name": "remainder", "alt": ALT, "caption": CAPTION, "answers": "Fig. 2"}
    assert metadata == {"companion": {"figure": words}}
    assert not pyplot.fignum_exists(figure.number)


def test_the_display_is_at_half_the_pixels_with_alt_text(figure, displayed, tmp_path):
    figures.show(figure, tmp_path, "remainder", alt=ALT, caption=CAPTION)
    _, metadata = displayed[0][0]._repr_mimebundle_()
    assert metadata["image/png"] == {"width": 720, "height": 380, "alt": ALT}


def test_the_bytes_are_the_same_each_time_and_name_no_software(figure):
    first = figures.png(figure)
    assert first == figures.png(figure)
    assert b"Software" not in first and b"matplotlib" not in first and b"tIME" not in first
    figure.axes[0].set_title("other")
    assert first != figures.png(figure)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alt": ""}, "alt text has 0 characters"),
        ({"alt": " " * 50}, "alt text has 0 characters"),
        ({"alt": "A plot of the loss."}, "at least 40"),
        ({"alt": CAPTION.upper()}, "they differ"),
        ({"caption": ""}, "is not a sentence"),
        ({"caption": "Remainder against noise"}, "is not a sentence"),
        ({"caption": "the remainder is small."}, "is not a sentence"),
        ({"caption": "Remainder."}, "is not a sentence"),
        ({"name": "Fig 2"}, "links point to it"),
        ({"name": "../escape"}, "links point to it"),
    ],
)
def test_missing_or_lazy_words_are_refused(figure, displayed, tmp_path, change, message):
    words = {"name": "remainder", "alt": ALT, "caption": CAPTION} | change
    with pytest.raises(ValueError, match=message):
        figures.show(figure, tmp_path, words.pop("name"), **words)
    assert not displayed and not list(tmp_path.iterdir())
    pyplot.close(figure)


def test_alt_text_and_caption_cannot_be_left_out(figure, tmp_path):
    with pytest.raises(TypeError, match="'alt' and 'caption'"):
        figures.show(figure, tmp_path, "remainder")  # type: ignore[call-arg]
    pyplot.close(figure)


def _contrast_on_white(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colors.to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 1.05 / (luminance + 0.05)


def test_role_colours_are_distinct_and_visible_on_white(tmp_path: Path):
    figures.style()
    assert matplotlib.rcParams["figure.facecolor"] == matplotlib.rcParams["savefig.facecolor"] == "white"
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
    for role in ("baseline", "noise", "regulariser", "theory", "control", "highlight"):
        assert _contrast_on_white(figures.COLOURS[role]) > 2.4, role


def rows(drawn: Figure) -> list[dict[str, str]]:
    return list(csv.DictReader(numbers(drawn).splitlines()))


def test_the_numbers_of_a_figure_are_saved_beside_it(figure, displayed, tmp_path):
    figures.show(figure, tmp_path, "remainder", alt=ALT, caption=CAPTION)
    found = list(csv.DictReader((tmp_path / "remainder.csv").read_text().splitlines()))
    assert [(r["label"], r["x"], r["y"]) for r in found] == [
        ("noise", "1", "1"),
        ("noise", "2", "4"),
        ("noise", "3", "9"),
    ]
    assert {(r["x axis"], r["y axis"], r["kind"]) for r in found} == {("noise [std]", "loss [nats]", "line")}


def test_every_kind_of_mark_gives_its_numbers():
    drawn, axes = pyplot.subplots(2, 3)
    axes[0, 0].bar([1, 2], [3.5, 4.5], label="bars")
    axes[0, 0].axhline(0.25, label="chance")
    axes[0, 1].barh(["a", "b"], [7, 8])
    axes[0, 2].scatter([1, 2], [3, 4], c=[0.5, 0.6], label="points")
    axes[1, 0].errorbar([1], [2], yerr=[0.5])
    axes[1, 0].fill_between([0, 1], [0, 0], [1, 2])
    axes[1, 0].fill_between([], [], [], label="in the legend only")
    axes[1, 1].pcolormesh([[1.0, 2.0], [3.0, 4.0]])
    drawn.colorbar(axes[1, 1].collections[0])
    axes[1, 2].imshow([[5.0, 6.0]])
    axes[1, 2].set_title("heat")
    found = rows(drawn)
    pyplot.close(drawn)
    assert [float(r["value"]) for r in found if r["kind"] == "bar"] == [3.5, 4.5, 7, 8]
    assert [(r["x"], r["y"]) for r in found if r["label"] == "chance"] == [("", "0.25")] * 2
    assert [(r["x"], r["y"], r["value"]) for r in found if r["label"] == "points"] == [
        ("1", "3", "0.5"),
        ("2", "4", "0.6"),
    ]
    assert [r["y"] for r in found if r["kind"] == "segment"] == ["1.5", "2.5"]
    assert {"0", "1", "2"} == {r["y"] for r in found if r["kind"] == "band"}
    assert [r["value"] for r in found if r["kind"] == "cell"] == ["1", "2", "3", "4", "5", "6"]  # no colour bar's
    assert {r["title"] for r in found if r["panel"] == "6"} == {"heat"}


def cells(drawn: Figure) -> list[tuple[float, ...]]:
    return [tuple(float(row[name]) for name in ("x", "y", "value")) for row in rows(drawn) if row["kind"] == "cell"]


@pytest.mark.parametrize(
    ("options", "xs", "ys"),
    [
        ({}, (0, 1), (0, 1)),
        ({"origin": "lower"}, (0, 1), (0, 1)),
        ({"extent": (0, 4, 0, 20)}, (1, 3), (15, 5)),  # the first row is at the top
        ({"extent": (0, 4, 0, 20), "origin": "lower"}, (1, 3), (5, 15)),
        ({"extent": (4, 0, 20, 0)}, (3, 1), (5, 15)),
    ],
)
def test_the_cells_of_an_image_stand_where_its_axes_say(options, xs, ys):
    drawn, axes = pyplot.subplots()
    axes.imshow([[1.0, 2.0], [3.0, 4.0]], **options)
    assert cells(drawn) == [(xs[0], ys[0], 1), (xs[1], ys[0], 2), (xs[0], ys[1], 3), (xs[1], ys[1], 4)]
    pyplot.close(drawn)


def test_the_cells_of_a_mesh_stand_at_their_centres():
    drawn, (flat, smooth) = pyplot.subplots(1, 2)
    flat.pcolormesh([0, 1, 3], [0, 10, 30], [[1, 2], [3, 4]])
    smooth.pcolormesh([0, 1], [5, 6], [[1, 2], [3, 4]], shading="gouraud")
    assert cells(drawn)[:4] == [(0.5, 5, 1), (2, 5, 2), (0.5, 20, 3), (2, 20, 4)]
    assert cells(drawn)[4:] == [(0, 5, 1), (1, 5, 2), (0, 6, 3), (1, 6, 4)]
    pyplot.close(drawn)


@pytest.mark.parametrize("draw", ["contour", "contourf", "tricontour", "tricontourf"])
def test_the_outlines_of_contours_lie_at_their_level(draw):
    x, y = numpy.meshgrid(numpy.linspace(-2, 2, 41), numpy.linspace(-2, 2, 41))
    points = (x.ravel(), y.ravel(), (x + y).ravel()) if draw.startswith("tri") else (x, y, x + y)
    drawn, axes = pyplot.subplots()
    getattr(axes, draw)(*points, levels=[-1.0, 0.0, 1.0])
    found = [(float(r["x"]) + float(r["y"]), float(r["value"])) for r in rows(drawn) if r["kind"] == "outline"]
    pyplot.close(drawn)
    levels = {level for _, level in found}
    if draw.endswith("f"):  # a band from its level to the next one
        assert levels == {-1, 0} and all(level - 1e-5 <= height <= level + 1 + 1e-5 for height, level in found)
    else:
        assert levels == {-1, 0, 1} and all(abs(height - level) < 1e-5 for height, level in found)


def test_outlines_of_one_level_are_told_apart_and_the_outermost_bands_have_their_place():
    drawn, (two, extended) = pyplot.subplots(1, 2)
    x, y = numpy.meshgrid(numpy.linspace(-2, 2, 41), numpy.linspace(-1, 1, 21))
    two.contour(x, y, (abs(x) - 1) ** 2 + y**2 - 0.75, levels=[-0.5])
    extended.contourf(x, y, x, levels=[-1.0, 1.0], extend="both")
    found = rows(drawn)
    pyplot.close(drawn)
    assert sum(r["index"] == "0" for r in found if r["panel"] == "1") == 2
    bands = {(r["value"], float(r["x"]) <= -1, float(r["x"]) >= 1) for r in found if r["panel"] == "2"}
    assert {value for value, *_ in bands} == {"", "-1", "1"}
    assert all(low for value, low, _ in bands if value == "") and all(high for value, _, high in bands if value == "1")


def test_pictures_give_no_numbers():
    drawn, (axes, large) = pyplot.subplots(1, 2)
    axes.imshow([[1.0, 2.0]])
    axes.set_axis_off()
    large.imshow([[0.0] * 101] * 100)
    assert not rows(drawn)
    pyplot.close(drawn)
