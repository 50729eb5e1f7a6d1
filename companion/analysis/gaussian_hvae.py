"""Solvable hierarchies: a Gaussian HVAE whose shared posterior may lack a clock, and diffusions from a point mass.

Generative chain per dimension: z_0 = 0, z_{i+1} = z_i + s √(1/N) ε, x = z_N + τ ε. Everything is in nats per dimension.
"""

import math

import torch
from torch import Tensor


def log_likelihood(x_var: Tensor | float, s: Tensor | float, tau: Tensor | float) -> Tensor:
    """Return E log p(x) for data of variance `x_var`, exactly."""
    total = torch.as_tensor(s, dtype=torch.float64) ** 2 + tau**2
    return -0.5 * torch.log(2 * math.pi * total) - x_var / (2 * total)


def exact_gains(steps: int, s: float, tau: float) -> tuple[Tensor, Tensor]:
    """Return k_i and ρ_i of the exact posterior N(z_i + k_i (x − z_i), ρ_i s²/N) of z_{i+1} given z_i and x."""
    left = s * s * (1 - torch.arange(steps + 1, dtype=torch.float64) / steps) + tau * tau
    return s * s / steps / left[:-1], left[1:] / left[:-1]


def elbo(gain: Tensor, ratio: Tensor, x_var: float, s: Tensor | float, tau: Tensor | float) -> Tensor:
    """Return the ELBO for posteriors with gains and variance ratios `[N]`, in closed form."""
    steps, gap, cost = len(gain), torch.as_tensor(x_var, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    s, tau = torch.as_tensor(s, dtype=torch.float64), torch.as_tensor(tau, dtype=torch.float64)
    for k, rho in zip(gain, ratio, strict=True):  # gap: E (x − z_i)²
        cost = cost + k * k * gap * steps / (2 * s * s) + 0.5 * (rho - 1 - rho.log())
        gap = (1 - k) ** 2 * gap + rho * s * s / steps
    return -0.5 * torch.log(2 * math.pi * tau**2) - gap / (2 * tau**2) - cost


def best_shared(steps: int, x_var: float, s: float, tau: float) -> float:
    """Return the ELBO of the best posterior whose gain and variance ratio are equal in all steps."""
    raw = torch.tensor([math.log(1 / steps), math.log(0.7)], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([raw], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        value = -elbo(raw[0].exp().expand(steps), raw[1].exp().expand(steps), x_var, s, tau)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(loss)  # type: ignore[no-untyped-call]
    return -float(loss().detach())


def norm_clock_elbo(
    dim: int, steps: int, x_var: float, s: float, tau: float, *, draws: int, generator: torch.Generator
) -> float:
    """Return the ELBO per dimension of a shared posterior that reads its time from the state's norm, Monte Carlo.

    The gain and the ratio are those of the exact posterior at the time whose expected z² equals the mean of z² over
    the dimensions (rounded to a step). With infinitely many dimensions this is the exact posterior.
    """
    gains, ratios = exact_gains(steps, s, tau)
    x = x_var**0.5 * torch.randn(draws, dim, generator=generator, dtype=torch.float64)
    expected = [torch.zeros((), dtype=torch.float64)]  # E z_i², and E z_i x along the exact posterior
    cross = torch.zeros((), dtype=torch.float64)
    for k, rho in zip(gains, ratios, strict=True):
        square = (1 - k) ** 2 * expected[-1] + 2 * k * (1 - k) * cross + k * k * x_var + rho * s * s / steps
        cross = (1 - k) * cross + k * x_var
        expected.append(square)
    table = torch.stack(expected[:-1])
    z, cost = torch.zeros_like(x), torch.zeros(draws, dtype=torch.float64)
    for _ in range(steps):
        place = (z.square().mean(1, keepdim=True) - table).abs().argmin(1)
        k, rho = gains[place, None], ratios[place, None]
        move = k * (x - z)
        cost = cost + (move.square() * steps / (2 * s * s) + 0.5 * (rho - 1 - rho.log())).mean(1)
        z = z + move + (rho / steps).sqrt() * s * torch.randn(draws, dim, generator=generator, dtype=torch.float64)
    fit = -0.5 * math.log(2 * math.pi * tau**2) - (x - z).square().mean(1) / (2 * tau**2)
    return float((fit - cost).mean())


def follmer_drift(z: Tensor, t: float, weights: Tensor, means: Tensor, stds: Tensor) -> Tensor:
    """Return the drift of the diffusion dZ = u dt + dW from Z_0 = 0 to a mixture of Gaussians at t = 1, `[...]`.

    u(z, t) = d/dz log E f(z + √(1 − t) ε) with f the ratio of the target to N(0, 1), in closed form. Needs
    1 + (1/s² − 1)(1 − t) > 0.
    """
    # target_k / N(0, 1) is, up to a constant, a Gaussian in y with precision a = 1/s² − 1 and linear term m/s².
    a, b = 1 / stds**2 - 1, means / stds**2
    constant = weights.log() - stds.log() - 0.5 * means**2 / stds**2
    spread = 1 + a * (1 - t)
    shifted = z[..., None]
    exponent = constant - 0.5 * spread.log() + (b * shifted - 0.5 * a * shifted**2 + 0.5 * b**2 * (1 - t)) / spread
    slope = (b - a * shifted) / spread
    return (exponent.softmax(-1) * slope).sum(-1)
