"""What a trained hierarchical VAE does on held-out images: bounds, states, clocks, samples."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.analysis.multires import frechet, nearest_means
from companion.models.hierarchical_vae import HVAE, rms
from companion.nn.haar import band_energies
from companion.seeds import generator
from companion.train import Ensemble

Likelihood = Callable[[Tensor, Tensor], Tensor]


def evaluate(
    members: Ensemble, x: Tensor, likelihood: Likelihood, *, noise_size: int, draws: int, seed: int, **options: Any
) -> dict[str, Tensor]:
    """Return per member, over `draws` posterior passes of images x in [−1, 1] (equal noise for all members):

    `elbo` `[members]`, mean negative ELBO in nats per image; `weighted` `[members]`, the importance-weighted bound of
    all draws; `kl`, `log_variance_ratio` and `price` `[members, cells]`. `options` go to `HVAE.descend`.
    """
    stream = generator(seed, "evaluate", device=x.device)
    totals: dict[str, list[Tensor]] = {"elbo": [], "weights": [], "kl": []}
    totals |= {"log_variance_ratio": [], "price": []}
    for _ in range(draws):
        noise = torch.randn(len(x), noise_size, generator=stream, device=x.device)

        def one(member: HVAE, noise: Tensor = noise) -> tuple[Tensor, ...]:
            trace = member(x, noise, record=True, **options)
            misfit = likelihood(trace.output, x)
            per_cell = (trace.kl.mean(1), trace.log_variance_ratio.mean(1), trace.price.mean(1))
            return misfit + trace.kl.sum(0), -misfit - trace.log_ratio.sum(0), *per_cell

        with torch.no_grad():
            for kept, value in zip(totals.values(), members.call(one), strict=True):
                kept.append(value)
    stacked = {name: torch.stack(values) for name, values in totals.items()}
    weighted = math.log(draws) - stacked["weights"].logsumexp(0)
    return {
        "elbo": stacked["elbo"].mean((0, 2)),
        "weighted": weighted.mean(1),
        "kl": stacked["kl"].mean(0),
        "log_variance_ratio": stacked["log_variance_ratio"].mean(0),
        "price": stacked["price"].mean(0),
    }


def states(members: Ensemble, x: Tensor, *, noise_size: int, seed: int) -> list[Tensor]:
    """Return the state after each cell on one posterior pass, `[members, images, width, r, r]` per cell."""
    noise = torch.randn(len(x), noise_size, generator=generator(seed, "states", device=x.device), device=x.device)
    with torch.no_grad():
        return members.call(lambda member: member(x, noise, record=True).states)


def marks(found: Sequence[Tensor]) -> Tensor:
    """Return the root mean squares of states, `[members, cells, images]`."""
    return torch.stack([torch.stack([rms(one) for one in cell]) for cell in found], 1)


def band_shares(found: Sequence[Tensor], bands: int) -> Tensor:
    """Return the shares of the Haar bands in the energy of states, `[members, cells, images, bands]`."""
    rows = []
    for cell in found:
        energies = band_energies(cell.double()).mean(2)
        shares = energies / energies.sum(-1, keepdim=True)
        rows.append(torch.nn.functional.pad(shares, (0, bands - shares.shape[-1])))
    return torch.stack(rows, 1)


def nearest_mean_accuracy(features: Tensor) -> float:
    """Return how often the nearest mean of the first half of the images names the cell; `[cells, images, d]`."""
    guess = nearest_means(features)
    return float((guess == torch.arange(len(features), device=guess.device)[:, None]).double().mean())


def sample(members: Ensemble, count: int, *, noise_size: int, seed: int, temperature: Any = 1.0) -> Tensor:
    """Return binary samples `[members, count, channels, R, R]` of the prior with Bernoulli pixels."""
    device = next(members.parameters()).device
    stream = generator(seed, "sample", device=device)
    noise = torch.randn(count, noise_size, generator=stream, device=device)
    with torch.no_grad():
        logits = members.call(lambda member: member.descend(noise, temperature=temperature).output)
    return (torch.rand(logits.shape[1:], generator=stream, device=device) < logits.sigmoid()).float()


class Features:
    """Principal components of training images, for Fréchet distances between sets of images."""

    def __init__(self, x: Tensor, components: int) -> None:
        flat = x.flatten(1).double()
        self.mean = flat.mean(0)
        _, vectors = torch.linalg.eigh(torch.cov(flat.T))
        self.basis = vectors[:, -components:]

    def distance(self, a: Tensor, b: Tensor) -> float:
        """Return the squared Fréchet distance between two sets of images."""
        return frechet(*((s.flatten(1).double() - self.mean) @ self.basis for s in (a, b)))
