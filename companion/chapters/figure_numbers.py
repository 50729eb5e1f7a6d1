"""The numbers behind a figure, read back from what was drawn, so that they cannot differ from the picture."""

import csv
from collections.abc import Iterator, Sequence
from io import StringIO

import numpy
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, PolyCollection, QuadMesh
from matplotlib.container import BarContainer
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Polygon, StepPatch

_HEAD = ("panel", "title", "x axis", "y axis", "kind", "label", "index", "x", "y", "value")
_CELLS = 10_000  # a map with more is a picture too: nobody reads its cells
Row = tuple[str, str, int, float | None, float | None, float | None]  # kind, label, index, x, y, value


def numbers(figure: Figure) -> str:
    """Return CSV with one row per drawn point, bar, interval end or cell; pictures have no rows.

    A row of a bar holds its middle and its length; one of a cell of a heat map its centre, on the axes, and its value;
    one of a contour a corner of its outline and its level.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEAD)
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    for panel, axes in enumerate(panels, start=1):
        title = " ".join(f"{axes.get_title(loc='left')} {axes.get_title()}".split())
        names = [" ".join(name.split()) for name in (axes.get_xlabel(), axes.get_ylabel())]
        for kind, label, index, *values in _rows(axes):
            writer.writerow([panel, title, *names, kind, label, index, *map(_digits, values)])
    return text.getvalue()


def _digits(value: float | None) -> str:
    # Six digits are more than a picture shows, and fewer than two runs on one machine may differ in.
    return "" if value is None or not numpy.isfinite(value) else f"{float(value) + 0.0:.6g}"


def _label(artist: object) -> str:
    label = str(artist.get_label())  # type: ignore[attr-defined]
    return "" if label.startswith("_") else label


def _points(kind: str, label: str, points: object, values: object = None) -> Iterator[Row]:
    pairs = numpy.asarray(points, dtype=float).reshape(-1, 2)
    blank: numpy.ndarray = numpy.full(len(pairs), numpy.nan)
    extra = blank if values is None else numpy.ma.asarray(values, dtype=float).filled(numpy.nan)
    for index, (x, y) in enumerate(pairs):
        yield kind, label, index, x, y, float(extra[index])


def _cells(label: str, centres: numpy.ndarray, array: object) -> Iterator[Row]:
    """Yield the cells of `array`, row by row, whose centres are `[..., 2]`."""
    if centres.size <= 2 * _CELLS:
        yield from _points("cell", label, centres, numpy.ma.asarray(array).ravel())


def _mesh(mesh: QuadMesh) -> Iterator[Row]:
    corners = numpy.asarray(mesh.get_coordinates(), dtype=float)
    centres = (corners[:-1, :-1] + corners[1:, :-1] + corners[:-1, 1:] + corners[1:, 1:]) / 4
    array: numpy.ndarray = numpy.ma.asarray(mesh.get_array()).ravel()
    gouraud = len(array) > centres.size // 2  # a shading with a value at each corner
    yield from _cells(_label(mesh), corners if gouraud else centres, array)


def _image(image: AxesImage) -> Iterator[Row]:
    array = image.get_array()
    if array is None or array.ndim != 2:
        return
    left, right, bottom, top = image.get_extent()
    if image.origin == "upper":
        bottom, top = top, bottom  # the extent names the picture's lower edge first, whatever row lies there
    rows, columns = array.shape
    x = left + (right - left) * (numpy.arange(columns) + 0.5) / columns
    y = bottom + (top - bottom) * (numpy.arange(rows) + 0.5) / rows
    yield from _cells(_label(image), numpy.stack(numpy.meshgrid(x, y), -1), array)


def _contours(contours: ContourSet) -> Iterator[Row]:
    """Yield the corners of the outline of each level, with the level (the lower end of a filled band) as value."""
    levels = list(contours.levels)
    if contours.filled and contours.extend in ("min", "both"):
        levels.insert(0, -numpy.inf)  # the band below the first level
    for level, path in zip(levels, contours.get_paths(), strict=False):  # a band lies between two levels
        corners, codes = numpy.asarray(path.vertices), numpy.asarray(path.codes)
        for outline in numpy.split(corners, numpy.flatnonzero(codes == path.MOVETO)[1:]):
            yield from _points("outline", _label(contours), outline, numpy.full(len(outline), level))


def _joined(parts: Sequence[numpy.ndarray]) -> numpy.ndarray:
    return numpy.concatenate(parts) if len(parts) else numpy.empty((0, 2))  # an empty band serves a legend


def _rows(axes: Axes) -> Iterator[Row]:
    for line in axes.lines:
        in_data = line.get_transform().contains_branch_seperately(axes.transData)  # the library's spelling
        for kind, label, index, x, y, _ in _points("line", _label(line), line.get_xydata()):
            yield kind, label, index, x if in_data[0] else None, y if in_data[1] else None, None
    for collection in axes.collections:
        if isinstance(collection, PathCollection):
            yield from _points("point", _label(collection), collection.get_offsets(), collection.get_array())
        elif isinstance(collection, LineCollection):
            yield from _points("segment", _label(collection), _joined(collection.get_segments()))
        elif isinstance(collection, ContourSet):
            yield from _contours(collection)
        elif isinstance(collection, QuadMesh):
            yield from _mesh(collection)
        elif isinstance(collection, PolyCollection):
            corners = [numpy.asarray(path.vertices) for path in collection.get_paths()]
            yield from _points("band", _label(collection), _joined(corners))
    for container in axes.containers:
        if isinstance(container, BarContainer):
            upright = container.orientation != "horizontal"
            for index, bar in enumerate(container.patches):
                middle = bar.get_center()
                length = bar.get_height() if upright else bar.get_width()
                yield "bar", _label(container), index, middle[0], middle[1], length
    for patch in axes.patches:
        if isinstance(patch, StepPatch):
            values, edges, _ = patch.get_data()
            yield from _points("step", _label(patch), numpy.stack([edges[:-1], values], axis=1))
        elif isinstance(patch, Polygon):
            yield from _points("outline", _label(patch), patch.get_xy())
    if axes.axison and (len(axes.get_xticks()) or len(axes.get_yticks())):  # a heat map; else a picture
        for image in axes.images:
            yield from _image(image)
