"""Chapter 7's models: a bijective feature map under a non-square linear ICA, and linear ICA alone, by exact ELBOs.

Camuto, Willetts, Paige, Holmes and Roberts, "Learning Bijective Feature Maps for Linear ICA" (AISTATS 2021):
s_i ~ GG(0, 1, rho), z = A s + N(0, diag noise²), x = f(z); q(s|x) = Laplace(A⁺ z, b). The sampling-free form of the
ELBO is derived in the chapter. What the members of a sweep differ in is a buffer, so that they train as one Ensemble.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy
import torch
from torch import Tensor, nn

MIXINGS = ("frozen", "unit", "free")
Mixing = Literal["frozen", "unit", "free"]


# --- generalised Gaussian sources, alpha = 1 ---


def gg_log_prob(s: Tensor, rho: float) -> Tensor:
    """Return the log-density of GG(0, 1, rho) in nats, shaped as `s`; the minus sign stands outside the power."""
    return gg_log_peak(rho) - s.abs() ** rho


def gg_log_peak(rho: float) -> float:
    """Return the log-density at 0, log(rho / (2 Gamma(1 / rho)))."""
    return math.log(rho / 2) - math.lgamma(1 / rho)


def gg_variance(rho: float) -> float:
    """Return the variance Gamma(3 / rho) / Gamma(1 / rho)."""
    return math.exp(math.lgamma(3 / rho) - math.lgamma(1 / rho))


def gg_sample(shape: tuple[int, ...], rho: float, *, generator: torch.Generator) -> Tensor:
    """Draw from GG(0, 1, rho): the rho-th root of a Gamma(1 / rho, 1) variable with a random sign."""
    source = numpy.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    size = torch.as_tensor(source.gamma(1 / rho, size=shape)) ** (1 / rho)
    sign = 2 * torch.randint(2, shape, generator=generator) - 1
    return (sign * size).to(torch.get_default_dtype())


def laplace_moment(mean: Tensor, scale: Tensor, rho: int) -> Tensor:
    """Return E|s|^rho for s ~ Laplace(mean, scale), exactly, for rho = 1 or even; ValueError otherwise."""
    if rho == 1:
        size = mean.abs()
        return size + scale * (-size / scale).exp()
    if rho % 2 or rho < 2:
        raise ValueError(f"rho = {rho}: the moment is in closed form for 1 and for even numbers")
    # Horner in mean²: sum over even j of C(rho, j) mean^(rho - j) scale^j j!
    total, square, power = torch.ones_like(mean), mean.square(), scale.square()
    for j in range(2, rho + 1, 2):
        total = total * square + math.comb(rho, j) * math.factorial(j) * power ** (j // 2)
    return total


def source_kl(mean: Tensor, scale: Tensor, rho: int) -> Tensor:
    """Return KL(Laplace(mean, scale) || GG(0, 1, rho)) in nats per source, shaped as `mean`."""
    return laplace_moment(mean, scale, rho) - 1 - (2 * scale).log() - gg_log_peak(rho)


# --- the linear model in feature space ---


def reconstruction(z: Tensor, mean: Tensor, mixing: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """Return E log N(z; A s, diag noise²) over s ~ Laplace(mean, scale), `[batch]`; `noise` is `[d]`."""
    error = ((z - mean @ mixing.T) / noise).square().sum(-1)
    spread = 2 * (scale.square() * (mixing / noise[:, None]).square().sum(0)).sum(-1)
    return -0.5 * (error + spread) - (noise.log() + 0.5 * math.log(2 * math.pi)).sum()


def ridge_mixing(covariance: Tensor, unmixing: Tensor, scale: Tensor) -> Tensor:
    """Return the A `[d, k]` that maximises the ELBO for fixed A⁺ and b: a ridge regression of z on its sources.

    `covariance` `[d, d]` is the second moment E zzᵀ; any diagonal noise covariance gives the same A.
    """
    gram = unmixing @ covariance @ unmixing.mT + torch.diag_embed(2 * scale.square())
    return torch.linalg.solve(gram, unmixing @ covariance).mT


def model_spectrum(mixing: Tensor, noise: float, rho: float) -> Tensor:
    """Return the eigenvalues `[d]`, largest first, of the covariance of z under the model."""
    energy = torch.linalg.svdvals(mixing).square() * gg_variance(rho)
    return torch.cat([energy, energy.new_zeros(len(mixing) - len(energy))]) + noise**2


class Bijecta(nn.Module):
    """A flow x -> z with log-determinants, and linear ICA of z: `unmixing` A⁺ `[k, d]`, mixing A `[d, k]`, b `[k]`.

    `mixing` says what trains: nothing ("frozen", A = pinv(A⁺)), directions only ("unit"), or all ("free").
    `learn_unmixing` lets A⁺ move, `learn_noise` the diagonal noise; `active` sources of the k count (an Ensemble
    needs equal shapes); `plain` replaces the ICA by a Laplace base: the flow alone, a baseline.
    """

    mask: Tensor
    start: Tensor
    fixed: Tensor
    log_noise: Tensor
    kind: Tensor
    learn_unmixing: Tensor
    learn_noise: Tensor
    plain: Tensor

    def __init__(
        self,
        flow: nn.Module,
        unmixing: Tensor,
        *,
        rho: int,
        noise: float = 0.1,
        mixing: Mixing = "frozen",
        learn_unmixing: bool = False,
        learn_noise: bool = False,
        active: int | None = None,
        plain: bool = False,
        log_scale: float = -2.0,
    ) -> None:
        super().__init__()
        self.flow, self.rho = flow, rho
        sources, size = unmixing.shape
        mask = (torch.arange(sources) < (sources if active is None else active)).to(unmixing)
        unmixing = unmixing * mask[:, None]
        self.register_buffer("mask", mask)
        self.register_buffer("start", unmixing.clone())
        self.register_buffer("fixed", torch.linalg.pinv(unmixing))
        self.unmixing_step = nn.Parameter(torch.zeros_like(unmixing))
        self.mixing_step = nn.Parameter(torch.zeros(size, sources))
        self.log_scale = nn.Parameter(torch.full((sources,), log_scale))
        self.log_noise_step = nn.Parameter(torch.zeros(size))
        self.register_buffer("log_noise", torch.full((size,), math.log(noise)))
        self.register_buffer("kind", torch.tensor(float(MIXINGS.index(mixing))))
        self.register_buffer("learn_unmixing", torch.tensor(float(learn_unmixing)))
        self.register_buffer("learn_noise", torch.tensor(float(learn_noise)))
        self.register_buffer("plain", torch.tensor(float(plain)))

    def unmixing(self) -> Tensor:
        """Return A⁺ `[k, d]`."""
        return self.start + self.learn_unmixing * self.mask[:, None] * self.unmixing_step

    def mixing(self) -> Tensor:
        """Return A `[d, k]`."""
        free = self.fixed + self.mask * self.mixing_step
        unit = free * (self.fixed.norm(dim=0) / free.norm(dim=0).clamp_min(1e-9))
        return torch.where(self.kind == 0, self.fixed, torch.where(self.kind == 1, unit, free))

    def noise(self) -> Tensor:
        """Return the standard deviations `[d]` of z given s."""
        return (self.log_noise + self.learn_noise * self.log_noise_step).exp()

    def sources(self, x: Tensor) -> Tensor:
        """Return the posterior means A⁺ z `[batch, k]`."""
        return self.flow(x)[0] @ self.unmixing().mT

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return f(A A⁺ z) `[batch, d]`: what the sources carry, the noise of z set to zero."""
        return self.flow.inverse(self.sources(x) @ self.mixing().mT)  # type: ignore[operator]

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """Return the parts of the ELBO in nats, each `[batch]`: likelihood of z, kl, logdet; elbo is their balance."""
        z, logdet = self.flow(x)
        mean, scale = z @ self.unmixing().mT, self.log_scale.exp()
        kl = (source_kl(mean, scale, self.rho) * self.mask).sum(-1)
        likelihood = reconstruction(z, mean, self.mixing(), scale, self.noise())
        laplace = gg_log_prob(z, 1).sum(-1)
        elbo = torch.where(self.plain > 0, laplace, likelihood - kl) + logdet
        return {"elbo": elbo, "kl": kl, "likelihood": likelihood, "logdet": logdet}


def negative_elbo(model: Any, batch: tuple[Tensor, ...], noise: Any, hyper: Mapping[str, Tensor]) -> Any:
    """The loss: −ELBO per dimension, in nats; `noise` (dequantisation), where there is one, is added to the data."""
    x = batch[0] if noise is None else batch[0] + noise
    terms = model.terms(x)
    loss = -terms["elbo"].mean() / x.shape[-1]
    return loss, {"elbo": -loss, "kl": terms["kl"].mean()}
