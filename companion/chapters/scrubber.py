"""A pre-rendered scrubber: frames inside the page and a slider, without a server and without the network."""

import base64
import html
from collections.abc import Sequence
from io import BytesIO

from matplotlib import pyplot
from matplotlib.figure import Figure


def scrubber(frames: Sequence[Figure], labels: Sequence[str], *, title: str) -> str:
    """Return HTML that shows one frame at a time; each frame's label is its alt text. Closes the figures.

    Raises ValueError unless every frame has a label. Without JavaScript all frames are shown one under the other.
    """
    if not frames or len(frames) != len(labels):
        raise ValueError(f"{len(frames)} frames and {len(labels)} labels: give each frame its own")
    pictures = []
    for frame, label in zip(frames, labels, strict=True):
        buffer = BytesIO()
        frame.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
        pyplot.close(frame)
        content = base64.b64encode(buffer.getvalue()).decode()
        words = html.escape(label, quote=True)
        picture = f'<img alt="{words}" src="data:image/png;base64,{content}" style="max-width: 100%">'
        pictures.append(f"<div>{picture}<div>{html.escape(label)}</div></div>")
    choose = "Array.from(this.closest('figure').querySelectorAll('div.frames > div'))"
    show = f"{choose}.forEach((d, i) => d.hidden = i != this.value)"
    name = html.escape(title, quote=True)
    return (
        f'<figure><figcaption>{name}</figcaption><input type="range" min="0" max="{len(frames) - 1}" value="0" '
        f'aria-label="{name}" style="width: 100%" oninput="{show}">'
        f'<div class="frames">{"".join(pictures)}</div></figure>'
        "<script>document.currentScript.previousElementSibling.querySelector('input')"
        ".dispatchEvent(new Event('input'))</script>"
    )
