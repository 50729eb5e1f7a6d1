"""What Sphinx doesn't check: pages that need the network, images without alt text, objects printed by accident."""

import re
from html.parser import HTMLParser
from pathlib import Path

_LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
    "link": "href",
}
_LINKS_LOADED = {
    "stylesheet",
    "icon",
    "preload",
    "modulepreload",
    "preconnect",
    "dns-prefetch",
    "shortcut",
    "manifest",
}
_REMOTE = re.compile(r"(https?:)?//", re.IGNORECASE)
_CSS_REMOTE = re.compile(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^\"')\s]+", re.IGNORECASE)
_FILE_NAME = re.compile(r"\S+\.(png|svg|jpe?g|gif|webp)", re.IGNORECASE)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_style = tag == "style"
        values = {key: value or "" for key, value in attrs}
        address = values.get(_LOADED.get(tag, ""), "")
        if _REMOTE.match(address) and (tag != "link" or _LINKS_LOADED & set(values.get("rel", "").split())):
            self.problems.append(f"needs the network: <{tag}> {address}")
        # Sphinx puts the file's path where an author gave no text.
        if tag == "img" and (not values.get("alt", "").strip() or _FILE_NAME.fullmatch(values["alt"])):
            self.problems.append(f"image without alt text: {address[:100]}")
        # What a cell's last expression leaves; `print` and `display` have other classes.
        if "text_plain" in values.get("class", "").split():
            self.problems.append("the bare value of a cell's last expression: print it, display it, or assign it")

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.problems += [f"needs the network: {found}" for found in _CSS_REMOTE.findall(data)]


def scan(folder: Path, since: float = 0.0) -> list[str]:
    """Return one line per fault of a page or style sheet under `folder`: network, hidden image, bare object.

    Links that a reader clicks are no problem; scripts, styles, images, frames and fonts from elsewhere are.
    Files last written before the time `since` are left out.
    """
    problems = []
    written = [p for p in [*folder.rglob("*.html"), *folder.rglob("*.css")] if p.stat().st_mtime >= since]
    for path in sorted(written):
        name, text = path.relative_to(folder), path.read_text("utf8")
        if path.suffix == ".css":
            problems += [f"{name}: needs the network: {found}" for found in _CSS_REMOTE.findall(text)]
        elif not {"_static", "_sources"} & set(name.parts):
            page = _Page()
            page.feed(text)
            problems += [f"{name}: {problem}" for problem in page.problems]
    return problems
