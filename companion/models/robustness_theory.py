"""VAEs and their robustness, after Camuto et al. (2021) and the companion paper of Willetts et al. (2021).

Training objectives (standard, beta, total correlation, and a two-layer chain), what an attack maximises or minimises,
and the closed forms of the linear beta-VAE. The single-layer models are `companion.nn.gaussian_vae.GaussianVAE`.
All likelihoods are Gaussian with a fixed variance per pixel; `z = μ + σ * eps` with `eps` drawn by the caller.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.nn.gaussian_vae import GaussianVAE, gaussian_kl, mlp

# --- training ---


def vae(sizes: Sequence[int], latents: int, activation: str = "relu", *, generator: torch.Generator) -> GaussianVAE:
    """Return a fully connected VAE: `sizes` from the data to the last hidden layer, mirrored in the decoder."""
    encoder = mlp((*sizes, 2 * latents), activation, generator=generator)
    return GaussianVAE(encoder, mlp((latents, *reversed(sizes)), activation, generator=generator))


def log_likelihood(x: Tensor, g: Tensor, variance: float) -> Tensor:
    """Return log N(x; g, variance I) in nats, `[...]`, for `x` and `g` broadcast to `[..., d]`."""
    return -0.5 * ((x - g).square() / variance + math.log(2 * math.pi * variance)).sum(-1)


def total_correlation(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return an estimate of TC = KL(q(z) || Π_j q(z_j)) in nats, with q(z) the average posterior of the batch.

    `z`, `mean`, `std` are `[batch, n]`. The minibatch-weighted estimator (Chen et al. 2018) divides by the size of the
    data set as well, once in the joint and once per coordinate: a constant, which no gradient sees.
    """
    standard = (z[:, None] - mean) / std  # [batch, batch, n]: every code under every posterior
    log_q = -0.5 * standard.square() - std.log() - 0.5 * math.log(2 * math.pi)
    count = math.log(len(z))
    return (log_q.sum(-1).logsumexp(1) - count - (log_q.logsumexp(1) - count).sum(-1)).mean()


def vae_loss(variance: float) -> Callable:
    """Return −E log p(x|z) + beta KL + tc TC; `hyper` has `beta` and `tc`, the noise is `eps` `[batch, n]`.

    (1, 0) is the VAE, (beta, 0) the beta-VAE and (1, beta − 1) the beta-TCVAE.
    """

    def loss(model: Any, batch: tuple[Tensor, ...], noise: Any, hyper: Mapping[str, Tensor]) -> Any:
        x, eps = batch[0], noise
        mean, std = model.encode(x)
        z = mean + std * eps
        error = -log_likelihood(x, model.decode(z), variance).mean()
        kl = gaussian_kl(mean, std).mean()
        tc = total_correlation(z, mean, std)
        return error + hyper["beta"] * kl + hyper["tc"] * tc, {"elbo": -error - kl, "kl": kl, "tc": tc}

    return loss


