"""Layers that cannot stretch: Björck-orthonormalised linear and convolutional maps, and MaxMin (GroupSort of size 2).

A constraint that holds by construction is still certified afterwards: `operator_norm` measures the final matrices.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

SAFE = 2**0.5  # a top singular value of √3 would be sent to 0, one of 2 to −1


def bjorck(weight: Tensor, iterations: int) -> Tensor:
    """Return `weight` `[out, in]` after W <- 3/2 W − 1/2 W Wᵀ W, from a norm made at most `SAFE` (Björck & Bowie 1971).

    Every singular value s follows s <- 3/2 s − s³/2 towards 1; one iteration already leaves none above 1. All is done
    in the Gram matrix of the smaller side, which commutes with its polynomials: the large product is formed once.
    """
    wide = weight.shape[-2] <= weight.shape[-1]
    gram = weight @ weight.mT if wide else weight.mT @ weight
    scale = (SAFE / norm_bound(gram)).clamp_max(1)
    gram = scale.square() * gram
    identity = torch.eye(gram.shape[-1], dtype=weight.dtype, device=weight.device)
    step = 1.5 * identity - 0.5 * gram
    factor = scale * step
    for _ in range(iterations - 1):
        gram = gram @ (step @ step)
        step = 1.5 * identity - 0.5 * gram
        factor = factor @ step
    return factor @ weight if wide else weight @ factor


def norm_bound(gram: Tensor) -> Tensor:
    """Return an upper bound on ||W||_2 from a Gram matrix `[n, n]`: ||G⁸||_F^(1/16), at most n^(1/32) too large.

    Power iteration from one vector approaches the norm from below, so scaling by it is not safe; the same powers of
    the whole matrix, by squaring, approach it from above.
    """
    size = gram.abs().sum(-1).amax(-1).clamp_min(1e-30)  # another upper bound, which keeps the powers within range
    power = gram / size[..., None, None]
    for _ in range(3):
        power = power @ power
    return size.sqrt() * torch.linalg.matrix_norm(power).clamp_min(1e-30) ** (1 / 16)


class BjorckLinear(nn.Module):
    """y = W x + bias with Björck's W of the stored weight, or with the stored weight where `constrained` is 0.

    `constrained` is a buffer, so that members of an Ensemble may be free; PyTorch's `parametrize` gives every
    instance a class of its own, which an Ensemble refuses. `freeze` makes W the stored weight.
    """

    constrained: Tensor

    def __init__(
        self, inputs: int, outputs: int, *, constrained: bool = True, iterations: int = 3, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.iterations = iterations
        self.weight, self.bias = (nn.Parameter(torch.empty(*shape)) for shape in ((outputs, inputs), (outputs,)))
        bound = inputs**-0.5
        if constrained:  # orthonormal from the start, so that few iterations suffice
            nn.init.orthogonal_(self.weight, generator=generator)
        else:
            nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.bias, -bound, bound, generator=generator)
        self.register_buffer("constrained", torch.tensor(float(constrained)))

    def used(self) -> Tensor:
        """Return the weight in use, `[out, in]`."""
        if not self.iterations:
            return self.weight
        return torch.where(self.constrained > 0, bjorck(self.weight, self.iterations), self.weight)

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Map `[..., in]` to `[..., out]`, times `gain` (which costs less on the weight than on a batch)."""
        return nn.functional.linear(x, gain * self.used(), gain * self.bias)

    def freeze(self, iterations: int = 50) -> None:
        """Store the weight that `iterations` in float64 give, and use it as it is from now on."""
        if self.iterations:
            self.iterations = iterations
            with torch.no_grad():
                dtype = self.weight.dtype
                weight = self.double().used().clone()
                self.to(dtype)
                self.weight.copy_(weight)
        self.iterations = 0


class Orthonormal(nn.Module):
    """A `parametrize` parametrisation: Björck's kernel `[out, in, k, k]`, orthonormal as `[out, in k k]`."""

    def __init__(self, iterations: int = 3) -> None:
        super().__init__()
        self.iterations = iterations

    def forward(self, kernel: Tensor) -> Tensor:
        """Return the kernel in use."""
        return bjorck(kernel.flatten(1), self.iterations).view_as(kernel)


class LipschitzConv(nn.Module):
    """A convolution that is 1-Lipschitz: Björck's kernel over the root of how many patches share a pixel.

    ||conv x||² = Σ_patches ||K p||² <= ||K||² Σ ||p||², and every pixel lies in at most ⌈k/stride⌉² patches. Without
    overlap (k = stride) and with all of the image covered, the map of fewer to more channels preserves norms.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0, iterations: int = 3
    ) -> None:
        super().__init__()
        self.overlap = -(-kernel // stride)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding)
        parametrize.register_parametrization(self.conv, "weight", Orthonormal(iterations))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, in, h, w]` to `[batch, out, h', w']`."""
        return self.conv(x) / self.overlap


def maxmin(x: Tensor) -> Tensor:
    """Return `x` `[..., even]` with the members of each neighbouring pair sorted, the larger first.

    At each point this permutes the input: 1-Lipschitz, and gradients keep their norm.
    """
    first, second = x[..., ::2], x[..., 1::2]
    return torch.stack([torch.maximum(first, second), torch.minimum(first, second)], -1).flatten(-2)


def operator_norm(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """Return the exact l2 norm of the linear part of `layer` on inputs of `shape`: float64 SVD of the whole matrix.

    `layer` is affine and stays as it is; the matrix is materialised column by column from unit inputs, on its device.
    """
    layer = copy.deepcopy(layer).double()
    device = next(layer.parameters()).device
    probe = torch.eye(math.prod(shape), dtype=torch.float64, device=device).view(-1, *shape)
    with torch.no_grad():
        columns = layer(probe) - layer(torch.zeros_like(probe[:1]))
    return float(torch.linalg.matrix_norm(columns.flatten(1), 2))
