"""Every page of the rendered book in headless Chromium, in light and in dark, with the network cut off.

`faults` is the checker; the small pages in FAULTY plant each fault it must find.
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Request

ROOT = Path(__file__).resolve().parents[2]
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw=="

# Alt texts that are file names are what Sphinx writes when nobody gave one.
IMAGES = r"""async () => {
  const found = [];
  for (const image of document.images) {
    image.loading = "eager";
    await image.decode().catch(() => found.push(`image not loaded: ${image.src}`));
    if (!image.alt.trim() || /\.(png|svg|jpe?g)$/.test(image.alt))
      found.push(`image without alt text: ${image.src}`);
  }
  return found;
}"""

MATHEMATICS = r"""async () => {
  await window.MathJax?.startup?.promise;
  const found = [];
  for (const node of document.querySelectorAll(".math"))
    if (!node.querySelector("mjx-container"))
      found.push(`mathematics not rendered: ${node.textContent.slice(0, 60)}`);
  for (const node of document.querySelectorAll("mjx-merror, [data-mjx-error]"))
    found.push(`mathematics with an error: ${node.getAttribute("data-mjx-error") ?? node.textContent}`);
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const text = words.currentNode.data;
    const within = words.currentNode.parentElement;
    const verbatim = within.closest("script, style, code, pre, textarea, mjx-container");
    if (/\\[(\[]|\$\$|(^|\s)\$(\s|$)/.test(text) && !verbatim)
      found.push(`raw mathematics: ${text.trim().slice(0, 60)}`);
  }
  return found;
}"""

# WCAG contrast of each text with what lies behind it; 4.5 is its AA level for body text.
CONTRAST = r"""() => {
  const pen = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const known = {};
  const paint = colour => known[colour] ??= (pen.clearRect(0, 0, 1, 1), pen.fillStyle = colour,
    pen.fillRect(0, 0, 1, 1), [...pen.getImageData(0, 0, 1, 1).data]);
  const over = (top, under) => under.map((u, i) => top[i] * top[3] / 255 + u * (1 - top[3] / 255));
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const grounds = new Map([[null, [255, 255, 255]]]);
  const behind = node => {
    if (!grounds.has(node))
      grounds.set(node, over(paint(getComputedStyle(node).backgroundColor), behind(node.parentElement)));
    return grounds.get(node);
  };
  const found = new Set();
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  for (const node of document.querySelectorAll("main *, nav *, aside *, .table-filter *")) {
    if (node.closest("mjx-container, script, style, template")) continue;
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())) continue;
    if (!node.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const ground = behind(node);
    const pair = [light(over(paint(getComputedStyle(node).color), ground)), light(ground)];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    const shown = `<${node.localName} class="${node.className}"> ${node.textContent.trim().slice(0, 40)}`;
    if (ratio < 4.5) found.add(`contrast ${ratio.toFixed(1)}: ${shown}`);
  }
  return [...found];
}"""


def faults(context: BrowserContext, url: str) -> list[str]:
    """Return what is wrong with the page at `url`: one line for each fault, [] for a good page."""
    found: list[str] = []

    def foreign(request: Request) -> None:
        target = urlsplit(request.url)
        if target.scheme not in ("file", "data", "blob") and target.hostname != "127.0.0.1":
            found.append(f"needs the network: {request.url}")

    page = context.new_page()
    try:
        page.on("request", foreign)
        page.on("console", lambda m: found.append(f"console error: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda error: found.append(f"script error: {error}"))
        page.on("response", lambda r: found.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        page.goto(url, wait_until="load")
        for question in (IMAGES, MATHEMATICS, CONTRAST):
            found += page.evaluate(question)
    finally:
        page.close()
    return found


class _Links(HTMLParser):
    """The ids and the links of one page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.ids.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.add(given["href"])


def broken_links(folder: Path) -> list[str]:
    """Return every link between pages of `folder` whose file or fragment does not exist."""
    pages = {page.resolve(): _Links(page) for page in folder.rglob("*.html") if "_static" not in page.parts}
    broken = []
    for page, parsed in pages.items():
        for link in parsed.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            fragment_missing = parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids
            if not target.exists() or fragment_missing:
                broken.append(f"{page.relative_to(folder.resolve())}: {link}")
    return broken


