"""Multi-resolution ladder of images: pooling, nearest upsampling, projections and the orthonormal Haar transform.

Images are `[..., 2^J, 2^J]`, read as functions that are constant on the dyadic squares of side 2^-J. Norms are those
of L2 on the unit square: the root mean square of the pixels.
"""

from itertools import pairwise

import torch
from torch import Tensor

from companion.errors import CompanionError


def levels(x: Tensor) -> int:
    """Return J of images `[..., 2^J, 2^J]`; CompanionError where the sides are no equal power of two."""
    side = x.shape[-1]
    if x.shape[-2] != side or side & (side - 1) or side < 1:
        raise CompanionError(f"the ladder is dyadic: image sides must be one power of two, not {list(x.shape[-2:])}")
    return side.bit_length() - 1


def pool(x: Tensor, times: int = 1) -> Tensor:
    """Return the means of blocks of 2^times × 2^times pixels, `[..., H / 2^times, W / 2^times]`."""
    block = 2**times
    return x.unflatten(-1, (-1, block)).unflatten(-3, (-1, block)).mean((-3, -1))


def up(x: Tensor, times: int = 1) -> Tensor:
    """Return x with every pixel repeated on a block of 2^times × 2^times: the inclusion of V(−j) in V(−j−times)."""
    return x.repeat_interleave(2**times, -1).repeat_interleave(2**times, -2)


def project(x: Tensor, level: int) -> Tensor:
    """Return the L2 projection of x on V(−level), at the resolution of x."""
    times = levels(x) - level
    return up(pool(x, times), times)


def analyse_once(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return one orthonormal Haar step: coarse part `[..., h, w]` (2 × block mean) and details `[..., 3, h, w]`."""
    a, b = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    c, d = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    return (a + b + c + d) / 2, torch.stack([a - b + c - d, a + b - c - d, a - b - c + d], -3) / 2


def synthesise_once(coarse: Tensor, details: Tensor) -> Tensor:
    """Return the image of which `analyse_once` gives `coarse` and `details`."""
    h, v, d = details.unbind(-3)
    top = torch.stack([coarse + h + v + d, coarse - h + v - d], -1).flatten(-2)
    bottom = torch.stack([coarse + h - v - d, coarse - h - v + d], -1).flatten(-2)
    return torch.stack([top, bottom], -2).flatten(-3, -2) / 2


def analyse(x: Tensor) -> list[Tensor]:
    """Return the orthonormal transform: `[..., 1, 1]`, then details of W(−1), ..., W(−J) with 3 channels."""
    bands: list[Tensor] = []
    for _ in range(levels(x)):
        x, details = analyse_once(x)
        bands.append(details)
    return [x, *bands[::-1]]


def synthesise(bands: list[Tensor]) -> Tensor:
    """Return the image of which `analyse` gives `bands`."""
    x = bands[0]
    for details in bands[1:]:
        x = synthesise_once(x, details)
    return x


def band_energies(x: Tensor) -> Tensor:
    """Return the squared L2 norms of the parts of x in V(0), W(−1), ..., W(−J): `[..., J + 1]`, summing to mean x²."""
    norms = [pool(x, times).square().mean((-2, -1)) for times in range(levels(x), -1, -1)]
    return torch.stack([norms[0], *(fine - coarse for coarse, fine in pairwise(norms))], -1)


def coefficients_per_band(level: int) -> Tensor:
    """Return the number of Haar coefficients in V(0), W(−1), ..., W(−level)."""
    return torch.tensor([1, *(3 * 4 ** (j - 1) for j in range(1, level + 1))])
