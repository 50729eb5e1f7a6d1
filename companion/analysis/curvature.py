"""Curvature of a training loss in the weights."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

Parameters = dict[str, Tensor]


def hessian_trace(
    loss: Callable[[Parameters], Tensor], parameters: Parameters, *, probes: int, generator: torch.Generator
) -> Tensor:
    """Return Hutchinson's estimate of Tr ∂²loss/∂θ² (loss units per squared weight), a scalar tensor.

    Rademacher probes, one Hessian-vector product each, vmapped over `probes`.
    """
    signs = {
        name: torch.randint(0, 2, (probes, *p.shape), generator=generator).to(p) * 2 - 1
        for name, p in parameters.items()
    }

    def quadratic(v: Parameters) -> Tensor:
        _, product = jvp(grad(loss), (parameters,), (v,))  # type: ignore[misc]
        return torch.stack([(v[name] * product[name]).sum() for name in v]).sum()

    return vmap(quadratic, chunk_size=16)(signs).mean()
