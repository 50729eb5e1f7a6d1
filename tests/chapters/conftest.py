"""A miniature book: one chapter that runs in seconds, two pages, and all the parts that a real book has."""

import shutil
from pathlib import Path

import pytest

import companion
from companion.chapters import runner

PACKAGE = Path(companion.__file__).parent

CONFIG = """
title: Tiny
only_build_toc_files: true
execute: {execute_notebooks: "off"}
parse: {myst_enable_extensions: [attrs_inline, dollarmath]}
repository: {url: https://github.com/someone/tiny, branch: main}
launch_buttons: {colab_url: https://colab.research.google.com}
sphinx:
  config:
    extensions: [jupyter_book, myst_nb, sphinx_external_toc, sphinx_book_theme, sphinx_comments]
    nb_render_markdown_format: myst
    nitpick_ignore_regex: [['py:.*', '.*']]
"""

TOC = """
format: jb-book
root: book/intro
chapters:
  - file: notebooks/01_tiny
  - file: book/notes
  - file: book/glossary
  - file: genindex
"""

NOTES = """# Notes

{numref}`first-line` and {numref}`second-line` are drawn there; {ref}`its claim <claim-01-c1>` has a box.
It is {verdict}`01 C1`. See [the introduction](intro.md), and $e^{i\\pi} = -1$.
"""

GLOSSARY = """# Glossary

```{glossary}
figure
  A picture.
```
"""

CLAIMS = """
chapter: 01_tiny
claims:
  - id: C1
    kind: theorem
    title: one is $1$
    statement: The ratio is one.
    where: Theorem 1
    measures: {ratio: a ratio}
    rule: [{measure: ratio, within: [0.9, 1.1]}]
    reason: it is exact up to rounding
    control: twice the ratio
    profile: smoke
"""

CHAPTER = """# %% [markdown]
# # Tiny chapter
#
# <!-- chips -->
#
# Prose of the first cell.

# %% tags=["parameters"]
profile = "smoke"
seed = 0

# %%
import matplotlib.pyplot as plt

from companion.chapters import Chapter

chapter = Chapter("01_tiny", profile=profile, seed=seed)

# %% tags=["nbval-check-output"]
value = 2.0 + seed
print(value)

# %% [markdown]
# ## Figures

# %%
for name, slope in {"first-line": 1, "second-line": 2}.items():
    fig, axes = plt.subplots(figsize=(2, 2))
    axes.plot([0, 1], [0, slope])
    alt = f"A straight line that rises from the origin with slope {slope} until the right edge."
    caption = f"The slope of this line is ${slope}$, as it should be."
    chapter.show(fig, name, alt=alt, caption=caption, answers="Fig. 7")
    print("drawn")

# %% tags=["remove-input"]
chapter.claim("C1", ratio=1.0, control=dict(ratio=2.0))
chapter.ledger()

# %% tags=["hide-input"]
chapter.finish()
"""


def write_book(root: Path) -> Path:
    """Write the miniature book's sources under `root`."""
    files = {
        "_config.yml": CONFIG,
        "_toc.yml": TOC,
        "book/intro.md": "# Tiny book\n\nA first page, about $x^2$.\n",
        "book/notes.md": NOTES,
        "book/glossary.md": GLOSSARY,
        "book/api.md": "# Reference\n\n<!-- generated -->\n",
        "book/claims/01_tiny.yml": CLAIMS,
        "notebooks/01_tiny.py": CHAPTER,
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf8")
    # Its own copy, so that digests stay when somebody edits the package while the tests run.
    shutil.copytree(PACKAGE, root / "companion", ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The miniature book, not executed."""
    for name in ("COMPANION_RESULTS", "COMPANION_FIGURES", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COMPANION_ROOT", str(tmp_path))
    return write_book(tmp_path)


@pytest.fixture(scope="session")
def _executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_book(tmp_path_factory.mktemp("executed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPANION_ROOT", str(root))
        (outcome,) = runner.run([], "smoke")
    assert outcome.state == "done", outcome.error
    return root


@pytest.fixture
def executed_book(book: Path, _executed: Path) -> Path:
    """The miniature book with its executed copy, results and figures."""
    shutil.copytree(_executed / "_build", book / "_build")
    return book
