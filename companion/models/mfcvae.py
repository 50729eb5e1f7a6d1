"""Chapter 5's model: a VAE with J latent facets, each with its own mixture prior, so that it clusters J times at once.

Falck, Zhang, Willetts, Nicholson, Yau and Holmes, "Multi-Facet Clustering Variational Autoencoders" (NeurIPS 2021).
Facet 0 is the shallowest (nearest x), facet J-1 the deepest, as in the authors' code. q(c|x) has no network: every
bound below puts in its own rule. Nothing draws noise: eps comes from outside.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn.functional import softplus

from companion.nn.initial import default_init
from companion.nn.mixture_prior import MixturePrior

BOUNDS = ("closed", "samples", "marginal", "vade")


class DenseLadder(nn.Module):
    """Fully connected ladder: facet j leaves the encoder, and enters the decoder, at depth j.

    `widths` and `latents` have one entry per facet, shallow first. Released MNIST configuration: (500, 2000), (5, 5).
    """

    def __init__(self, inputs: int, widths: Sequence[int], latents: Sequence[int], *, gate: float = 0.1) -> None:
        super().__init__()
        self.gate = gate  # the low constant lets a shallow facet enter softly
        sizes = [inputs, *widths]
        self.backbone = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.heads = nn.ModuleList(nn.Linear(w, 2 * d) for w, d in zip(widths, latents, strict=True))
        self.rungs = nn.ModuleList(nn.Linear(d, w) for w, d in zip(widths, latents, strict=True))
        self.up = nn.ModuleList(nn.Linear(o, i) for i, o in pairwise(widths))
        self.mix = nn.ModuleList(nn.Linear(w, w) for w in widths[:-1])
        self.out = nn.Linear(widths[0], inputs)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return (m_j, log s_j²) side by side, `[batch, 2 d_j]`, for each facet."""
        codes, h = [], x
        for layer, head in zip(self.backbone, self.heads, strict=True):
            h = layer(h).relu()  # [batch, widths[j]]
            codes.append(head(h))
        return codes

    def decode(self, z: Sequence[Tensor], fade: Tensor) -> Tensor:
        """Return the output layer `[batch, inputs]` of facets `z` (`[batch, d_j]`), rung j scaled by `fade` `[J]`."""
        deepest = len(self.rungs) - 1
        t = fade[deepest] * self.rungs[deepest](z[deepest]).relu()
        for j in range(deepest - 1, -1, -1):
            rung = fade[j] * self.rungs[j](z[j]).relu()
            t = self.mix[j](self.up[j](t).relu() + self.gate * rung).relu()  # "gated add"
        return self.out(t)


class DenseShared(nn.Module):
    """The alternative without a ladder: all facets leave the last encoder layer and enter the first decoder layer."""

    def __init__(self, inputs: int, widths: Sequence[int], latents: Sequence[int]) -> None:
        super().__init__()
        self.latents = tuple(latents)
        sizes = [inputs, *widths]
        self.down = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.heads = nn.ModuleList(nn.Linear(widths[-1], 2 * d) for d in latents)
        back = [sum(latents), *widths[::-1]]
        self.up = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(back))
        self.out = nn.Linear(widths[0], inputs)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return (m_j, log s_j²) side by side, `[batch, 2 d_j]`, for each facet."""
        for layer in self.down:
            x = layer(x).relu()
        return [head(x) for head in self.heads]

    def decode(self, z: Sequence[Tensor], fade: Tensor) -> Tensor:
        """Return the output layer `[batch, inputs]`; `fade` `[J]` scales the facets."""
        t = torch.cat([fade[j] * part for j, part in enumerate(z)], -1)
        for layer in self.up:
            t = layer(t).relu()
        return self.out(t)


class ConvLadder(nn.Module):
    """Convolutional ladder for 32 x 32 images, flat `[batch, channels * 1024]` outside; merges by concatenation.

    Kernels of 4 with stride 2 as released (64, 128, 256 filters at `width` 64). Ours are group norms in place of batch
    norms, so that an image's code does not depend on its batch, and a plain last layer.
    """

    def __init__(self, channels: int, latents: Sequence[int], *, width: int = 64) -> None:
        super().__init__()
        facets = len(latents)
        if facets > 3:
            raise ValueError(f"32 x 32 images halve often enough for 3 facets, not {facets}")
        self.image = (channels, 32, 32)
        filters = [channels, *(width * 2**j for j in range(facets))]
        sides = [16 // 2**j for j in range(facets)]
        self.sides = list(zip(filters[1:], sides, strict=True))
        self.backbone = nn.ModuleList(_down(i, o) for i, o in pairwise(filters))
        self.heads = nn.ModuleList(
            nn.Sequential(_down(f, 2 * f), nn.Flatten(), nn.Linear(2 * f * (side // 2) ** 2, 2 * d))
            for (f, side), d in zip(self.sides, latents, strict=True)
        )
        self.rungs = nn.ModuleList(
            nn.Sequential(nn.Linear(d, f * side**2), nn.ELU(), nn.Unflatten(-1, (f, side, side)))
            for (f, side), d in zip(self.sides, latents, strict=True)
        )
        self.up = nn.ModuleList(_up(o, i) for i, o in pairwise(filters[1:]))
        self.mix = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * f, f, 3, padding=1), nn.ELU(), nn.GroupNorm(4, f)) for f in filters[1:-1]
        )
        self.out = nn.ConvTranspose2d(filters[1], channels, 4, stride=2, padding=1)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return (m_j, log s_j²) side by side, `[batch, 2 d_j]`, for each facet."""
        codes, h = [], x.unflatten(-1, self.image)
        for layer, head in zip(self.backbone, self.heads, strict=True):
            h = layer(h)  # [batch, filters, side, side]
            codes.append(head(h))
        return codes

    def decode(self, z: Sequence[Tensor], fade: Tensor) -> Tensor:
        """Return the output layer, flat, with rung j scaled by `fade` `[J]`."""
        deepest = len(self.rungs) - 1
        t = fade[deepest] * self.rungs[deepest](z[deepest])
        for j in range(deepest - 1, -1, -1):
            t = self.mix[j](torch.cat([fade[j] * self.rungs[j](z[j]), self.up[j](t)], 1))
        return self.out(t).flatten(1)


