"""Lower bounds on the r-robustness margin of a VAE with Lipschitz networks: the paper's, and sharper ones.

Letters as in Barrett et al. (2022): a, b, c bound decoder, encoder mean and encoder standard deviation; s = ||σ(x)||
is the norm of the vector of standard *deviations*; t = ||δ||; Δ = g(z') − g(z) for independent z' ~ q(.|x + δ) and
z ~ q(.|x). A certificate is a radius within which P(||Δ|| <= r) > 1/2, 0 where none is found. All functions take
numbers or tensors that broadcast, and return float64.
"""

import math
from functools import cache

import torch
from scipy.stats import ncx2
from torch import Tensor

from companion.analysis.robustness import clopper_pearson, median_bounds

Number = Tensor | float


def _double(*values: Number) -> list[Tensor]:
    return list(torch.broadcast_tensors(*(torch.as_tensor(v, dtype=torch.float64) for v in values)))


def second_moment(b: Number, c: Number, s: Number, t: Number) -> Tensor:
    """Return the largest E||z' − z||² that the constants allow, b²t² + s² + (s + ct)²: attained, so not improvable."""
    b, c, s, t = _double(b, c, s, t)
    return (b * t).square() + s.square() + (s + c * t).square()


def markov_failure(a: Number, b: Number, c: Number, s: Number, t: Number, r: Number) -> Tensor:
    """Return p1 >= P(||Δ|| > r): Markov's inequality, with (2s + ct)² for the sum of both squared norms."""
    a, b, c, s, t, r = _double(a, b, c, s, t, r)
    return (a.square() * ((b * t).square() + (c * t + 2 * s).square()) / r.square()).clamp_max(1)


def inglot(u: Number, d: int) -> Tensor:
    """Return Inglot's (2010) upper bound of P(χ²_d >= u), 1 where it does not hold (u <= d − 2).

    Raises ValueError for d < 2.
    """
    if d < 2:
        raise ValueError(f"Inglot's bound needs at least two degrees of freedom, not {d}")
    (u,) = _double(u)
    safe = u.clamp_min(d - 2 + 1e-12)
    log_constant = -0.5 * math.log(math.pi) + (d - (d - 1) * math.log(d)) / 2
    log_bound = log_constant + d / 2 * safe.log() - safe / 2 - (safe - d + 2).log()
    return torch.where(u > d - 2, log_bound.exp().clamp_max(1), 1.0)


def chi_square_failure(a: Number, b: Number, c: Number, s: Number, t: Number, r: Number, d: int) -> Tensor:
    """Return p2 >= P(||Δ|| > r): the shift by the triangle inequality, the noise by Inglot's tail bound."""
    a, b, c, s, t, r = _double(a, b, c, s, t, r)
    room = r / a - b * t
    u = room.square() / (c * t + 2 * s).square().clamp_min(1e-300)
    return torch.where(room >= 0, inglot(u, d), 1.0)


@cache
def threshold(d: int) -> float:
    """Return u*(d), the one point where Inglot's bound is 1/2 (it decreases in u), by bisection to rounding."""
    low, high = float(d - 2), d + 10.0 * d**0.5 + 10
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float(inglot(middle, d)) > 0.5 else (low, middle)
    return high


def _positive_root(square: Tensor, linear: Tensor, constant: Tensor) -> Tensor:
    """Return the positive root of square t² + 2 linear t − constant = 0, or 0 where constant <= 0."""
    room = constant.clamp_min(0)
    # constant / (linear + root): no cancellation where linear is large.
    return room / (linear + (linear.square() + square * room).sqrt()).clamp_min(1e-300)


def markov_margin(a: Number, b: Number, c: Number, s: Number, r: Number) -> Tensor:
    """Return m1 of Theorem 2: p1 < 1/2 within it. Positive only for s < r / (a √8)."""
    a, b, c, s, r = _double(a, b, c, s, r)
    return _positive_root(b.square() + c.square(), 2 * c * s, (r / a).square() / 2 - 4 * s.square())


def chi_square_margin(a: Number, b: Number, c: Number, s: Number, r: Number, d: int) -> Tensor:
    """Return m2 of Theorem 2 in closed form: p2 < 1/2 for t < (r/a − 2sq) / (b + cq), q = √u*(d)."""
    a, b, c, s, r = _double(a, b, c, s, r)
    q = threshold(d) ** 0.5
    return (r / a - 2 * s * q).clamp_min(0) / (b + c * q)


def paper_margin(a: Number, b: Number, c: Number, s: Number, r: Number, d: int) -> Tensor:
    """Return max(m1, m2), the certificate of Theorem 2, and with c = 0 that of Theorem 3."""
    return torch.maximum(markov_margin(a, b, c, s, r), chi_square_margin(a, b, c, s, r, d))


def isotropic_margin(a: Number, b: Number, gamma: Number, r: Number, d: int) -> Tensor:
    """Return the margin of the authors' code for a constant std `gamma` per latent: p2 with the variance 2 gamma²."""
    a, b, gamma, r = _double(a, b, gamma, r)
    return (r / a - gamma * (2 * threshold(d)) ** 0.5).clamp_min(0) / b


