"""The cell of a very deep VAE as one step of an SDE: blocks, diagonal Gaussians, and the two half steps."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """GELU and 1×1, 3×3, 3×3, 1×1 convolutions through a bottleneck; 1×1 only at resolutions up to 2 (`wide` False)."""

    def __init__(
        self, inputs: int, middle: int, outputs: int, *, wide: bool, last: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        kernel = 3 if wide else 1
        shapes = ((inputs, middle, 1), (middle, middle, kernel), (middle, middle, kernel), (middle, outputs, 1))
        convolutions = [conv(*shape, generator=generator) for shape in shapes]
        self.convolutions = nn.ModuleList(convolutions)
        with torch.no_grad():
            convolutions[-1].weight.mul_(last)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, outputs, r, r]` for x `[batch, inputs, r, r]`."""
        for convolution in self.convolutions:
            x = convolution(functional.gelu(x))
        return x


class _Bare(nn.Conv2d):
    def reset_parameters(self) -> None:
        """Leave the start to `conv`, which has a generator."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution `[batch, outputs, r, r]`; of 1×1 kernels as a matrix product."""
        if self.kernel_size != (1, 1) or self.bias is None:
            return super().forward(x)
        # vmap turns a convolution into a grouped one, which for 1×1 kernels is slower than a batch of products.
        product = self.weight.flatten(1) @ x.flatten(2)
        return (product + self.bias.to(product.dtype)[:, None]).unflatten(2, x.shape[2:])


def conv(inputs: int, outputs: int, kernel: int, *, generator: torch.Generator) -> nn.Conv2d:
    """Return a convolution that keeps the resolution, with PyTorch's uniform weights and zero biases."""
    layer = _Bare(inputs, outputs, kernel, padding=kernel // 2)
    assert layer.bias is not None
    if not layer.weight.is_meta:  # a network without storage, built to count its parameters
        bound = (inputs * kernel**2) ** -0.5
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        nn.init.zeros_(layer.bias)
    return layer


class Gaussian(NamedTuple):
    """A diagonal Gaussian by mean and log standard deviation."""

    mean: Tensor
    log_std: Tensor


def kl(q: Gaussian, p: Gaussian) -> Tensor:
    """Return KL(q || p) in nats, element by element."""
    ratio = q.log_std - p.log_std
    return 0.5 * (((q.mean - p.mean) * (-p.log_std).exp()).square() + (2 * ratio).exp() - 1) - ratio


class Cell(nn.Module):
    """The top-down cell, a two-step Euler step of length `time` (1 as published).

    x₊ = x + (u(x) + bias of W)·time + W z with z ~ N(m·time, s²·time), then x' = x₊ + R(x₊)·time; (m, s) are the
    prior's or the posterior's, and both read x before u is added.
    """

    def __init__(
        self, width: int, middle: int, latents: int, *, wide: bool, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.sizes = [latents, latents, width]
        self.posterior = Block(2 * width, middle, 2 * latents, wide=wide, last=1.0, generator=generator)
        self.prior = Block(width, middle, sum(self.sizes), wide=wide, last=0.0, generator=generator)
        self.lift = conv(latents, width, 1, generator=generator)
        self.residual = Block(width, middle, width, wide=wide, last=scale, generator=generator)
        with torch.no_grad():
            self.lift.weight.mul_(scale)

    def laws(self, x: Tensor, skip: Tensor | None) -> tuple[Gaussian, Gaussian, Tensor]:
        """Return prior, posterior (the prior again without a skip) and drift u, all at x before u is added.

        x and `skip` are `[batch, width, r, r]`; the laws' moments `[batch, latents, r, r]`, u as x.
        """
        mean, log_std, drift = self.prior(x).split(self.sizes, 1)
        prior = Gaussian(full_precision(mean), full_precision(log_std))
        if skip is None:
            return prior, prior, drift
        return prior, Gaussian(*map(full_precision, self.posterior(torch.cat([x, skip], 1)).chunk(2, 1))), drift

    def move(
        self,
        x: Tensor,
        drift: Tensor,
        z: Tensor,
        *,
        time: float = 1.0,
        keep: Tensor | None = None,
        told: Tensor | None = None,
    ) -> Tensor:
        """Return the next state, as x `[batch, width, r, r]`, for `drift` u and a sample z `[batch, latents, r, r]`.

        `keep` = 0 replaces the state at both half steps, `told` is added to what R reads.
        """
        lifted = self.lift(z.to(x.dtype))
        if time != 1 and self.lift.bias is not None:  # the bias of W belongs to the drift
            lifted = lifted - (1 - time) * self.lift.bias[:, None, None]
        x = (x if keep is None else keep * x) + (drift if time == 1 else time * drift) + lifted
        change = self.residual(x if told is None else x + told)
        return (x if keep is None else keep * x) + (change if time == 1 else time * change)


def full_precision(x: Tensor) -> Tensor:
    """Return x in at least single precision."""
    # Divergences are differences of nearly equal numbers: never in half precision.
    return x if x.dtype == torch.float64 else x.float()


def log_ratio(q: Gaussian, p: Gaussian, eps: Tensor) -> Tensor:
    """Return log q(z) − log p(z) at z = mean + std·eps of q, element by element."""
    away = (q.mean - p.mean + q.log_std.exp() * eps) * (-p.log_std).exp()
    return 0.5 * (away.square() - eps.square()) + p.log_std - q.log_std
