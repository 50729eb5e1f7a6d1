"""The figure of the speed page: what a step costs against seeds, samples and parameters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib import pyplot

from companion.chapters import figures

if TYPE_CHECKING:
    from companion.chapters.measured import Curve


def draw(curves: "Sequence[Curve]") -> bytes:
    """Return a PNG with one panel per curve, milliseconds on logarithmic axes; an odd last one is twice as wide."""
    figures.style()
    rows = -(-len(curves) // 2)
    fig = pyplot.figure(figsize=(7.2, 2.9 * rows))
    grid = fig.add_gridspec(rows, 2)
    for place, curve in enumerate(curves):
        row, column = divmod(place, 2)
        alone = column == 0 and place == len(curves) - 1
        axes = fig.add_subplot(grid[row, :] if alone else grid[row, column])
        for (name, ms), marker in zip(curve.series.items(), "osD^", strict=False):
            axes.loglog(curve.x, ms, marker=marker, markersize=4, label=name)
        axes.set(xlabel=curve.against, ylabel="ms", title=curve.what)
        axes.legend()
    content = figures.png(fig)
    pyplot.close(fig)
    return content
