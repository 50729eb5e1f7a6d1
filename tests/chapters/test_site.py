"""The site: outputs grafted onto today's prose, rendered in increments, refused when a page is not whole."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest

from companion.chapters import notebooks, paths, provenance, runner, scan, site, stage
from companion.errors import CompanionError

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf8")
    assert old in text
    path.write_text(text.replace(old, new), "utf8")


def _times(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.rglob("*.html")}


def test_build_renders_and_a_prose_edit_renders_only_its_page(executed_book: Path) -> None:
    assert site.build("smoke") == (paths.html_dir() / "index.html").as_uri()
    chapter = (paths.html_dir() / "notebooks" / "01_tiny.html").read_text()
    notes = (paths.html_dir() / "book" / "notes.html").read_text()
    assert 'alt="A straight line that rises from the origin with slope 2' in chapter
    assert 'id="second-line"' in chapter
    assert "Answers to Fig. 7 of the paper." in chapter
    assert 'class="chips"' in chapter
    assert 'class="claim claim-verified admonition" id="claim-01-c1"' in chapter
    assert "Fig. 2</span>" in notes
    assert "01_tiny.html#claim-01-c1" in notes
    quoted = re.search(r'<span class="chip chip-not-recorded">(<a .*?</a>)</span>', notes)
    assert quoted and "01_tiny.html#claim-01-c1" in quoted[1] and "1·C1 not recorded" in quoted[1]
    index = (paths.html_dir() / "genindex.html").read_text()
    assert 'href="book/glossary.html#term-figure"' in index and 'href="notebooks/01_tiny.html#index-0"' in index
    assert "(continued)" not in chapter
    assert "Injected" not in chapter
    assert "github/someone/tiny/blob/main/notebooks/01_tiny.ipynb" in chapter
    assert "_static/mathjax/tex-svg-full.js" in notes
    assert (paths.html_dir() / "_static" / "mathjax" / "tex-svg-full.js").stat().st_size > 2e6
    download = nbformat.read(paths.html_dir() / "_sources" / "notebooks" / "01_tiny.ipynb", as_version=4)
    assert [c.cell_type for c in download.cells].count("code") == 6
    assert "papermill" not in json.dumps(download)

    copy, times = paths.executed_file("01_tiny", "smoke").read_bytes(), _times(paths.html_dir())
    _edit(executed_book / "notebooks" / "01_tiny.py", "Prose of the first cell", "Prose from an edit")
    (outcome,) = runner.run([], "smoke")
    site.build("smoke")
    assert outcome.state == "cached"
    assert paths.executed_file("01_tiny", "smoke").read_bytes() == copy
    assert "Prose from an edit" in (paths.html_dir() / "notebooks" / "01_tiny.html").read_text()
    after = _times(paths.html_dir())
    assert after["01_tiny.html"] != times["01_tiny.html"]
    assert after["notes.html"] == times["notes.html"]


def test_a_broken_cross_reference_fails_each_time_until_it_is_mended(executed_book: Path) -> None:
    notes = executed_book / "book" / "notes.md"
    _edit(notes, "{numref}`first-line`", "{numref}`no-such-line`")
    for _ in range(2):  # Sphinx alone would forget the warning the second time
        with pytest.raises(CompanionError, match=r"book/notes\.md.*no-such-line"):
            site.build("smoke")
    _edit(notes, "{numref}`no-such-line`", "{numref}`first-line`")
    site.build("smoke")


def test_a_page_that_needs_the_network_or_hides_a_picture_fails(executed_book: Path) -> None:
    shutil.copy(executed_book / "_build/figures/smoke/01_tiny/first-line.png", executed_book / "book" / "line.png")
    page = '<script src="https://cdn.example.org/x.js"></script>\n\n![](line.png)\n'
    (executed_book / "book" / "intro.md").write_text(f"# Tiny book\n\n{page}")
    with pytest.raises(CompanionError) as caught:
        site.build("smoke")
    assert "book/intro.html: needs the network: <script> https://cdn.example.org/x.js" in str(caught.value)
    assert "book/intro.html: image without alt text" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ('<link rel="stylesheet" href="//fonts.example.org/a.css">', 1),
        ('<link rel="preload" as="font" href="https://a.org/f.woff2">', 1),
        ('<img alt="a dot" src="https://a.org/dot.png">', 1),
        ('<iframe src="http://a.org"></iframe>', 1),
        ("<style>@import 'https://a.org/b.css'; p { background: url(https://a.org/c.png) }</style>", 2),
        ('<img src="dot.png">', 1),
        ('<img alt="" src="dot.png">', 1),
        ('<img alt="../_images/0a1b.png" src="dot.png">', 1),
        ('<div class="output text_plain highlight-myst-ansi">Linear(4, 3)</div>', 1),
        ('<div class="output stream highlight-myst-ansi">printed</div>', 0),
        ('<a href="https://a.org">a link to click</a><link rel="canonical" href="https://a.org">', 0),
        ('<img alt="a dot" src="dot.png"><script src="../_static/x.js"></script>', 0),
        ("<script>const later = 'https://a.org/x.js'</script>", 0),
    ],
)
def test_scan(tmp_path: Path, text: str, problems: int) -> None:
    (tmp_path / "page.html").write_text(f"<html><body>{text}</body></html>")
    assert len(scan.scan(tmp_path)) == problems


def test_scan_reads_style_sheets(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("a { background: url(data:image/svg+xml;xmlns=http://www.w3.org/2000/svg) }")
    assert scan.scan(tmp_path) == []
    (tmp_path / "a.css").write_text('@font-face { src: url("https://a.org/f.woff2") }')
    assert len(scan.scan(tmp_path)) == 1


def test_a_picture_without_words_is_refused(executed_book: Path) -> None:
    copy = paths.executed_file("01_tiny", "smoke")
    notebook = nbformat.read(copy, as_version=4)
    notebook.cells[4].outputs.append(nbformat.v4.new_output("display_data", {"image/png": PIXEL}))
    nbformat.write(notebook, copy)
    with pytest.raises(CompanionError, match=r"01_tiny, cell 4: a figure without alt text"):
        stage.stage("smoke")


def test_chapters_must_be_executed_as_they_stand(executed_book: Path) -> None:
    source = executed_book / "notebooks" / "01_tiny.py"
    with pytest.raises(CompanionError, match="no executed copy at profile cpu: run `companion run 01_tiny"):
        stage.stage("cpu")
    _edit(source, "value = 2.0", "value = 3.0")
    with pytest.raises(CompanionError, match="has changed since its run"):
        stage.stage("smoke")


def test_staging_rewrites_only_what_changed(executed_book: Path) -> None:
    stage.stage("smoke")
    before = {p: p.stat().st_mtime_ns for p in paths.stage_dir().rglob("*") if p.is_file()}
    (executed_book / "book" / "extra.md").write_text("# Extra\n")
    _edit(executed_book / "book" / "notes.md", "# Notes", "# More notes")
    stage.stage("smoke")
    after = {p: p.stat().st_mtime_ns for p in paths.stage_dir().rglob("*") if p.is_file()}
    assert {p.name for p in after if after[p] != before.get(p)} == {"notes.md", "extra.md"}
    (executed_book / "book" / "extra.md").unlink()
    stage.stage("smoke")
    assert not (paths.stage_dir() / "book" / "extra.md").exists()


def test_a_build_parses_a_source_once_and_looks_only_at_new_pages(executed_book: Path, monkeypatch) -> None:
    site.build("smoke")
    parsed, scanned = [], []
    read, look = provenance.jupytext.reads, scan.HTMLParser.feed
    monkeypatch.setattr(provenance.jupytext, "reads", lambda *a, **k: parsed.append(a) or read(*a, **k))
    monkeypatch.setattr(scan.HTMLParser, "feed", lambda page, text: scanned.append(text) or look(page, text))
    _edit(executed_book / "notebooks" / "01_tiny.py", "Prose of the first cell", "Prose no other test has")
    site.build("smoke")
    assert runner.is_current("01_tiny", "smoke")
    assert len(parsed) == 1
    edited = [text for text in scanned if "Prose no other test has" in text]
    assert edited and not [text for text in scanned if "More notes" in text or "<h1>Notes" in text]


def test_a_prepared_source_may_be_changed_without_changing_the_next(executed_book: Path) -> None:
    source = paths.notebook("01_tiny")
    notebooks.read_source(source).cells.clear()
    assert notebooks.read_source(source).cells


def test_a_picture_without_numbers_offers_none(executed_book: Path) -> None:
    figures = paths.figures_dir("01_tiny", "smoke")
    head = (figures / "first-line.csv").read_text().splitlines(keepends=True)[0]
    (figures / "first-line.csv").write_text(head)
    stage.stage("smoke")
    page = (paths.stage_dir() / "notebooks" / "01_tiny.ipynb").read_text()
    assert "numbers/01_tiny/second-line.csv" in page and "numbers/01_tiny/first-line.csv" not in page
    assert [path.stem for path in (paths.stage_dir() / "notebooks" / "numbers").rglob("*.csv")] == ["second-line"]


def test_every_module_is_in_the_reference(executed_book: Path) -> None:
    stage.stage("smoke")
    api = (paths.stage_dir() / "book" / "api.md").read_text()
    assert "## companion.chapters.runner\n" in api
    assert ".. automodule:: companion.data\n" in api
    assert "companion.cli" not in api


def test_what_is_generated_stands_where_its_page_says(executed_book: Path) -> None:
    page = executed_book / "book" / "scoreboard.md"
    page.write_text("# What holds\n\nBefore.\n\n<!-- generated -->\n\nAfter.\n")
    stage.stage("smoke")
    before, after = (paths.stage_dir() / "book" / "scoreboard.md").read_text().split("## By chapter")
    assert before.startswith("# What holds\n\nBefore.") and after.rstrip().endswith("After.")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scoreboard", "# What holds\n"),
        ("errata", "<!-- generated --> <!-- generated -->"),
        ("notes", "<!-- generated -->"),
    ],
)
def test_a_page_without_its_marker_or_a_marker_without_its_page_is_refused(
    executed_book: Path, name: str, text: str
) -> None:
    (executed_book / "book" / f"{name}.md").write_text(text)
    with pytest.raises(
        CompanionError, match=rf"book/{name}\.md: the line <!-- generated --> stands once on scoreboard"
    ):
        stage.stage("smoke")


def test_a_wrong_quote_names_its_page(executed_book: Path) -> None:
    _edit(executed_book / "book" / "notes.md", "{verdict}`01 C1`", "{verdict}`01 C5`")
    with pytest.raises(CompanionError, match=r"book/notes\.md: \{verdict\}`01 C5`: 01_tiny has no claim C5"):
        stage.stage("smoke")


def test_the_links_of_a_chapter_close_its_page_and_not_its_download(executed_book: Path) -> None:
    toc = executed_book / "_toc.yml"
    toc.write_text(toc.read_text() + "  - file: notebooks/02_other\n")
    (executed_book / "book" / "links.yml").write_text("- {claims: [01 C1, 02 C1], why: The same thing said twice.}\n")
    (executed_book / "book" / "claims" / "02_other.yml").write_text(
        (executed_book / "book" / "claims" / "01_tiny.yml").read_text().replace("01_tiny", "02_other")
    )
    with pytest.raises(CompanionError, match="no chapter named '02_other'"):
        stage.stage("smoke")  # it is not there, but what closes the first chapter's page can be seen
    copy = stage.executed("01_tiny", "smoke")
    page = stage.page(nbformat.from_dict(copy), "01_tiny", "smoke", ())
    assert page.cells[-1].source.startswith("## See also\n\n- {doc}`Chapter 2 </notebooks/02_other>`: The same thing")
    assert "1·C1 not recorded <claim-01-c1>" in page.cells[-1].source
    assert "See also" not in copy.cells[-1].source


@pytest.mark.parametrize(
    ("remote", "found"),
    [
        ("https://token@github.com/owner/book.git", "https://github.com/owner/book"),
        ("git@github.com:owner/book.git", "https://github.com/owner/book"),
        ("ssh://git@github.example.org:22/owner/book", "https://github.example.org/owner/book"),
        ("/srv/git/github/book.git", "https://github.com/someone/tiny"),
        ("https://codeberg.org/owner/book", "https://github.com/someone/tiny"),
    ],
)
def test_repository_url_of_a_remote(book: Path, remote: str, found: str) -> None:
    subprocess.run(["git", "init", "-q", book], check=True)
    subprocess.run(["git", "-C", book, "remote", "add", "origin", remote], check=True)
    assert stage.repository_url("https://github.com/someone/tiny") == found


def test_repository_url_of_the_ci_or_of_the_configuration(book: Path, monkeypatch) -> None:
    assert stage.repository_url("https://github.com/someone/tiny") == "https://github.com/someone/tiny"
    monkeypatch.setenv("GITHUB_REPOSITORY", "fork/book")
    assert stage.repository_url("https://github.com/someone/tiny") == "https://github.com/fork/book"
