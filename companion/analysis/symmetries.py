"""Which maps leave a latent-variable model's law alone? Twists, kinks, and the linear symmetries of a mixture."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vmap


def radial_rotation(z: Tensor, rate: float) -> Tensor:
    """Rotate the first two coordinates of `z` `[..., n]` by the angle `rate` · (their squared radius).

    It preserves volume and radius, hence N(0, I), and no linear map undoes it.
    """
    angle = rate * z[..., :2].square().sum(-1)
    c, s = angle.cos(), angle.sin()
    turned = torch.stack([c * z[..., 0] - s * z[..., 1], s * z[..., 0] + c * z[..., 1]], -1)
    return torch.cat([turned, z[..., 2:]], -1)


def diagonal_gap(weight: Tensor, variance: float) -> float:
    """Return min KL(q || p(z|x)) in nats over Gaussians q with diagonal covariance, for x = W z + noise, z ~ N(0, I).

    The posterior precision is Λ = I + WᵀW / `variance`; the best q has variances 1 / Λ_ii: ½ (Σ log Λ_ii − log det Λ).
    """
    precision = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device) + weight.mT @ weight / variance
    return float(0.5 * (precision.diagonal().log().sum() - torch.linalg.slogdet(precision)[1]))


def statistics(z: Tensor) -> Tensor:
    """Return T(z) = (z, z²) `[..., 2n]`, the sufficient statistics of a Gaussian with diagonal covariance."""
    return torch.cat([z, z.square()], -1)


def natural(means: Tensor, variances: Tensor) -> Tensor:
    """Return λ = (μ/σ², −1/(2σ²)) `[K, 2n]` for means and variances `[K, n]`."""
    return torch.cat([means / variances, -0.5 / variances], -1)


def shortfall(parameters: Tensor, *, subtract: bool = True) -> int:
    """Return how many independent differences λ(u) − λ(u_0) are missing from `parameters` `[K, nk]` (0: condition met).

    The rank is taken after every statistic has been scaled to unit norm, lest units decide it.
    """
    differences = parameters[1:] - parameters[:1] if subtract else parameters
    scaled = differences / differences.norm(dim=0).clamp_min(1e-300)
    return parameters.shape[1] - int(torch.linalg.matrix_rank(scaled))


def extra_symmetries(variances: Tensor) -> int:
    """Return the dimension of {X : X Σ_k + Σ_k Xᵀ diagonal for all k} beyond the n scalings, Σ_k = diag `[K, n]`.

    X are the directions in which a linear map may leave the identity and keep every covariance diagonal.
    """
    count, n = variances.shape
    rows = []
    for i in range(n):
        for j in range(i):
            block = torch.zeros(count, n, n, dtype=variances.dtype)
            block[:, i, j], block[:, j, i] = variances[:, j], variances[:, i]
            rows.append(block.flatten(1))
    system = torch.cat(rows)
    scaled = system / system.norm(dim=1, keepdim=True)
    return n * n - int(torch.linalg.matrix_rank(scaled, rtol=1e-9)) - n


def monomial_error(h: Tensor) -> float:
    """Return how far `h` `[n, n]` is from a permutation times a diagonal matrix: 0 for those, at most 1."""
    size = h.abs() / h.norm(dim=1, keepdim=True)
    columns = size.argmax(1)
    if len(columns.unique()) < len(columns):
        return 1.0
    rest = size.scatter(1, columns[:, None], 0.0)  # what lies beside each row's largest entry
    return float(rest.norm(dim=1).max())


def kink(
    log_density: Callable[[Tensor], Tensor], point: Tensor, first: Tensor, normal: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the jumps at h(`point`) of value and gradient norm of the log-density of h(Z), h with one kink.

    h(z) = A z where nᵀz > 0 and A (z + v nᵀz) elsewhere, continuous on nᵀz = 0, where `point` `[n]` lies; A = `first`,
    n = `normal`, v = `step`. Both one-sided densities come from the change of variables of their own affine piece.
    """
    identity = torch.eye(len(point), dtype=point.dtype)
    y = first @ point

    def side(matrix: Tensor) -> tuple[Tensor, Tensor]:
        inverse, volume = torch.linalg.inv(matrix), torch.linalg.slogdet(matrix)[1]

        def value(at: Tensor) -> Tensor:
            return log_density(inverse @ at) - volume

        return value(y), grad(value)(y)

    (here, slope_here), (there, slope_there) = side(first), side(first @ (identity + torch.outer(step, normal)))
    return (here - there).abs(), (slope_here - slope_there).norm()


def mixture_log_density(means: Tensor, variances: Tensor, weights: Tensor) -> Callable[[Tensor], Tensor]:
    """Return log Σ_k w_k N(z; μ_k, diag σ_k²) in nats as a function of `z` `[..., n]`."""

    def log_density(z: Tensor) -> Tensor:
        shift = z[..., None, :] - means
        terms = -0.5 * (shift.square() / variances + variances.log() + math.log(2 * math.pi)).sum(-1)
        return (weights.log() + terms).logsumexp(-1)

    return log_density


def volume_change(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Return the log absolute determinant of ∂function/∂z `[rows]` at `z` `[rows, n]`, by automatic differentiation."""
    return torch.linalg.slogdet(vmap(torch.func.jacrev(function))(z))[1]
