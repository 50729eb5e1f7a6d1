"""Variational Autoencoders: A Harmonic Perspective (Camuto and Willetts, AISTATS 2022, arXiv 2105.14866).

A VAE never shows its decoder a point: it shows a Gaussian cloud around μ(x) with the encoder's standard deviation σ.
The paper studies VAEs whose σ is a constant, and VAEs with noise of standard deviation s on the *input* as well:

    z = μ(x + s η) + σ ε,     L = E||x − g(z)||² / (2v) + β KL(q(z|x) || N(0, I))     (nats; the target is the clean x).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from companion.nn.gaussian_vae import GaussianVAE, gaussian_kl
from companion.nn.jacobians import jacobians


def vae_noise(latent: int, *, input_noise: bool = False) -> Callable:
    """Return `draw(generator, batch)`: unit normals ε `[batch, n]` and, if asked for, η `[batch, d]` (else None)."""

    def draw(generator: torch.Generator, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        x, device = batch[0], generator.device
        eps = torch.randn(len(x), latent, generator=generator, device=device)
        # One η for every example: one for the whole batch would be a shift, not a blur.
        return eps, torch.randn(x.shape, generator=generator, device=device) if input_noise else None

    return draw


def negative_elbo(variance: float = 1.0) -> Callable:
    """Return the loss above for likelihood variance v; `hyper["beta"]` is β and `hyper["input_std"]` is s.

    Its metrics are the two terms per example: the summed squared error, and KL in nats.
    """

    def loss(vae, batch, noise, hyper):
        x, (eps, eta) = batch[0], noise
        mean, std = vae.encode(x if eta is None else x + hyper["input_std"] * eta)
        error = (x - vae.decode(mean + std * eps)).square().sum(-1).mean()
        kl = gaussian_kl(mean, std).mean()
        return error / (2 * variance) + hyper["beta"] * kl, {"error": error, "kl": kl}

    return loss


def regression_loss(model, batch, noise, hyper):
    """Return ½||x − g(z)||² for given pairs (z, x): a decoder alone. With `noise` it sees z + `hyper["std"]` ε."""
    z, x = batch
    seen = z if noise is None else z + hyper["std"] * noise
    return 0.5 * (x - model(seen)).square().sum(-1).mean(), {}


def column_energy(vae: GaussianVAE, x: Tensor, eps: Tensor) -> Tensor:
    """Return E_q||∂g/∂z_j||² `[batch, n]` for `x` `[batch, d]` and standard normal draws `eps` `[draws, batch, n]`."""
    mean, std = vae.encode(x)
    z = mean + std * eps  # [draws, batch, n]
    columns = jacobians(vae.decode, z.flatten(0, 1)).square().sum(1)  # [draws × batch, n]
    return columns.view_as(z).mean(0)


def predicted_variance(energy: Tensor, beta: Tensor | float, variance: float = 1.0) -> Tensor:
    """Return σ_j² = β / (β + E||∂_j g||² / v): the posterior variance at which the loss is stationary.

    Exact up to the residual-curvature term −E[(x − g)·∂_jj g] / v, which it leaves out (derived in the chapter).
    """
    return beta / (beta + energy / variance)
