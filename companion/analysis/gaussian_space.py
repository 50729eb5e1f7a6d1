"""Functions in L²(γ), γ = N(0, I): Hermite coefficients, mean degree, noise stability, and spectra along latent lines.

The total degree of a Hermite polynomial is its frequency: the Ornstein-Uhlenbeck operator multiplies degree k by ρ^k.
"""

from collections.abc import Callable

import numpy
import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def gauss_hermite(nodes: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights `[nodes]`, float64: Σ w f(z) is E f for N(0, 1), exact to degree 2·nodes − 1."""
    z, w = numpy.polynomial.hermite_e.hermegauss(nodes)
    return torch.from_numpy(z), torch.from_numpy(w / w.sum())


def hermite(z: Tensor, degree: int) -> Tensor:
    """Return the orthonormal polynomials h_0 … h_degree at `z`, `[*z.shape, degree + 1]` (h_k = He_k / √k!)."""
    values = [torch.ones_like(z), z]
    for k in range(1, degree):
        values.append((z * values[k] - k**0.5 * values[k - 1]) / (k + 1) ** 0.5)
    return torch.stack(values[: degree + 1], -1)


def ornstein_uhlenbeck(function: Function, rho: float, u: Tensor, nodes: int = 120) -> Tensor:
    """Return (U_ρ f)(u) = E f(ρu + √(1 − ρ²) ε) for a function of one variable, by quadrature, shaped as `u`."""
    z, w = (part.to(u.device) for part in gauss_hermite(nodes))
    return function(rho * u[..., None] + (1 - rho**2) ** 0.5 * z) @ w


def mean_degree(jacobian: Tensor, values: Tensor, std: float = 1.0) -> Tensor:
    """Return std² E||J||_F² / Tr Var, the centroid of the Hermite spectrum: at least 1, and 1 only for affine maps.

    `jacobian` `[points, out, in]` and `values` `[points, out]` are taken at points drawn from N(·, std² I).
    """
    return std**2 * jacobian.square().sum((1, 2)).mean() / values.var(0).sum()


def whitened(function: Function, mean: Tensor, covariance: Tensor) -> Function:
    """Return u ↦ function(mean + Lu) with L Lᵀ = `covariance`: what N(0, I) sees of a function under N(mean, L Lᵀ).

    Its mean degree does not change when the argument of `function` is rescaled and the Gaussian with it.
    """
    root = torch.linalg.cholesky(covariance)
    return lambda u: function(mean + u @ root.T)


def linear_share(values: Tensor, z: Tensor) -> Tensor:
    """Return W¹ / Tr Var, the share of degree one, for `values` `[points, out]` at `z` `[points, in]` from N(0, I).

    W¹ = ||E[g zᵀ]||_F² is estimated without bias, as the product of two halves of the points.
    """
    centred = values - values.mean(0)
    first, second = (g.T @ u / len(u) for g, u in zip(centred.chunk(2), z.chunk(2), strict=True))
    return (first * second).sum() / values.var(0).sum()


def stability(function: Function, z: Tensor, partner: Tensor, rhos: Tensor) -> Tensor:
    """Return Stab_ρ / Tr Var = Σ ρ^k W^k / Tr Var for each of `rhos`, `[rhos]`.

    `z` and `partner` `[points, in]` are independent draws from N(0, I), used in common for every ρ.
    """
    values = function(z)
    mean, total = values.mean(0), values.var(0).sum()
    pairs = [((values - mean) * (function(r * z + (1 - r**2) ** 0.5 * partner) - mean)).sum(-1).mean() for r in rhos]
    return torch.stack(pairs) / total


def line_spectrum(
    function: Function, directions: Tensor, offsets: Tensor, reach: float = 6.0, points: int = 256
) -> tuple[Tensor, Tensor]:
    """Return frequencies (cycles per unit of z) and power `[frequencies]` along lines z0 + t·v.

    `directions` v `[lines, in]` are unit vectors and `offsets` z0 `[lines, in]` are orthogonal to them. Values are
    centred and windowed by exp(−t²/4), the root of the prior's density (without it the extrapolation beyond the codes
    would dominate); the power is summed over outputs and averaged over lines.
    """
    t = torch.linspace(-reach, reach, points).to(directions)
    window = torch.exp(-(t**2) / 4)
    places = offsets[:, None] + t[:, None] * directions[:, None]  # [lines, points, in]
    values = function(places.flatten(0, 1)).view(len(directions), points, -1)
    share = (window.square() / window.square().sum())[:, None]
    centred = (values - (values * share).sum(1, keepdim=True)) * window[:, None]
    power = torch.fft.rfft(centred, dim=1).abs().square().sum(-1).mean(0)  # [frequencies]
    return torch.fft.rfftfreq(points, float(t[1] - t[0])).to(power), power


def squared_norm_of_mean(samples: Tensor) -> Tensor:
    """Return ||E A||² per example, `[batch]`, without bias, from draws of A, `[draws, batch, ...]`.

    The plain estimate ||mean||² is too large by the variance over the number of draws.
    """
    first, second = (half.mean(0).flatten(1) for half in samples.chunk(2))
    return (first * second).sum(-1)
