"""Bijections of vectors and images: rational-quadratic spline couplings at several scales, with log-determinants.

Durkan et al., "Neural Spline Flows" (2019). A layer is a module with `forward(x) -> (y, log-determinant [batch])`
and `inverse(y) -> x`; `x` is `[batch, h, w, c]`, a vector being an image of one pixel. All run inside Ensemble (vmap).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

FLOOR = 1e-3  # least width and height of a bin (as a share) and least slope at a knot


def rq_spline(x: Tensor, raw: Tensor, bound: float, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Map `x` `[...]` by monotone splines with free parameters `raw` `[3K - 1, ...]`; identity outside ±`bound`.

    Returns the image and the log-derivative of the map that was applied, both `[...]`. Zero `raw` gives the identity.
    """
    bins = (len(raw) + 1) // 3
    shares = raw[: 2 * bins].unflatten(0, (2, bins)).softmax(1)  # parameters lead: what follows stays contiguous
    sizes = 2 * bound * FLOOR + 2 * bound * (1 - FLOOR * bins) * shares  # [2, K, ...]: widths and heights
    knots = sizes.cumsum(1) - sizes - bound  # left ends
    inner = FLOOR + softplus(raw[2 * bins :] + math.log(math.expm1(1 - FLOOR)))
    end = torch.ones_like(inner[:1])
    slopes = torch.cat([end, inner, end])
    inside = (x > -bound) & (x < bound)
    u = torch.where(inside, x, 0.0)
    k = (u >= knots[1 if inverse else 0, 1:]).sum(0, keepdim=True)  # the bin of each point
    twice = k.expand(2, *k.shape)
    x0, y0 = knots.gather(1, twice).squeeze(1).unbind(0)
    w, h = sizes.gather(1, twice).squeeze(1).unbind(0)
    d0, d1 = slopes.gather(0, k).squeeze(0), slopes.gather(0, k + 1).squeeze(0)
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
    """Trade space for channels, `[h, w, c]` to `[h/2, w/2, 4c]`; volume preserving."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squeezed `x` `[batch, h, w, c]` and zeros."""
        y = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)
        return y.flatten(3), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        """Return the image `[batch, 2h, 2w, c / 4]` that was squeezed into `y` `[batch, h, w, c]`."""
        return y.unflatten(3, (2, 2, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


class ActNorm(nn.Module):
    """A scale and a shift per channel, set by the first batch to give it mean 0 and variance 1 (Glow)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale, self.shift = (nn.Parameter(torch.zeros(channels)) for _ in range(2))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Normalise the channels of `x` `[batch, h, w, c]`."""
        std, mean = torch.std_mean(x, (0, 1, 2))
        self.log_scale.copy_(-std.clamp_min(1e-3).log())
        self.shift.copy_(mean)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised `x` and its log-determinants."""
        logdet = self.log_scale.sum() * (x.shape[1] * x.shape[2])
        return (x - self.shift) * self.log_scale.exp(), logdet.expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        """Undo `forward`."""
        return y * (-self.log_scale).exp() + self.shift


class Mix(nn.Module):
    """An invertible matrix over channels in LU form, a random rotation at first (the 1x1 convolution of Glow)."""

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("permutation", torch.eye(channels))
        self.register_buffer("sign", torch.ones(channels))
        self.lower, self.upper = (nn.Parameter(torch.zeros(channels, channels)) for _ in range(2))
        self.log_size = nn.Parameter(torch.zeros(channels))
        self.set(torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64))[0])

    @torch.no_grad()
    def set(self, matrix: Tensor) -> None:
        """Become the invertible `matrix` `[c, c]`."""
        permutation, lower, upper = torch.linalg.lu(matrix.double())
        self.permutation.copy_(permutation)
        self.lower.copy_(lower.tril(-1))
        self.upper.copy_(upper.triu(1))
        self.sign.copy_(upper.diagonal().sign())
        self.log_size.copy_(upper.diagonal().abs().log())

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the unit lower and the upper triangular factor `[c, c]`."""
        lower = self.lower.tril(-1) + torch.eye(len(self.lower), dtype=self.lower.dtype, device=self.lower.device)
        return lower, self.upper.triu(1) + torch.diag_embed(self.sign * self.log_size.exp())

    def matrix(self) -> Tensor:
        """Return the matrix `[c, c]`."""
        lower, upper = self.factors()
        return self.permutation @ lower @ upper

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `x` `[batch, h, w, c]` with mixed channels and its log-determinants."""
        lower, upper = self.factors()  # one after the other: their product would cost c³
        mixed = x @ upper.mT @ lower.mT @ self.permutation.mT
        return mixed, (self.log_size.sum() * (x.shape[1] * x.shape[2])).expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        """Return the image whose channels were mixed into those of `y` `[batch, h, w, c]`, of the same shape."""
        return torch.linalg.solve(self.matrix(), y.mT).mT


def patches(x: Tensor) -> Tensor:
    """Return the 3x3 neighbourhoods `[batch, h, w, 9c]` of `x` `[batch, h, w, c]`, with zeros beyond the border.

    A convolution is then a matrix product, which vmap batches over an Ensemble's members; a grouped one is slow.
    """
    height, width = x.shape[1:3]
    wide = pad(x, (0, 0, 1, 1, 1, 1))
    return torch.cat([wide[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], -1)


class Coupling(nn.Module):
    """Half of the channels pass; the splines of the other half depend on them through a small convolutional network.

    Three convolutions, 3x3 first (for more than one pixel) and then 1x1; the last starts at zero, hence the layer as
    the identity. An image of one pixel makes it an MLP.
    """

    def __init__(
        self, channels: int, hidden: int, *, local: bool, bins: int, bound: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.kept, self.local = channels - channels // 2, local
        self.bound, self.per = bound, 3 * bins - 1
        sizes = (self.kept * (9 if local else 1), hidden, hidden)
        self.inner = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.last = nn.Linear(hidden, channels // 2 * self.per)
        with torch.no_grad():
            for layer in self.inner:
                values = torch.randn(layer.weight.shape, generator=generator)  # type: ignore[arg-type]
                layer.weight.copy_(values * (2 / layer.in_features) ** 0.5)  # type: ignore[operator]
            for parameter in (self.last.weight, *(layer.bias for layer in (*self.inner, self.last))):
                parameter.zero_()  # type: ignore[operator]

    def raw(self, kept: Tensor) -> Tensor:
        """Return the spline parameters `[3K - 1, c', batch * h * w]` given the passing channels."""
        hidden = (patches(kept) if self.local else kept).flatten(0, -2)
        for layer in self.inner:
            hidden = layer(hidden).relu()
        out = self.last.weight @ hidden.mT + self.last.bias[:, None]
        return out.unflatten(0, (self.per, -1))

    def splined(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Return `x` `[batch, h, w, c]` with its second part mapped, and the log-determinants `[batch]`."""
        kept, moved = x[..., : self.kept], x[..., self.kept :]
        y, log_slope = rq_spline(moved.flatten(0, -2).mT, self.raw(kept), self.bound, inverse=inverse)
        total = log_slope.sum(0).unflatten(0, (len(x), -1)).sum(1)
        return torch.cat([kept, y.mT.reshape(moved.shape)], -1), total

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coupled `x` `[batch, h, w, c]` and its log-determinants."""
        return self.splined(x, inverse=False)

    def inverse(self, y: Tensor) -> Tensor:
        """Undo `forward`."""
        return self.splined(y, inverse=True)[0]


class Flow(nn.Module):
    """levels x (squeeze, then `steps` x [ActNorm, mixing, coupling]) and one matrix, between images and flat codes.

    Data and codes are `[batch, d]`, images `shape` = (h, w, c). With `split` half of the channels leave after each
    level but the last (multi-scale); a vector (1, 1, d) has one level and no squeeze. `forward` goes from data to
    codes, the direction that training needs; `inverse` back.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        levels: int = 1,
        steps: int,
        hidden: int,
        bins: int = 4,
        bound: float = 3.0,
        split: bool = False,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        height, width, channels = shape
        flat = height == width == 1
        if not flat and (height % 2**levels or width % 2**levels):
            raise ValueError(f"{height} x {width} pixels cannot be halved {levels} times")
        self.shape, self.split = tuple(shape), split
        self.levels = nn.ModuleList()
        for level in range(levels):
            layers: list[nn.Module] = []
            if not flat:
                layers.append(Squeeze())
                height, width, channels = height // 2, width // 2, 4 * channels
            local = height * width > 1
            for _ in range(steps):
                layers += [ActNorm(channels), Mix(channels, generator=generator)]
                layers.append(Coupling(channels, hidden, local=local, bins=bins, bound=bound, generator=generator))
            layers.append(ActNorm(channels))
            self.levels.append(nn.ModuleList(layers))
            if split and level + 1 < levels:
                channels -= channels // 2
        self.last = Mix(math.prod(self.shape), generator=generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes `[batch, d]` of data `[batch, d]` and log-determinants `[batch]`."""
        x = x.unflatten(1, self.shape)
        done, total = [], x.new_zeros(len(x))
        for index, level in enumerate(self.levels):
            if self.split and index:
                half = x.shape[-1] // 2
                done.append(x[..., x.shape[-1] - half :].flatten(1))
                x = x[..., : x.shape[-1] - half]
            for layer in level:  # type: ignore[attr-defined]
                x, logdet = layer(x)
                total = total + logdet
        z, logdet = self.last(torch.cat([*done, x.flatten(1)], 1)[:, None, None])
        return z.flatten(1), total + logdet

    def inverse(self, z: Tensor) -> Tensor:
        """Return data `[batch, d]` of codes `[batch, d]`."""
        parts, (height, width, channels) = [], self.shape
        for index in range(len(self.levels)):
            if self.split and index:
                parts.append((height, width, channels // 2))
                channels -= channels // 2
            if self.shape[0] * self.shape[1] > 1:
                height, width, channels = height // 2, width // 2, 4 * channels
        z = self.last.inverse(z[:, None, None]).flatten(1)
        sizes = [math.prod(part) for part in [*parts, (height, width, channels)]]
        *done, x = z.split(sizes, 1)
        x = x.unflatten(1, (height, width, channels))
        for index in reversed(range(len(self.levels))):
            for layer in reversed(list(self.levels[index])):  # type: ignore[call-overload]
                x = layer.inverse(x)
            if self.split and index:
                x = torch.cat([x, done[index - 1].unflatten(1, parts[index - 1])], -1)
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

    @torch.no_grad()
    def align(self, matrix: Tensor) -> "Flow":
        """Set the last matrix so that the flow, untrained and hence affine, has the slope `matrix`; returns self."""
        points = torch.cat([torch.zeros(1, len(matrix)), torch.eye(len(matrix))]).to(self.last.sign)
        z = torch.linalg.solve(self.last.matrix(), self(points)[0].mT).mT.double()
        self.last.set(matrix.double() @ torch.linalg.inv((z[1:] - z[0]).mT))
        return self
