"""Markdown tables: what stands in a cell neither ends it nor the table."""

import pytest

from companion.chapters.tables import cell, markdown


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a | b", r"a \| b"),
        (r"a \| b", r"a \| b"),  # escaped already
        ("||", r"\|\|"),
        ("two\nlines\n\nand more", "two lines and more"),
        (1.5, "1.5"),
        ("", ""),
    ],
)
def test_a_cell_is_one_cell_and_one_line(text: object, found: str) -> None:
    assert cell(text) == found


def test_a_table_has_a_line_for_each_row() -> None:
    assert markdown(["what", "value"], [["a\nb", "|x|"], ["c", 2]], left=1).splitlines() == [
        "| what | value |",
        "| :-- | --: |",
        r"| a b | \|x\| |",
        "| c | 2 |",
    ]
