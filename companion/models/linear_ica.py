"""Linear ICA by its exact ELBO, in the factorised form A⁺ = Φ R W, and the VAE with independent sources as a baseline.

The paper's decorrelating matrices (after Everson and Roberts 1999): W compresses, R is orthogonal (Cayley), Φ diagonal.
Posteriors are Gaussian here, factorised or with full covariance, so that T7's gap can be switched off.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from companion.models.bijective_ica import gg_log_peak


def gaussian_moment(mean: Tensor, variance: Tensor, rho: int) -> Tensor:
    """Return E|s|^rho for s ~ N(mean, variance), exactly, for rho = 1 or even; ValueError otherwise."""
    if rho == 1:
        std = variance.sqrt()
        t = mean / (std * 2**0.5)
        return std * (2 / math.pi) ** 0.5 * (-t.square()).exp() + mean * torch.erf(t)
    if rho % 2 or rho < 2:
        raise ValueError(f"rho = {rho}: the moment is in closed form for 1 and for even numbers")
    total, square = torch.ones_like(mean), mean.square()
    for j in range(2, rho + 1, 2):
        total = total * square + math.comb(rho, j) * math.prod(range(1, j, 2)) * variance ** (j // 2)
    return total


def gaussian_source_kl(mean: Tensor, variance: Tensor, rho: int) -> Tensor:
    """Return KL(N(mean, variance) || GG(0, 1, rho)) in nats per source, shaped as `mean`."""
    entropy = 0.5 * (2 * math.pi * math.e * variance).log()
    return gaussian_moment(mean, variance, rho) - entropy - gg_log_peak(rho)


def cayley(free: Tensor) -> Tensor:
    """Return the rotation (I + S)⁻¹(I − S) of S = M − Mᵀ, for any square M `[k, k]`: no eigenvalue is −1."""
    skew, eye = free - free.mT, torch.eye(len(free), dtype=free.dtype, device=free.device)
    return torch.linalg.solve(eye + skew, eye - skew)


class LinearICA(nn.Module):
    """A⁺ = Φ R W with a given W `[k, d]`, or every entry free; A is eliminated by its closed form at every step.

    `full` gives the posterior N(A⁺ z, V) a full covariance V. All settings are buffers: arms train as one Ensemble.
    """

    basis: Tensor
    full: Tensor
    free: Tensor
    noise: Tensor

    def __init__(
        self,
        basis: Tensor,
        *,
        rho: int,
        noise: float,
        free: bool = False,
        full: bool = False,
        scale: float,
        turn: Tensor,
    ) -> None:
        super().__init__()
        self.rho, k = rho, len(basis)
        self.register_buffer("basis", basis)
        self.register_buffer("free", torch.tensor(float(free)))
        self.register_buffer("full", torch.tensor(float(full)))
        self.register_buffer("noise", torch.tensor(float(noise)))
        self.turn = nn.Parameter(turn.clone())
        self.log_gain = nn.Parameter(torch.full((k,), math.log(scale)))
        self.step = nn.Parameter(torch.zeros_like(basis))
        self.log_std = nn.Parameter(torch.full((k,), math.log(noise)))
        self.lower = nn.Parameter(torch.zeros(k, k))

    def unmixing(self) -> Tensor:
        """Return A⁺ `[k, d]`."""
        return self.log_gain.exp()[:, None] * (cayley(self.turn) @ (self.basis + self.free * self.step))

    def covariance(self) -> Tensor:
        """Return the covariance V `[k, k]` of the posterior."""
        std = self.log_std.exp()
        factor = torch.diag_embed(std) + self.full * std[:, None] * self.lower.tril(-1)
        return factor @ factor.mT

    def mixing(self, covariance: Tensor) -> Tensor:
        """Return the best A `[d, k]` for data with the second moment `covariance` `[d, d]`."""
        u = self.unmixing()
        return torch.linalg.solve(u @ covariance @ u.mT + self.covariance(), u @ covariance).mT

    def elbo(self, z: Tensor, covariance: Tensor) -> Tensor:
        """Return the mean ELBO in nats of data `[n, d]` with second moment `covariance`, A at its optimum."""
        u, v = self.unmixing(), self.covariance()
        cross = u @ covariance
        explained = (torch.linalg.solve(cross @ u.mT + v, cross) * cross).sum()
        error = (covariance.diagonal().sum() - explained) / self.noise.square()
        likelihood = -0.5 * error - z.shape[1] * (self.noise.log() + 0.5 * math.log(2 * math.pi))
        k = len(u)
        entropy = 0.5 * (torch.linalg.slogdet(v)[1] + k * math.log(2 * math.pi * math.e))
        moments = gaussian_moment(z @ u.mT, v.diagonal().expand(len(z), k), self.rho).sum(-1).mean()
        return likelihood + entropy - moments + k * gg_log_peak(self.rho)


def linear_loss(model: Any, batch: tuple[Tensor, ...], noise: Any, hyper: Mapping[str, Tensor]) -> Any:
    """The loss: −ELBO in nats; the batch is (data, second moment)."""
    loss = -model.elbo(*batch)
    return loss, {"elbo": -loss}


class SourceVAE(nn.Module):
    """A VAE with a product of GG(0, 1, rho) as prior, Gaussian posterior (closed KL), pixels of one learnt scale."""

    def __init__(self, size: int, hidden: int, latent: int, *, rho: int, generator: torch.Generator) -> None:
        super().__init__()
        self.rho, self.latent = rho, latent

        def stack(*sizes: int) -> nn.Sequential:
            parts: list[nn.Module] = []
            for i, (rows, columns) in enumerate(pairwise(sizes)):
                layer = nn.Linear(rows, columns)
                with torch.no_grad():
                    layer.weight.copy_(torch.randn(columns, rows, generator=generator) * (1.5 / rows) ** 0.5)
                    layer.bias.zero_()
                parts += [layer, nn.ReLU()] if i + 2 < len(sizes) else [layer]
            return nn.Sequential(*parts)

        self.encoder = stack(size, hidden, hidden, 2 * latent)
        self.decoder = stack(latent, hidden, hidden, size)
        self.log_pixel = nn.Parameter(torch.full((1,), -1.5))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance `[batch, k]` of q(s|x)."""
        mean, log_variance = self.encoder(x).chunk(2, -1)
        return mean, (log_variance - 3).clamp(-12, 4).exp()

    def sources(self, x: Tensor) -> Tensor:
        """Return the posterior means `[batch, k]`."""
        return self.encode(x)[0]

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return the decoder's mean at the posterior means, `[batch, d]`."""
        return self.decoder(self.sources(x))

    def terms(self, x: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return likelihood, kl and elbo `[batch]` in nats at one draw, its code `[batch, k]`, mean and variance."""
        mean, variance = self.encode(x)
        code = mean + variance.sqrt() * noise
        error = ((x - self.decoder(code)) / self.log_pixel.exp()).square().sum(-1)
        likelihood = -0.5 * error - x.shape[-1] * (self.log_pixel.sum() + 0.5 * math.log(2 * math.pi))
        kl = gaussian_source_kl(mean, variance, self.rho).sum(-1)
        return {
            "elbo": likelihood - kl,
            "likelihood": likelihood,
            "kl": kl,
            "code": code,
            "mean": mean,
            "var": variance,
        }


def vae_loss(model: Any, batch: tuple[Tensor, ...], noise: Any, hyper: Mapping[str, Tensor]) -> Any:
    """The loss per dimension: −likelihood + beta KL + (tc − 1) TC, minibatch-weighted (Chen et al. 2018).

    `noise` is (data noise, posterior noise); `hyper` has beta and tc, both 1 for the plain VAE.
    """
    x = batch[0] + noise[0]
    terms = model.terms(x, noise[1])
    code, mean, variance = (terms[name] for name in ("code", "mean", "var"))
    logs = -0.5 * ((code[:, None] - mean).square() / variance + (2 * math.pi * variance).log())  # [n, n, k]
    correlation = (torch.logsumexp(logs.sum(-1), 1) - torch.logsumexp(logs, 1).sum(-1)).mean()
    objective = hyper["beta"] * terms["kl"].mean() + (hyper["tc"] - 1) * correlation - terms["likelihood"].mean()
    return objective / x.shape[-1], {"elbo": terms["elbo"].mean() / x.shape[-1]}
