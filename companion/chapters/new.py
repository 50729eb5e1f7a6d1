"""Begin a chapter: files that run and pass the tests from the first minute, and its place in the book."""

import re
from pathlib import Path

from companion.chapters import notebooks, paths
from companion.errors import CompanionError

_TEMPLATES = Path(__file__).parent / "templates"
_TOC = re.compile(r"^ *- file: notebooks/(\d\d_\w+) *\n", re.MULTILINE)
_ROW = re.compile(r"^\| (\d+) \|.*\|$", re.MULTILINE)
_NOTATION = re.compile(r"^\(notation-chapter-(\d+)\)=$", re.MULTILINE)
_CITE = re.compile(r"\{cite:p}`(\w+)`")


def create(chapter: str, title: str) -> list[Path]:
    """Write the files of a new chapter, enter it into the book's pages, and return what was written or changed.

    Raises CompanionError for a name that is taken or not of the form NN_slug, and for pages it cannot enter into;
    then nothing is written.
    """
    number, _, slug = chapter.partition("_")
    if not re.fullmatch(r"\d\d_[a-z][a-z0-9_]*", chapter) or number == "00":
        raise CompanionError(f"{chapter!r} is no chapter name: two digits, _, and a slug such as 11_my_paper")
    if taken := [name for name in paths.chapters() if name[:2] == number]:
        raise CompanionError(f"chapter {number} is {taken[0]}: choose another number")
    root, book = paths.root(), paths.root() / "book"
    title = " ".join(title.split()) or slug.replace("_", " ").capitalize()
    pages = {page: _page(page) for page in (root / "_toc.yml", *(book / f"{n}.md" for n in ("intro", "notation")))}
    bibliography = book / "references.bib"
    toc, intro, notation = pages
    pages[intro], key = _with_row(pages[intro], chapter, title)
    pages[toc] = _with_entry(pages[toc], chapter)
    pages[notation] = _with_symbols(pages[notation], int(number), title)
    if not re.search(rf"^@\w+\{{{key},", known := _page(bibliography), re.MULTILINE):
        entry = f"@misc{{{key},\n  author = {{Authors}},\n  title  = {{{title}}},\n  year   = {{0000}}\n}}\n"
        pages[bibliography] = f"{known.rstrip()}\n\n{entry}"
    words = {"chapter": chapter, "number": str(int(number)), "slug": slug, "title": title, "key": key}
    words["anchor"] = slug.replace("_", "-")
    files = {
        book / "claims" / f"{chapter}.yml": "claims.yml",
        root / "companion" / "models" / f"{slug}.py": "model.py",
        root / "tests" / "unit" / f"test_{slug}.py": "test.py",
        paths.notebook(chapter): "notebook.py",
    }
    if there := [str(file.relative_to(root)) for file in files if file.exists()]:
        raise CompanionError(f"{', '.join(there)} exists already: choose another slug")
    made = {file: _filled(template, words) for file, template in files.items()}
    for file, text in (made | pages).items():
        paths.write_atomic(file, text.encode())
    notebooks.pair(chapter)
    return [*made, paths.notebook(chapter, ".ipynb"), *pages]


def _page(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CompanionError(f"no {path}: run this in a checkout of the book") from None


def _filled(template: str, words: dict[str, str]) -> str:
    text = (_TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")
    return re.sub(r"@([a-z]+)@", lambda mark: words[mark[1]], text)


def _with_entry(toc: str, chapter: str) -> str:
    """Return the table of contents with the chapter behind the last one that comes before it."""
    entries = list(_TOC.finditer(toc))
    if not entries:
        raise CompanionError("_toc.yml lists no chapter: enter the first by hand")
    earlier = [entry for entry in entries if entry[1] < chapter]
    near = earlier[-1] if earlier else entries[0]
    place = near.end() if earlier else near.start()
    return f"{toc[:place]}{near[0].replace(near[1], chapter)}{toc[place:]}"


def _with_row(intro: str, chapter: str, title: str) -> tuple[str, str]:
    """Return the list of papers with a link in the chapter's row, which is added if need be, and the citation key."""
    number, link = int(chapter[:2]), f"{{doc}}`read </notebooks/{chapter}>`"
    rows = {int(row[1]): row for row in _ROW.finditer(intro)}
    if row := rows.get(number):
        cited, cells = _CITE.search(row[0]), row[0].rstrip("| ").rpartition("|")[0]
        if cited is None:
            raise CompanionError(f"book/intro.md: the row of paper {number} cites nothing")
        return f"{intro[: row.start()]}{cells}| {link} |{intro[row.end() :]}", cited[1]
    key = chapter[3:].replace("_", "")
    place = max((row.end() for row in rows.values()), default=None)
    if place is None:
        raise CompanionError("book/intro.md has no list of papers (rows that begin with | 1 |)")
    line = f"| {number} | *{title}* {{cite:p}}`{key}` | what it is about, in ten words | {link} |"
    return f"{intro[:place]}\n{line}{intro[place:]}", key


def _with_symbols(notation: str, number: int, title: str) -> str:
    """Return the notation page with a table for the chapter, before that of the next chapter."""
    later = [section.start() for section in _NOTATION.finditer(notation) if int(section[1]) > number]
    place = min(later, default=len(notation))
    table = "| symbol | meaning | shape |\n|---|---|---|\n| $W$ | linear map | outputs × inputs |\n"
    section = f"(notation-chapter-{number})=\n## Chapter {number}: {title[:1].lower()}{title[1:]}\n\n{table}"
    before, after = notation[:place].rstrip(), notation[place:]
    return f"{before}\n\n{section}" + (f"\n{after}" if after else "")
