"""Tables that the reader filters and sorts: by hand, by keyboard, and plain where there is no script."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

SCRIPT = Path(__file__).resolve().parents[2] / "book" / "_static" / "tables.js"

ROWS = [
    ("1", "C2", "theorem", "2.5", "verified"),
    ("1", "C10", "experiment", "-1e-3 ± 0.1", "not reproduced"),
    ("1", "C1", "theorem", "10", "verified"),
    ("2", "C4a", "experiment", "–", "verified"),
    ("2", "B1", "beyond", "+3%", "not reproduced"),
    ("2", "C3", "beyond", "0.4", "verified"),
]
HEADS = ("Chapter", "Claim", "Kind", "Value", "Status", "Numbers")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folded = "<td><details><summary>2 numbers</summary>slope = 4</details></td>"
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}{folded}</tr>" for row in ROWS)
    head = "".join(f"<th>{name}</th>" for name in HEADS)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    page = tmp_path_factory.mktemp("tables") / "page.html"
    script = f'<script src="{SCRIPT.as_uri()}"></script>'
    page.write_text(f"<!doctype html><title>t</title>{script}<div class=filterable>{table}</div>{table}", "utf-8")
    return page.as_uri()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    made = browser.new_page()
    made.goto(address)
    yield made
    made.close()


def claims(page: Page) -> list[str]:
    """Return the claims of the rows that are shown, in their order."""
    return page.locator(".filterable tbody tr:visible td:nth-child(2)").all_inner_texts()


def test_typing_keeps_the_rows_that_contain_every_word(page: Page) -> None:
    page.get_by_label("Containing").fill("THEOREM c1")
    assert claims(page) == ["C1"]
    assert page.locator("output").inner_text() == "1 of 6 rows"
    page.get_by_label("Containing").fill("")
    assert len(claims(page)) == 6


def test_choices_are_offered_for_columns_with_few_values_and_combine(page: Page) -> None:
    assert page.locator("label").all_inner_texts()[0].strip() == "Containing"
    assert page.locator("select").count() == 3
    page.get_by_label("Status").select_option("verified")
    page.get_by_label("Chapter").select_option("2")
    assert claims(page) == ["C4a", "C3"]
    page.get_by_label("Chapter").select_option("all")
    assert claims(page) == ["C2", "C1", "C4a", "C3"]


@pytest.mark.parametrize(
    ("head", "up"),
    [
        ("Claim", ["B1", "C1", "C2", "C3", "C4a", "C10"]),
        ("Value", ["C10", "C3", "C2", "B1", "C1", "C4a"]),  # what is no number comes last
        ("Kind", ["B1", "C3", "C10", "C4a", "C2", "C1"]),  # equal ones stay in their order
    ],
)
def test_a_header_sorts_up_and_then_down(page: Page, head: str, up: list[str]) -> None:
    button = page.get_by_role("button", name=head)
    button.click()
    assert claims(page) == up
    assert page.locator("th[aria-sort]").evaluate_all("all => all.map(th => [th.innerText, th.ariaSort])") == [
        [head, "ascending"]
    ]
    button.click()
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    assert claims(page)[0] != up[0]


def test_the_keyboard_reaches_everything(page: Page) -> None:
    page.keyboard.press("Tab")
    page.keyboard.type("beyond")
    assert claims(page) == ["B1", "C3"]
    for _ in range(5):  # over three choices and the first header to the second
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert claims(page) == ["C3", "B1"]


def test_folded_numbers_are_found_and_their_column_does_not_sort(page: Page) -> None:
    page.get_by_label("Containing").fill("slope")
    assert len(claims(page)) == 6
    assert page.get_by_role("button", name="Numbers").count() == 0


def test_other_tables_are_left_alone(page: Page) -> None:
    assert page.locator("form").count() == 1
    assert page.locator("body > table button").count() == 0


def test_the_scoreboard_is_such_a_table(browser: Browser, smoke_html: Path) -> None:
    board = browser.new_page()
    board.goto((smoke_html / "book" / "scoreboard.html").as_uri())
    rows = board.locator(".filterable tbody tr")
    total = rows.count()
    links = rows.locator("td:nth-child(2) a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
    assert total > 100 and len(set(links)) == len(links) == total
    assert all("/notebooks/" in link and "#claim-" in link for link in links)
    assert board.locator("output").inner_text() == f"{total} of {total} rows"
    board.get_by_label("Containing").fill("not reproduced")
    shown = board.locator(".filterable tbody tr:visible")
    assert 0 < shown.count() < total
    assert board.locator("output").inner_text() == f"{shown.count()} of {total} rows"
    assert all("not" in text.lower() and "reproduced" in text.lower() for text in shown.all_text_contents())
    assert shown.locator(".chip-not-reproduced").count() == rows.locator(".chip-not-reproduced").count() > 0
    board.close()


def test_without_a_script_it_is_a_plain_table(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(address)
    assert plain.locator(".filterable tbody tr:visible").count() == 6
    assert plain.locator("button, input, select").count() == 0
    context.close()
