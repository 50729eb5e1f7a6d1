"""Jacobians of a network at many points at once."""

from collections.abc import Callable

from torch import Tensor
from torch.func import jacfwd, jacrev, vmap


def jacobians(function: Callable[[Tensor], Tensor], points: Tensor, *, chunk: int | None = None) -> Tensor:
    """Return the Jacobian of `function` (`[batch, in]` to `[batch, out]`) at each point, `[batch, out, in]`.

    Forward mode where there are fewer inputs than outputs, else reverse mode; `chunk` bounds the memory.
    """

    def one(point: Tensor) -> Tensor:
        return function(point[None])[0]

    narrow = points.shape[-1] <= function(points[:1]).shape[-1]
    return vmap(jacfwd(one) if narrow else jacrev(one), chunk_size=chunk)(points)
