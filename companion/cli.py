"""The `companion` command: run chapters, render the book, look after data and results.

Commands import what needs PyTorch when they are called, so that the others answer at once.
"""

import json
import signal
import threading
from typing import Annotated, Any

import typer
import yaml
from typer.core import TyperGroup

from companion.chapters import notebooks, paths, profiles, recheck, results, runner, scoreboard, site
from companion.errors import CompanionError

_INTERRUPTED = "interrupted: nothing half-written was kept, finished chapters were; the same command goes on from there"


class _Group(TyperGroup):
    """Turns errors meant for the user into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job manager's stop is an interrupt too
        try:
            return super().invoke(ctx)
        except CompanionError as error:
            typer.echo(f"companion: {error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo(f"companion: {_INTERRUPTED}", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Fetch, list and check data sets.")
app.add_typer(data_app, name="data")

Chapters = Annotated[list[str] | None, typer.Argument(help="chapters, or their numbers; all when left out")]
ProfileName = Annotated[str, typer.Option("--profile", "-P", help="smoke, cpu or gpu")]
Jobs = Annotated[int, typer.Option("-j", help="chapters at once (one at a time on a GPU)")]
Sets = Annotated[list[str] | None, typer.Argument(help="data sets; all when left out")]


def _literals(pairs: list[str]) -> dict[str, Any]:
    """Turn `name=value` pairs into literals; raises CompanionError on anything else."""
    parsed = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise CompanionError(f"parameter {pair!r} is not of the form name=value, such as seed=1")
        try:
            parsed[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise CompanionError(f"parameter {pair!r}: {value!r} is no literal such as 1, 0.001 or [1, 2]") from error
    return parsed


@app.command()
def run(
    chapters: Chapters = None,
    profile: ProfileName = "cpu",
    jobs: Jobs = 1,
    parameter: Annotated[list[str] | None, typer.Option("-p", help="name=value of a notebook parameter")] = None,
    force: Annotated[bool, typer.Option("--force", help="run even what is cached")] = False,
) -> None:
    """Execute chapters; what has not changed since its last run is taken from the cache."""
    given = _literals(parameter or [])
    outcomes = runner.run(chapters or [], profile, jobs, given, force)
    if failed := [outcome.chapter for outcome in outcomes if outcome.state == "failed"]:
        typer.echo(f"companion: {len(failed)} of {len(outcomes)} chapters failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


@app.command()
def check(chapters: Chapters = None, profile: ProfileName = "smoke", jobs: Jobs = 1) -> None:
    """Execute chapters twice and demand the same checked outputs, results and figures."""
    run(chapters, profile, jobs)
    problems = recheck.recheck(chapters or [], profile, jobs)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"two {profile} runs agree")


@app.command()
def build(
    profile: ProfileName = "cpu",
    clean: Annotated[bool, typer.Option("--clean", help="render every page anew")] = False,
) -> None:
    """Render the book from the executed chapters; print the address to open and the claims."""
    address = site.build(profile, clean)
    for name in paths.chapters():
        if not runner.is_current(name, profile):
            typer.echo(f"{name} shows an older run: refresh it with `companion run {name} --profile {profile}`")
    typer.echo(f"{_summary(profile)}\nopen {address}")


@app.command()
def claims(
    profile: ProfileName = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="print the results files as one JSON object")] = False,
) -> None:
    """Print every claim with its status: of the last run, else as recorded."""
    found = _results(profile)
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for chapter, result in found.items():
        if result is None:
            typer.echo(f"{chapter}: no results at {profile}: run `companion run {chapter} --profile {profile}`")
        for claim in result["claims"] if result else []:
            typer.echo(f"{chapter[:2]} {claim['id']:<4} {claim['status']:<15} {claim['title']}")
    typer.echo(_summary(profile))


@app.command()
def record(chapter: str, profile: ProfileName = "cpu") -> None:
    """Keep a finished run in book/results and bring the scoreboard up to date."""
    (name,) = runner.chosen([chapter])
    typer.echo(f"recorded {results.record(name, profile)}")
    scoreboard.publish()


@app.command()
def pair(
    chapters: Chapters = None,
    check: Annotated[bool, typer.Option("--check", help="change nothing, only say what differs")] = False,
    from_ipynb: Annotated[bool, typer.Option("--from-ipynb", help="the .ipynb was edited: it wins")] = False,
) -> None:
    """Write each notebooks/*.ipynb from its .py source, without outputs."""
    if check:
        problems = notebooks.check_pairs(runner.chosen(chapters) if chapters else ())
        for problem in problems:
            typer.echo(problem, err=True)
        raise typer.Exit(1 if problems else 0)
    # A new .ipynb has no .py yet, so its name is not among the chapters.
    for name in (chapters or paths.chapters()) if from_ipynb else runner.chosen(chapters or []):
        changed = notebooks.unpair(name) if from_ipynb else notebooks.pair(name)
        typer.echo(f"{name}: {'written' if changed else 'as before'}")


@app.command()
def new(
    chapter: Annotated[str, typer.Argument(help="its name, such as 11_my_paper")],
    title: Annotated[str, typer.Option("--title", "-t", help="the paper's title; the slug when left out")] = "",
) -> None:
    """Begin a chapter that runs: notebook, claims, model and test, and its entries in the book's pages."""
    from companion.chapters.new import create

    for file in create(chapter, title):
        typer.echo(f"written {file.relative_to(paths.root())}")
    typer.echo(f"next: companion run {chapter} --profile cpu, then companion record {chapter}, then make test")


@app.command()
def doctor() -> None:
    """Say what this machine can run, and what is missing."""
    from companion.chapters.doctor import examine

    for name, finding in examine():
        typer.echo(f"{name:<16} {finding}")


@data_app.command("list")
def list_sets() -> None:
    """List the data sets and whether they are here."""
    from companion import data

    for name in data.names():
        typer.echo(f"{name:<16} {data.status(name):<9} {data.card(name).title} ({data.card(name).licence})")


@data_app.command()
def fetch(sets: Sets = None) -> None:
    """Download data sets into the cache, checked by SHA-256."""
    from companion import data

    failed = False
    for name in sets or [name for name in data.names() if data.status(name) != "embedded"]:
        try:
            data.fetch(name)
            typer.echo(f"{name}: {data.status(name)}")
        except CompanionError as error:
            failed = True
            typer.echo(f"companion: {error}", err=True)
    if failed:
        raise typer.Exit(2)


@data_app.command("check")
def check_sets(sets: Sets = None) -> None:
    """Check the files of the cache; fails on a corrupt file, or on a missing one that was asked for."""
    from companion import data

    states = {name: data.status(name) for name in sets or data.names()}
    for name, state in states.items():
        typer.echo(f"{name}: {state}")
    if "corrupt" in states.values() or (sets and "missing" in states.values()):
        raise typer.Exit(1)


def _results(profile: str) -> dict[str, results.Result | None]:
    profiles.get(profile)
    return {c: results.read(c, profile) or results.recorded(c, profile) for c in paths.chapters()}


def _summary(profile: str) -> str:
    counts = {status: 0 for status in results.STATUSES}
    for result in _results(profile).values():
        for status, number in results.counts(result).items() if result else ():
            counts[status] += number
    words = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    return f"claims at profile {profile}: {words or 'none computed'}"
