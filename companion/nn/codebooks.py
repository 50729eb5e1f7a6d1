"""Codebooks whose codes are mixture components, their responsibilities, and samples of categorical slots.

Letters as in chapter 8: h `[..., d]` a network output, codes k = 1..K with means `[K, d]`, log-variances `[K, d]`,
log-weights `[K]`. Everything in which the arms of an experiment differ is a buffer, so that they train as one Ensemble.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

Variance = Literal["fixed", "scalar", "per code", "per code and dimension"]
LIMIT = 7.0  # |log variance| stays below it


def log_joint(h: Tensor, mean: Tensor, log_variance: Tensor, log_weight: Tensor) -> Tensor:
    """Return log πₖ + log N(h; μₖ, Σₖ) + (d/2) log 2π, `[..., K]`, as two matrix products.

    Nothing of the size slots × codes × dimensions is made. The square is expanded, so that the rounding error grows
    with ‖h‖²/σ²: about 1e-5 nats in float32 at ordinary sizes.
    """
    precision = (-log_variance).exp()
    constant = (mean.square() * precision + log_variance).sum(-1)
    quadratic = h.square() @ precision.mT - 2 * (h @ (mean * precision).mT) + constant
    return log_weight - 0.5 * quadratic


def squared_distances(h: Tensor, mean: Tensor) -> Tensor:
    """Return ‖h − μₖ‖² `[..., K]`."""
    return h.square().sum(-1, keepdim=True) - 2 * (h @ mean.mT) + mean.square().sum(-1)


class Codebook(nn.Module):
    """K codes with means, variances and weights.

    `variance` says what is learnt on top of the constant log-variance `log_variance`: nothing ("fixed"; a variance of ½
    is relaxed VQ), one number, one per code, one per code and dimension. `weights` says whether the weights are learnt.
    Without `determinant` the term −½ log det Σₖ is dropped: a mistake, kept as the wrong twin.
    """

    mask: Tensor
    base: Tensor
    determinant: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        variance: Variance = "per code and dimension",
        log_variance: float = math.log(0.5),
        weights: bool = True,
        scale: float = 1.0,
        determinant: bool = True,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.mean = nn.Parameter(scale * torch.randn(codes, dim, generator=generator))
        self.scalar = nn.Parameter(torch.zeros(1))
        self.per_code = nn.Parameter(torch.zeros(codes, 1))
        self.per_dimension = nn.Parameter(torch.zeros(codes, dim))
        self.weight = nn.Parameter(torch.zeros(codes))
        learnt = [variance == "scalar", variance == "per code", variance == "per code and dimension", weights]
        self.register_buffer("mask", torch.tensor([float(one) for one in learnt]))
        self.register_buffer("base", torch.tensor(float(log_variance)))
        self.register_buffer("determinant", torch.tensor(float(determinant)))

    def log_variance(self) -> Tensor:
        """Return log σ² `[K, d]`, within ±`LIMIT`."""
        one, code, both, _ = self.mask
        free = one * self.scalar + code * self.per_code + both * self.per_dimension
        return (self.base + free).clamp(-LIMIT, LIMIT).expand_as(self.mean)

    def log_weight(self) -> Tensor:
        """Return log π `[K]`."""
        return (self.mask[3] * self.weight).log_softmax(-1)

    def forward(self, h: Tensor) -> Tensor:
        """Return the log-responsibilities log r(h) `[..., K]` of `h` `[..., d]`."""
        log_variance = self.log_variance()
        logits = log_joint(h, self.mean, log_variance, self.log_weight())
        # The term stands in the closed form; the wrong twin takes it out again.
        logits = logits + (1 - self.determinant) * 0.5 * log_variance.sum(-1)
        return logits.log_softmax(-1)


def gumbel(uniform: Tensor) -> Tensor:
    """Return standard Gumbel noise from `uniform` draws in [0, 1)."""
    return -(-torch.log1p(-uniform)).clamp_min(1e-20).log()


def sample(log_probs: Tensor, uniform: Tensor, temperature: Tensor | float, hard: Tensor | float) -> Tensor:
    """Return a draw `[..., K]`: relaxed (`hard` = 0), or one-hot with the relaxed draw's gradient (`hard` = 1).

    By Gumbel's trick the one-hot draw is an exact sample of the categorical, at any temperature.
    """
    perturbed = log_probs + gumbel(uniform)
    relaxed = (perturbed / temperature).softmax(-1)
    return relaxed + hard * (one_hot(perturbed) - relaxed).detach()


def one_hot(scores: Tensor) -> Tensor:
    """Return the one-hot `[..., K]` of the largest of `scores`."""
    return nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores)


def categorical_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return KL(q || p) in nats, `[...]`, of categoricals given by log-probabilities `[..., K]`."""
    return (log_q.exp() * (log_q - log_p)).sum(-1)
