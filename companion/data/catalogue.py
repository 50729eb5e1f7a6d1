"""Named data sets: `load` gives tensors and a card, or says in one line what is missing and what to do."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from companion.data import cache
from companion.data.cards import Card, Dataset, Source
from companion.data.embedded import EMBEDDED
from companion.data.images import IMAGES
from companion.data.tables import TABLES
from companion.errors import CompanionError

SETS: dict[str, Source] = {**EMBEDDED, **IMAGES, **TABLES}


def names() -> list[str]:
    """Return the names `load` knows, embedded sets first."""
    return list(SETS)


def card(name: str) -> Card:
    """Return the card of a set: source, licence, hashes; CompanionError for an unknown name."""
    return _source(name).card


def status(name: str) -> str:
    """Return "embedded", "cached", "missing" or "corrupt"; looks at the cache only, never at the network."""
    states = {cache.check(file) for file in _source(name).files}
    if not states:
        return "embedded"
    return next(state for state in ("corrupt", "missing", "cached") if state in states)


def fetch(name: str) -> list[Path]:
    """Bring every file of a set into the cache, return the paths; DataMissing or DataCorrupt if one fails."""
    cache.forget_hosts()
    return cache.ensure_all(_source(name).files, name)


def load(
    name: str,
    split: str = "train",
    *,
    fallback: str | None = None,
    withheld: str | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> Dataset:
    """Load a split ("train" or "test") of a set on `device`, downloading it if it is not in the cache.

    Images are float32 `[n, channels, height, width]` in [0, 1] with classes int64 `[n]`; tables are
    `[n, features]` with targets `[n, 1]`. Options: tables and diabetes `fold`; sinusoids `frequencies`, `points`,
    `seed`; sprites `n`, `seed`; coloured_digits `correlation`, `seed`; rooms `varying`, `seed`.
    A set that cannot be had is replaced by the embedded set `fallback`, whose card then
    says `stands_in_for`; without one DataMissing is raised. A set that is not embedded cannot be had either where the
    sentence `withheld` says why it may not be read. A wrong checksum is always an error: DataCorrupt.
    """
    source = _source(name)
    if split not in ("train", "test"):
        raise CompanionError(f"split is 'train' or 'test', not '{split}'")
    if fallback is not None and _source(fallback).files:
        raise CompanionError(f"fallback '{fallback}' is not embedded; choose one of {', '.join(EMBEDDED)}")
    known = _options(source)
    if unknown := sorted(set(options) - known):
        raise CompanionError(
            f"'{name}' has no option {', '.join(unknown)}; it has {', '.join(sorted(known)) or 'none'}"
        )
    try:
        if withheld and source.files:
            raise cache.DataMissing(f"{withheld.rstrip('.')}: give '{name}' a fallback, or name another set", withheld)
        # Both splits are needed: a training set must not meet the test split of its stand-in.
        paths = cache.ensure_all(source.files, name)
    except cache.DataMissing as missing:
        if fallback is None:
            raise
        shared = {key: value for key, value in options.items() if key in _options(_source(fallback))}
        data = load(fallback, split, device=device, **shared)
        note = f"Stands in for {source.card.title}: {missing.note} {data.card.note}"
        return replace(data, card=replace(data.card, stands_in_for=name, note=note))
    data = source.read(source.card, split, paths, **options).to(device)
    return replace(data, x=data.x.float().div_(255)) if data.x.dtype == torch.uint8 else data


def _source(name: str) -> Source:
    if name not in SETS:
        close = difflib.get_close_matches(name, SETS, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise CompanionError(f"no data set '{name}'{hint}; there are {', '.join(SETS)}")
    return SETS[name]


def _options(source: Source) -> set[str]:
    parameters = inspect.signature(source.read).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
