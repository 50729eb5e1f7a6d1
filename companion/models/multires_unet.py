"""U-Nets on the multi-resolution ladder: U_j(x) = B_j(F_j(x), up U_{j-1}(down F_j(x))), linear and convolutional."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion.models.hvae_cell import conv
from companion.nn.haar import pool, up

Edit = Callable[[Tensor], Tensor]

DOWN: Mapping[str, Callable[[Tensor], Tensor]] = {
    "average": pool,
    "max": lambda x: functional.max_pool2d(x, 2),
    "stride": lambda x: x[..., ::2, ::2],
}


class LinearUNet(nn.Module):
    """One gain per rung: U_j(y) = up U_{j-1}(down y) + a_j (y − up down y), and U_0(y) = a_0 y."""

    def __init__(self, levels: int, down: str = "average") -> None:
        super().__init__()
        self.down = DOWN[down]
        self.gains = nn.Parameter(torch.full((levels + 1,), 0.5))

    def forward(self, y: Tensor) -> Tensor:
        """Return the denoised images `[batch, 1, 2^J, 2^J]`."""
        return self._rung(y, len(self.gains) - 1)

    def _rung(self, y: Tensor, level: int) -> Tensor:
        if level == 0:
            return self.gains[0] * y
        coarse = self.down(y)
        return up(self._rung(coarse, level - 1)) + self.gains[level] * (y - up(coarse))


class UNet(nn.Module):
    """A convolutional U-Net with residual decoders and equal parameters whatever goes down.

    `kind` weighs the entries of DOWN (a buffer, so that the members of an Ensemble may differ in it).
    """

    kind: Tensor

    def __init__(self, levels: int, width: int, down: str, *, generator: torch.Generator) -> None:
        super().__init__()
        self.levels = levels
        self.stem = conv(1, width, 3, generator=generator)
        self.forth = nn.ModuleList(conv(width, width, 3, generator=generator) for _ in range(levels + 1))
        self.back = nn.ModuleList(conv(2 * width, width, 3, generator=generator) for _ in range(levels))
        self.head = conv(width, 1, 1, generator=generator)
        self.register_buffer("kind", torch.tensor([float(down == name) for name in DOWN]))

    def forward(self, x: Tensor, edit: Edit | None = None) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return the image and, from coarse to fine, (upsampled coarse state, what the decoder adds to it).

        `edit` changes the finest skip `[batch, width, 2^J, 2^J]` before the decoder reads it.
        """
        rungs: list[tuple[Tensor, Tensor]] = []
        state = self._rung(self.stem(x), self.levels, edit, rungs)
        return self.head(functional.gelu(state)), rungs

    def _rung(self, x: Tensor, level: int, edit: Edit | None, rungs: list[tuple[Tensor, Tensor]]) -> Tensor:
        x = x + self.forth[level](functional.gelu(x))
        if level == 0:
            return x
        smaller = sum(weight * down(x) for weight, down in zip(self.kind, DOWN.values(), strict=True))
        coarse = up(self._rung(smaller, level - 1, None, rungs))
        skip = x if edit is None else edit(x)
        added = self.back[level - 1](functional.gelu(torch.cat([skip, coarse], 1)))
        rungs.append((coarse, added))
        return coarse + added
