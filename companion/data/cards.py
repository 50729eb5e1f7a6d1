"""What every data set hands out: tensors, and a card that says where they came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from companion.data.cache import File
from companion.errors import CompanionError


@dataclass(frozen=True)
class Card:
    """Provenance of a data set; `sha256` maps a file of the cache folder to its hash ({} when embedded)."""

    name: str
    title: str
    source: str
    licence: str
    citation: str
    shape: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    stands_in_for: str | None = None


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split: `x` float32 `[n, ...]`, `y` `[n]` classes, `[n, 1]` targets, `[n, factors]` or None.

    `y_scale` = (mean, standard deviation) turns a standardised target back into its own units.
    """

    x: Tensor
    y: Tensor | None
    card: Card
    y_scale: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: str | torch.device) -> Dataset:
        """Return the set on `device`."""
        return replace(self, x=self.x.to(device), y=None if self.y is None else self.y.to(device))

    def subset(self, n: int, generator: torch.Generator) -> Dataset:
        """Return `n` examples drawn without replacement by a CPU `generator`; CompanionError if too few."""
        if not 0 < n <= len(self):
            raise CompanionError(f"asked for {n} of the {len(self)} examples of '{self.card.name}'")
        chosen = torch.randperm(len(self), generator=generator)[:n].to(self.x.device)
        return replace(self, x=self.x[chosen], y=None if self.y is None else self.y[chosen])


@dataclass(frozen=True)
class Source:
    """An entry of the catalogue: `read(card, split, paths, **options)` turns checked `files` into a Dataset.

    A reader may leave images as uint8: `load` turns them into float32 in [0, 1] on the device.
    """

    card: Card
    read: Callable[..., Dataset]
    files: tuple[File, ...] = ()
