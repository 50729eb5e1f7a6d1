"""One table of all that is measured here, printed at the end; `--record` keeps it for the book's page on speed."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from companion.chapters import measured
from companion.train.objective import hyper_for, objective, optimiser_for

Work = Callable[[], object]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ORDER = (
    "Training step of each model",
    "Vectorised against a loop",
    "Ensemble against a sequence",
    "Compiled against eager",
    "Against another implementation",
)
AGAINST = ("seeds", "samples", "parameters")
LEAST = 0.02  # seconds that are timed at once: less drowns in the clock's own steps


class Speed:
    """The timer and the notebook of this session."""

    device = DEVICE

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.curves: list[dict[str, Any]] = []

    def seconds(self, *works: Work, rounds: int = 5) -> list[float]:
        """Return the best time of each, measured in turns so that a busy spell hits all of them.

        On a CPU it is processor time of one thread: wall time would measure the neighbours too.
        """
        repeats = []
        for work in works:
            work()
            repeats.append(1 + int(LEAST / max(self._once(work, 1), 1e-6)))
        best = [float("inf")] * len(works)
        for _ in range(rounds):
            for k, work in enumerate(works):
                best[k] = min(best[k], self._once(work, repeats[k]))
        return best

    @staticmethod
    def _once(work: Work, repeats: int) -> float:
        cuda = DEVICE.type == "cuda"
        clock = time.perf_counter if cuda else time.process_time
        if cuda:
            torch.cuda.synchronize()
        began = clock()
        for _ in range(repeats):
            work()
        if cuda:
            torch.cuda.synchronize()
        return (clock() - began) / repeats

    def row(self, group: str, what: str, **values: Any) -> None:
        """Add a line to the table."""
        self.rows.append({"group": group, "what": what, **values})

    def compare(self, group: str, what: str, fast: Work, slow: Work, *, least: float, rounds: int = 5) -> None:
        """Add a line on how many times faster `fast` is; fail unless it is more than `least`."""
        mine, other = self.seconds(fast, slow, rounds=rounds)
        self.row(group, what, ms=1e3 * mine, other_ms=1e3 * other, ratio=other / mine)
        assert other / mine > least, f"{what}: {other / mine:.2f} times as fast, expected more than {least}"

    @staticmethod
    def stepper(
        module: nn.Module,
        loss: Any,
        batch: tuple[Any, ...],
        noise: Any = None,
        hyper: Mapping[str, Any] | None = None,
        *,
        compiled: bool = False,
    ) -> Work:
        """Return one training step as `fit` takes it, on a given batch and noise: loss, gradients, Adam."""
        evaluate = objective(module, loss, shared=True)
        if compiled:
            evaluate = torch.compile(evaluate)
        descent = optimiser_for(module, torch.optim.Adam, 1e-3)
        settings = hyper_for(module, hyper, next(module.parameters()))

        def step() -> None:
            losses, _ = evaluate(batch, noise, settings)
            descent.zero_grad()
            losses.sum().backward()
            descent.step()

        return step

    def curve(self, against: str, what: str, x: list[int], **series: list[Work]) -> None:
        """Add a curve: the milliseconds of each series of `Work`, one for each of `x`."""
        times = {name: [1e3 * self.seconds(work, rounds=3)[0] for work in works] for name, works in series.items()}
        named = {name.replace("_", " "): ms for name, ms in times.items()}
        self.curves.append({"against": against, "what": what, "x": x, "series": named})


_SPEED = pytest.StashKey[Speed]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write book/results/speed.json when all has passed")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SPEED] = Speed()


@pytest.fixture
def speed(request: pytest.FixtureRequest) -> Iterator[Speed]:
    """The session's timer, with PyTorch on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield request.config.stash[_SPEED]
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _from_pytest_benchmark(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give a test that times with pytest-benchmark its line too."""
    fixture = request.getfixturevalue("benchmark") if "benchmark" in request.fixturenames else None
    yield
    if fixture is not None and fixture.stats is not None:
        what = request.node.name.removeprefix("test_").replace("_", " ")
        request.config.stash[_SPEED].row("Other routines", what, ms=1e3 * fixture.stats.stats.min)


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    speed = config.stash[_SPEED]
    rows = [measured.Row(**row) for row in speed.rows]
    if not rows:
        return
    terminalreporter.ensure_newline()
    rows.sort(key=lambda row: ORDER.index(row.group) if row.group in ORDER else len(ORDER))
    head, lines = measured.columns(rows)
    table = Table("", *head, title=f"Speed on {DEVICE.type}")
    named: set[str] = set()
    for row, line in zip(rows, lines, strict=True):
        table.add_row("" if row.group in named else row.group, *line)
        named.add(row.group)
    Console(width=150).print(table)
    if config.getoption("--record"):
        if exitstatus:
            terminalreporter.write_line("not recorded: something failed")
            return
        torch.set_num_threads(1)  # as it was while the clock ran
        content = {
            "provenance": measured.origin(),
            "rows": [r.model_dump() for r in rows],
            "curves": sorted(speed.curves, key=lambda curve: AGAINST.index(curve["against"])),
        }
        terminalreporter.write_line(f"recorded {measured.write('speed', content)}")
