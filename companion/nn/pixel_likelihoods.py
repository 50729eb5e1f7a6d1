"""Likelihoods of integer pixels: Bernoulli, k-way softmax, mixture of discretised logistics.

`log_pixels` maps network outputs `[..., pixels × outputs]` and integer pixels `[..., pixels]` to their log p, in nats.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from companion.nn.discretised_logistics import log_bin


class PixelLikelihood(Protocol):
    """What the ladder needs of a likelihood."""

    outputs: int

    def log_pixels(self, out: Tensor, x: Tensor) -> Tensor:
        """Return log p of each pixel `[..., pixels]`."""

    def mean(self, out: Tensor) -> Tensor:
        """Return the mean image `[..., pixels]` in pixel levels."""


class Bernoulli:
    """Binary pixels, one logit each."""

    outputs = 1

    def log_pixels(self, out: Tensor, x: Tensor) -> Tensor:
        """Return log p of each pixel `[..., pixels]`."""
        return x * out - nn.functional.softplus(out)

    def mean(self, out: Tensor) -> Tensor:
        """Return the mean image `[..., pixels]` in [0, 1]."""
        return out.sigmoid()


class Levels:
    """k-way softmax per pixel, levels 0 .. k − 1."""

    def __init__(self, levels: int) -> None:
        self.outputs = levels

    def log_pixels(self, out: Tensor, x: Tensor) -> Tensor:
        """Return log p of each pixel `[..., pixels]`."""
        logits = out.unflatten(-1, (-1, self.outputs)).log_softmax(-1)
        return logits.gather(-1, x.long()[..., None])[..., 0]

    def mean(self, out: Tensor) -> Tensor:
        """Return the mean image `[..., pixels]` in levels."""
        probs = out.unflatten(-1, (-1, self.outputs)).softmax(-1)
        return probs @ torch.arange(self.outputs, device=probs.device).to(probs.dtype)


class LogisticMixture:
    """Mixture of `components` logistics, integrated over unit bins; the bins at 0 and `levels` − 1 are open-ended.

    Sub-pixels are independent given the code: without the autoregression over channels of PixelCNN++, which would buy a
    few hundredths of a bit.
    """

    def __init__(self, levels: int = 256, components: int = 5) -> None:
        self.levels, self.components, self.outputs = levels, components, 3 * components

    def _parts(self, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, place, scale = out.unflatten(-1, (-1, 3, self.components)).unbind(-2)
        spread = torch.linspace(-0.8, 0.8, self.components, device=out.device).to(out.dtype)
        half = (self.levels - 1) / 2
        # In levels: places start spread over the range, scales at a tenth of it and never below a quarter of a level.
        scale = scale.clamp(-6, 6).exp() * self.levels / 10
        return weight.log_softmax(-1), half * (1 + spread + place), scale.clamp_min(0.25)

    def log_pixels(self, out: Tensor, x: Tensor) -> Tensor:
        """Return log p of each pixel `[..., pixels]`."""
        weight, place, scale = self._parts(out)
        level = x[..., None].to(out)
        upper, lower = (level + 0.5 - place) / scale, (level - 0.5 - place) / scale
        mass = log_bin(lower, upper, 1 / scale, first=level < 0.5, last=level > self.levels - 1.5)
        return (weight + mass).logsumexp(-1)

    def mean(self, out: Tensor) -> Tensor:
        """Return the mean of the components' places `[..., pixels]` in levels, each cut to the range."""
        weight, place, _ = self._parts(out)
        return (weight.exp() * place.clamp(0, self.levels - 1)).sum(-1)


def marginal_bits(train: Tensor, test: Tensor, levels: int) -> float:
    """Return bits per dimension of `test` `[n, pixels]` under independent pixels fitted to `train` (add-one counts)."""
    counts = torch.stack([(train == level).sum(0) for level in range(levels)]).double() + 1
    log_p = (counts / counts.sum(0)).log()
    picked = log_p.gather(0, test.long())
    return float(-picked.mean() / math.log(2))


def level_table(likelihood: PixelLikelihood, out: Tensor, levels: int, pixels: int) -> Tensor:
    """Return the probabilities `[..., pixels, levels]` of every level of every pixel."""
    like = out.new_zeros(*out.shape[:-1], pixels)
    return torch.stack([likelihood.log_pixels(out, like + level) for level in range(levels)], -1).exp()
