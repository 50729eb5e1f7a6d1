"""What noise in the activations does to the loss, order by order (Camuto et al. 2020, Theorem 1, completed).

Averaged over symmetric noise, E[ΔL] = R + K + O(σ⁴) for smooth activations. R is `layer_terms` of the model
file; K = ½ Σ_k σ_k² E[Σ_i (∂L/∂f_i) Δ_{h_k} f_i], residual times curvature, is of the same order. Together they
are half the noise-weighted trace of the loss Hessian in the activations.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from companion.models.gaussian_noise_injections import no_noise, output_jacobians
from companion.nn.likelihoods import Likelihood


def second_order_terms(
    model: Any, x: Tensor, y: Tensor, likelihood: Likelihood, probes: list[Tensor] | None = None
) -> Tensor:
    """Return E_batch[½ Tr(∂²loss/∂h_k²)] for each k, `[L]`: everything the noise does at order σ², R_k + K_k.

    Exact by default (one Hessian-vector product per unit); with `probes`, one white tensor `[draws, *site]`
    per site, the mean of Hutchinson estimates, one product per draw for all layers.
    """
    zeros = no_noise(model, x)
    gradient = grad(lambda eps: likelihood.loss(model(x, eps)[0], y).sum())

    def quadratic(direction: list[Tensor]) -> Tensor:
        product: Any = jvp(gradient, (zeros,), (direction,))[1]
        return torch.stack([(v * hv).sum() for v, hv in zip(direction, product, strict=True)])

    if probes is not None:
        return 0.5 * vmap(quadratic)(probes).mean(0) / len(x)

    terms = []
    for k, zero in enumerate(zeros):
        size = zero[0].numel()
        units = torch.eye(size).to(zero).reshape(size, 1, *zero.shape[1:]).expand(-1, len(x), *zero.shape[1:])

        def along(unit: Tensor, k: int = k) -> Tensor:
            return quadratic([unit if j == k else z for j, z in enumerate(zeros)])[k]

        terms.append(0.5 * vmap(along, chunk_size=128)(units).sum() / len(x))
    return torch.stack(terms)


def loss_change(
    model: Any, x: Tensor, y: Tensor, likelihood: Likelihood, eps: Sequence[Tensor], *, chunk: int = 1024
) -> Tensor:
    """Return ½[L(ε) + L(−ε)] − L(0) for each draw, `[draws]`, with L the mean over the batch.

    `eps` is scaled noise, `[draws, *site]`. The antithetic pair removes every odd order exactly and leaves the
    mean as it is.
    """
    clean = likelihood.loss(model(x)[0], y).mean()

    def pair(e: list[Tensor]) -> Tensor:
        up = likelihood.loss(model(x, e)[0], y)
        down = likelihood.loss(model(x, [-one for one in e])[0], y)
        return 0.5 * (up + down).mean() - clean

    return vmap(pair, chunk_size=chunk)(list(eps))


def quadratic_change(model: Any, x: Tensor, y: Tensor, likelihood: Likelihood, eps: Sequence[Tensor]) -> Tensor:
    """Return ½ εᵀ(∂²L/∂ε²)ε for each draw, `[draws]`: all of `loss_change` at second order, with mean R + K.

    As a control variate it leaves only the fourth order to Monte Carlo.
    """
    zeros = no_noise(model, x)

    def mean_loss(e: list[Tensor]) -> Tensor:
        return likelihood.loss(model(x, e)[0], y).mean()

    def second(e: list[Tensor]) -> Tensor:
        return 0.5 * jvp(lambda z: jvp(mean_loss, (z,), (e,))[1], (zeros,), (e,))[1]

    return vmap(second, chunk_size=1024)(list(eps))


def taylor_terms(model: Any, x: Tensor, y: Tensor, likelihood: Likelihood, eps: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the terms G, C, H of the loss change and the change itself, each `[draws]`, batch means.

    `eps` holds scaled noise `[draws, *site]`. G = Σ_k ⟨g, J_k ε_k⟩, C = ½ Σ_k ε_kᵀ J_kᵀ H J_k ε_k (mean R),
    H = ½ Σ_{k≠l} ε_kᵀ J_kᵀ H J_l ε_l (official code's names; companion paper 2102.07006).
    """
    outputs, jacobians = output_jacobians(model, x)
    g = likelihood.residual(outputs, y)
    clean = likelihood.loss(outputs, y)
    d = outputs.shape[-1]
    rows = torch.eye(d).to(outputs)[:, None].expand(-1, len(x), -1)
    root = vmap(lambda v: likelihood.factor(outputs, v))(rows)  # [d_L (column), batch, d_L]
    # images of the injections at the output: J_k ε_k, [draws, layers, batch, d_L]
    images = torch.stack(
        [torch.einsum("bof,nbf->nbo", j.flatten(2), e.flatten(2)) for j, e in zip(jacobians, eps, strict=True)],
        1,
    )
    whitened = torch.einsum("cbo,nlbo->nlbc", root, images)  # Sᵀ J_k ε_k
    c = 0.5 * whitened.square().sum((1, 3))
    total = 0.5 * whitened.sum(1).square().sum(-1)
    change = vmap(lambda e: likelihood.loss(model(x, e)[0], y) - clean, chunk_size=4096)(list(eps))
    return {
        "G": (images.sum(1) * g).sum(-1).mean(-1),
        "C": c.mean(-1),
        "H": (total - c).mean(-1),
        "change": change.mean(-1),
    }
