"""The claims ledger: from measured numbers to a status that nobody typed.

A condition becomes margins, one per seed, that must not be negative; `over` says how seeds are combined.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy
import torch
from scipy.special import stdtrit

from companion.chapters import profiles
from companion.chapters.claims import Claim, Condition, LedgerError, Multiple, Over
from companion.chapters.provenance import settled

Entry = dict[str, Any]
LISTED = 6  # up to so many cases are written out, of more the smallest and the largest


def _digits(value: float) -> str:
    return f"{value + 0.0:.4g}"  # + 0.0 turns -0 into 0


@dataclass(frozen=True)
class Measure:
    """A measured quantity, one value per seed."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, name: str, value: Any) -> "Measure":
        """Read a number, sequence, array or tensor to nine digits; raises LedgerError for anything else."""
        try:
            values = torch.as_tensor(value, dtype=torch.float64).detach().flatten().tolist()
        except (TypeError, ValueError, RuntimeError) as error:
            raise LedgerError(f"measure {name}: expected a number or one per seed, found {value!r}") from error
        if not values:
            raise LedgerError(f"measure {name} is empty: give a number or one per seed")
        return cls(tuple(map(settled, values)))

    @property
    def finite(self) -> bool:
        """Whether every seed gave a finite number."""
        return all(map(math.isfinite, self.values))

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return math.fsum(self.values) / self.n if self.finite else math.nan

    @property
    def std(self) -> float | None:
        """The sample standard deviation over seeds; None for a single one."""
        return float(numpy.std(self.values, ddof=1)) if self.n > 1 and self.finite else None

    @property
    def half_width(self) -> float | None:
        """Half the 95% confidence interval of the mean (Student t); None for a single seed."""
        if self.std is None:
            return None
        return float(stdtrit(self.n - 1, 0.975)) * self.std / math.sqrt(self.n)

    def words(self, cases: str | None = None) -> str:
        """Return `mean ± std (n)` to four significant digits; the values themselves where they run over `cases`."""
        if self.n == 1:
            return _digits(self.mean)
        if cases:
            few = self.n <= LISTED
            shown = ", ".join(map(_digits, self.values)) if few else " to ".join(map(_digits, self._ends()))
            return f"{shown} ({cases})" if few else f"{shown} ({self.n} values over {cases})"
        spread = "" if self.std is None else f" ± {self.std:.2g}"
        return f"{_digits(self.mean)}{spread} (n={self.n})"

    def _ends(self) -> tuple[float, float]:
        return min(self.values), max(self.values)

    def json(self, what: str, cases: str | None = None) -> dict[str, Any]:
        """Return the entry of the results file; what is not finite becomes null, and `cases` have no spread."""
        low_high = None
        if self.half_width is not None and not cases:
            low_high = [self.mean - self.half_width, self.mean + self.half_width]
        return {
            "what": what,
            **({"cases": cases} if cases else {}),
            "value": self.mean if self.finite else None,
            "values": [v if math.isfinite(v) else None for v in self.values],
            "std": None if cases else self.std,
            "n": self.n,
            "ci95": low_high,
        }


Measures = Mapping[str, Measure]


def _paired(*measures: Measure) -> list[numpy.ndarray]:
    sizes = {m.n for m in measures} - {1}
    if len(sizes) > 1:
        raise LedgerError(f"measures compared seed by seed have different numbers of seeds: {sorted(sizes)}")
    size = max(sizes, default=1)
    return [numpy.broadcast_to(numpy.array(m.values), (size,)) for m in measures]


def _margins(condition: Condition, measures: Measures) -> list[numpy.ndarray]:
    """Return arrays [seeds] that are >= 0 (> 0 for strict conditions) exactly where the condition holds."""
    if condition.order:
        columns = _paired(*(measures[name] for name in condition.order))
        return [high - low for high, low in pairwise(columns)]
    assert condition.measure is not None  # the schema demands it of every other form
    value = measures[condition.measure]
    if condition.within:
        (x,) = _paired(value)
        return [x - condition.within[0], condition.within[1] - x]
    assert condition.bound is not None
    form, bound = condition.bound
    other = measures[bound.measure] if isinstance(bound, Multiple) else Measure((bound,))
    x, limit = _paired(value, other)
    limit = limit * (bound.times if isinstance(bound, Multiple) else 1.0)
    return [x - limit] if form in ("at_least", "above") else [limit - x]


def _over(condition: Condition, measures: Measures) -> Over:
    single = all(measures[name].n == 1 for name in condition.names())
    return condition.over or ("mean" if single else "every")


def holds(condition: Condition, measures: Measures) -> bool:
    """Judge one condition; a measure that is not finite never passes.

    Raises LedgerError for `over: ci` on one seed and for pairs of measures with different numbers of seeds.
    """
    if not all(measures[name].finite for name in condition.names()):
        return False
    strict = condition.order is not None or condition.above is not None or condition.below is not None
    margins = _margins(condition, measures)
    over = _over(condition, measures)

    def lowest(margin: numpy.ndarray) -> float:
        if over == "every":
            return float(margin.min())
        spread = Measure(tuple(margin.tolist()))
        if over == "mean":
            return spread.mean
        if spread.half_width is None:
            raise LedgerError(f"{condition.words(over)}: a 95% interval needs at least two seeds")
        return spread.mean - spread.half_width

    return all(low > 0 or (low == 0 and not strict) for low in map(lowest, margins))


