"""Numbers and statuses in prose: roles that stand for what was recorded, filled in when a page is staged.

`{measured}` with chapter, claim and measure gives the number, `{verdict}` with chapter and claim the status as a
chip, both linked to the claim's box; `{tally}` with a chapter gives its totals. What is not recorded yet says so;
what does not exist is an error.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from companion.chapters import claims, paths, results
from companion.errors import CompanionError

OUTDATED = "this passage was written when it was"
_QUOTE = re.compile(r"\{(measured|verdict|tally)\}`([^`]*)`")
_PARTS = re.compile(
    r"(?P<number>\d\d)(?: (?P<claim>[A-Z]\d+[a-z]?))?(?: (?P<measure>\w+))?(?:: (?P<expected>[a-z ]+))?"
)
_HAS = {"measured": ("claim", "measure"), "verdict": ("claim",), "tally": ()}
_PROFILE = "cpu"  # the profile that the prose of the book was written from
_MISSING = "not recorded"


def chip(text: str, status: str) -> str:
    """Return Markdown for a chip in the colour of `status`."""
    return f"[{text}]{{.chip .chip-{status.replace(' ', '-')}}}"


def reference(text: str, chapter: str, claim_id: str) -> str:
    """Return Markdown for `text` linked to the claim's box; `text` alone where the chapter has no page."""
    linked = chapter in paths.contents()
    return f"{{ref}}`{text} <claim-{chapter[:2]}-{claim_id.lower()}>`" if linked else text


def expand(text: str, page: str) -> str:
    """Return Markdown with every quote replaced by what is recorded at the cpu profile.

    A verdict may name the status that its passage was written for; where the record says otherwise, so does the page.
    Raises CompanionError, naming `page`, for a quote that is no quote, or whose claim or measure does not exist.
    """
    recorded = cache(lambda chapter: results.recorded(chapter, _PROFILE))

    def quote(found: re.Match[str]) -> str:
        kind, wanted = found.groups()
        parts = _PARTS.fullmatch(wanted)
        given = {name: value for name, value in parts.groupdict().items() if value} if parts else {}
        if set(given) - {"expected"} != {"number", *_HAS[kind]} or ("expected" in given and kind != "verdict"):
            raise CompanionError(f"{page}: {found[0]} is no quote: give {', '.join(('chapter', *_HAS[kind]))}")
        try:
            return _filled(kind, given, recorded)
        except CompanionError as error:
            raise CompanionError(f"{page}: {found[0]}: {error}") from error

    return _QUOTE.sub(quote, text)


def _filled(kind: str, given: dict[str, str], recorded: Callable[[str], results.Result | None]) -> str:
    number = int(given["number"])
    chapter = next((name for name in paths.contents() if name.startswith(f"{given['number']}_")), None)
    result = recorded(chapter) if chapter else None
    if kind == "tally":
        return _tally(result)
    claim_id = given["claim"]
    label = f"{number}·{claim_id}"
    if chapter is None:
        return chip(_MISSING if kind == "measured" else f"{label} {_MISSING}", _MISSING)
    entry = _entry(chapter, claim_id, given.get("measure"), result)
    if kind == "measured":
        return reference(entry["words"][given["measure"]] if entry else _MISSING, chapter, claim_id)
    status = entry["status"] if entry else _MISSING
    mark = chip(reference(f"{label} {status}", chapter, claim_id), status)
    expected = given.get("expected", status)
    return mark if status in (expected, _MISSING) else f"{mark} ({OUTDATED} {expected})"


def _entry(chapter: str, claim_id: str, measure: str | None, result: results.Result | None) -> Any:
    """Return the recorded entry, or None without a record; CompanionError where claim or measure is unknown."""
    if result is None:
        known = {claim.id: set(claim.measures) for claim in claims.load(chapter).claims}
    else:
        known = {entry["id"]: set(entry["words"]) for entry in result["claims"]}
    if claim_id not in known:
        raise CompanionError(f"{chapter} has no claim {claim_id}")
    if measure is not None and measure not in known[claim_id]:
        raise CompanionError(f"claim {claim_id} of {chapter} has no measure {measure}")
    return next(entry for entry in result["claims"] if entry["id"] == claim_id) if result else None


def _tally(result: results.Result | None) -> str:
    if result is None:
        return chip(_MISSING, _MISSING)
    return " ".join(chip(f"{n} {status}", status) for status, n in results.counts(result).items() if n)