@pytest.fixture(scope="module", params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def context(browser: Browser, scheme: str) -> Iterator[BrowserContext]:
    made = browser.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    yield made
    made.close()


def test_every_page_is_sound(context: BrowserContext, smoke_html: Path, address: str, contents: list[str]) -> None:
    # `_static` holds the theme's templates; index.html only leads on to the first page.
    found = sorted(page.relative_to(smoke_html).as_posix() for page in smoke_html.rglob("*.html"))
    pages = [page for page in found if not page.startswith("_static/") and page != "index.html"]
    assert {f"{name}.html" for name in contents} <= set(pages)
    faulty = {page: faults(context, f"{address}/{page}") for page in pages}
    assert not {page: lines for page, lines in faulty.items() if lines}


@pytest.mark.parametrize("scheme", ["light"], indirect=True)
def test_pages_open_from_the_disk(context: BrowserContext, smoke_html: Path, contents: list[str]) -> None:
    assert not [fault for name in contents for fault in faults(context, (smoke_html / f"{name}.html").as_uri())]


def test_theme_follows_the_reader(context: BrowserContext, scheme: str, address: str, contents: list[str]) -> None:
    page = context.new_page()
    page.goto(f"{address}/{contents[0]}.html")
    assert page.locator("html").get_attribute("data-theme") == scheme
    page.close()


@pytest.mark.parametrize("scheme", ["light"], indirect=True)
def test_mathematics_is_there(context: BrowserContext, address: str) -> None:
    page = context.new_page()
    page.goto(f"{address}/book/notation.html")
    page.evaluate(MATHEMATICS)
    assert page.locator("mjx-container").count() > 20
    page.close()


@pytest.mark.parametrize("scheme", ["light"], indirect=True)
def test_contents_lead_to_every_page(context: BrowserContext, address: str, contents: list[str]) -> None:
    page = context.new_page()
    page.goto(f"{address}/index.html")
    page.wait_for_url(f"**/{contents[0]}.html")
    links = page.locator(".bd-sidebar-primary a.reference.internal, .bd-sidebar-primary li a")
    names = {urlsplit(str(link)).path.strip("/") for link in links.evaluate_all("links => links.map(a => a.href)")}
    assert {f"{name}.html" for name in contents} <= names
    page.close()


@pytest.mark.parametrize("scheme", ["light"], indirect=True)
@pytest.mark.parametrize(("word", "hits"), [("regulariser", True), ("zzyzzx", False)])
def test_search(context: BrowserContext, address: str, word: str, hits: bool) -> None:
    page = context.new_page()
    page.goto(f"{address}/search.html?q={word}")
    page.locator(".search-summary", has_text=re.compile(r"\S")).wait_for()
    page.wait_for_function("document.querySelector('.search-summary').textContent.match(/found|did not match/)")
    assert (page.locator("#search-results ul.search li").count() > 0) is hits
    page.close()


def test_links_resolve(smoke_html: Path) -> None:
    assert broken_links(smoke_html) == []


GOOD = f'<p>Text</p><img src="{PIXEL}" alt="One pixel"><code>\\(x\\)</code>'
FAULTY = {
    "image without alt text": f'<img src="{PIXEL}">',
    "image without alt text: data:": f'<img src="{PIXEL}" alt="_images/0acab83e.png">',
    "image not loaded": '<img src="absent.png" alt="A figure">',
    "console error": "<script>console.error('planted')</script>",
    "script error": "<script>throw new Error('planted')</script>",
    "needs the network": '<script src="https://cdn.example.org/require.min.js"></script>',
    "raw mathematics": r"<p>The loss \(x\) is</p>",
    "raw mathematics: With J": "<p>With J, $ <i>x</i></p>",
    "mathematics not rendered": '<span class="math">x</span>',
    "mathematics with an error": "<mjx-merror>Undefined control sequence</mjx-merror>",
    "contrast": '<p style="color: #999; background: #aaa">grey on grey</p>',
}
GREY = 'style="color: #999; background: #aaa"'
FAULTY |= {
    f"contrast 1.2: <{tag} ": f"{before}<{tag} {GREY}>grey on grey</{tag}>"
    for tag, before in {
        "summary": "<details>",
        "button": "",
        "label": "",
        "strong": "",
        "em": "",
        "h4": "",
        "span": "",
        "output": "<form class=table-filter>",
        "option": "<select size=2>",
    }.items()
}


@pytest.mark.parametrize("scheme", ["light"], indirect=True)
@pytest.mark.parametrize(("expected", "body"), FAULTY.items(), ids=FAULTY)
def test_checker_finds_the_fault(context: BrowserContext, tmp_path: Path, expected: str, body: str) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><title>t</title><main>{GOOD}{body}", "utf-8")
    found = faults(context, page.as_uri())
    assert any(line.startswith(expected) for line in found), found


@pytest.mark.parametrize("scheme", ["light"], indirect=True)
def test_checker_passes_a_good_page(context: BrowserContext, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><title>t</title><main>{GOOD}", "utf-8")
    assert faults(context, page.as_uri()) == []


def test_checker_finds_broken_links(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html">1</a><a href="#here">2</a><a href="c.html#no">3</a>', "utf-8")
    (tmp_path / "c.html").write_text(
        '<p id="here"></p><a href="a.html">4</a><a href="https://example.org">5</a>', "utf-8"
    )
    assert sorted(broken_links(tmp_path)) == ["a.html: #here", "a.html: b.html", "a.html: c.html#no"]
