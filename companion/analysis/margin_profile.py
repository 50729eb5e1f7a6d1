"""Deviations of two random reconstructions, and attacked margins of one attack at several r at once."""

from typing import Any

import torch
from torch import Tensor

from companion.analysis.attacks import Attack, Box, pgd
from companion.analysis.robustness import Deviation, Judged, judged
from companion.nn.gaussian_vae import gaussian_kl


def two_draws(vae: Any, *, chunk: int | None = 16) -> Deviation:
    """Return the deviation of this paper: ||g(z') − g(z)|| `[draws, batch]`, z' ~ q(.|v), z ~ q(.|x) independent.

    Normal draws are `[draws, batch, 2n]`, the first half for z'; both reconstructions are random. Draws are taken
    `chunk` at a time, so that the images of a chunk stay in a processor's cache; None takes them all at once.
    """

    def deviation(v: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        (mean, std), (clean_mean, clean_std) = vae.encode(v), vae.encode(x)
        found = []
        for part in eps.split(chunk or len(eps)):
            one, two = part.chunk(2, -1)
            found.append((vae.decode(mean + std * one) - vae.decode(clean_mean + clean_std * two)).norm(dim=-1))
        return torch.cat(found)

    return deviation


def margin_profile(
    deviation: Deviation,
    x: Tensor,
    delta: Tensor,
    rs: Tensor,
    *,
    noise_size: int,
    draws: int = 400,
    level: float = 0.999,
    generator: torch.Generator,
) -> Judged:
    """Judge the perturbations `delta` `[radii, batch, d]` at every r of `rs`, as `attacked_margin` does at one.

    The attack maximises the mean deviation, whatever r is, so one attack serves all; fresh draws judge it, the same
    at every radius.
    """
    eps = torch.randn(draws, len(x), noise_size, generator=generator, device=generator.device).to(x)
    with torch.no_grad():
        attacked = deviation(x + delta, x, eps[:, None])  # [draws, radii, batch]
        clean = deviation(x, x, eps)
    return judged(attacked, clean, delta.norm(dim=-1), rs.to(x), level=level)


def targeted_attacks(
    vae: Any,
    x: Tensor,
    target: Tensor,
    radius: float,
    *,
    steps: int,
    restarts: int,
    box: Box,
    generator: torch.Generator,
) -> dict[str, Attack]:
    """Return the attacks towards `target` `[batch, d]`: "latent" makes q(.|x + δ) like q(.|target), by their KL;
    "output" makes g(μ(x + δ)) like g(μ(target)), by distance. Values are the negatives of what is minimised.
    """
    mean, std = (part.detach() for part in vae.encode(target))
    wanted = vae.decode(mean).detach()

    def latent(v: Tensor) -> Tensor:
        m, s = vae.encode(v)
        return -gaussian_kl((m - mean) / std, s / std)

    def output(v: Tensor) -> Tensor:
        return -(vae.decode(vae.encode(v)[0]) - wanted).norm(dim=-1)

    return {
        name: pgd(aim, x, radius, steps=steps, restarts=restarts, box=box, generator=generator)
        for name, aim in (("latent", latent), ("output", output))
    }
