"""The claims of a chapter as written in `book/claims/<chapter>.yml`: the schema; nothing is judged here."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from companion.chapters import paths
from companion.errors import CompanionError

STATUSES = (
    "verified",
    "reproduced",
    "direction only",
    "not reproduced",
    "needs cpu",
    "needs gpu",
    "not attempted",
)
Over = Literal["mean", "every", "ci"]
SYMBOLS = {"at_least": "≥", "at_most": "≤", "above": ">", "below": "<"}


class LedgerError(CompanionError):
    """A claim that is badly written, badly measured, or decided by a rule that decides nothing."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Multiple(_Strict):
    """A bound that is itself measured: `times` the measure of that name."""

    measure: str
    times: float = Field(default=1.0, allow_inf_nan=False)


Number = Annotated[float, Field(allow_inf_nan=False)]
Bound = Number | Multiple


class Condition(_Strict):
    """One condition of a rule: a bound on one measure, or an order among several."""

    measure: str | None = None
    within: tuple[Number, Number] | None = None
    at_least: Bound | None = None
    at_most: Bound | None = None
    above: Bound | None = None
    below: Bound | None = None
    decreasing: list[str] | None = Field(default=None, min_length=2)
    increasing: list[str] | None = Field(default=None, min_length=2)
    over: Over | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        forms = [form for form in ("within", *SYMBOLS, "decreasing", "increasing") if getattr(self, form) is not None]
        if len(forms) != 1:
            raise ValueError(f"a condition needs exactly one form, not {forms or 'none'}")
        if (self.order is None) != (self.measure is not None):
            raise ValueError("`measure` goes with a bound and not with decreasing or increasing")
        if self.within is not None and self.within[0] >= self.within[1]:
            raise ValueError(f"within {list(self.within)} is empty")
        return self

    @property
    def order(self) -> list[str] | None:
        """The measures from the largest to the smallest, for an order; None for a bound."""
        return self.decreasing or (self.increasing[::-1] if self.increasing else None)

    @property
    def bound(self) -> tuple[str, Bound] | None:
        """The form and value of a one-sided bound; None for the other forms."""
        return next(((form, b) for form in SYMBOLS if (b := getattr(self, form)) is not None), None)

    def names(self) -> set[str]:
        """Return the measures that the condition reads."""
        other = self.bound[1] if self.bound else None
        named = {*(self.order or ()), self.measure, other.measure if isinstance(other, Multiple) else None}
        return {name for name in named if name is not None}

    def words(self, over: Over | None) -> str:
        """Return the condition as a reader would say it, with how seeds are combined (None: a single one)."""
        seeds = {"mean": " (mean)", "every": " (every value)", "ci": " (95% interval)", None: ""}[over]
        if self.order:
            return " > ".join(self.order) + seeds
        if self.within:
            return f"{self.measure} in [{self.within[0]:g}, {self.within[1]:g}]{seeds}"
        assert self.bound is not None  # _one_form left no other case
        form, bound = self.bound
        value = f"{bound.times:g} × {bound.measure}" if isinstance(bound, Multiple) else f"{bound:g}"
        return f"{self.measure} {SYMBOLS[form]} {value}{seeds}"


class Claim(_Strict):
    """One claim of the paper, and the rule by which a number decides it."""

    id: str = Field(pattern=r"^[A-Z]\d+[a-z]?$")
    kind: Literal["theorem", "experiment", "beyond"]
    title: str = Field(min_length=3)
    statement: str = Field(min_length=10)
    where: str
    paper: str | float | None = None
    measures: dict[str, str] = Field(default_factory=dict)
    # What a measure's values run over where they are no repetitions of one number (data sets, weights, radii).
    cases: dict[str, str] = Field(default_factory=dict)
    rule: list[Condition] = Field(default_factory=list)
    direction: list[Condition] = Field(default_factory=list)
    reason: str | None = None
    control: str | None = None
    profile: Literal["smoke", "cpu", "gpu"] | None = None
    data: list[str] = Field(default_factory=list)
    not_attempted: str | None = None

    @model_validator(mode="after")
    def _decidable(self) -> Self:
        decides = {name: getattr(self, name) for name in ("measures", "rule", "reason", "control", "profile")}
        if self.not_attempted:
            extra = [name for name, value in (decides | {"direction": self.direction}).items() if value]
            if extra:
                raise ValueError(f"not_attempted excludes {', '.join(extra)}")
            return self
        missing = [name for name, value in decides.items() if not value]
        if missing:
            raise ValueError(f"needs {', '.join(missing)} (or not_attempted with a reason)")
        if unknown := (self.ruled() | set(self.cases)) - set(self.measures):
            raise ValueError(f"the rule or its cases read undeclared measures: {', '.join(sorted(unknown))}")
        intervals = [condition for condition in (*self.rule, *self.direction) if condition.over == "ci"]
        if wrong := set().union(*(condition.names() for condition in intervals)) & set(self.cases):
            raise ValueError(f"no 95% interval over cases, which repeat nothing: {', '.join(sorted(wrong))}")
        return self

    def ruled(self) -> set[str]:
        """Return the measures that the rule or the weaker one reads, which the control must therefore give."""
        return set().union(*(condition.names() for condition in (*self.rule, *self.direction)))


class Claims(_Strict):
    """The claims file of one chapter."""

    chapter: str
    claims: list[Claim] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        ids = [claim.id for claim in self.claims]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"ids used twice: {', '.join(twice)}")
        return self


def _problems(error: ValidationError, tree: object) -> Iterator[str]:
    for problem in error.errors():
        place = list(problem["loc"])
        where = ""
        if place[:1] == ["claims"] and len(place) > 1:
            claim = tree["claims"][place[1]]  # type: ignore[index]  # pydantic walked this path
            name = claim.get("id") if isinstance(claim, dict) else None
            where, place = f"claim {name or f'number {int(place[1]) + 1}'}: ", place[2:]
        field = ".".join(str(part) for part in place)
        yield f"{where}{field + ': ' if field else ''}{problem['msg'].removeprefix('Value error, ')}"


def load(chapter: str) -> Claims:
    """Read and check the claims of a chapter; raises LedgerError, one line with file, claim id and field."""
    file = paths.claims_file(chapter)
    if not file.is_file():
        known = ", ".join(sorted(p.stem for p in file.parent.glob("*.yml"))) or "none"
        raise LedgerError(f"no claims for chapter {chapter!r}: expected {file}; chapters with claims: {known}")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise LedgerError(f"{file.name}: not YAML: {' '.join(str(error).split())}") from error
    try:
        claims = Claims.model_validate(tree)
    except ValidationError as error:
        raise LedgerError(f"{file.name}: {'; '.join(_problems(error, tree))}") from error
    if claims.chapter != chapter:
        raise LedgerError(f"{file.name}: chapter is {claims.chapter!r}, but the file is named for {chapter!r}")
    return claims
