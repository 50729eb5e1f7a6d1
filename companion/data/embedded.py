"""Sets that need no file: scikit-learn's digits (grey, coloured) and diabetes, sinusoids, sprites, rooms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import torch

from companion.data.cards import Card, Dataset, Source
from companion.data.coloured import paint
from companion.data.rooms import SIZES as ROOM_SIZES
from companion.data.rooms import Rooms
from companion.data.sprites import SIZES, Sprites
from companion.data.tables import standardised
from companion.errors import CompanionError
from companion.seeds import generator, numpy_generator

_SKLEARN = "https://scikit-learn.org/stable/datasets/toy_dataset.html"


def read_digits(card: Card, split: str, _paths: Sequence[Path]) -> Dataset:
    """Read scikit-learn's digits: x `[n, 1, 8, 8]` in [0, 1], y `[n]`; a fifth of each class for testing."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    stream = numpy_generator(0, "digits", "split")
    orders = [stream.permutation(numpy.flatnonzero(y == digit)) for digit in range(10)]
    parts = [order[: len(order) // 5] if split == "test" else order[len(order) // 5 :] for order in orders]
    rows = numpy.sort(numpy.concatenate(parts))
    return Dataset(torch.from_numpy(x[rows] / 16).float().view(-1, 1, 8, 8), torch.from_numpy(y[rows]).long(), card)


def read_diabetes(card: Card, split: str, _paths: Sequence[Path], *, fold: int = 0) -> Dataset:
    """Read scikit-learn's diabetes table, standardised: x `[n, 10]`, y `[n, 1]`; `fold` draws the split."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    order = numpy_generator(0, "diabetes", "split", fold).permutation(len(y))
    test, train = order[: len(y) // 10], order[len(y) // 10 :]
    return standardised(x, y, train, test if split == "test" else train, card)


def read_sinusoids(
    card: Card,
    split: str,
    _paths: Sequence[Path],
    *,
    frequencies: Sequence[int] = tuple(range(5, 51, 5)),
    points: int = 200,
    seed: int = 0,
) -> Dataset:
    """Draw y = sum_q sin(2π q t + 2π φ_q), x `[points, 1]` the grid t in [0, 1), y `[points, 1]`.

    The phases φ_q are uniform, one stream per frequency. Test points lie half-way between training points.
    Source: the sinusoid regression of Camuto et al. 2020 (after Rahaman et al. 2019).
    """
    phases = numpy.array([numpy_generator(seed, "sinusoids", "phase", q).random() for q in frequencies])
    t = (numpy.arange(points) + (0.5 if split == "test" else 0)) / points
    y = numpy.sin(2 * math.pi * (t[:, None] * numpy.array(frequencies) + phases)).sum(1)
    return Dataset(torch.from_numpy(t).float()[:, None], torch.from_numpy(y).float()[:, None], card)


def read_sprites(card: Card, split: str, _paths: Sequence[Path], *, n: int = 10_000, seed: int = 0) -> Dataset:
    """Draw `n` distinct sprites: x `[n, 1, 64, 64]`, y their factors `[n, 5]`; the splits share none."""
    grid = Sprites()
    if not 0 < n <= len(grid) // 2:
        raise CompanionError(f"'sprites' takes n from 1 to {len(grid) // 2} (Sprites draws any of the grid), not {n}")
    order = torch.randperm(len(grid), generator=generator(seed, "sprites", "subset"))
    factors = grid.factors(order[:n] if split == "train" else order[-n:])
    return Dataset(grid.render(factors), factors, card)


def read_coloured_digits(
    card: Card, split: str, paths: Sequence[Path], *, correlation: float = 0.0, seed: int = 0
) -> Dataset:
    """Paint the digits on five backgrounds: x `[n, 3, 8, 8]`, y `[n, 2]` = (digit, colour); see `coloured.paint`."""
    digits = read_digits(card, split, paths)
    return paint(digits, correlation=correlation, seed=seed)


def read_rooms(card: Card, split: str, _paths: Sequence[Path], *, varying: str = "floor", seed: int = 0) -> Dataset:
    """Draw the 4,800 rooms that differ in shape, scale, orientation and one hue: x `[n, 3, 32, 32]`, y `[n, 6]`.

    The selection of MFCVAE's 3DShapes experiments: `varying` is "floor" (its configuration 1) or "wall" (2), the
    other hues are fixed; `seed` draws the 80/20 split. Raises CompanionError for another hue.
    """
    hues = {"floor": 3, "wall": 4}
    if varying not in hues:
        raise CompanionError(f"'rooms' varies one of {', '.join(hues)}, not '{varying}'")
    free = [0, 1, 2, hues[varying]]
    grid = torch.cartesian_prod(*[torch.arange(ROOM_SIZES[factor]) for factor in free])
    factors = torch.tensor([0, 0, 0, 1, 5, 0]).repeat(len(grid), 1)
    factors[:, free] = grid
    order = torch.randperm(len(grid), generator=generator(seed, "rooms", "split"))
    held = len(grid) // 5
    factors = factors[order[:held] if split == "test" else order[held:]]
    return Dataset(Rooms().render(factors), factors, card)


_CARDS = [
    Card(
        name="digits",
        title="scikit-learn digits",
        source=_SKLEARN,
        licence="BSD-3-Clause with scikit-learn; data of the UCI repository (cite it)",
        citation="E. Alpaydin, C. Kaynak, Optical recognition of handwritten digits, UCI, 1998",
        shape="1442 + 355 images of 1 x 8 x 8, 10 classes",
        note="Embedded in scikit-learn; split by class, four fifths to train, by a fixed stream.",
    ),
    Card(
        name="diabetes",
        title="scikit-learn diabetes",
        source=_SKLEARN,
        licence="BSD-3-Clause with scikit-learn",
        citation="B. Efron, T. Hastie, I. Johnstone, R. Tibshirani, Least angle regression, 2004",
        shape="442 rows, 10 features, 1 target",
        note="Embedded in scikit-learn; 90/10 splits by fixed streams, standardised by the training rows.",
    ),
    Card(
        name="sinusoids",
        title="sum of sinusoids",
        source="procedural",
        licence="MIT",
        citation="A. Camuto, M. Willetts, U. Simsekli, S. Roberts, C. Holmes, Explicit regularisation in "
        "Gaussian noise injections, 2020",
        shape="200 points (option), 1 feature, 1 target",
        note="Drawn from the seed; nothing is read from disk.",
    ),
    Card(
        name="sprites",
        title="sprites on the dSprites grid",
        source="procedural",
        licence="MIT",
        citation="after L. Matthey, I. Higgins, D. Hassabis, A. Lerchner, dSprites, 2017",
        shape=f"{math.prod(SIZES)} images of 1 x 64 x 64, factors shape, scale, orientation, x, y",
        note="The factor grid of dSprites drawn anew: same factors and order, not the same pixels.",
    ),
    Card(
        name="coloured_digits",
        title="scikit-learn digits",
        source=_SKLEARN,
        licence="BSD-3-Clause with scikit-learn; data of the UCI repository (cite it)",
        citation="E. Alpaydin, C. Kaynak, Optical recognition of handwritten digits, UCI, 1998",
        shape="1442 + 355 images of 3 x 8 x 8, 10 classes x 5 colours",
        note="Colours are drawn from the seed (option), independent of the digit unless correlation is set.",
    ),
    Card(
        name="rooms",
        title="rooms after 3D Shapes",
        source="procedural",
        licence="MIT",
        citation="after C. Burgess, H. Kim, 3D Shapes, 2018",
        shape="3840 + 960 images of 3 x 32 x 32, factors shape, scale, orientation, floor, wall, object hue",
        note="The factor grid of 3D Shapes drawn anew by ray casting: same factors and sizes, not the same pixels.",
    ),
]
_READERS: list[Callable[..., Dataset]] = [
    read_digits,
    read_diabetes,
    read_sinusoids,
    read_sprites,
    read_coloured_digits,
    read_rooms,
]

EMBEDDED = {card.name: Source(card, reader) for card, reader in zip(_CARDS, _READERS, strict=True)}
