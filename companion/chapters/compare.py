"""The last two recorded runs of each chapter, number by number, with the environments that made them."""

from collections.abc import Iterator
from typing import Any

from companion.chapters import paths, results
from companion.chapters.quotes import reference
from companion.chapters.scoreboard import provenance_rows, title
from companion.chapters.tables import markdown

ROUNDING = 1e-9  # differences between numbers below it are rounding errors of something that is zero
MANY = 10  # a change by more times the old number is not written out


def relative(before: float | None, now: float | None) -> float | None:
    """Return the change as a share of the size before; None for a missing value or a zero up to rounding."""
    if before is None or now is None or max(abs(before), abs(now)) <= ROUNDING or before == 0:
        return None
    return (now - before) / abs(before)


def _pairs(before: results.Result, now: results.Result) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield claim, measure and the two measured entries (None where one run lacks it), in today's order."""
    old = {claim["id"]: claim for claim in before["claims"]}
    new = {claim["id"]: claim for claim in now["claims"]}
    for claim_id in new | old:
        first, second = (side.get(claim_id, {}).get("measured", {}) for side in (old, new))
        for name in second | first:
            yield claim_id, name, first.get(name), second.get(name)


def _statuses(before: results.Result, now: results.Result) -> dict[str, str]:
    old = {claim["id"]: claim["status"] for claim in before["claims"]}
    new = {claim["id"]: claim["status"] for claim in now["claims"]}
    both = {claim: (old.get(claim, "absent"), new.get(claim, "absent")) for claim in new | old}
    return {claim: first if first == second else f"**{first} → {second}**" for claim, (first, second) in both.items()}


def _percent(value: float | None) -> str:
    if value is None or value == 0:
        return "–" if value is None else "0"
    return f"{100 * value:+.2g}%" if abs(value) <= MANY else f"more than {MANY:g} times"


def _number(measure: Any) -> str:
    return "–" if measure is None or measure["value"] is None else f"{measure['value']:.6g}"


def _value(measure: Any) -> float | None:
    return None if measure is None else measure["value"]


def _summary(link: str, profile: str, before: results.Result, now: results.Result) -> list[object]:
    pairs = [(_value(old), _value(new)) for _, _, old, new in _pairs(before, now)]
    equal = sum(old is not None and old == new for old, new in pairs)
    changes = [abs(change) for old, new in pairs if (change := relative(old, new)) is not None]
    moved = sum("→" in status for status in _statuses(before, now).values())
    return [link, profile, len(pairs), equal, _percent(max(changes, default=None)).removeprefix("+"), moved]


def _environments(before: results.Result, now: results.Result) -> str:
    old, new = dict(provenance_rows(before)), dict(provenance_rows(now))
    rows = [
        [what, "same" if old.get(what) == new.get(what) else "**differs**", old.get(what, "–"), new.get(what, "–")]
        for what in new | old
    ]
    return markdown(["What", "", "Before", "Now"], rows)


def _numbers(chapter: str, before: results.Result, now: results.Result) -> str:
    statuses = _statuses(before, now)
    rows = [
        [
            reference(claim, chapter, claim),
            name,
            _number(old),
            _number(new),
            _percent(relative(_value(old), _value(new))),
            statuses[claim],
        ]
        for claim, name, old, new in _pairs(before, now)
    ]
    head = ["Claim", "Measure", "Before", "Now", "Relative difference", "Status"]
    return f":::{{container}} filterable\n{markdown(head, rows)}\n:::"


def page() -> str:
    """Return the body of the comparison page from the recorded results and those that they replaced."""
    summary, parts = [], []
    for chapter in paths.chapters():
        for profile in results.RECORDED:
            before, now = results.previous(chapter, profile), results.recorded(chapter, profile)
            if before is None or now is None:
                continue
            summary.append(_summary(f"[{title(chapter)}](../notebooks/{chapter}.ipynb)", profile, before, now))
            parts += [f"## {title(chapter)}, {profile}", _environments(before, now), _numbers(chapter, before, now)]
    if not summary:
        return "No chapter has been recorded twice yet.\n"
    head = [
        "Chapter",
        "Profile",
        "Numbers",
        "Equal to the last digit",
        "Largest relative difference",
        "Statuses changed",
    ]
    return "\n\n".join([markdown(head, summary), *parts]) + "\n"
