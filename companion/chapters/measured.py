"""The pages on scaling and on speed: their prose is in `book/`, their numbers in what was measured and committed."""

import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from companion.chapters import paths, profiles, results
from companion.chapters.tables import markdown
from companion.errors import CompanionError

_MARK = re.compile(r"<!-- measured:(\w+) -->")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Arm(_Strict):
    """The sweep on one engine: seconds to start the workers, seconds of the sweep, largest relative difference."""

    arm: Literal["one process", "one program", "loky", "dask"]
    workers: int
    start: float
    seconds: float
    difference: float


class Killed(_Strict):
    """A sweep one of whose workers was killed: calls until it was whole, runs kept at the first, starts in excess."""

    backend: Literal["loky", "dask"]
    runs: int
    calls: int
    kept: int
    repeated: int
    message: str


class Torchrun(_Strict):
    """One training alone and over several processes: seconds, relative difference of weights, equal bits twice."""

    processes: int
    steps: int
    alone: float
    together: float
    difference: float
    repeatable: bool


class Problem(_Strict):
    """What the scaling page measures on."""

    seeds: int
    steps: int
    parameters: int
    batch: int
    tolerance: float


class Scaling(_Strict):
    """The content of `book/results/scaling.json`."""

    provenance: dict[str, Any]
    problem: Problem
    sweep: list[Arm]
    killed: list[Killed]
    torchrun: Torchrun


class Row(_Strict):
    """One line of the table that `make bench` prints; `ratio` is how many times faster `ms` is than `other_ms`."""

    group: str
    what: str
    ms: float | None = None
    other_ms: float | None = None
    ratio: float | None = None
    parameters: int | None = None
    note: str = ""


class Curve(_Strict):
    """Milliseconds of one or more procedures against something that grows."""

    against: Literal["seeds", "samples", "parameters"]
    what: str
    x: list[int]
    series: dict[str, list[float]]


class Speed(_Strict):
    """The content of `book/results/speed.json`."""

    provenance: dict[str, Any]
    rows: list[Row]
    curves: list[Curve]


_SCHEMA: dict[str, type[BaseModel]] = {"scaling": Scaling, "speed": Speed}
_FIGURE = ("cost_figure", "figures")  # the modules that draw the costs
_COMMAND = {"scaling": "make scaling", "speed": "make bench"}


def file(name: str) -> Path:
    """Return where the measurements called `name` ("scaling" or "speed") are committed."""
    return paths.root() / "book" / "results" / f"{name}.json"


def read(name: str) -> Any:
    """Return the committed measurements, or None if there are none; raises CompanionError for a broken file."""
    if not file(name).is_file():
        return None
    try:
        return _SCHEMA[name].model_validate_json(file(name).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CompanionError(f"{file(name)}: {where}: {first['msg']}; measure again with `{_COMMAND[name]}`") from error


def write(name: str, content: dict[str, Any]) -> Path:
    """Write measurements that fit their schema (pydantic's error otherwise) and return the file."""
    checked = _SCHEMA[name].model_validate(content)
    paths.write_atomic(file(name), results.dumps(checked.model_dump()))
    return file(name)


def origin() -> dict[str, Any]:
    """Return what measurements carry: commit, device, versions, threads and cores of this process."""
    import torch  # only here and below: `companion --help` need not wait for it

    from companion.chapters import provenance

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return provenance.commit() | provenance.machine(device) | {"cores": profiles.cores()}


def pages() -> dict[str, bytes]:
    """Return the staged pages, with every `<!-- measured:... -->` replaced, and the figure that they show."""
    files: dict[str, bytes] = {}
    for name in _SCHEMA:
        page = paths.root() / "book" / f"{name}.md"
        if not page.is_file():
            continue
        found = read(name)
        text = page.read_text(encoding="utf-8")
        files[f"book/{name}.md"] = _MARK.sub(lambda mark: _block(name, mark[1], found), text).encode()  # noqa: B023
        if name == "speed" and found is not None and found.curves:
            files["book/cost-curves.png"] = _drawn(found.curves)
    return files


def _drawn(curves: list[Curve]) -> bytes:
    """Return the figure, drawn anew only where the numbers, the code or the library are not those of last time."""
    code = [(paths.package() / "chapters" / f"{name}.py").read_text(encoding="utf-8") for name in _FIGURE]
    made_of = [version("matplotlib"), *code, *(curve.model_dump_json() for curve in curves)]

    def draw() -> bytes:
        from companion.chapters import cost_figure  # only here: matplotlib takes seconds to import

        return cost_figure.draw(curves)

    return paths.kept("\0".join(made_of), draw)


def _block(name: str, part: str, found: Any) -> str:
    if part not in _PARTS[name]:
        raise CompanionError(f"book/{name}.md: no measured part {part!r}: choose one of {', '.join(_PARTS[name])}")
    if found is None:
        return f":::{{warning}}\nNot measured yet: `{_COMMAND[name]}` writes `book/results/{name}.json`.\n:::"
    return _PARTS[name][part](found)


def _size(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits}g}"


