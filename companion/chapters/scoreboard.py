"""What the recorded results add up to: scoreboard and environment pages, README table, badge, chip lines."""

import re
from collections.abc import Iterable, Iterator
from html import escape

from companion.chapters import paths, results
from companion.chapters.ledger import STATUSES
from companion.errors import CompanionError

_START, _END = "<!-- scoreboard:start -->", "<!-- scoreboard:end -->"
_HELD = ("verified", "reproduced")
_JUDGED = (*_HELD, "direction only", "not reproduced")


def title(chapter: str) -> str:
    """Return the chapter's number and the first heading of its notebook (its name where there is none)."""
    file = paths.notebook(chapter)
    source = file.read_text(encoding="utf-8") if file.is_file() else ""
    heading = re.search(r"^# # (.+)$", source, re.MULTILINE)
    number, _, slug = chapter.partition("_")
    words = heading[1].strip() if heading else slug.replace("_", " ").capitalize()
    return f"{int(number)}. {words}"


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _minutes(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else "–"


def _recorded() -> Iterator[tuple[str, str, results.Result | None]]:
    for chapter in paths.chapters():
        for profile in results.RECORDED:
            yield chapter, profile, results.recorded(chapter, profile)


def table(prefix: str) -> str:
    """Return the Markdown table of chapter × profile; `prefix` is the way from the page to the notebooks."""
    rows: list[list[object]] = []
    for chapter, profile, result in _recorded():
        link = f"[{title(chapter)}]({prefix}{chapter}.ipynb)"
        remarks = "; ".join(results.remarks(chapter, profile)) or "–"
        if result is None:
            rows.append([link, profile, *["–"] * len(STATUSES), "–", "–", remarks])
            continue
        origin = result["provenance"]
        numbers = results.counts(result).values()
        rows.append([link, profile, *numbers, origin["device"], _minutes(origin.get("minutes")), remarks])
    return _table(["Chapter", "Profile", *(s.capitalize() for s in STATUSES), "Device", "Minutes", "Remarks"], rows)


def _claims_table(chapter: str) -> str:
    """Return one row per claim of the chapter with its status at each recorded profile."""
    found = {profile: results.recorded(chapter, profile) for profile in results.RECORDED}
    by_profile = {p: {c["id"]: c for c in result["claims"]} for p, result in found.items() if result}
    claims = {claim_id: claim for claims in by_profile.values() for claim_id, claim in claims.items()}

    def cell(profile: str, claim_id: str) -> str:
        claim = by_profile.get(profile, {}).get(claim_id)
        if claim is None:
            return "–"
        measured = ", ".join(f"{name} = {words}" for name, words in claim["words"].items())
        return f"{claim['status']}{': ' + measured if measured else ''}"

    rows = [
        [claim_id, claim["title"], claim["kind"], *(cell(profile, claim_id) for profile in results.RECORDED)]
        for claim_id, claim in claims.items()
    ]
    return _table(["Claim", "Title", "Kind", *results.RECORDED], rows)


def page() -> str:
    """Return the body of the scoreboard page (Markdown, below its heading) from the recorded results."""
    parts = [
        "Generated from the recorded results: nobody types a status. A theorem is *verified* when it was "
        "checked to its tolerance; an experiment is *reproduced* when the rule written down beforehand "
        "holds, *direction only* when a weaker one does, and *not reproduced* otherwise. *Needs cpu* and "
        "*needs gpu* mean that the run was too small, or its data missing, to decide. Every rule also had "
        "to fail for a deliberately wrong twin.",
        table("../notebooks/"),
    ]
    for chapter in dict.fromkeys(chapter for chapter, _, result in _recorded() if result):
        parts += [f"## {title(chapter)}", _claims_table(chapter)]
    return "\n\n".join(parts) + "\n"


def _environment(chapter: str, run: str, result: results.Result) -> str:
    origin = result["provenance"]
    tree = {True: " with uncommitted changes", False: "", None: ""}[origin["dirty"]]
    rows = [
        ["Device", f"{origin['device']} ({origin['cpu_capability']}, {origin['threads']} threads)"],
        ["System", origin["system"]],
        ["Versions", ", ".join(f"{name} {number}" for name, number in origin["versions"].items())],
        ["Determinism", ", ".join(f"{name}: {value}" for name, value in origin["deterministic"].items())],
        ["Commit", f"`{origin['commit'][:12]}`{tree}"],
        ["Digest of the sources", f"`{origin['digest'][:12]}`"],
        ["Seed", origin["seed"]],
        ["Settings", ", ".join(f"{name} = {value}" for name, value in origin["parameters"].items()) or "–"],
        ["Minutes", _minutes(origin.get("minutes"))],
    ]
    for card in origin["data"]:
        instead = f", standing in for {card['stands_in_for']}" if card["stands_in_for"] else ""
        sums = ", ".join(f"`{file}` {checksum[:12]}" for file, checksum in card["sha256"].items())
        text = f"{card['title']}{instead}; {card['shape']}; {card['licence']}; <{card['source']}>"
        rows.append([f"Data: {card['name']} ({card['split']})", f"{text}; {sums}" if sums else text])
    return f"### {title(chapter)}, {run}\n\n" + _table(["What", "Value"], rows)


def environment_page(profile: str) -> str:
    """Return the environment page's body: provenance of this build at `profile` and of recorded runs."""
    fresh = [(chapter, results.read(chapter, profile)) for chapter in paths.chapters()]
    parts = [
        "What produced the numbers of this book: generated from the provenance that every results file "
        "carries. The digest covers a chapter's code cells, every module of the package that they import, "
        "its claims, the lock file and the profile; a recorded result whose digest differs from today's is "
        "called stale.",
        "## The chapters of this build",
        *[_environment(chapter, f"{profile} profile", result) for chapter, result in fresh if result],
        "## Recorded results",
        *[_environment(chapter, f"{p} profile, recorded", result) for chapter, p, result in _recorded() if result],
    ]
    return "\n\n".join(parts) + "\n"


def chips(chapter: str, profile: str) -> str:
    """Return the HTML line under a chapter's title, from its last run at `profile`."""
    result = results.read(chapter, profile)
    if result is None:
        raise CompanionError(f"no {profile} results of {chapter}: run `companion run {chapter} --profile {profile}`")
    note = results.run_note(chapter, profile) or {}
    chip = [("profile", f"profile {profile}"), ("device", result["provenance"]["device"])]
    if "minutes" in note:
        chip.append(("minutes", f"{_minutes(note['minutes'])} min"))
    chip += [(s.replace(" ", "-"), f"{n} {s}") for s, n in results.counts(result).items() if n]
    cards = result["provenance"]["data"]
    instead = [f"{card['name']} stands in for {card['stands_in_for']}" for card in cards if card["stands_in_for"]]
    chip += [("stand-in", text) for text in dict.fromkeys(instead)]  # once, however many splits were loaded
    spans = " ".join(f'<span class="chip chip-{kind}">{escape(text)}</span>' for kind, text in chip)
    return f'<p class="chips">{spans}</p>'


def _held() -> tuple[int, int]:
    """Return how many claims hold and how many were judged, at each chapter's largest recorded profile."""
    best = {chapter: result for chapter, _, result in _recorded() if result}  # the later profile is the larger
    totals = [results.counts(result) for result in best.values()]
    return (sum(t[s] for t in totals for s in _HELD), sum(t[s] for t in totals for s in _JUDGED))


def badge() -> str:
    """Return an SVG badge: claims that hold of those judged, at each chapter's largest recorded profile."""
    held, judged = _held()
    left, right = "claims that hold", f"{held} of {judged}" if judged else "none yet"
    widths = [7 * len(text) + 12 for text in (left, right)]
    total = sum(widths)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="20" '
        f'role="img" aria-label="{left}: {right}">'
        f"<title>{left}: {right}</title>"
        f'<rect width="{total}" height="20" rx="3" fill="#4d4d4d"/>'
        f'<path d="M{widths[0]} 0h{widths[1] - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3H{widths[0]}z" '
        'fill="#01588e"/>'
        '<g fill="#fff" text-anchor="middle" font-family="DejaVu Sans,Verdana,sans-serif" font-size="11">'
        f'<text x="{widths[0] / 2:g}" y="14">{left}</text>'
        f'<text x="{widths[0] + widths[1] / 2:g}" y="14">{right}</text></g></svg>\n'
    )


def with_table(readme: str) -> str:
    """Return the README's text with its scoreboard section replaced; CompanionError without the markers."""
    before, start, rest = readme.partition(_START)
    _, end, after = rest.partition(_END)
    if not start or not end:
        raise CompanionError(f"README.md has no scoreboard section: it needs the lines {_START} and {_END}")
    return f"{before}{_START}\n\n{table('notebooks/')}\n\n{_END}{after}"


def publish() -> None:
    """Bring the README's scoreboard and `book/_static/badge.svg` up to date with the recorded results."""
    readme = paths.root() / "README.md"
    if not readme.is_file():
        raise CompanionError(f"no README.md in {paths.root()}: run this inside a checkout of the book")
    paths.write_atomic(readme, with_table(readme.read_text(encoding="utf-8")).encode())
    paths.write_atomic(paths.root() / "book" / "_static" / "badge.svg", badge().encode())
