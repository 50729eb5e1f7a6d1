"""The book without a mouse, without eyes and on a telephone."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

# Contrast is measured in test_browser, in both modes; mathematics is MathJax's own (thousands of nodes), and the role
# of the list of references is Sphinx's.
_RULES = {"rules": {"color-contrast": {"enabled": False}}, "resultTypes": ["violations"]}
_WITHIN = {"exclude": [["mjx-container"], [".citation-list"]]}


def violations(page: Page) -> list[str]:
    """Return the serious and critical violations that axe finds on the page, one line each."""
    found: dict[str, Any] = Axe().run(page, context=_WITHIN, options=_RULES).response
    return [
        f"{v['id']} ({v['impact']}): {v['nodes'][0]['html'][:120]}"
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A desktop page in light mode."""
    made = browser.new_page(viewport={"width": 1280, "height": 900})
    yield made
    made.close()


@pytest.mark.parametrize(("scheme", "width"), [("dark", 1280), ("light", 360)])
def test_axe_finds_nothing_serious_in_the_dark_or_on_a_telephone(
    browser: Browser, address: str, contents: list[str], scheme: str, width: int
) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    chapter = [name for name in contents if name.startswith("notebooks/")][-1]  # a short one: axe takes seconds
    found = {}
    for name in (contents[0], "book/scoreboard", chapter):
        page.goto(f"{address}/{name}.html")
        page.evaluate("window.MathJax?.startup?.promise")
        found[name] = violations(page)
    page.close()
    assert not {name: lines for name, lines in found.items() if lines}


def test_axe_finds_nothing_serious_on_any_page(page: Page, address: str, contents: list[str]) -> None:
    found = {}
    for name in contents:
        page.goto(f"{address}/{name}.html")
        page.evaluate("window.MathJax?.startup?.promise")
        found[name] = violations(page)
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.parametrize(
    ("rule", "body"),
    [
        ("image-alt", '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">'),
        ("button-name", "<button></button>"),
        ("link-name", '<a href="#x"></a>'),
        ("label", "<input type='text'>"),
    ],
)
def test_axe_finds_the_planted_violation(page: Page, tmp_path: Path, rule: str, body: str) -> None:
    file = tmp_path / "page.html"
    file.write_text(f'<!doctype html><html lang="en"><title>t</title><main>{body}</main></html>', "utf-8")
    page.goto(file.as_uri())
    assert any(line.startswith(rule) for line in violations(page))


def test_the_keyboard_reaches_the_text_and_the_hidden_code(page: Page, address: str, contents: list[str]) -> None:
    chapter = next(name for name in contents if name.startswith("notebooks/"))
    page.goto(f"{address}/{chapter}.html")
    page.keyboard.press("Tab")
    skip = page.evaluate("document.activeElement.textContent.trim()")
    assert skip == "Skip to main content"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main-content"
    hidden = page.locator("details.hide summary").first
    hidden.focus()
    assert page.evaluate("document.activeElement.localName") == "summary"
    page.keyboard.press("Enter")
    assert hidden.evaluate("node => node.parentElement.open")


@pytest.mark.parametrize("width", [360, 768])
def test_no_page_is_wider_than_a_small_window(browser: Browser, address: str, contents: list[str], width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    wide = {}
    for name in contents:
        page.goto(f"{address}/{name}.html")
        page.evaluate("window.MathJax?.startup?.promise")
        if (found := page.evaluate("document.documentElement.scrollWidth")) > width:
            wide[name] = found
    page.close()
    assert not wide


def test_every_drawn_figure_offers_its_numbers_and_a_picture_none(smoke_html: Path, contents: list[str]) -> None:
    for name in (name for name in contents if name.startswith("notebooks/")):
        page = smoke_html / f"{name}.html"
        links = re.findall(r'<a class="[^"]*download[^"]*"[^>]* href="([^"]+\.csv)"', page.read_text("utf-8"))
        offered = {Path(link).stem: (page.parent / link).read_text("utf-8") for link in links}
        for text in offered.values():
            assert text.startswith("panel,title,x axis,y axis,kind,label,index,x,y,value\n") and text.count("\n") > 1
        saved = (smoke_html.parent / "figures" / "smoke" / page.stem).glob("*.csv")
        drawn = {file.stem for file in saved if file.read_text("utf-8").count("\n") > 1}
        assert drawn and set(offered) == drawn


def test_chapters_print(page: Page, address: str, contents: list[str]) -> None:
    page.emulate_media(media="print")
    for name in [name for name in contents if name.startswith("notebooks/")][::4]:  # three: each takes seconds
        page.goto(f"{address}/{name}.html")
        page.evaluate("window.MathJax?.startup?.promise")
        printed = page.pdf()
        assert printed.startswith(b"%PDF-") and len(printed) > 1_000_000, name
