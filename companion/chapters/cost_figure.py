"""The figure of the speed page: what a step costs against seeds, samples and parameters."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib import pyplot

from companion.chapters import figures

if TYPE_CHECKING:
    from companion.chapters.measured import Curve


def draw(curves: "Sequence[Curve]") -> bytes:
    """Return a PNG with one panel per curve, milliseconds on logarithmic axes."""
    figures.style()
    rows = -(-len(curves) // 2)
    fig, grid = pyplot.subplots(rows, 2, figsize=(7.2, 2.9 * rows), squeeze=False)
    for spare in grid.flat[len(curves) :]:
        spare.set_axis_off()
    for axes, curve in zip(grid.flat, curves, strict=False):
        for (name, ms), marker in zip(curve.series.items(), "osD^", strict=False):
            axes.loglog(curve.x, ms, marker=marker, markersize=4, label=name)
        axes.set(xlabel=curve.against, ylabel="ms", title=curve.what)
        axes.legend()
    content = figures.png(fig)
    pyplot.close(fig)
    return content
