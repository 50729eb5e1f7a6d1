"""Rates, bounds, usage and failures of hierarchical discrete VAEs: what a trained ladder is judged by."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from companion.nn.codebooks import one_hot

BIT = math.log(2)


def picked(log_probs: Tensor, z: Tensor) -> Tensor:
    """Return the log-probability `[batch]` of one-hot codes `z` `[batch, slots, K]`, summed over slots."""
    return (log_probs * z).sum((-1, -2))


def scores(
    model: Any, x: Tensor, uniform: Sequence[Tensor], temperature: float = 1.0, hard: float = 1.0
) -> dict[str, Tensor]:
    """Return what one pass over `x` `[batch, pixels]` measures, in nats.

    `fit` `[batch]` log p(x|z); `rates` `[batch, layers]`; `weight` `[batch]` the log importance weight; `usage`
    `[layers, K]` the mean posterior; `entropy` `[layers]` its mean entropy per slot.
    """
    seen = model(x, uniform, temperature, hard)
    fit = model.likelihood.log_pixels(seen.out, x).sum(-1)
    layers = list(zip(seen.log_q, seen.log_p, seen.z, strict=True))
    weight = fit + sum(picked(log_p - log_q, z) for log_q, log_p, z in layers)
    return {
        "fit": fit,
        "rates": seen.rates(),
        "weight": weight,
        "usage": torch.stack([log_q.exp().mean((0, 1)) for log_q, _, _ in layers]),
        "entropy": torch.stack([-(log_q.exp() * log_q).sum(-1).mean() for log_q, _, _ in layers]),
    }


def argmax_scores(model: Any, x: Tensor) -> dict[str, Tensor]:
    """The mistaken evaluation: fit at the argmax codes with rates KL(q || p), whose sum is no bound of anything.

    `code_length` `[batch, layers]`, log 1/p at those codes, is the rate that they really cost.
    """
    seen = model.infer(x, lambda place, log_q: one_hot(log_q))
    pairs = zip(seen.log_p, seen.z, strict=True)
    lengths = torch.stack([-picked(log_p, z) for log_p, z in pairs], -1)
    fit = model.likelihood.log_pixels(seen.out, x).sum(-1)
    return {"fit": fit, "rates": seen.rates(), "code_length": lengths}


def enumerated(model: Any, x: Tensor) -> dict[str, Tensor]:
    """Return everything about a tiny ladder by enumerating its codes, in nats; C configurations.

    `fit`, `log_q`, `log_p` `[batch, C]`: log p(x|z), log q(z|x), log p(z); `rates` `[batch, C, layers]`: KL of each
    layer given the codes above it.
    """
    shape = model.shape
    digits = torch.cartesian_prod(*[torch.arange(shape.codes) for _ in range(sum(shape.slots))])
    every = torch.nn.functional.one_hot(digits.reshape(-1, sum(shape.slots)), shape.codes).to(x)
    codes = every.repeat(len(x), 1, 1).split(shape.slots, 1)
    many = x.repeat_interleave(len(every), 0)
    seen = model.infer(many, lambda place, log_q: codes[place])
    totals = {
        "fit": model.likelihood.log_pixels(seen.out, many).sum(-1),
        "log_q": sum(picked(log_q, z) for log_q, z in zip(seen.log_q, codes, strict=True)),
        "log_p": sum(picked(log_p, z) for log_p, z in zip(seen.log_p, codes, strict=True)),
        "rates": seen.rates(),
    }
    return {name: value.unflatten(0, (len(x), len(every))) for name, value in totals.items()}


def bits_per_dim(fit: Tensor, rates: Tensor, pixels: int) -> Tensor:
    """Return −(fit − Σ rates) / (pixels log 2), the batch averaged; `[..., batch]` and `[..., batch, layers]`."""
    return (rates.sum(-1) - fit).mean(-1) / (pixels * BIT)


def importance_bits(weights: Tensor, pixels: int) -> Tensor:
    """Return the importance-weighted bound in bits/dim from log-weights `[draws, ..., batch]`."""
    bound = weights.logsumexp(0) - math.log(len(weights))
    return -bound.mean(-1) / (pixels * BIT)


def failure(bits: float, rates: Sequence[float], capacities: Sequence[float], marginal: float) -> str:
    """Name the failure of a run, or "" for none.

    A run has failed where its `bits` per dimension are not below `marginal`, the code of independent pixels, or not
    finite. The `rates` of its layers against their `capacities` M log K (same units) say how: one layer sends all it
    can, in vain, or every layer sends nothing.
    """
    if not math.isfinite(bits):
        return "diverged"
    if bits < marginal:
        return ""
    shares = [rate / capacity for rate, capacity in zip(rates, capacities, strict=True)]
    return "saturated" if max(shares) > 0.98 else "collapsed" if max(shares) < 0.02 else "stuck"


def charged(bits: Sequence[float], marginal: float) -> list[float]:
    """Return `bits` with those that are not finite charged the worst finite run, `marginal` at least; none is dropped.

    Leaving out failed seeds turns a method that fails into one that wins.
    """
    worst = max([marginal, *filter(math.isfinite, bits)])
    return [one if math.isfinite(one) else worst for one in bits]


def dead_share(usage: Tensor) -> Tensor:
    """Return the share of codes, over the last axis of `usage` `[..., K]`, used less than 1/(100 K) of the time."""
    return (usage < 1 / (100 * usage.shape[-1])).double().mean(-1)


def relative_noise(draws: Tensor) -> Tensor:
    """Return sd / norm of the mean, `[...]`, of gradient `draws` `[n, ..., parameters]`.

    The squared norm of an average of n draws is too large by variance / n, which is taken off: without that the ratio
    could not exceed √n. Where nothing is left the ratio is cut at √(10 n).
    """
    n = len(draws)
    noise = draws.var(0).sum(-1)
    signal = draws.mean(0).square().sum(-1) - noise / n
    return (noise / signal.clamp_min(noise / (10 * n))).sqrt()
