"""The categorical factor q(c|x) of a mean-field posterior: its cost, its optimum, and the rules used in its place.

For q(z, c|x) = q(z|x) q(c|x) the ELBO is L_marg - G(q(c|x)) with G(r) = E_q KL(r || p(c|z)), chapter 5. Everything
below follows from e_k = E_q log p(c=k|z) and from posteriors p(c|z) at points of q(z|x) with weights.
"""

from collections.abc import Callable

import numpy
import torch
from scipy.optimize import minimize
from torch import Tensor


def gauss_hermite(mean: Tensor, std: Tensor, nodes: int = 60) -> tuple[Tensor, Tensor]:
    """Return points `[nodes^dim, batch, dim]` and weights `[nodes^dim]` of N(mean, diag std²), float64."""
    points, weights = (torch.from_numpy(a) for a in numpy.polynomial.hermite_e.hermegauss(nodes))
    dim = mean.shape[-1]
    grid = torch.cartesian_prod(*[points] * dim).view(-1, dim)
    weight = torch.cartesian_prod(*[weights] * dim).view(-1, dim).prod(-1)
    return mean + std * grid[:, None, :], weight / weight.sum()


def cost(r: Tensor, expected: Tensor) -> Tensor:
    """Return G(r) = Σ_k r_k log r_k - Σ_k r_k e_k in nats, `[...]`, for `r` and e `[..., K]`: what r costs the ELBO."""
    return (torch.xlogy(r, r) - r * expected).sum(-1)


def log_pool(expected: Tensor) -> tuple[Tensor, Tensor]:
    """Return the optimum q* = exp(e)/Z `[..., K]` and its cost -log Z `[...]`: the logarithmic opinion pool."""
    log_z = expected.logsumexp(-1, keepdim=True)
    return (expected - log_z).exp(), -log_z[..., 0]


def linear_pool(posteriors: Tensor, weights: Tensor) -> Tensor:
    """Return E_q p(c|z) `[..., K]` for `posteriors` `[points, ..., K]`: the linear pool, VaDE's rule."""
    return torch.tensordot(weights, posteriors, dims=1)


def single_sample_cost(posteriors: Tensor, weights: Tensor, expected: Tensor) -> Tensor:
    """Return the mean cost `[...]` of q(c|x) := p(c|z~) with z~ drawn apart from the z of the other terms."""
    return torch.tensordot(weights, cost(posteriors, expected), dims=1)


def minimise_on_simplex(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Return the minimiser `[K]` of a smooth function of a distribution, found by SLSQP: it knows no formula.

    Raises RuntimeError where the solver stops early.
    """

    def both(r: numpy.ndarray) -> tuple[float, numpy.ndarray]:
        point = torch.tensor(r, requires_grad=True)
        value = objective(point)
        (slope,) = torch.autograd.grad(value, point)
        return float(value.detach()), slope.numpy()

    found = minimize(
        both,
        start.numpy(),
        jac=True,
        method="SLSQP",
        bounds=[(1e-12, 1.0)] * len(start),
        constraints={"type": "eq", "fun": lambda r: r.sum() - 1, "jac": numpy.ones_like},
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    if not found.success:
        raise RuntimeError(f"no minimum on the simplex: {found.message}")
    return torch.from_numpy(found.x)