def _origin(found: Any) -> str:
    note, libraries = found.provenance, found.provenance.get("libraries", {})
    names = {"Python": note["versions"]["python"], "PyTorch": note["versions"]["torch"], **libraries}
    words = ", ".join(f"{name} {number}" for name, number in names.items())
    tree = " with uncommitted changes" if note["dirty"] else ""
    return (
        f"*Measured on {note['device']} ({note['cores']} cores, {note['threads']} thread a process), {words}, "
        f"commit `{note['commit'][:12]}`{tree}.*"
    )


_ENGINES = {
    "one process": "one process, one seed after the other",
    "one program": "one process, all seeds as one program (`Ensemble`)",
    "loky": "loky workers",
    "dask": "dask workers",
}


def _equal(difference: float) -> str:
    return "the same bits" if difference == 0 else f"relative difference {difference:.0e}"


def _sweep(found: Scaling) -> str:
    problem, alone = found.problem, found.sweep[0]
    rows = [
        [
            _ENGINES[arm.arm],
            arm.workers,
            f"{arm.start:.1f}",
            f"{arm.seconds:.1f}",
            f"{alone.seconds / arm.seconds:.1f}",
            "–" if arm is alone else _equal(arm.difference),
        ]
        for arm in found.sweep
    ]
    return (
        f"{problem.seeds} seeds, {problem.steps:,} steps each with batches of {problem.batch}, "
        f"{problem.parameters:,} weights:\n\n"
        + markdown(
            ["Engine", "Processes", "Start, s", "Sweep, s", "Times as fast", "Result against one process"], rows, left=1
        )
    )


def _killed(found: Scaling) -> str:
    rows = []
    for case in found.killed:
        then = "the engine tried again by itself" if case.calls == 1 else f"`{case.message}`"
        kept = "all" if case.calls == 1 else f"{case.kept} of {case.runs}"
        rows.append([case.backend, then, kept, case.calls, case.repeated])
    head = ["Engine", "What was seen", "Runs on disk", "Calls until whole", "Runs started twice"]
    return markdown(head, rows, left=2)


def _torchrun(found: Scaling) -> str:
    run = found.torchrun
    rows: list[list[object]] = [
        [1, f"{run.alone:.1f}", "–"],
        [run.processes, f"{run.together:.1f}", _equal(run.difference)],
    ]
    twice = "the same bits" if run.repeatable else "different bits"
    return (
        markdown(["Processes", f"{run.steps:,} steps, s", "Weights against one process"], rows, left=1)
        + f"\n\nAll replicas ended with the same bits. A second launch with {run.processes} processes gave {twice}."
    )


def _groups(found: Speed) -> str:
    parts = []
    for group in dict.fromkeys(row.group for row in found.rows):
        rows = [row for row in found.rows if row.group == group]
        parts.append(f"## {group}\n\n{markdown(*columns(rows), left=1)}")
    return "\n\n".join(parts)


def columns(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Return head and lines of a table of `rows`, without the columns in which nothing stands."""
    every: dict[str, Callable[[Row], str]] = {
        "What": lambda row: row.what,
        "Ours, ms": lambda row: _size(row.ms),
        "The other, ms": lambda row: _size(row.other_ms),
        "Times as fast": lambda row: _size(row.ratio, 2),
        "Parameters": lambda row: _size(row.parameters),
        "Note": lambda row: row.note or "–",
    }
    used = {name: cell for name, cell in every.items() if name == "What" or any(cell(row) != "–" for row in rows)}
    return list(used), [[cell(row) for cell in used.values()] for row in rows]


def _seen(curve: Curve) -> str:
    """Say where each line of the panel begins and ends."""
    ends = [f"{name} {_size(ms[0])} to {_size(ms[-1])} ms" for name, ms in curve.series.items()]
    return f"against {curve.against}, from {curve.x[0]:,} to {curve.x[-1]:,}, {curve.what}: {', '.join(ends)}"


def _curves(found: Speed) -> str:
    parts = []
    if found.curves:
        words = "; ".join(map(_seen, found.curves))
        parts.append(
            ":::{figure} cost-curves.png\n"
            f":alt: Milliseconds on logarithmic axes, one panel each {words}. The numbers stand in the tables below.\n"
            ":name: fig-cost-curves\n:width: 100%\n\n"
            "What a step costs as the number of seeds, of samples and of parameters grows.\n:::"
        )
    for curve in found.curves:
        rows = [[f"{x:,}", *(_size(ms[k]) for ms in curve.series.values())] for k, x in enumerate(curve.x)]
        head = [curve.against.capitalize(), *(f"{name}, ms" for name in curve.series)]
        parts.append(f"### {curve.what[:1].upper()}{curve.what[1:]}\n\n{markdown(head, rows, left=1)}")
    return "\n\n".join(parts)


_PARTS: dict[str, dict[str, Callable[[Any], str]]] = {
    "scaling": {"sweep": _sweep, "killed": _killed, "torchrun": _torchrun, "origin": _origin},
    "speed": {"groups": _groups, "curves": _curves, "origin": _origin},
}
