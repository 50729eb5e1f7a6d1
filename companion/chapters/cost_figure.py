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
    fig, row = pyplot.subplots(1, len(curves), figsize=(3.6 * len(curves), 3.4), squeeze=False)
    for axes, curve in zip(row[0], curves, strict=True):
        for (name, ms), marker in zip(curve.series.items(), "osD^", strict=False):
            axes.loglog(curve.x, ms, marker=marker, markersize=4, label=name)
        axes.set(xlabel=curve.against, ylabel="ms", title=curve.what)
        axes.legend()
    content = figures.png(fig)
    pyplot.close(fig)
    return content
