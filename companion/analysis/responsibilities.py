"""Geometry of responsibilities and divergences between them, in nats: closed forms that chapter 8 checks."""

import math

import torch
from torch import Tensor


def enclosed_cell(mean: Tensor, log_variance: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return centre and semi-axes `[d]` of the ellipsoid that code 1 owns inside code 0.

    For `mean` and `log_variance` `[2, d]`, `log_weight` `[2]`, every variance of code 1 below that of code 0. Raises
    ValueError otherwise, or where code 1 owns nothing.
    """
    precision = (-log_variance).exp()
    sharper = precision[1] - precision[0]
    if not (sharper > 0).all():
        raise ValueError("the second code must have the smaller variance in every dimension")
    centre = (precision[1] * mean[1] - precision[0] * mean[0]) / sharper
    level = (sharper * centre.square() - precision[1] * mean[1].square() + precision[0] * mean[0].square()).sum()
    level = level + (log_variance[0] - log_variance[1]).sum() + 2 * (log_weight[1] - log_weight[0])
    if level <= 0:
        raise ValueError("the second code owns no point")
    return centre, (level / sharper).sqrt()


def bregman_kl(h_q: Tensor, h_p: Tensor, mean: Tensor, log_variance: Tensor, log_weight: Tensor) -> Tensor:
    """Return KL(r(h_q) || r(h_p)) `[n]` as the Bregman divergence of F(η) = log Σ exp(b_k + μ_k·η), η = h/σ².

    For one `log_variance` `[d]` shared by all codes.
    """
    precision = (-log_variance).exp()
    bias = log_weight - 0.5 * (mean.square() * precision).sum(-1)
    eta_q, eta_p = h_q * precision, h_p * precision
    f_q, f_p = (torch.logsumexp(bias + eta @ mean.T, -1) for eta in (eta_q, eta_p))
    gradient = (bias + eta_q @ mean.T).softmax(-1) @ mean
    return f_p - f_q - (gradient * (eta_p - eta_q)).sum(-1)


def shared_bound(h_q: Tensor, h_p: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return (D²/8)‖Σ⁻¹(h_p − h_q)‖² `[n]`, D the largest distance of two means; one `log_variance` `[d]` for all."""
    largest = torch.cdist(mean, mean).max()
    return largest.square() / 8 * ((h_p - h_q) * (-log_variance).exp()).square().sum(-1)


def range_bound(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return (max Δ − min Δ)²/8 `[...]`, Δ = log p − log q: by Hoeffding's lemma at least KL(q || p)."""
    difference = log_p - log_q
    return (difference.amax(-1) - difference.amin(-1)).square() / 8


def slope_bound(h_q: Tensor, h_p: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return (G²/8)‖h_p − h_q‖² `[n]` for unequal variances `[K, d]`, a bound of KL(r(h_q) || r(h_p)).

    G is the largest distance among the scores Σ_k⁻¹(m − μ_k) at the midpoint m: the logits are quadratic in h, so that
    their differences are linear in h_p − h_q with the slope at m, exactly.
    """
    middle = (h_q + h_p) / 2
    slopes = (middle[..., None, :] - mean) * (-log_variance).exp()
    largest = torch.cdist(slopes, slopes).flatten(-2).amax(-1)
    return largest.square() / 8 * (h_p - h_q).square().sum(-1)


def clumped_blobs(
    seeds: int, points: int, codes: int, spread: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return five unit blobs on a circle, `[seeds, points, 2]`, and codes in a clump outside, `[seeds, codes, 2]`."""
    angle = 2 * math.pi * torch.arange(5) / 5
    centres = spread * torch.stack([angle.cos(), angle.sin()], -1)
    x = centres[torch.arange(points) % 5] + torch.randn(seeds, points, 2, generator=generator)
    corner = torch.tensor([1.3 * spread, 1.3 * spread])
    return x, corner + 0.5 * torch.randn(seeds, codes, 2, generator=generator)


def moving_averages(
    x: Tensor,
    codes: Tensor,
    steps: int,
    *,
    log_variance: float | None = None,
    learnt: bool = False,
    winner: bool = False,
    decay: float = 0.9,
) -> tuple[Tensor, Tensor]:
    """Move `codes` by moving averages of their points; path `[steps + 1, seeds, codes, 2]` and mean assignments.

    Without `log_variance` assignments are to the nearest code, which is how VQ-VAE moves its codes. With it they are
    responsibilities and the same updates are damped EM; `learnt` then updates variances and weights too. With `winner`
    the most responsible code takes all, a wrong twin.
    """
    mean, log_var = codes, torch.full_like(codes, log_variance or 0.0)
    counts = torch.full_like(codes[..., 0], 1 / codes.shape[1])
    sums, squares = counts[..., None] * mean, counts[..., None] * (mean.square() + log_var.exp())
    path = [codes]
    for step in range(steps + 1):
        if log_variance is None:
            r = torch.nn.functional.one_hot(torch.cdist(x, mean).argmin(-1), codes.shape[1]).to(x)
        else:
            precision = (-log_var).exp()
            square = x.square() @ precision.mT - 2 * (x @ (mean * precision).mT)
            square = square + (mean.square() * precision + log_var).sum(-1)[:, None]
            weight = counts.clamp_min(1e-30).log() if learnt else torch.zeros_like(counts)
            r = (weight[:, None] - 0.5 * square).softmax(-1)
            r = torch.nn.functional.one_hot(r.argmax(-1), codes.shape[1]).to(x) if winner else r
        if step == steps:
            break
        counts = decay * counts + (1 - decay) * r.mean(1)
        sums = decay * sums + (1 - decay) * r.mT @ x / x.shape[1]
        squares = decay * squares + (1 - decay) * r.mT @ x.square() / x.shape[1]
        safe = counts.clamp_min(1e-12)[..., None]
        mean = sums / safe
        if learnt:
            log_var = (squares / safe - mean.square()).clamp_min(1e-3).log()
        path.append(mean)
    return torch.stack(path), r.mean(1)


def blobs_found(codes: Tensor, spread: float, within: float = 2.0) -> Tensor:
    """Return how many of the five blobs of `clumped_blobs` have a code within `within` of their centre, `[seeds]`."""
    angle = 2 * math.pi * torch.arange(5) / 5
    centres = spread * torch.stack([angle.cos(), angle.sin()], -1)
    return (torch.cdist(centres.expand(len(codes), -1, -1), codes).amin(-1) < within).sum(-1)
