"""A Sphinx extension of a few lines: the reference of the package stays out of the index of terms."""

from typing import Any

from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

API = "book/api"


class NoIndexOfNames(SphinxTransform):
    """Drop the index entries of the reference page, whose hundreds of names would drown the terms."""

    default_priority = 840  # Sphinx collects the entries at 850

    def apply(self, **kwargs: Any) -> None:
        """Remove the index nodes of the page that is being read, if it is the reference."""
        if self.env.docname == API:
            for node in list(self.document.findall(addnodes.index)):
                node.parent.remove(node)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.add_transform(NoIndexOfNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
