"""The 737,280 factor combinations of dSprites, drawn on demand on the device.

Factors and their order are those of dSprites (Matthey et al. 2017): shape (square, ellipse, heart), scale
(6 values, 0.5 to 1), orientation (40 values, 0 to 2π: the first and the last draw the same image), position
x and y (32 values each, 0 to 1, one pixel a step). All other pairs of images differ. The outlines are ours:
alike, not the same pixel by pixel.
"""

import math

import torch
from torch import Tensor

from companion.errors import CompanionError

FACTORS = ("shape", "scale", "orientation", "x", "y")
SIZES = (3, 6, 40, 32, 32)
SHAPES = ("square", "ellipse", "heart")
_CENTRE = (0.25, 0.1)  # off the pixel's own centre, lest a small square look alike at two orientations
_REACH = 16  # a sprite stays in the patch of 33 x 33 pixels around its centre, and the patch in the image


def _inside(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Say which points (u right, v down, pixels, at scale 1 and orientation 0) lie inside the outline."""
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) <= 11.1
    if shape == "ellipse":
        return (u / 14.3).square() + (v / 7.6).square() <= 1
    a, b = u / 11.4, -v / 11.4
    return (a.square() + b.square() - 1).pow(3) <= a.square() * b.pow(3)


def _atlas() -> Tensor:
    """Draw every shape, scale and orientation once, centred: bool [3 * 6 * 40, 33, 33]."""
    axis = torch.arange(-_REACH, _REACH + 1, dtype=torch.float64)
    down, right = torch.meshgrid(axis - _CENTRE[1], axis - _CENTRE[0], indexing="ij")
    # The angle is taken modulo 2π: rounding must not tell the last orientation from the first.
    angle = torch.linspace(0, 2 * math.pi, SIZES[2], dtype=torch.float64).remainder(2 * math.pi)
    scale = torch.linspace(0.5, 1, SIZES[1], dtype=torch.float64)
    cos, sin = angle.cos()[None, :, None, None], angle.sin()[None, :, None, None]
    u = (right * cos + down * sin) / scale[:, None, None, None]
    v = (down * cos - right * sin) / scale[:, None, None, None]
    return torch.stack([_inside(shape, u, v) for shape in SHAPES]).flatten(0, 2)


class Sprites:
    """The sprite grid on `device`: `len` is 737,280 and only the images asked for are made.

    An image is a look-up: the drawn patch is placed at its position, one pixel a step.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._patches = _atlas().to(device)  # [720, 33, 33]
        self._sizes = torch.tensor(SIZES, device=device)
        self._strides = torch.tensor([math.prod(SIZES[k + 1 :]) for k in range(len(SIZES))], device=device)

    def __len__(self) -> int:
        return math.prod(SIZES)

    def factors(self, indices: Tensor) -> Tensor:
        """Return the factor values `[n, 5]` (int64, order of `FACTORS`) of grid `indices` `[n]`."""
        indices = indices.to(self._strides)
        if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < len(self)):
            raise CompanionError(f"sprite indices run from 0 to {len(self) - 1}")
        return indices[:, None] // self._strides % self._sizes

    def render(self, which: Tensor) -> Tensor:
        """Draw images `[n, 1, 64, 64]` in {0, 1} for grid indices `[n]` or factors `[n, 5]`."""
        factors = self.factors(which) if which.dim() == 1 else which.to(self._strides)
        if factors.dim() != 2 or factors.shape[1] != len(SIZES):
            raise CompanionError(f"sprites take indices [n] or factors [n, 5], not {list(which.shape)}")
        if not bool(((factors >= 0) & (factors < self._sizes)).all()):
            raise CompanionError(f"sprite factors {FACTORS} must lie below {SIZES}")
        shape, scale, orientation, x, y = factors.unbind(1)
        patch = self._patches[(shape * SIZES[1] + scale) * SIZES[2] + orientation]
        steps = torch.arange(2 * _REACH + 1, device=factors.device)
        image = torch.zeros(len(factors), 64, 64, device=factors.device)
        rows, columns = (y[:, None] + steps)[:, :, None], (x[:, None] + steps)[:, None, :]
        image[torch.arange(len(factors), device=factors.device)[:, None, None], rows, columns] = patch.float()
        return image[:, None]
