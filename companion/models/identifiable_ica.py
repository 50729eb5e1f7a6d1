"""Chapter 6's models: four priors on one VAE, and a piecewise-affine flow, each with and without the label u.

Willetts and Paige, "I Don't Need u" (2021), after their released code. What differs between the kinds is a buffer, so
that all kinds and seeds train as one Ensemble:

- "vae": N(0, I);
- "vade": Σ_k π_k N(μ_k, diag σ_k²), summed out exactly, no q(c|x) (the "3-term loss" of the release);
- "label": N(μ_u, diag σ_u²), the same mixture with its component observed; the encoder sees x only, as in the release;
- "ivae": N(0, diag σ_u²) with an encoder of (x, u), the original iVAE. For a finite u a table of variances is all that
  an MLP of u can express.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

from companion.nn.gaussian_vae import mlp
from companion.nn.mixture_prior import MixturePrior

Kind = Literal["vae", "vade", "label", "ivae"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LOG_2PI = math.log(2 * math.pi)


def gaussian(z: Tensor, mean: Tensor | float, variance: Tensor) -> Tensor:
    """Return log N(z; mean, diag variance) in nats, summed over the last axis."""
    return -0.5 * ((z - mean).square() / variance + variance.log() + LOG_2PI).sum(-1)


class LatentPrior(nn.Module):
    """The prior of one `kind` over `dim` latents: a MixturePrior of `clusters` components, used in one of four ways."""

    choice: Tensor

    def __init__(self, kind: Kind, clusters: int, dim: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.mixture = MixturePrior(clusters, dim, variance=1.0, spread=1.0, generator=generator)
        self.register_buffer("choice", torch.tensor([float(kind == one) for one in KINDS]))

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        """Return log p(z) or log p(z|u) in nats `[batch]` for `z` `[batch, dim]` and labels `u` `[batch]`."""
        components = self.mixture.log_components(z)
        given = components - self.mixture.log_weights()
        chosen = one_hot(u, components.shape[-1]).to(z)
        table = torch.stack(
            [
                gaussian(z, 0.0, torch.ones_like(z)),
                components.logsumexp(-1),
                (given * chosen).sum(-1),
                gaussian(z, 0.0, chosen @ self.mixture.variances()),
            ],
            -1,
        )
        return table @ self.choice


class LatentVAE(nn.Module):
    """q(z|x) = N(m, diag v), v = softplus, and a decoder of the `kind`'s latents; see the module for the kinds.

    Both networks have leaky ReLUs of slope 0.1 between linear layers, as in the released ones.
    `noise` is the standard deviation of a Gaussian likelihood; 0 means Bernoulli with logits.
    """

    sees: Tensor

    def __init__(
        self,
        kind: Kind,
        observed: int,
        hidden: Sequence[int],
        latent: int,
        *,
        clusters: int,
        labels: int,
        noise: float = 0.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.encoder = mlp((observed + labels, *hidden, 2 * latent), "leaky_relu", generator=generator)
        self.decoder = mlp((latent, *reversed(hidden), observed), "leaky_relu", generator=generator)
        self.prior = LatentPrior(kind, clusters, latent, generator=generator)
        self.register_buffer("sees", torch.tensor(float(kind == "ivae")))
        self.labels, self.noise = labels, noise

    def encode(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance `[batch, latent]` of q(z|x); the label `u` `[batch]` reaches only kind "ivae"."""
        side = self.sees * one_hot(u, self.labels).to(x)
        mean, raw = self.encoder(torch.cat([x, side], -1)).chunk(2, -1)
        return mean, softplus(raw) + 1e-6

    def likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z) in nats `[batch]`.

        On grey values in [0, 1] the Bernoulli's is its exact mean over fresh binarisations of the pixels.
        """
        out = self.decoder(z)
        if self.noise:
            return gaussian(x, out, torch.full_like(out, self.noise**2))
        return (x * out - softplus(out)).sum(-1)


def negative_elbo(vae: Any, batch: tuple[Tensor, ...], noise: Tensor, _hyper: Mapping[str, Tensor]) -> Any:
    """The loss: −[log p(x|z) + w (log p(z) − log q(z|x))] at one z ~ q(z|x), the batch being (x, u, w).

    For the kinds with a label it bounds log p(x|u): never compare it with that of the others.
    """
    x, u, warm = batch
    mean, variance = vae.encode(x, u)
    z = mean + variance.sqrt() * noise
    likelihood = vae.likelihood(x, z).mean()
    kl = (gaussian(z, mean, variance) - vae.prior(z, u)).mean()
    return warm * kl - likelihood, {"likelihood": likelihood, "kl": kl}


class PiecewiseAffineFlow(nn.Module):
    """x = f(z) with f^-1 = A_L ∘ leaky ∘ ... ∘ A_1, square affine maps A_i: exact likelihood, nothing amortised.

    A homeomorphism that is affine on pieces, so the theorem on mixtures applies as it stands.
    """

    def __init__(
        self, kind: Kind, dim: int, layers: int, *, clusters: int, slope: float = 0.3, generator: torch.Generator
    ) -> None:
        super().__init__()
        drawn = torch.linalg.qr(torch.randn(layers, dim, dim, generator=generator))[0]
        self.weight = nn.Parameter(drawn.contiguous())
        self.bias = nn.Parameter(0.1 * torch.randn(layers, dim, generator=generator))
        self.prior = LatentPrior(kind, clusters, dim, generator=generator)
        self.slope = slope

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z = f^-1(x) `[batch, dim]` and the log-determinant of ∂z/∂x `[batch]`."""
        log_det = torch.linalg.slogdet(self.weight)[1].sum()
        total = torch.zeros_like(x[..., 0])
        for k, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            if k:  # the inverse of the mixing's leaky ReLU: steeper, not flatter, below zero
                total = total + (x < 0).to(x).sum(-1) * -math.log(self.slope)
                x = torch.minimum(x, x / self.slope)
            x = x @ weight.mT + bias
        return x, total + log_det

    def log_prob(self, x: Tensor, u: Tensor) -> Tensor:
        """Return log p(x), or log p(x|u) for the kinds with a label, in nats `[batch]`."""
        z, log_det = self.inverse(x)
        return self.prior(z, u) + log_det


