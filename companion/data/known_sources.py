"""Procedural data whose sources are known: bent linear mixtures, a sprite at random positions, two mixed sprites."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from companion.data.sprites import Sprites
from companion.seeds import generator


def fold(y: Tensor, strength: float) -> Tensor:
    """Shear the halves of `y` `[n, d]` by sines of each other: a volume-preserving bijection, far from linear."""
    first, second = y.chunk(2, 1)
    second = second + strength * (3 * first).sin()
    return torch.cat([first + strength * (3 * second).sin(), second], 1)


def bent_mixture(sources: Tensor, size: int, *, noise: float, strength: float, seed: int, draw: str) -> Tensor:
    """Return x `[n, size]`: a noisy orthonormal mixture of `sources` through two rotated folds, a known bijection.

    The rotations depend on `seed` alone, the noise also on `draw`. `size` is even.
    """
    stream = generator(seed, "rotations")
    first, *turns = (torch.linalg.qr(torch.randn(size, size, generator=stream))[0] for _ in range(3))
    disturbance = torch.randn(len(sources), size, generator=generator(seed, "mixture noise", draw))
    y = sources @ first[: sources.shape[1]] + noise * disturbance
    for turn in turns:
        y = fold(y @ turn, strength) @ turn.mT
    return y


def sprite_positions(
    count: int, *, pool: int, scale: int, noise: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return images `[n, d]` of a heart at random positions, 64 / pool pixels wide, and (x, y) `[n, 2]` in 0..1."""
    place = torch.randint(32, (count, 2), generator=generator)
    fixed = torch.tensor([2, scale, 0]).expand(count, 3)
    images = avg_pool2d(Sprites().render(torch.cat([fixed, place], 1)), pool).flatten(1)
    return images + noise * torch.randn(images.shape, generator=generator), place / 31


def sprite_columns(shift: int, *, pool: int) -> Tensor:
    """Return a mixing matrix `[d, 2]` with unit columns: a heart and a square, `shift` of 31 steps apart."""
    low = (31 - shift) // 2
    factors = torch.tensor([[2, 2, 0, low, low], [0, 2, 0, low + shift, low + shift]])
    columns = avg_pool2d(Sprites().render(factors), pool).flatten(1)
    return (columns / columns.norm(dim=1, keepdim=True)).mT