def _down(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.ELU(), nn.GroupNorm(4, outputs))


def _up(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1), nn.ELU())


class MFCVAE(nn.Module):
    """p(x|z) Π_j Σ_k π_jk N(z_j; μ_jk, Σ_jk) with q(z|x) = Π_j N(m_j(x), diag s_j(x)²).

    `sigma` is the fixed standard deviation of a Gaussian likelihood; None means Bernoulli on values in [0, 1] (not a
    normalised density for grey values). Weights of `network` are drawn anew from `generator`.
    """

    def __init__(
        self,
        network: DenseLadder | DenseShared | ConvLadder,
        latents: Sequence[int],
        clusters: Sequence[int],
        *,
        sigma: float | None = None,
        covariance: Literal["diagonal", "full"] = "diagonal",
        learn_weights: bool = True,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        default_init(network, generator)
        self.network, self.sigma = network, sigma
        self.priors = nn.ModuleList(
            MixturePrior(k, d, covariance=covariance, learn_weights=learn_weights, generator=generator)
            for k, d in zip(clusters, latents, strict=True)
        )

    def encode(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return mean and standard deviation of q(z_j|x), `[batch, d_j]` each, for every facet."""
        split = [code.chunk(2, -1) for code in self.network.encode(x)]
        return [(mean, (0.5 * log_variance).exp()) for mean, log_variance in split]

    def decode(self, z: Sequence[Tensor], fade: Tensor | None = None) -> Tensor:
        """Return the mean image `[batch, inputs]` for facets `z`."""
        out = self.network.decode(z, self._all_on(z) if fade is None else fade)
        return out.sigmoid() if self.sigma is None else out

    def log_likelihood(self, x: Tensor, z: Sequence[Tensor], fade: Tensor | None = None) -> Tensor:
        """Return log p(x|z) in nats, `[batch]`."""
        out = self.network.decode(z, self._all_on(z) if fade is None else fade)
        if self.sigma is None:
            return (x * out - softplus(out)).sum(-1)
        constant = 0.5 * math.log(2 * math.pi * self.sigma**2)
        return (-0.5 * ((x - out) / self.sigma).square() - constant).sum(-1)

    def facet_terms(
        self, q: Sequence[tuple[Tensor, Tensor]], eps: Sequence[Tensor], names: Sequence[str] = BOUNDS
    ) -> dict[str, Tensor]:
        """Return what each facet adds to the bounds in `names`, `[J, batch]` in nats: all of them but log p(x|z).

        `eps` holds `[L, batch, d_j]`, L samples of z_j. "closed" is exact and needs none; "samples" uses all L;
        "marginal" and "vade" the first (vade: the last, an independent one for L > 1, gives its q(c|x)).
        """
        terms: dict[str, list[Tensor]] = {name: [] for name in names}
        for (mean, std), noise, prior in zip(q, eps, self.priors, strict=True):
            assert isinstance(prior, MixturePrior)
            entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)  # of q(z_j|x)
            if "closed" in terms or "vade" in terms:
                expected = prior.log_components(mean, std)  # E log π_k N_k, [batch, K]
            if "closed" in terms:  # L*: logsumexp_k(log π_k - KL_k)
                terms["closed"].append(expected.logsumexp(-1) + entropy)
            if set(names) == {"closed"}:
                continue
            at = prior.log_components(mean + std * noise)  # log π_k N_k at the samples, [L, batch, K]
            log_prior = at.logsumexp(-1)  # log p(z_j), [L, batch]
            log_q = 0.5 * (mean.shape[-1] - noise.square().sum(-1)) - entropy  # log q(z_j|x), [L, batch]
            if "marginal" in terms:
                terms["marginal"].append(log_prior[0] - log_q[0])
            if "samples" in terms:
                pooled = (at - log_prior[..., None]).mean(0)  # (1/L) Σ_l log p(c=k|z^l)
                terms["samples"].append((log_prior - log_q).mean(0) + pooled.logsumexp(-1))
            if "vade" in terms:  # q(c|x) := p(c|z~), cross terms analytically under q(z|x)
                log_gamma = at[-1] - log_prior[-1][..., None]
                terms["vade"].append((log_gamma.exp() * (expected - log_gamma)).sum(-1) + entropy)
        return {name: torch.stack(parts) for name, parts in terms.items()}

    def _all_on(self, z: Sequence[Tensor]) -> Tensor:
        return torch.ones(len(z), dtype=z[0].dtype, device=z[0].device)


def start_means(model: MFCVAE, x: Tensor, random: numpy.random.RandomState) -> None:
    """Put the prior means where a diagonal GMM finds them in the codes of the untrained encoder, in place.

    `x` is `[n, inputs]`. Only the means are taken, as released; the fit is short, for its input is still noise.
    """
    with torch.no_grad():
        for (mean, _), prior in zip(model.encode(x), model.priors, strict=True):
            assert isinstance(prior, MixturePrior)
            mixture = GaussianMixture(
                len(prior.means),
                covariance_type="diag",
                init_params="k-means++",
                max_iter=15,
                tol=0.1,
                random_state=random,
            )
            prior.means.copy_(torch.from_numpy(mixture.fit(mean.double().cpu().numpy()).means_))


def sampled(q: Sequence[tuple[Tensor, Tensor]], eps: Sequence[Tensor]) -> list[Tensor]:
    """Return z_j = m_j + s_j eps_j of the first sample, `[batch, d_j]` per facet."""
    return [mean + std * noise[0] for (mean, std), noise in zip(q, eps, strict=True)]


def negative_bound(names: Sequence[str] = BOUNDS) -> Any:
    """Return the loss: minus the bound that the one-hot `hyper["bound"]` picks out of `names`, mean over the batch.

    Members of an Ensemble may have different bounds; what is not in `names` is not computed. The batch is (x `[batch,
    inputs]`, fade `[J]`) as `FadeIn` gives it; where `hyper["progressive"]` is 0 all facets are on from the start. A
    facet's KL weight and its decoder rung fade in together, as released; below 1 the loss is no bound.
    """

    def loss(
        model: MFCVAE, batch: tuple[Tensor, ...], eps: Sequence[Tensor], hyper: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        x, schedule = batch
        fade = torch.where(hyper["progressive"] > 0, schedule, torch.ones_like(schedule))
        q = model.encode(x)
        likelihood = model.log_likelihood(x, sampled(q, eps), fade).mean()
        terms = model.facet_terms(q, eps, names)
        rest = hyper["bound"] @ torch.stack([terms[name].mean(-1) for name in names])  # [J]
        return -(likelihood + fade @ rest), {"likelihood": likelihood, "kl": -rest.sum()}

    return loss


class FadeIn:
    """Mini-batches with the progressive schedule beside them: `(x, fade [J])` of a step.

    The deepest facet is on from the start; facet j < J-1 begins at step `starts[j]` and rises linearly over `length`
    steps. After Li et al. 2020 (pro-VLAE), without their fade of the encoder, as released.
    """

    def __init__(self, source: Any, starts: Sequence[int], length: int) -> None:
        self.source, self.length = source, length
        self.starts = torch.tensor([float(start) for start in starts])

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return `(x, fade)` of `step`."""
        (x, *_) = self.source.batch(step)
        rising = ((step - self.starts) / self.length).clamp(0, 1)
        rising[-1] = 1.0
        return x, rising.to(x)
