"""What the facets of a multi-facet clustering VAE hold: assignments, roles, swaps, samples, bounds. Chapter 5."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from companion.analysis.clustering import nmi
from companion.models.mfcvae import BOUNDS, MFCVAE, sampled


def assignments(model: MFCVAE, x: Tensor) -> list[Tensor]:
    """Return argmax_k p(c_j=k | m_j(x)) `[batch]` for every facet: the point rule, as released."""
    with torch.no_grad():
        pairs = zip(model.encode(x), model.priors, strict=True)
        return [prior.responsibilities(mean).argmax(-1).cpu() for (mean, _), prior in pairs]  # type: ignore[operator]


def cluster_rules(
    model: MFCVAE, x: Tensor, *, draws: int, widen: float = 1.0, generator: torch.Generator
) -> list[dict[str, Tensor]]:
    """Return q(c_j|x) `[batch, K]` of every facet under "closed" (the optimum), "point" and "linear" (VaDE's mean).

    The posteriors' standard deviations are taken times `widen`.
    """
    rules = []
    with torch.no_grad():
        for (mean, narrow), prior in zip(model.encode(x), model.priors, strict=True):
            std = widen * narrow
            eps = torch.randn(draws, *mean.shape, generator=generator).to(mean)
            rules.append(
                {
                    "closed": prior.responsibilities(mean, std),  # type: ignore[operator]
                    "point": prior.responsibilities(mean),  # type: ignore[operator]
                    "linear": prior.responsibilities(mean + std * eps).mean(0),  # type: ignore[operator]
                }
            )
    return rules


def information(clusters: Sequence[Tensor], factors: Tensor) -> Tensor:
    """Return NMI(c_j, factor f) `[J, F]` for `factors` `[n, F]`."""
    return torch.tensor([[nmi(c, factor) for factor in factors.unbind(1)] for c in clusters], dtype=torch.float64)


def role_consistency(matrices: Tensor) -> float:
    """Return the share of seeds whose factors live in the most common facets, for `matrices` `[seeds, J, F]`.

    A factor lives in the facet with the larger NMI. A seed with two factors in one facet is never consistent.
    """
    roles = [tuple(matrix.argmax(0).tolist()) for matrix in matrices]
    proper = [role for role in roles if len(set(role)) == len(role)]
    return max((proper.count(role) for role in set(proper)), default=0) / len(roles)


def swap(model: MFCVAE, x: Tensor, donors: Tensor, facet: int) -> Tensor:
    """Return images `[batch, inputs]` with the facet of `donors` and all other facets of `x`, at the means."""
    with torch.no_grad():
        own, given = ([mean for mean, _ in model.encode(images)] for images in (x, donors))
        own[facet] = given[facet]
        return model.decode(own)


def swap_consistency(model: MFCVAE, x: Tensor, donors: Tensor, facet: int) -> dict[str, float]:
    """Return how often a swapped image, encoded again, has the donor's cluster in `facet` and its own elsewhere.

    "taken" and "kept"; "taken_plain" and "kept_plain" the same for mere reconstructions, their ceiling;
    "taken_chance" and "kept_chance" how often another image has the same cluster anyway.
    """
    before, wanted = assignments(model, x), assignments(model, donors)
    after, plain = assignments(model, swap(model, x, donors, facet)), assignments(model, swap(model, x, x, facet))
    others = [j for j in range(len(before)) if j != facet]

    def share(left: Tensor, right: Tensor) -> float:
        return float((left == right).double().mean())

    def elsewhere(images: list[Tensor]) -> float:
        return sum(share(images[j], before[j]) for j in others) / len(others)

    return {
        "taken": share(after[facet], wanted[facet]),
        "kept": elsewhere(after),
        "taken_plain": share(plain[facet], before[facet]),
        "kept_plain": elsewhere(plain),
        "taken_chance": share(before[facet], wanted[facet]),
        "kept_chance": elsewhere(wanted),
    }


def generate(
    model: MFCVAE, facet: int, clusters: Tensor, *, temperature: float, generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """Return mean images `[n, inputs]` with `clusters` `[n]` in `facet`, and the clusters of all facets.

    The other facets draw theirs from π; every z_j from N(μ, temperature · Σ).
    """
    drawn, z = [], []
    with torch.no_grad():
        for j, prior in enumerate(model.priors):
            weights = prior.log_weights().exp().cpu()  # type: ignore[operator]
            own = torch.multinomial(weights, len(clusters), replacement=True, generator=generator)
            drawn.append(clusters if j == facet else own)
            z.append(prior.sample(drawn[j].to(weights.device), temperature=temperature, generator=generator))  # type: ignore[operator]
        return model.decode(z), drawn


def bounds(model: MFCVAE, x: Tensor, *, draws: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return every bound of `BOUNDS` and "iwae" (importance weighted with `draws` samples), nats, `[batch]`.

    All weights are 1. Bounds average `draws` one-sample estimates; "samples" is left out, since with one sample it is
    "marginal".
    """
    totals: dict[str, Tensor] = {}
    with torch.no_grad():
        q = model.encode(x)
        ratios = []
        for _ in range(draws):
            eps = [torch.randn(1, *mean.shape, generator=generator).to(mean) for mean, _ in q]
            likelihood = model.log_likelihood(x, sampled(q, eps))
            terms = model.facet_terms(q, eps)
            for name in BOUNDS:
                totals[name] = totals.get(name, 0) + (likelihood + terms[name].sum(0)) / draws
            ratios.append(likelihood + terms["marginal"].sum(0))
    del totals["samples"]
    return totals | {"iwae": torch.stack(ratios).logsumexp(0) - math.log(draws)}


def entropy(clusters: Tensor, count: int) -> float:
    """Return the entropy in nats of the empirical distribution of `clusters` `[n]` over `count` names."""
    shares = torch.bincount(clusters, minlength=count).double() / len(clusters)
    return float(torch.special.entr(shares).sum())


def stroke_factors(images: Tensor, *, levels: int = 5) -> Tensor:
    """Return slant and thickness of handwriting, cut into `levels` equal parts: int64 `[n, 2]` for `[n, 1, h, w]`.

    Slant is the shear of the ink's second moments, thickness its area over its outline (sum of gradient lengths).
    """
    ink = images[:, 0].double()
    height, width = ink.shape[1:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    mass = ink.sum((1, 2)).clamp(min=1e-9)
    down = rows - ((ink * rows).sum((1, 2)) / mass)[:, None, None]
    right = columns - ((ink * columns).sum((1, 2)) / mass)[:, None, None]
    slant = -(ink * down * right).sum((1, 2)) / (ink * down.square()).sum((1, 2)).clamp(min=1e-9)
    outline = (ink.diff(dim=1)[:, :, :-1].square() + ink.diff(dim=2)[:, :-1].square()).sqrt().sum((1, 2))
    cuts = torch.linspace(0, 1, levels + 1, dtype=torch.float64)[1:-1]
    measured = [slant, mass / outline.clamp(min=1e-9)]
    return torch.stack([torch.bucketize(values, values.quantile(cuts)) for values in measured], 1)