def exact_isotropic_margin(a: Number, b: Number, gamma: Number, r: Number, d: int) -> Tensor:
    """Return the best possible certificate for a constant std `gamma`, given a and b only.

    An isometric decoder and a mean that moves by bt attain P(||Δ|| <= r) = P(χ²_d(λ) <= (r/a)²/(2γ²)) with
    λ = (bt)²/(2γ²), which falls in t; its crossing of 1/2 is found by bisection.
    """
    a, b, gamma, r = _double(a, b, gamma, r)
    level = (r / a).square() / (2 * gamma.square())
    low, high = torch.zeros_like(level), r / (a * b)
    for _ in range(60):
        middle = (low + high) / 2
        inside = torch.as_tensor(ncx2.cdf(level, d, ((b * middle) / gamma).square() / 2)) > 0.5
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return low


def sharp_markov_margin(a: Number, b: Number, c: Number, s: Number, r: Number) -> Tensor:
    """Return m1 with the exact second moment in place of (2s + ct)²; positive for s < r / (2a)."""
    a, b, c, s, r = _double(a, b, c, s, r)
    return _positive_root(b.square() + c.square(), c * s, (r / a).square() / 2 - 2 * s.square())


def median_margin(a: Number, b: Number, c: Number, s: Number, r: Number) -> Tensor:
    """Return m_K: E||z' − z||² < (r/a)² within it, which is enough since a median is below the mean here.

    Positive for s < r / (a √2), twice the range of m1, and never below m1.
    """
    a, b, c, s, r = _double(a, b, c, s, r)
    return _positive_root(b.square() + c.square(), c * s, (r / a).square() - 2 * s.square())


def clamped_margin(a: Number, b: Number, s: Number, ceiling: Number, r: Number) -> Tensor:
    """Return the certificate where ||σ|| <= `ceiling` for every input: no Lipschitz constant of σ is needed."""
    a, b, s, ceiling, r = _double(a, b, s, ceiling, r)
    return ((r / a).square() - s.square() - ceiling.square()).clamp_min(0).sqrt() / b


def sharp_margin(a: Number, b: Number, c: Number, s: Number, ceiling: Number, r: Number) -> Tensor:
    """Return the larger of `median_margin` and `clamped_margin`: the best closed form of this chapter."""
    return torch.maximum(median_margin(a, b, c, s, r), clamped_margin(a, b, s, ceiling, r))


def allowed_std(a: Number, b: Number, c: Number, r: Number, margin: Number) -> Tensor:
    """Return the largest ||σ|| with m1 >= `margin` (0 if there is none): Theorem 2 solved for the clamp."""
    a, b, c, r, margin = _double(a, b, c, r, margin)
    room = (r / a).square() / 2 - (b * margin).square()
    return ((room.clamp_min(0).sqrt() - c * margin) / 2).clamp_min(0)


def allowed_std_sharp(a: Number, b: Number, r: Number, margin: Number) -> Tensor:
    """Return the largest ceiling on ||σ|| with `clamped_margin` >= `margin` for every x (0 if there is none)."""
    a, b, r, margin = _double(a, b, r, margin)
    return (((r / a).square() - (b * margin).square()) / 2).clamp_min(0).sqrt()


def coupling_margin(
    deviation: Tensor, reach: Tensor, a: Number, b: Number, c: Number, r: float, level: float
) -> Tensor:
    """Return a certificate `[batch]` that holds with confidence `level`, from draws of the clean model.

    `deviation` D_k `[draws, batch]` is ||g(μ + σe_k) − g(μ + σe'_k)|| and `reach` `[draws, batch]` is ‖e_k‖_∞. With
    z' driven by the same e_k, ||Δ|| <= D_k + a t (b + c ‖e_k‖_∞), so each draw stays within r up to
    T_k = (r − D_k) / (a (b + c ‖e_k‖_∞)); the margin is at least the median of T, bounded by an order statistic.
    """
    slope = torch.as_tensor(a) * (torch.as_tensor(b) + torch.as_tensor(c) * reach.double())
    return median_bounds((r - deviation.double()) / slope, level)[0].clamp_min(0)


def neyman_pearson_margin(successes: Tensor, draws: int, scale: Number, level: float) -> Tensor:
    """Return scale × Φ⁻¹(p), p a lower confidence bound of P(D <= r) at δ = 0; 0 where p <= 1/2 (randomised smoothing).

    Valid where δ moves the mean of Gaussian noise by at most ||δ|| / scale standard deviations: noise of std τ on the
    input (scale τ), or a constant posterior std γ behind a b-Lipschitz mean (scale γ / b, chapter 3's bound, exact).
    """
    low = clopper_pearson(successes, draws, level)[0]
    return torch.as_tensor(scale) * torch.special.ndtri(low).clamp_min(0)


def extremal_successes(
    a: Tensor, b: Tensor, c: Tensor, std: Tensor, t: Tensor, r: Number, *, draws: int, generator: torch.Generator
) -> Tensor:
    """Return how many of `draws` satisfy ||Δ|| <= r in a linear model that attains the second moment, `[instances]`.

    It need not have the least probability of all, which depends on whether the mean moves along a noisy latent or a
    quiet one. Decoder a × isometry, mean shifted by bt in a random direction, σ `[instances, d]` lengthened by ct
    along itself.
    """
    direction = torch.randn(std.shape, generator=generator, dtype=torch.float64)
    shift = (b * t)[:, None] * direction / direction.norm(dim=-1, keepdim=True)
    after = std * (1 + c * t / std.norm(dim=-1))[:, None]
    spread = (std.square() + after.square()).sqrt()
    count = torch.zeros(len(std), dtype=torch.int64)
    for part in range(0, draws, 1000):
        noise = torch.randn(min(1000, draws - part), *std.shape, generator=generator, dtype=torch.float64)
        count += ((shift + spread * noise).norm(dim=-1) <= r / a).sum(0)
    return count
