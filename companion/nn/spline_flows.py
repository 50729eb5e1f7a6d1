"""Bijections of vectors and images: rational-quadratic spline couplings at several scales, each with its log-determinant.

Durkan et al., "Neural Spline Flows" (2019). A layer is a module with `forward(x) -> (y, log|det dy/dx| [batch])` and
`inverse(y) -> x`; `x` is `[batch, c, h, w]`, a vector being an image of one pixel. All run inside Ensemble (vmap).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pixel_shuffle, pixel_unshuffle, softplus

FLOOR = 1e-3  # least width and height of a bin (as a share) and least slope at a knot


def rq_spline(x: Tensor, raw: Tensor, bound: float, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Map `x` `[...]` by monotone splines with unconstrained parameters `raw` `[3K - 1, ...]`; identity outside ±`bound`.

    Returns the image and the log-derivative of the map that was applied, both `[...]`. All-zero `raw` gives the identity.
    """
    bins = (len(raw) + 1) // 3
    shares = torch.stack([raw[:bins], raw[bins : 2 * bins]]).softmax(1)  # parameters lead: what follows stays contiguous
    sizes = 2 * bound * FLOOR + 2 * bound * (1 - FLOOR * bins) * shares  # [2, K, ...]: widths and heights
    knots = torch.cat([torch.full_like(sizes[:, :1], -bound), sizes[:, :-1].cumsum(1) - bound], 1)  # left ends
    inner = FLOOR + softplus(raw[2 * bins :] + math.log(math.expm1(1 - FLOOR)))
    end = torch.ones_like(inner[:1])
    slopes = torch.stack([torch.cat([end, inner]), torch.cat([inner, end])])
    inside = (x > -bound) & (x < bound)
    u = torch.where(inside, x, 0.0)
    k = (u >= knots[1 if inverse else 0, 1:]).sum(0)  # the bin of each point
    table = torch.cat([knots, sizes, slopes])  # [6, K, ...]
    x0, y0, w, h, d0, d1 = table.gather(1, k.expand(6, 1, *k.shape)).squeeze(1).unbind(0)
    s = h / w
    bend = d0 + d1 - 2 * s
    if inverse:
        rise = u - y0
        a, b, c = h * (s - d0) + rise * bend, h * d0 - rise * bend, -s * rise
        t = 2 * c / (-b - (b.square() - 4 * a * c).clamp_min(0).sqrt())
    else:
        t = (u - x0) / w
    one = 1 - t
    both, square = t * one, t.square()
    under = s + bend * both
    y = x0 + t * w if inverse else y0 + h * (s * square + d0 * both) / under
    rate = d1 * square + 2 * s * both + d0 * one.square()
    log_slope = torch.where(inside, (rate * (s / under).square()).log(), 0.0)
    return torch.where(inside, y, x), -log_slope if inverse else log_slope