class SeatbeltVAE(nn.Module):
    """The two-layer chain q(z1|x) q(z2|z1), with p(x|z1, z2) p(z1|z2) p(z2): the likelihood sees both layers."""

    def __init__(self, sizes: Sequence[int], latents: int, hidden: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.first = mlp((*sizes, 2 * latents), "relu", generator=generator)
        self.second = mlp((latents, hidden, 2 * latents), "relu", generator=generator)
        self.prior = mlp((latents, hidden, 2 * latents), "relu", generator=generator)
        self.decoder = mlp((2 * latents, *reversed(sizes)), "relu", generator=generator)

    def encode(self, x: Tensor, eps: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return (mean, std) of q(z1|x) and of q(z2|z1) at z1 = μ1 + σ1 eps, each `[batch, n]`."""
        first = _split(self.first(x))
        return [first, _split(self.second(first[0] + first[1] * eps))]

    def decode(self, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the decoder's mean `[batch, d]`."""
        return self.decoder(torch.cat([z1, z2], -1))


def _split(code: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance = code.chunk(2, -1)
    return mean, (0.5 * log_variance.clamp(-12, 12)).exp()


def seatbelt_loss(variance: float) -> Callable:
    """Return the loss of the chain, with `hyper["tc"]` times the total correlation of the *top* layer only."""

    def loss(model: Any, batch: tuple[Tensor, ...], noise: Any, hyper: Mapping[str, Tensor]) -> Any:
        x, (eps1, eps2) = batch[0], noise.chunk(2, -1)
        (m1, s1), (m2, s2) = model.encode(x, eps1)
        z1, z2 = m1 + s1 * eps1, m2 + s2 * eps2
        prior = _split(model.prior(z2))
        error = -log_likelihood(x, model.decode(z1, z2), variance).mean()
        kl = normal_kl((m1, s1), prior).mean() + gaussian_kl(m2, s2).mean()
        tc = total_correlation(z2, m2, s2)
        return error + kl + hyper["tc"] * tc, {"elbo": -error - kl, "kl": kl, "tc": tc}

    return loss


def unit_noise(latents: int) -> Callable:
    """Return `draw(generator, batch)`: standard normals `[batch, latents]`, one code per example."""
    return lambda generator, batch: torch.randn(len(batch[0]), latents, generator=generator, device=generator.device)


# --- what attacks look at ---


def normal_kl(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> Tensor:
    """Return KL(p || q) in nats, `[...]`, of diagonal normals given as (mean, std) `[..., n]`."""
    (m, s), (mq, sq) = p, q
    return gaussian_kl((m - mq) / sq, s / sq)


def normal_w2(p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> Tensor:
    """Return the squared 2-Wasserstein distance of diagonal normals, ||m − m'||² + ||s − s'||², `[...]`."""
    (m, s), (mq, sq) = p, q
    return (m - mq).square().sum(-1) + (s - sq).square().sum(-1)


def deviation(model: Any, part: str = "both") -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return D(v, x, eps) = ||g(z) − g(μ(x))||, the deviation from the *deterministic* reconstruction of `x`.

    `v` and `x` are `[batch, d]`, `eps` `[draws, batch, n]`, the result `[draws, batch]`. `part` says what the perturbed
    input `v` may move: "both" encoder outputs (the paper's maximum-damage attack), the "mean" or the "std" only.
    """

    def measure(v: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        mean, std = model.encode(v)
        clean_mean, clean_std = model.encode(x)
        mean, std = (clean_mean if part == "std" else mean), (clean_std if part == "mean" else std)
        return (model.decode(mean + std * eps) - model.decode(clean_mean)).norm(dim=-1)

    return measure


def fixed_scale(model: GaussianVAE, std: float) -> GaussianVAE:
    """Return a copy of a fully connected VAE with the same means and decoder and the constant posterior scale `std`."""
    encoder: Any = copy.deepcopy(model.encoder)  # a Sequential
    last = encoder[-1]
    half = last.out_features // 2
    last.weight, last.bias, last.out_features = nn.Parameter(last.weight[:half]), nn.Parameter(last.bias[:half]), half
    return GaussianVAE(encoder, copy.deepcopy(model.decoder), std).to(last.weight)


def stretched(model: GaussianVAE, latent: int, factor: float) -> GaussianVAE:
    """Return the same model in other coordinates: `latent` times `factor` in the code, divided by it in the decoder."""
    copied: Any = copy.deepcopy(model)
    last, first = copied.encoder[-1], copied.decoder[0]
    half = last.out_features // 2
    with torch.no_grad():
        last.weight[latent] *= factor
        last.bias[latent] *= factor
        last.bias[half + latent] += 2 * math.log(factor)
        first.weight[:, latent] /= factor
    return copied


def output_objective(model: Any, target: Tensor, variance: float, eps: Tensor) -> Callable[[Tensor], Tensor]:
    """Return v -> E_{q(z|v)} log p(target|z) − KL(q(z|v) || p(z)): the target's ELBO under the attacked posterior.

    To be *maximised*: the attacker wants the target to be likely. `eps` is `[draws, batch, n]`.
    """

    def value(v: Tensor) -> Tensor:
        mean, std = model.encode(v)
        fit = log_likelihood(target, model.decode(mean + std * eps), variance).mean(0)
        return fit - gaussian_kl(mean, std)

    return value


# --- the linear beta-VAE, in closed form ---


def linear_beta_vae(data: Tensor | float, noise: float, beta: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (w, v, q) of the optimal one-dimensional linear beta-VAE: decoder w z, encoder mean v x, variance q.

    `data` is the variance of the data, `noise` that of the likelihood. Collapsed (0, 0, 1) where data <= beta noise.
    """
    data, beta = torch.as_tensor(data, dtype=torch.float64), torch.as_tensor(beta, dtype=torch.float64)
    alive = data > beta * noise
    w = (data - beta * noise).clamp_min(0).sqrt()
    return w, w / data, torch.where(alive, beta * noise / data, 1.0)


def linear_beta_elbo(w: Tensor, v: Tensor, q: Tensor, data: float, noise: float, beta: float) -> Tensor:
    """Return the beta-ELBO in nats per example of that model, exact for data of variance `data`."""
    error = data * (1 - w * v).square() + w.square() * q
    kl = 0.5 * (data * v.square() + q - 1 - q.log())
    return -0.5 * error / noise - 0.5 * math.log(2 * math.pi * noise) - beta * kl


def optimal_std(curvature: Tensor, beta: float | Tensor) -> Tensor:
    """Return σ_i = (1 + h_i / beta)^(−1/2), the best posterior scale for decoder curvature h_i = ||J_g,i||² / s²."""
    return (1 + curvature / beta).rsqrt()