def negative_log_likelihood(flow: Any, batch: tuple[Tensor, ...], _noise: Any, _hyper: Mapping[str, Tensor]) -> Any:
    """The flow's loss, in nats per example, for batches (x, u)."""
    return -flow.log_prob(*batch[:2]).mean(), {}


class PatchCoder(nn.Module):
    """An autoencoder of image patches whose code may pass through a softly assigned codebook (relaxed VQ).

    Every cell of the grid shares the networks. With `relaxed` a code v becomes Σ_k w_k e_k, w the softmax of
    (−‖v − e_k‖² + Gumbel noise) / temperature; without, it stays v.
    """

    relaxed: Tensor

    def __init__(
        self, relaxed: bool, patch: int, hidden: int, dim: int, *, codes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.encoder = mlp((patch, hidden, dim), "leaky_relu", generator=generator)
        self.decoder = mlp((dim, hidden, patch), "leaky_relu", generator=generator)
        self.codebook = nn.Parameter(torch.randn(codes, dim, generator=generator))
        self.register_buffer("relaxed", torch.tensor(float(relaxed)))

    def codes(self, patches: Tensor, gumbel: Tensor | float = 0.0, temperature: float = 0.5) -> Tensor:
        """Return the code of every cell `[batch, cells, dim]` for `patches` `[batch, cells, patch]`."""
        v = self.encoder(patches)
        distance = (v[..., None, :] - self.codebook).square().sum(-1)
        soft = ((gumbel - distance) / temperature).softmax(-1) @ self.codebook
        return torch.where(self.relaxed > 0, soft, v)


def patch_loss(coder: Any, batch: tuple[Tensor, ...], gumbel: Tensor, _hyper: Mapping[str, Tensor]) -> Any:
    """The loss: −log p(patches | codes) in nats per image, Bernoulli on grey values, for a batch (patches, ...)."""
    out = coder.decoder(coder.codes(batch[0], gumbel))
    return (softplus(out) - batch[0] * out).sum((-2, -1)).mean(), {}
