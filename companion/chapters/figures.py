"""The house style, and figures that are saved as deterministic bytes with the words a reader needs."""

import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import matplotlib
import seaborn
from IPython.display import Image, display
from matplotlib import pyplot
from matplotlib.figure import Figure

from companion.chapters import paths
from companion.chapters.figure_numbers import numbers

# Seaborn's colour-blind safe palette, one colour per role, the same in every chapter.
COLOURS: Mapping[str, str] = {
    "baseline": "#4d4d4d",
    "noise": "#0173b2",
    "regulariser": "#de8f05",
    "theory": "#029e73",
    "control": "#cc78bc",
    "highlight": "#d55e00",
    "light": "#949494",
}

_DPI = 100
_ALT_AT_LEAST = 40


def style() -> None:
    """Set the house style: page width, legible fonts, and a white ground so that dark mode stays legible."""
    cycle = [COLOURS[role] for role in ("noise", "regulariser", "theory", "control", "highlight", "baseline")]
    seaborn.set_theme(context="notebook", style="whitegrid", palette=cycle)
    matplotlib.rcParams.update(
        {
            "axes.edgecolor": "#333333",
            "axes.labelsize": 11,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 12,
            "figure.constrained_layout.use": True,
            "figure.dpi": _DPI,
            "figure.facecolor": "white",
            "figure.figsize": (7.2, 3.8),
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib, so pages look alike everywhere
            "font.size": 11,
            "grid.color": "#dddddd",
            "image.cmap": "viridis",
            "legend.fontsize": 10,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "savefig.dpi": 2 * _DPI,
            "savefig.facecolor": "white",
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
        }
    )


def check_words(name: str, alt: str, caption: str) -> None:
    """Raise ValueError unless the name can be an anchor, the caption is a sentence and the alt text long."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"figure {name!r}: use lower-case letters, digits and hyphens, since links point to it")
    alt, caption = alt.strip(), caption.strip()
    if len(alt) < _ALT_AT_LEAST:
        raise ValueError(
            f"figure {name}: alt text has {len(alt)} characters; describe the picture in at least {_ALT_AT_LEAST}"
        )
    if alt.rstrip(".").lower() == caption.rstrip(".").lower():
        raise ValueError(f"figure {name}: alt text describes the picture, the caption states the finding; they differ")
    if len(caption.split()) < 4 or caption[0].islower() or caption[-1] not in ".!?":
        raise ValueError(f"figure {name}: the caption {caption!r} is not a sentence that states the finding")


def png(figure: Figure) -> bytes:
    """Return the figure as PNG at twice the display resolution, the same bytes each time."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * _DPI, metadata={"Software": None})  # names the library's version
    return buffer.getvalue()


def show(figure: Figure, folder: Path, name: str, *, alt: str, caption: str, answers: str | None = None) -> Path:
    """Save the figure as `folder/name.png` with its numbers as `name.csv`, display it with its words, close it.

    `answers` names the figure of the paper that this one answers to. ValueError for missing or lazy words.
    """
    check_words(name, alt, caption)
    content, file = png(figure), folder / f"{name}.png"
    paths.write_atomic(file.with_suffix(".csv"), numbers(figure).encode())
    pyplot.close(figure)  # or the inline backend would draw it a second time
    paths.write_atomic(file, content)
    words = {"name": name, "alt": alt.strip(), "caption": caption.strip(), "answers": answers}
    display(Image(content, format="png", retina=True, alt=words["alt"]), metadata={"companion": {"figure": words}})
    return file
