"""A small book on disk: one chapter, its claims, and the folders that the chapters room reads and writes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

from companion.chapters import chapter as room
from companion.chapters.chapter import Chapter

CHAPTER = "01_small"

NOTEBOOK = """\
# %% [markdown]
# # A small paper
# Prose.

# %% tags=["parameters"]
profile = "smoke"
seed = 0

# %%
from companion.seeds import generator
value = 1.0
"""

CLAIMS = """\
chapter: 01_small
claims:
  - id: C1
    kind: theorem
    title: The slope is four
    statement: The remainder vanishes with the fourth power of $\\sigma$.
    where: Theorem 1
    paper: 4
    measures: {slope: log-log slope}
    rule:
      - {measure: slope, within: [3.7, 4.3], over: mean}
    reason: finite noise bends the line by a tenth
    control: the remainder without its second part
    profile: smoke
  - id: C2
    kind: experiment
    title: Noise helps
    statement: Networks trained with noise have the lower test loss.
    where: Fig. 3
    measures: {base: test loss without noise, noisy: test loss with noise}
    rule:
      - {measure: noisy, at_most: {measure: base, times: 0.8}}
    direction:
      - {decreasing: [base, noisy], over: mean}
    reason: a fifth is well above the spread over seeds
    control: labels shuffled
    profile: cpu
    data: [mnist, cifar10]
  - id: C3
    kind: experiment
    title: Works for deep nets
    statement: The same holds for a network of thirteen layers.
    where: Fig. 4
    not_attempted: the paper gives no learning rate
"""


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The root of a small book; puts back the global settings that a Chapter changes."""
    files = {
        "_toc.yml": "",
        "requirements.lock": "torch==2.13.0\n",
        f"notebooks/{CHAPTER}.py": NOTEBOOK,
        f"book/claims/{CHAPTER}.yml": CLAIMS,
        "README.md": "# Book\n<!-- scoreboard:start -->\nold\n<!-- scoreboard:end -->\nThe end.\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(dedent(text), encoding="utf-8")
    monkeypatch.setenv("COMPANION_ROOT", str(tmp_path))
    monkeypatch.delenv("COMPANION_RESULTS", raising=False)
    monkeypatch.delenv("COMPANION_FIGURES", raising=False)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield tmp_path
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.set_deterministic_debug_mode("default")


@pytest.fixture
def start(book: Path) -> Callable[..., Chapter]:
    """Start the small chapter at a profile, with seed 0."""

    def make(profile: str = "smoke", **options: Any) -> Chapter:
        return Chapter("01_small", **{"profile": profile, "seed": 0, **options})

    return make


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict]]:
    """What a chapter displays: (Markdown, companion metadata)."""
    found: list[tuple[str, dict]] = []

    def keep(shown: Any, metadata: dict[str, Any] | None = None) -> None:
        found.append((shown.data, (metadata or {}).get("companion", {})))

    monkeypatch.setattr(room, "display", keep)
    return found
