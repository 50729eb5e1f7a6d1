"""Lipschitz constants of the chapter-4 networks, measured on the weights that are used, in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from companion.models.certified_vae import CertifiedVAE, Stack
from companion.nn.jacobians import jacobians


@dataclass(frozen=True)
class Constants:
    """Lipschitz constants of decoder (a), encoder mean (b) and encoder standard deviation (c)."""

    a: float
    b: float
    c: float


def matrices(stack: Stack) -> list[Tensor]:
    """Return the layers' matrices with their gains, float64 `[out, in]`; the stack must be frozen."""
    return [stack.gain.double() * layer.weight.detach().double() for layer in stack.layers]  # type: ignore[operator, union-attr]


def product_norm(stack: Stack) -> float:
    """Return Π ||W_l||_2 by SVD: an upper bound, as ReLU and MaxMin are 1-Lipschitz."""
    return float(torch.stack([torch.linalg.matrix_norm(w, 2) for w in matrices(stack)]).prod())


def constants(vae: CertifiedVAE, *, slope: float = 0.25) -> Constants:
    """Return measured constants of a frozen VAE; `slope` bounds the sigmoid's after decoder and std network.

    The sigmoid's slope is at most 1/4; the paper's certificates take 1. A fixed std has c = 0.
    """
    c = 0.0 if float(vae.fixed) > 0 else slope * product_norm(vae.deviation)
    return Constants(slope * product_norm(vae.decoder), product_norm(vae.mean), c)


def local_norms(stack: Stack, points: Tensor, *, sigmoid: bool = False, chunk: int = 64) -> Tensor:
    """Return the norm of the Jacobian of a frozen stack (and its sigmoid) at `points` `[batch, in]`, `[batch]`.

    Only the smaller Gram matrix of each Jacobian is decomposed. A lower bound on the Lipschitz constant.
    """

    def map_(x: Tensor) -> Tensor:
        return stack(x).sigmoid() if sigmoid else stack(x)

    jacobian = jacobians(map_, points, chunk=chunk).double()
    gram = jacobian @ jacobian.mT if jacobian.shape[-2] <= jacobian.shape[-1] else jacobian.mT @ jacobian
    return torch.linalg.eigvalsh(gram)[..., -1].sqrt()
