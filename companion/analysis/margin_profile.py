"""Deviations of two random reconstructions, and attacked margins of one attack at several r at once."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion.analysis.attacks import Attack, Box, pgd
from companion.analysis.robustness import Deviation, clopper_pearson
from companion.nn.gaussian_vae import gaussian_kl


def two_draws(vae: Any, *, chunk: int = 16) -> Deviation:
    """Return the deviation of this paper: ||g(z') − g(z)|| `[draws, batch]`, z' ~ q(.|v), z ~ q(.|x) independent.

    Normal draws are `[draws, batch, 2n]`, the first half for z'; both reconstructions are random. Draws are taken
    `chunk` at a time, so that the images of a chunk stay in a processor's cache.
    """

    def deviation(v: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        (mean, std), (clean_mean, clean_std) = vae.encode(v), vae.encode(x)
        found = []
        for part in eps.split(chunk):
            one, two = part.chunk(2, -1)
            found.append((vae.decode(mean + std * one) - vae.decode(clean_mean + clean_std * two)).norm(dim=-1))
        return torch.cat(found)

    return deviation


@dataclass(frozen=True)
class Profile:
    """`radius` `[r, batch]`: norms of the smallest attacks that broke r-robustness, upper bounds on the margins.

    Infinite where none did, 0 where the clean reconstruction fails. `share` `[r, radii, batch]` and `clean`
    `[r, batch]`: fractions of fresh draws within r, under attack and without. `median` `[radii, batch]`: of the
    deviation under attack.
    """

    radius: Tensor
    share: Tensor
    clean: Tensor
    median: Tensor


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
) -> Profile:
    """Judge the perturbations `delta` `[radii, batch, d]` at every r of `rs`, as `attacked_margin` does at one.

    The attack maximises the mean deviation, whatever r is, so one attack serves all; fresh draws judge it, the same
    at every radius.
    """
    count, batch, _ = delta.shape
    shape = (draws, batch, noise_size)
    eps = torch.randn(shape, generator=generator, device=generator.device).to(x)
    with torch.no_grad():
        attacked = deviation(x + delta, x, eps[:, None])  # [draws, radii, batch]
        clean = deviation(x, x, eps)
    bounds = rs.to(x)
    inside = (attacked <= bounds[:, None, None, None]).sum(1)
    inside_clean = (clean <= bounds[:, None, None]).sum(1)
    broken = clopper_pearson(inside, draws, level)[1] <= 0.5
    norms = delta.norm(dim=-1).double().cpu().expand(len(rs), count, batch)
    radius = torch.where(broken, norms, torch.inf).min(1).values
    radius = torch.where(clopper_pearson(inside_clean, draws, level)[1] <= 0.5, 0.0, radius)
    return Profile(radius, (inside / draws).cpu(), (inside_clean / draws).cpu(), attacked.median(0).values.cpu())


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