class Squeeze(nn.Module):
    """Trade space for channels, `[c, h, w]` to `[4c, h/2, w/2]`; volume preserving."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return pixel_shuffle(y, 2)


class ActNorm(nn.Module):
    """A scale and a shift per channel, set by the first batch to give it mean 0 and variance 1 (Glow)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Normalise the channels of `x` `[batch, c, h, w]`."""
        std, mean = torch.std_mean(x, (0, 2, 3))
        self.log_scale.copy_(-std.clamp_min(1e-3).log()[:, None, None])
        self.shift.copy_(mean[:, None, None])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logdet = self.log_scale.sum() * (x.shape[-1] * x.shape[-2])
        return (x - self.shift) * self.log_scale.exp(), logdet.expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return y * (-self.log_scale).exp() + self.shift


class Mix(nn.Module):
    """An invertible matrix over channels in LU form, a random rotation at first (the 1x1 convolution of Glow)."""

    permutation: Tensor

    def __init__(self, channels: int, *, generator: torch.Generator) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        default = torch.get_default_dtype()
        self.register_buffer("permutation", permutation.to(default))
        self.lower = nn.Parameter(lower.tril(-1).to(default))
        self.upper = nn.Parameter(upper.triu(1).to(default))
        self.register_buffer("sign", upper.diagonal().sign().to(default))
        self.log_size = nn.Parameter(upper.diagonal().abs().log().to(default))

    def matrix(self) -> Tensor:
        """Return the matrix `[c, c]`."""
        lower = self.lower.tril(-1) + torch.eye(len(self.lower)).to(self.lower)
        return self.permutation @ lower @ (self.upper.triu(1) + torch.diag(self.sign * self.log_size.exp()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = (self.matrix() @ x.flatten(2)).unflatten(2, x.shape[2:])
        return y, (self.log_size.sum() * (x.shape[-1] * x.shape[-2])).expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return torch.linalg.solve(self.matrix(), y.flatten(2)).unflatten(2, y.shape[2:])


class Coupling(nn.Module):
    """Half of the channels pass; the splines of the other half depend on them through a small convolutional network.

    Three convolutions, `kernel` x `kernel` first and then 1x1 (an MLP for an image of one pixel); the last starts at
    zero, hence the layer as the identity.
    """

    def __init__(
        self, channels: int, hidden: int, *, kernel: int, bins: int, bound: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.kept = channels - channels // 2
        self.bound, self.kernel, self.per = bound, kernel, 3 * bins - 1
        fan = self.kept * kernel**2

        def weight(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns, generator=generator) * (2 / columns) ** 0.5)

        self.first, self.second = weight(hidden, fan), weight(hidden, hidden)
        self.first_bias, self.second_bias = (nn.Parameter(torch.zeros(hidden, 1)) for _ in range(2))
        self.last = nn.Parameter(torch.zeros(channels // 2 * self.per, hidden))
        self.last_bias = nn.Parameter(torch.zeros(channels // 2 * self.per, 1))

    def raw(self, kept: Tensor) -> Tensor:
        """Return the spline parameters `[3K - 1, batch, c', h, w]` given the passing channels."""
        if self.kernel == 1:
            hidden = self.first @ kept.flatten(2)
        else:
            shape = (len(self.first), kept.shape[1], self.kernel, self.kernel)
            hidden = conv2d(kept, self.first.reshape(shape), padding=self.kernel // 2).flatten(2)
        hidden = (hidden + self.first_bias).relu()
        hidden = (self.second @ hidden + self.second_bias).relu()
        out = self.last @ hidden + self.last_bias  # [batch, c' * per, h * w]
        return out.unflatten(1, (self.per, -1)).movedim(1, 0).unflatten(-1, kept.shape[2:])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, moved = x[:, : self.kept], x[:, self.kept :]
        moved, log_slope = rq_spline(moved, self.raw(kept), self.bound)
        return torch.cat([kept, moved], 1), log_slope.sum((1, 2, 3))

    def inverse(self, y: Tensor) -> Tensor:
        kept, moved = y[:, : self.kept], y[:, self.kept :]
        return torch.cat([kept, rq_spline(moved, self.raw(kept), self.bound, inverse=True)[0]], 1)


class Flow(nn.Module):
    """levels x (squeeze, then `steps` x [ActNorm, mixing, coupling]) between images and flat codes `[batch, d]`.

    With `split` half of the channels leave after each level but the last (multi-scale); a vector `(d, 1, 1)` has one level and no
    squeeze. `forward` goes from data to codes, the direction that training needs; `inverse` back.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        levels: int,
        steps: int,
        hidden: int,
        bins: int = 4,
        bound: float = 3.0,
        split: bool = False,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        flat = height == width == 1
        if not flat and (height % 2**levels or width % 2**levels):
            raise ValueError(f"{height} x {width} pixels cannot be halved {levels} times")
        self.shape, self.split = tuple(shape), split
        self.levels = nn.ModuleList()
        for level in range(levels):
            layers: list[nn.Module] = []
            if not flat:
                layers.append(Squeeze())
                channels, height, width = 4 * channels, height // 2, width // 2
            kernel = 1 if height == width == 1 else 3
            for _ in range(steps):
                layers.append(ActNorm(channels))
                layers.append(Mix(channels, generator=generator))
                layers.append(
                    Coupling(channels, hidden, kernel=kernel, bins=bins, bound=bound, generator=generator)
                )
            layers.append(ActNorm(channels))
            self.levels.append(nn.ModuleList(layers))
            if split and level + 1 < levels:
                channels -= channels // 2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes `[batch, d]` of data `[batch, d]` and log|det dz/dx| `[batch]`."""
        x = x.unflatten(1, self.shape)
        done, total = [], x.new_zeros(len(x))
        for level in self.levels:
            if done is not None and self.split and level is not self.levels[0]:
                half = x.shape[1] // 2
                done.append(x[:, x.shape[1] - half :].flatten(1))
                x = x[:, : x.shape[1] - half]
            for layer in level:  # type: ignore[attr-defined]
                x, logdet = layer(x)
                total = total + logdet
        return torch.cat([*done, x.flatten(1)], 1), total

    def inverse(self, z: Tensor) -> Tensor:
        """Return data `[batch, d]` of codes `[batch, d]`."""
        sizes, shape = [], list(self.shape)
        for index, level in enumerate(self.levels):
            if self.split and index:
                half = shape[0] // 2
                sizes.append((half, *shape[1:]))
                shape[0] -= half
            if isinstance(level[0], Squeeze):  # type: ignore[index]
                shape = [4 * shape[0], shape[1] // 2, shape[2] // 2]
        *done, x = z.split([math.prod(size) for size in [*sizes, shape]], 1)
        x = x.unflatten(1, shape)
        for index in reversed(range(len(self.levels))):
            for layer in reversed(self.levels[index]):  # type: ignore[arg-type]
                x = layer.inverse(x)
            if self.split and index:
                x = torch.cat([x, done[index - 1].unflatten(1, sizes[index - 1])], 1)
        return x.flatten(1)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> "Flow":
        """Set every ActNorm from the batch `x` `[batch, d]`; returns self."""
        hooks = [
            module.register_forward_pre_hook(lambda layer, inputs: layer.initialise(inputs[0]))
            for module in self.modules()
            if isinstance(module, ActNorm)
        ]
        self(x)
        for hook in hooks:
            hook.remove()
        return self
