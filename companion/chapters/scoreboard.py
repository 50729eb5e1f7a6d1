"""What the recorded results add up to: scoreboard and environment pages, README table, badge, chip lines."""

import re
from collections.abc import Iterator
from html import escape
from typing import Any

from companion.chapters import paths, results
from companion.chapters.claims import STATUSES
from companion.chapters.quotes import chip, reference
from companion.chapters.tables import markdown
from companion.errors import CompanionError

_START, _END = "<!-- scoreboard:start -->", "<!-- scoreboard:end -->"
HELD = ("verified", "reproduced")
_JUDGED = (*HELD, "direction only", "not reproduced")


def title(chapter: str) -> str:
    """Return the chapter's number and the first heading of its notebook (its name where there is none)."""
    file = paths.notebook(chapter)
    source = file.read_text(encoding="utf-8") if file.is_file() else ""
    heading = re.search(r"^# # (.+)$", source, re.MULTILINE)
    number, _, slug = chapter.partition("_")
    words = heading[1].strip() if heading else slug.replace("_", " ").capitalize()
    return f"{int(number)}. {words}"


def _minutes(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else "–"


def _recorded() -> Iterator[tuple[str, str, results.Result | None]]:
    for chapter in paths.chapters():
        for profile in results.RECORDED:
            yield chapter, profile, results.recorded(chapter, profile)


def summary(prefix: str) -> str:
    """Return the Markdown table of recorded runs by chapter; `prefix` is the way from the page to the notebooks.

    Statuses that no claim has get no column; what is not recorded is named below the table.
    """
    found = [(chapter, profile, result) for chapter, profile, result in _recorded() if result]
    counted = {(chapter, profile): results.counts(result) for chapter, profile, result in found}
    statuses = [s for s in STATUSES if any(numbers[s] for numbers in counted.values())]
    rows = [
        [f"[{title(chapter)}]({prefix}{chapter}.ipynb)", profile]
        + [counted[chapter, profile][s] for s in statuses]
        + [result["provenance"]["device"], _minutes(result["provenance"].get("minutes"))]
        + ["; ".join(results.remarks(chapter, profile)) or "–"]
        for chapter, profile, result in found
    ]
    head = ["Chapter", "Profile", *(s.capitalize() for s in statuses), "Device", "Minutes", "Remarks"]
    missing = []
    for profile in results.RECORDED:
        numbers = [str(int(c[:2])) for c in paths.chapters() if (c, profile) not in counted]
        if numbers:
            missing.append(
                f"Not recorded at the {profile} profile: chapter{'s' * (len(numbers) > 1)} {', '.join(numbers)}."
            )
    return "\n\n".join([*([markdown(head, rows)] if rows else []), *missing])


def _measured(claim: dict[str, Any]) -> str:
    """Return every measure with its 95% interval over seeds, or its cases; more than one fold away."""
    words = []
    for name, measure in claim["measured"].items():
        if measure["value"] is None:
            words.append(f"{name} not finite")
            continue
        if "cases" in measure:
            words.append(f"{name} = {claim['words'][name]}")
            continue
        interval = "" if measure["ci95"] is None else " [{:.4g}, {:.4g}] (n={})".format(*measure["ci95"], measure["n"])
        words.append(f"{name} = {measure['value']:.4g}{interval}")
    if len(words) < 2:
        return "".join(words) or "–"
    return f"<details><summary>{len(words)} numbers</summary>{'<br>'.join(words)}</details>"


def _claims_table() -> str:
    """Return one row per claim of the book, with status and numbers at each profile that has a record."""
    found = {(chapter, profile): result for chapter, profile, result in _recorded() if result}
    profiles = [profile for profile in results.RECORDED if any(profile == p for _, p in found)]
    rows: list[list[str]] = []
    for chapter in dict.fromkeys(chapter for chapter, _ in found):
        by_profile = {p: {c["id"]: c for c in found.get((chapter, p), {"claims": []})["claims"]} for p in profiles}
        claims = {claim_id: claim for claims in by_profile.values() for claim_id, claim in claims.items()}
        for claim_id, claim in claims.items():
            row = [str(int(chapter[:2])), reference(claim_id, chapter, claim_id), claim["title"], claim["kind"]]
            for profile in profiles:
                here = by_profile[profile].get(claim_id)
                row += [chip(here["status"], here["status"]), _measured(here)] if here else ["–", "–"]
            rows.append(row)
    heads = [head for profile in profiles for head in (f"Status ({profile})", f"Measured ({profile})")]
    return markdown(["Chapter", "Claim", "Title", "Kind", *heads], rows)


def page() -> str:
    """Return the generated part of the scoreboard page: totals by chapter and profile, then every claim."""
    claims = f":::{{container}} filterable\n{_claims_table()}\n:::" if any(r for *_, r in _recorded()) else ""
    return (
        "\n\n".join(["## By chapter", summary("../notebooks/"), "## Claim by claim", claims or "None recorded."]) + "\n"
    )


def provenance_rows(result: results.Result) -> list[tuple[str, object]]:
    """Return what produced a results file as rows of a name and Markdown."""
    origin = result["provenance"]
    tree = {True: " with uncommitted changes", False: "", None: ""}[origin["dirty"]]
    rows: list[tuple[str, object]] = [
        ("Device", f"{origin['device']} ({origin['cpu_capability']}, {origin['threads']} threads)"),
        ("System", origin["system"]),
        ("Versions", ", ".join(f"{name} {number}" for name, number in origin["versions"].items())),
        ("Determinism", ", ".join(f"{name}: {value}" for name, value in origin["deterministic"].items())),
        ("Commit", f"`{origin['commit'][:12]}`{tree}"),
        ("Digest of the sources", f"`{origin['digest'][:12]}`"),
        ("Seed", origin["seed"]),
        ("Settings", ", ".join(f"{name} = {value}" for name, value in origin["parameters"].items()) or "–"),
        ("Minutes", _minutes(origin.get("minutes"))),
    ]
    for card in origin["data"]:
        instead = f", standing in for {card['stands_in_for']}" if card["stands_in_for"] else ""
        sums = ", ".join(f"`{file}` {checksum[:12]}" for file, checksum in card["sha256"].items())
        text = f"{card['title']}{instead}; {card['shape']}; {card['licence']}; <{card['source']}>"
        rows.append((f"Data: {card['name']} ({card['split']})", f"{text}; {sums}" if sums else text))
    return rows


def _environment(chapter: str, run: str, result: results.Result) -> str:
    return f"### {title(chapter)}, {run}\n\n" + markdown(["What", "Value"], provenance_rows(result))


def environment_page(profile: str) -> str:
    """Return the environment page's body: provenance of this build at `profile` and of recorded runs."""
    fresh = [(chapter, results.read(chapter, profile)) for chapter in paths.chapters()]
    parts = [
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
    return (sum(t[s] for t in totals for s in HELD), sum(t[s] for t in totals for s in _JUDGED))


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
    return f"{before}{_START}\n\n{summary('notebooks/')}\n\n{_END}{after}"


def publish() -> None:
    """Bring the README's scoreboard and `book/_static/badge.svg` up to date with the recorded results."""
    readme = paths.root() / "README.md"
    if not readme.is_file():
        raise CompanionError(f"no README.md in {paths.root()}: run this inside a checkout of the book")
    paths.write_atomic(readme, with_table(readme.read_text(encoding="utf-8")).encode())
    paths.write_atomic(paths.root() / "book" / "_static" / "badge.svg", badge().encode())