def passes(rule: Sequence[Condition], measures: Measures) -> bool:
    """Say whether every condition of the rule holds."""
    return all([holds(condition, measures) for condition in rule])  # a list: errors in later ones still show


def _read(claim: Claim, given: Mapping[str, Any], expected: set[str], what: str) -> dict[str, Measure]:
    if unknown := sorted(set(given) - set(claim.measures)):
        declared = ", ".join(claim.measures)
        raise LedgerError(f"claim {claim.id}: {what} {', '.join(unknown)} undeclared; the file declares {declared}")
    if missing := sorted(expected - set(given)):
        raise LedgerError(f"claim {claim.id}: {what} {', '.join(missing)} missing")
    return {name: Measure.of(name, given[name]) for name in claim.measures if name in given}


def _control(claim: Claim, given: Mapping[str, Any] | None) -> Entry:
    """Judge the wrong twin; raises LedgerError where its values are missing or show nothing."""
    if given is None:
        raise LedgerError(f"claim {claim.id}: give control=dict(...), the values of the wrong twin: {claim.control}")
    measures = _read(claim, given, claim.ruled(), "control")
    if bad := [name for name, measure in measures.items() if not measure.finite]:
        raise LedgerError(f"claim {claim.id}: control {', '.join(bad)} not finite, so its failing shows nothing")
    return _written(claim, measures) | {"what": claim.control, "passes": lets_through(claim, measures)}


def lets_through(claim: Claim, control: Measures) -> bool:
    """Say whether a wrong twin would get a status: it must fail the rule, and the weaker one for the direction too."""
    return passes(claim.rule, control) or bool(claim.direction and passes(claim.direction, control))


def _written(claim: Claim, measures: Measures) -> Entry:
    return {
        "measured": {name: m.json(claim.measures[name], claim.cases.get(name)) for name, m in measures.items()},
        "words": {name: m.words(claim.cases.get(name)) for name, m in measures.items()},
    }


def evaluate(
    claim: Claim,
    given: Mapping[str, Any],
    control: Mapping[str, Any] | None,
    *,
    profile: str,
    loaded: Collection[tuple[str, str | None]],
) -> Entry:
    """Judge one claim and return its entry of the results file.

    `given` holds a number or a list over seeds per declared measure, `control` the same for the wrong twin;
    `loaded` lists (data set, what it stands in for or None). Raises LedgerError for wrong names, a missing
    control, and data that the claim rests on but the chapter never loaded.
    """
    if claim.not_attempted or claim.profile is None:
        raise LedgerError(f"claim {claim.id} says not_attempted: give it a rule before measuring it")
    measures = _read(claim, given, set(claim.measures), "measure")
    stand_ins = [f"{used} stands in for {real}" for used, real in loaded if real in claim.data]
    notes = [f"{name} is not finite" for name, measure in measures.items() if not measure.finite]
    judged: Entry | None = None
    if not profiles.reaches(profile, claim.profile):
        status = f"needs {claim.profile}"
        notes.append(f"the {profile} profile is too small to decide it")
    elif stand_ins:
        # Deciding needs the real data, which the profile that was run could have used.
        status = f"needs {claim.profile if claim.profile != 'smoke' else 'cpu'}"
        notes.extend(stand_ins)
    elif claim.data and not any(used in claim.data for used, _ in loaded):
        raise LedgerError(f"claim {claim.id} rests on {' or '.join(claim.data)}, which the chapter has not loaded")
    else:
        judged = _control(claim, control)
        if passes(claim.rule, measures):
            status = "verified" if claim.kind == "theorem" else "reproduced"
        elif claim.direction and passes(claim.direction, measures):
            status = "direction only"
        else:
            status = "not reproduced"
    return _entry(claim, status, measures, judged, notes)


def not_attempted(claim: Claim) -> Entry:
    """Return the entry of a claim that the chapter leaves alone, with its reason."""
    return _entry(claim, "not attempted", {}, None, [claim.not_attempted or ""])


def _words(rule: Sequence[Condition], measures: Measures) -> list[str]:
    seeds = max((measure.n for measure in measures.values()), default=1)
    return [c.words(_over(c, measures) if seeds > 1 else c.over) for c in rule]


def _entry(claim: Claim, status: str, measures: Measures, control: Entry | None, notes: list[str]) -> Entry:
    entry: Entry = {
        "id": claim.id,
        "kind": claim.kind,
        "title": claim.title,
        "statement": claim.statement.strip(),
        "where": claim.where,
        "status": status,
        **_written(claim, measures),
        "paper": claim.paper,
        "rule": _words(claim.rule, measures),
        "direction": _words(claim.direction, measures),
        "reason": claim.reason,
        "control": control,
        "profile": claim.profile,
        "note": "; ".join(notes),
    }
    return entry | {"verdict": _verdict(entry)}


def _verdict(entry: Entry) -> str:
    """Return the one line that nbval compares: no times, no paths, four significant digits."""
    parts = [", ".join(f"{name} = {words}" for name, words in entry["words"].items())]
    if entry["rule"]:
        parts.append("rule: " + ", ".join(entry["rule"]))
    if entry["control"]:
        parts.append(
            "control PASSES, so the rule does not bite" if entry["control"]["passes"] else "control fails as it must"
        )
    if entry["note"]:
        parts.append(entry["note"])
    return f"{entry['id']} {entry['status']}: " + "; ".join(part for part in parts if part)
