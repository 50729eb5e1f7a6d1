"""The reference of the package stays out of the index; every other page is in it."""

from types import SimpleNamespace

import pytest
from docutils.frontend import get_default_settings
from docutils.nodes import paragraph
from docutils.parsers.rst import Parser
from docutils.utils import new_document
from sphinx import addnodes

from companion.chapters.sphinx_index import NoIndexOfNames


@pytest.mark.parametrize(("name", "left"), [("book/api", 0), ("book/glossary", 2), ("notebooks/01_small", 2)])
def test_only_the_reference_loses_its_index_entries(name: str, left: int) -> None:
    document = new_document(name, get_default_settings(Parser))
    document.settings.env = SimpleNamespace(docname=name)
    inner = paragraph("", "", addnodes.index(entries=[]))
    document += [addnodes.index(entries=[]), inner, paragraph("", "text")]
    NoIndexOfNames(document).apply()
    assert len(list(document.findall(addnodes.index))) == left
    assert len(document.children) == (2 if name == "book/api" else 3)
