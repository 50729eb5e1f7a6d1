"""Exact numbers for linear ICA by quadrature: evidence, KL of an unmixing, total correlation, gaps of the ELBO."""

import math

import torch
from torch import Tensor

from companion.models.bijective_ica import gg_log_peak, gg_log_prob, source_kl


def line(reach: float, points: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of the trapezoid rule on ±`reach`, float64."""
    nodes = torch.linspace(-reach, reach, points, dtype=torch.float64)
    return nodes, torch.full_like(nodes, 2 * reach / (points - 1))


def plane(reach: float, points: int) -> tuple[Tensor, Tensor]:
    """Return nodes `[points², 2]` and weights of the trapezoid rule on a square."""
    nodes, weights = line(reach, points)
    return torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).flatten()


def log_evidence(z: Tensor, mixing: Tensor, noise: float, rho: float, *, points: int = 241) -> Tensor:
    """Return log p(z) `[n]` of z = A s + noise ε with one or two GG(0, 1, rho) sources, exact up to quadrature.

    The likelihood is Gaussian in s, with mean pinv(A) z and covariance noise² (AᵀA)⁻¹: the prior is averaged over it.
    """
    k, d = mixing.shape[1], len(mixing)
    gram = mixing.mT @ mixing
    centre = z @ torch.linalg.pinv(mixing).mT
    rest = (z - centre @ mixing.mT).square().sum(-1)
    factor = noise * torch.linalg.cholesky(torch.linalg.inv(gram))
    nodes, weights = line(8.0, points) if k == 1 else plane(8.0, points)
    nodes = nodes.view(-1, k).to(z)
    normal = -0.5 * nodes.square().sum(-1) - 0.5 * k * math.log(2 * math.pi) + weights.to(z).log()
    average = torch.stack(
        [torch.logsumexp(gg_log_prob(c + nodes @ factor.mT, rho).sum(-1) + normal, 0) for c in centre]
    )
    outside = -0.5 * rest / noise**2 - (d - k) * math.log(noise * math.sqrt(2 * math.pi))
    return outside - 0.5 * torch.logdet(gram) + average


def unmixing_kl(matrix: Tensor, true_rho: float, model_rho: float, *, points: int = 601) -> float:
    """Return KL(data || model) in nats, where u = `matrix` s is modelled by GG(model_rho), s by GG(true_rho).

    `matrix` is `[2, 2]`.
    """
    nodes, weights = plane(_reach(true_rho), points)
    density = gg_log_prob(nodes, true_rho).sum(-1)
    model = gg_log_prob(nodes @ matrix.mT, model_rho).sum(-1)
    entropy = density - torch.linalg.slogdet(matrix)[1]
    return float((weights * density.exp() * (entropy - model)).sum())


def _reach(rho: float) -> float:
    return 40.0 ** (1 / rho)  # the density is e^-40 of its peak there


def total_correlation(matrix: Tensor, rho: float, *, points: int = 601) -> tuple[float, Tensor, Tensor]:
    """Return the total correlation (nats) of u = `matrix` s, a grid `[t]`, and the marginals' densities `[2, t]`."""
    nodes, weights = plane(_reach(rho), points)
    grid = torch.linspace(-1, 1, 2001, dtype=torch.float64) * _reach(rho) * float(matrix.abs().sum(1).max())
    inner, inner_weights = line(_reach(rho), 2001)
    marginals = []
    for first, second in matrix.abs():  # of symmetric sources the signs do not matter
        if min(first, second) < 1e-12:
            size = torch.maximum(first, second)
            marginals.append(gg_log_prob(grid / size, rho).exp() / size)
            continue
        # integrate over the source with the smaller weight: the other's density is then smooth in it
        small, large = torch.minimum(first, second), torch.maximum(first, second)
        density = gg_log_prob(inner, rho).exp() * inner_weights
        rest = (grid[:, None] - small * inner) / large
        marginals.append((gg_log_prob(rest, rho).exp() @ density) / large)
    step = float(grid[1] - grid[0])
    moved, value = nodes @ matrix.mT, gg_log_prob(nodes, rho).sum(-1)
    mass = weights * value.exp()
    total = float((mass * (value - torch.linalg.slogdet(matrix)[1])).sum())
    for i, marginal in enumerate(marginals):
        logs = marginal.clamp_min(1e-300).log()
        place = (moved[:, i] - grid[0]) / step
        low = place.floor().long().clamp(0, len(grid) - 2)
        share = place - low
        total -= float((mass * (logs[low] * (1 - share) + logs[low + 1] * share)).sum())
    return total, grid, torch.stack(marginals)


def marginal_mismatch(grid: Tensor, marginals: Tensor, rho: float) -> float:
    """Return the sum of KL(marginal || GG(rho)) in nats for densities `[k, t]` on an even `grid` `[t]`."""
    logs = marginals.clamp_min(1e-300).log()
    return float((marginals * (logs - gg_log_prob(grid, rho))).sum() * (grid[1] - grid[0]))


def hadamard_gap(mixing: Tensor) -> float:
    """Return Σ log ‖a_i‖ − ½ log det AᵀA in nats: at least 0, and 0 exactly for orthogonal columns."""
    return float(mixing.norm(dim=0).log().sum() - 0.5 * torch.logdet(mixing.mT @ mixing))


LAPLACE_GAP = (math.log(math.pi) - 1) / 2  # the least KL(Laplace || Gaussian), at equal variances


def collapse_cost(noise: float, rho: float) -> float:
    """Return KL(N(0, noise²) || law of s + noise ε) in nats: what a silent direction pays under a fixed unit column."""
    nodes, weights = line(9.0, 1201)
    z = noise * nodes
    inner = gg_log_prob(z[:, None] - noise * nodes, rho) - 0.5 * nodes.square() - 0.5 * math.log(2 * math.pi)
    evidence = torch.logsumexp(inner + weights.log(), 1)
    normal = -0.5 * nodes.square() - 0.5 * math.log(2 * math.pi)
    return float((weights * normal.exp() * (normal - math.log(noise) - evidence)).sum())


def predicted_collapse_cost(noise: float, rho: float) -> float:
    """Return the limit of `collapse_cost` for small noise: −½ log(2πe noise²) − log p(0)."""
    return -0.5 * math.log(2 * math.pi * math.e * noise**2) - gg_log_peak(rho)


def prior_posterior_kl(rho: int) -> tuple[float, float]:
    """Return the least KL(Laplace(0, b) || GG(rho)) in nats and its b: what a silent source pays when A is free."""
    scales = torch.linspace(0.02, 2.0, 200_000, dtype=torch.float64)
    values = source_kl(torch.zeros_like(scales), scales, rho)
    best = int(values.argmin())
    return float(values[best]), float(scales[best])


def copula_rotation(s: Tensor, strength: float) -> Tensor:
    """Mix two Laplace sources `[n, 2]` by a smooth bijection that keeps their joint density: no likelihood sees it.

    Made Gaussian one by one, turned by an angle `strength` times the radius (which keeps volume and density), and back.
    """
    size = s.abs()
    p = 0.5 + 0.5 * s.sign() * -torch.expm1(-size)
    u = torch.special.ndtri(p)
    angle = strength * u.norm(dim=-1)
    cos, sin = angle.cos(), angle.sin()
    v = torch.stack([cos * u[..., 0] - sin * u[..., 1], sin * u[..., 0] + cos * u[..., 1]], -1)
    tail = 2 * torch.special.ndtr(-v.abs())
    return -v.sign() * tail.log()
