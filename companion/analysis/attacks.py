"""Adversarial perturbations within an l2 ball and the box of valid data, for any objective, many examples at once.

An objective maps perturbed data `[..., batch, d]` to one number per example, `[..., batch]`, to be *maximised*. What
is random in it is drawn before the attack and kept in its closure (common random numbers): a fresh draw at every
step would add noise to the gradient and under-report the damage.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import minimize
from torch import Tensor

Objective = Callable[[Tensor], Tensor]
Box = tuple[float, float]


@dataclass(frozen=True)
class Attack:
    """The best perturbation found, `[..., batch, d]`, and the objective there, `[..., batch]`."""

    delta: Tensor
    value: Tensor


def project(delta: Tensor, radius: Tensor | float, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Return the nearest point with norm at most `radius` and, if given, `low <= delta <= high` (which hold 0).

    `radius` is a number or broadcasts against `[..., batch]`. The nearest point of the intersection is
    clip(delta / (1 + λ)) for the multiplier λ >= 0 of the ball, found by bisection: clipping a projection on the
    ball, or the reverse, is feasible but not nearest.
    """
    limit = torch.as_tensor(radius, dtype=delta.dtype, device=delta.device).expand(delta.shape[:-1])[..., None]
    if low is None or high is None:
        norm = delta.norm(dim=-1, keepdim=True)
        return delta * (limit / norm.clamp_min(1e-30)).clamp_max(1)
    # In s = 1 / (1 + λ) the norm of clip(s delta) rises from 0, so one bisection serves every example.
    inside, outside = torch.zeros_like(limit), torch.ones_like(limit)
    fits = delta.clamp(low, high).norm(dim=-1, keepdim=True) <= limit
    for _ in range(40):
        middle = (inside + outside) / 2
        short = (middle * delta).clamp(low, high).norm(dim=-1, keepdim=True) <= limit
        inside, outside = torch.where(short, middle, inside), torch.where(short, outside, middle)
    return (torch.where(fits, 1.0, inside) * delta).clamp(low, high)


def pgd(
    objective: Objective,
    x: Tensor,
    radius: Tensor | float,
    *,
    steps: int,
    step: float = 0.1,
    restarts: int = 1,
    box: Box | None = None,
    generator: torch.Generator,
) -> Attack:
    """Maximise `objective(x + delta)` over ||delta|| <= radius by projected ascent along the normalised gradient.

    `step` is the length of a step as a share of the radius. The first start is next to 0 (a hundredth of the radius
    away, because the gradient of a distance is not defined at 0), further ones anywhere in the ball. The best point of
    all steps and restarts is kept for each example.
    """
    limit = torch.as_tensor(radius, dtype=x.dtype, device=x.device).expand(x.shape[:-1])
    low, high = (None, None) if box is None else (box[0] - x, box[1] - x)
    best, best_value = torch.zeros_like(x), objective(x).detach()
    for restart in range(restarts):
        direction = torch.randn(x.shape, generator=generator, device=generator.device).to(x)
        share = 0.01 if restart == 0 else torch.rand(limit.shape, generator=generator, device=generator.device).to(x)
        unit = direction / direction.norm(dim=-1, keepdim=True)
        delta = project(unit * (share * limit)[..., None], limit, low, high)
        for _ in range(steps + 1):
            delta.requires_grad_(True)
            value = objective(x + delta)
            (gradient,) = torch.autograd.grad(value.sum(), delta)
            delta, value = delta.detach(), value.detach()
            better = value > best_value
            best = torch.where(better[..., None], delta, best)
            best_value = torch.where(better, value, best_value)
            move = gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-30)
            delta = project(delta + step * limit[..., None] * move, limit, low, high)
    return Attack(best, best_value)


def lbfgs(
    objective: Callable[[Tensor, int], Tensor],
    x: Tensor,
    radius: float,
    *,
    iterations: int = 200,
    restarts: int = 1,
    box: Box | None = None,
    generator: torch.Generator,
) -> Attack:
    """Maximise with SciPy's L-BFGS-B, the optimiser of the papers' code, one example of `x` `[batch, d]` at a time.

    As there, the optimiser moves freely within the box and the objective sees the perturbation scaled back into the
    ball (which keeps it in the box); starts are random in the ball. `objective(x', row)` maps one perturbed
    example `[d]` and its row's number to a scalar.
    """
    best, best_value = torch.zeros_like(x), x.new_full(x.shape[:1], -torch.inf)
    for row, clean in enumerate(x):
        low, high = (None, None) if box is None else (box[0] - clean, box[1] - clean)
        bounds = None if low is None or high is None else list(zip(low.tolist(), high.tolist(), strict=True))

        def negative(flat: Any, row: int = row, clean: Tensor = clean) -> tuple[float, Any]:
            delta = torch.as_tensor(flat).to(clean).requires_grad_(True)
            value = objective(clean + project(delta, radius), row)
            (gradient,) = torch.autograd.grad(value, delta)
            return -value.item(), -gradient.double().cpu().numpy()

        for _ in range(restarts):
            unit = torch.randn(clean.shape, generator=generator, device=generator.device).to(clean)
            share = torch.rand((), generator=generator, device=generator.device).item()
            start = project(unit / unit.norm() * radius * share, radius, low, high).double().cpu().numpy()
            # factr = 10 in the authors' code is ftol = 10 machine epsilons.
            options = {"maxiter": iterations, "maxcor": 100, "ftol": 2.2e-15, "gtol": 1e-20}
            found = minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
            delta = project(torch.as_tensor(found.x).to(clean), radius)
            value = objective(clean + delta, row).detach()
            if value > best_value[row]:
                best[row], best_value[row] = delta, value
    return Attack(best, best_value)
