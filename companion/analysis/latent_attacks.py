"""Attacks on the latent space of VAEs: penalised descent for many input-target pairs, penalties and models at once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.analysis.attacks import Box


@dataclass(frozen=True)
class Penalised:
    """The best perturbation `[..., batch, d]` of each problem; `objective` there, `distance` without the penalty."""

    delta: Tensor
    objective: Tensor
    distance: Tensor


def penalised_attack(
    distance: Callable[[Tensor], Tensor],
    x: Tensor,
    penalty: Tensor,
    *,
    steps: int,
    lr: float = 0.05,
    box: Box | None = None,
) -> Penalised:
    """Minimise distance(x + delta) + penalty ||delta|| over delta by Adam, each row a problem of its own.

    `x` is `[..., batch, d]`, `penalty` and the result of `distance` `[..., batch]`. delta = 0 is among the candidates,
    as it is the optimum where the penalty is large. The box is kept by clipping after each step.
    """
    low, high = (None, None) if box is None else (box[0] - x, box[1] - x)
    delta = torch.zeros_like(x)
    best, start = delta.clone(), distance(x).detach()
    value, at_best = start.clone(), start.clone()
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(1, steps + 1):
        delta.requires_grad_(True)
        near = distance(x + delta)
        # The norm has no gradient at 0; the tiny constant gives 0 there.
        norm = (delta.square().sum(-1) + 1e-12).sqrt()
        (gradient,) = torch.autograd.grad((near + penalty * norm).sum(), delta)
        delta, near = delta.detach(), near.detach()
        total = near + penalty * delta.norm(dim=-1)
        better = total < value
        best = torch.where(better[..., None], delta, best)
        value, at_best = torch.where(better, total, value), torch.where(better, near, at_best)
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient.square()
        move = (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-8)
        delta = delta - lr * move
        if low is not None and high is not None:
            delta = delta.clamp(low, high)
    return Penalised(best, value, at_best)
