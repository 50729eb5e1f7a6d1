"""Chapter 4's networks: VAEs whose encoder mean, encoder standard deviation and decoder have Lipschitz constants.

Barrett, Camuto, Willetts and Rainforth, "Certifiably Robust VAEs" (AISTATS 2022). Letters as in the paper: a bounds
the decoder, b the encoder mean, c the encoder standard deviation. Everything in which the models of a sweep differ
is a buffer, so that standard, clamped, fixed-std and Lipschitz VAEs of any L train as one Ensemble.
"""

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from companion.nn.gaussian_vae import gaussian_kl
from companion.nn.lipschitz_layers import BjorckLinear, maxmin

LOGIT = 15.94  # the logit of 1 minus float32's machine epsilon


class Stack(nn.Module):
    """k linear layers with an activation between them: L-Lipschitz, or free where `lipschitz` is infinite.

    A constrained stack uses orthonormal weights, MaxMin, and L^(1/k) times each layer's output, bias included; a free
    one plain weights and ReLU.
    """

    gain: Tensor
    constrained: Tensor

    def __init__(self, sizes: Sequence[int], lipschitz: float, *, generator: torch.Generator) -> None:
        super().__init__()
        free = lipschitz == float("inf")
        self.layers = nn.ModuleList(
            BjorckLinear(i, o, constrained=not free, generator=generator) for i, o in pairwise(sizes)
        )
        self.register_buffer("gain", torch.tensor(1.0 if free else lipschitz ** (1 / len(self.layers))))
        self.register_buffer("constrained", torch.tensor(float(not free)))
        self.sorts: bool | None = None  # not settled: members of an Ensemble may differ

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., in]` to `[..., out]`."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x, self.gain))
        return self.layers[-1](x, self.gain)

    def activation(self, x: Tensor) -> Tensor:
        """Return MaxMin of `x` `[..., even]`, or its ReLU in a free stack."""
        if self.sorts is None:
            return torch.where(self.constrained > 0, maxmin(x), x.relu())
        return maxmin(x) if self.sorts else x.relu()

    def freeze(self, iterations: int = 50) -> None:
        """Freeze the layers, and compute from now on only the activation that is in use."""
        for layer in self.layers:
            layer.freeze(iterations)  # type: ignore[operator]
        self.sorts = bool(self.constrained > 0)


class CertifiedVAE(nn.Module):
    """q(z|x) = N(μ(x), diag σ(x)²) from two separate networks, and a decoder g: R^n to [0, 1]^d ending in a sigmoid.

    σ = sigmoid(network), projected on the ball of radius `clamp` (1-Lipschitz, so c stays; by default √n, which a
    sigmoid never leaves), or the constant vector with entries `fixed` where that is positive. `lipschitz` is L of all
    three networks before any sigmoid.
    """

    clamp: Tensor
    fixed: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        lipschitz: float = float("inf"),
        *,
        clamp: float | None = None,
        fixed: float = 0.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.mean, self.deviation = (Stack(sizes, lipschitz, generator=generator) for _ in range(2))
        self.decoder = Stack(sizes[::-1], lipschitz, generator=generator)
        with torch.no_grad():  # small σ at first: σ near 1 is a posterior that has collapsed
            self.deviation.layers[-1].bias.sub_(2.0 / float(self.deviation.gain))  # type: ignore[operator]
        self.register_buffer("clamp", torch.tensor(sizes[-1] ** 0.5 if clamp is None else float(clamp)))
        self.register_buffer("fixed", torch.tensor(float(fixed)))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation `[..., n]` of q(z|x) for `x` `[..., d]`."""
        std = self.deviation(x).sigmoid()
        std = std * (self.clamp / std.norm(dim=-1, keepdim=True)).clamp_max(1)
        return self.mean(x), torch.where(self.fixed > 0, self.fixed, std)

    def logits(self, z: Tensor) -> Tensor:
        """Return the decoder's output before its sigmoid, `[..., d]`."""
        return self.decoder(z)

    def decode(self, z: Tensor) -> Tensor:
        """Return g(z), `[..., d]` in [0, 1]: the parameter of the continuous Bernoulli, not its mean."""
        return self.decoder(z).sigmoid()


class _LogRatio(torch.autograd.Function):
    """log((l/2) / sinh(l/2)) of the logit l, with its derivative in closed form: every pixel of a batch passes here."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor) -> Tensor:  # type: ignore[override]
        size = logits.abs().clamp_min(1e-30)
        return (size / -torch.expm1(-size)).log() - size / 2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (logits,) = ctx.saved_tensors
        near = logits.abs() <= 0.1
        safe = torch.where(near, 1.0, logits)  # for the second derivative, which knows no branches
        exact = 1 / safe - 0.5 / torch.tanh(safe / 2)  # near 0 a difference of large numbers
        return gradient * torch.where(near, logits * (logits.square() / 720 - 1 / 12), exact)


def continuous_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """Return log p(x) in nats, `[...]`, summed over the last axis, under continuous Bernoullis with `logits`.

    In the logit l the density e^(xl) / (1 + e^l), times its normaliser l / tanh(l / 2) (Loaiza-Ganem & Cunningham
    2019), is e^((x − ½) l) (l/2) / sinh(l/2). Logits are kept within ±`LOGIT`, as torch.distributions does: the
    density at x = 0 grows without bound as l falls, and on the empty border of an image a free decoder would earn its
    likelihood with that alone.
    """
    logits = logits.clamp(-LOGIT, LOGIT)
    return ((x - 0.5) * logits + _LogRatio.apply(logits)).sum(-1)


def elbo_terms(vae: Any, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p(x|z) at z = μ + σ `noise` and KL(q || N(0, I)), both in nats `[batch]`."""
    mean, std = vae.encode(x)
    return continuous_bernoulli(x, vae.logits(mean + std * noise)), gaussian_kl(mean, std)


def negative_elbo(vae: Any, batch: tuple[Tensor, ...], noise: Tensor, hyper: Mapping[str, Tensor]) -> Any:
    """The loss: −ELBO with the KL times `hyper["beta"]` and times the batch's second tensor, a warm-up factor."""
    x, warm = batch
    likelihood, kl = (term.mean() for term in elbo_terms(vae, x, noise))
    return hyper["beta"] * warm * kl - likelihood, {"likelihood": likelihood, "kl": kl}


def frozen(vae: CertifiedVAE, iterations: int = 50) -> CertifiedVAE:
    """Return a copy with plain weights: `iterations` of Björck in float64, rounded once; that is what is certified."""
    copied = copy.deepcopy(vae)
    for module in copied.modules():
        if isinstance(module, Stack):
            module.freeze(iterations)
    return copied.requires_grad_(False)
