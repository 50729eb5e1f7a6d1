"""Grey images in two factors: the shape they had, and a background colour of ours."""

from dataclasses import replace

import torch

from companion.data.cards import Dataset
from companion.errors import CompanionError
from companion.seeds import generator

# Red, green, blue, yellow, magenta: saturated, so that colour holds more pixel variance than shape.
PALETTE = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.9], [0.9, 0.9, 0.1], [0.9, 0.1, 0.9]])


def paint(data: Dataset, *, correlation: float = 0.0, strength: float = 1.0, seed: int = 0) -> Dataset:
    """Paint white shapes on one of five backgrounds: x `[n, 3, h, w]`, y `[n, 2]` = (label, colour).

    `correlation` is the chance that the colour is given by the label (label modulo 5) instead of drawn at random;
    `strength` scales every colour towards black. Raises CompanionError for data not grey and labelled.
    """
    if data.x.ndim != 4 or data.x.shape[1] != 1 or data.y is None or data.y.ndim != 1:
        raise CompanionError(f"paint takes grey images [n, 1, h, w] with labels [n], not {list(data.x.shape)}")
    stream = generator(seed, "paint", len(data))
    colours = torch.randint(len(PALETTE), (len(data),), generator=stream)
    given = torch.rand(len(data), generator=stream) < correlation
    colours = torch.where(given, data.y.cpu() % len(PALETTE), colours).to(data.x.device)
    background = strength * PALETTE.to(data.x.device)[colours][:, :, None, None]  # [n, 3, 1, 1]
    note = f"Painted on {len(PALETTE)} backgrounds. {data.card.note}"
    card = replace(data.card, title=f"coloured {data.card.title}", note=note)
    return Dataset(data.x + (1 - data.x) * background, torch.stack([data.y, colours], 1), card)
