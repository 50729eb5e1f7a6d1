"""Measuring the multi-resolution ladder: what a way down is, how fast projections converge, what a state tells."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from companion.nn.haar import band_energies, levels, pool, project, up


def bilinear(x: Tensor) -> Tensor:
    """Return x at twice the resolution by bilinear interpolation, `[..., 2h, 2w]`."""
    flat = x.reshape(-1, 1, *x.shape[-2:])
    return functional.interpolate(flat, scale_factor=2, mode="bilinear").reshape(
        *x.shape[:-2], *(2 * s for s in x.shape[-2:])
    )


def _overlapping(x: Tensor) -> Tensor:
    flat = x.reshape(-1, 1, *x.shape[-2:])
    small = functional.avg_pool2d(flat, 3, stride=2, padding=1, count_include_pad=False)
    return small.reshape(*x.shape[:-2], *small.shape[-2:])


# Down and up again: what a rung of a U-Net keeps of an image.
ROUND_TRIPS: dict[str, Callable[[Tensor], Tensor]] = {
    "average": lambda x: up(pool(x)),
    "stride": lambda x: up(x[..., ::2, ::2]),
    "overlapping average": lambda x: up(_overlapping(x)),
    "average, bilinear up": lambda x: bilinear(pool(x)),
    "max": lambda x: up(
        functional.max_pool2d(x.reshape(-1, 1, *x.shape[-2:]), 2).reshape(
            *x.shape[:-2], *(s // 2 for s in x.shape[-2:])
        )
    ),
}


def matrix(operator: Callable[[Tensor], Tensor], side: int) -> Tensor:
    """Return the matrix of a linear map of side × side images, `[outputs, side²]`; float64."""
    basis = torch.eye(side * side, dtype=torch.float64).view(side * side, side, side)
    return operator(basis).flatten(1).T


def defects(operator: Callable[[Tensor], Tensor], side: int) -> dict[str, float]:
    """Return the Frobenius defects of idempotence and symmetry and the operator norm of a linear map."""
    a = matrix(operator, side)
    return {
        "idempotence": float((a @ a - a).norm()),
        "symmetry": float((a - a.T).norm()),
        "norm": float(torch.linalg.matrix_norm(a, 2)),
    }


def fine_energy_below(x: Tensor, level: int) -> Tensor:
    """Return the squared L2 norm of what the projection on V(−level) leaves out, `[...]`."""
    return (x - project(x, level)).square().mean((-2, -1))


def decay_slopes(errors: Sequence[float]) -> list[float]:
    """Return log2 of successive ratios of errors at levels j, j + 1, ...: the order of convergence."""
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


def gbm_errors(
    steps: Sequence[int],
    *,
    a: float = 0.3,
    b: float = 0.5,
    s: float = 0.6,
    paths: int = 20_000,
    noise_power: float = 0.5,
    together: bool = False,
    generator: torch.Generator,
) -> tuple[list[float], list[float]]:
    """Return strong and weak errors at T = 1 of the two-step scheme for dZ = (a + b) Z dt + s Z dW, Z_0 = 1.

    The weak error is that of the mean, in closed form. `noise_power` 0.5 is the scheme's own scale of
    the noise; `together` takes both drifts in one step (Euler and Maruyama).
    """
    finest = max(steps)
    w = torch.randn(paths, finest, generator=generator, dtype=torch.float64) / finest**0.5
    exact = ((a + b - s * s / 2) + s * w.sum(1)).exp()
    strong, weak = [], []
    for n in steps:
        dt = 1 / n
        increments = w.view(paths, n, -1).sum(2) * dt ** (noise_power - 0.5)
        factors = (1 + a * dt + s * increments) * (1 + b * dt)
        if together:
            factors = 1 + (a + b) * dt + s * increments
        z = factors.prod(1)
        strong.append(float((z - exact).square().mean().sqrt()))
        growth = 1 + (a + b) * dt if together else (1 + a * dt) * (1 + b * dt)
        weak.append(abs(growth**n - math.exp(a + b)))
    return strong, weak


def log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the least-squares slope of log y against log x."""
    u, v = (torch.tensor(list(t), dtype=torch.float64).log() for t in (x, y))
    u = u - u.mean()
    return float((u * (v - v.mean())).sum() / u.square().sum())


def nearest_means(features: Tensor) -> Tensor:
    """Return the cell `[cells, images / 2]` that the second half of the images is assigned to, by its nearest mean.

    `features` are `[cells, images, d]`; the means are those of the first half.
    """
    half = features.shape[1] // 2
    centres = features[:, :half].mean(1)
    return (features[:, half:, None] - centres).square().sum(-1).argmin(-1)


def clock_r2(marks: Tensor) -> tuple[float, float]:
    """Return R² and accuracy with which the place of a cell is read from one number per image, `marks [cells, images]`.

    By `nearest_means`. Chance accuracy is 1 / cells; the R² of guessing the middle is 0.
    """
    guess = nearest_means(marks[..., None]).double()
    truth = torch.arange(len(marks), dtype=torch.float64, device=marks.device)[:, None].expand_as(guess)
    r2 = 1 - (guess - truth).square().mean() / (truth - truth.mean()).square().mean()
    return float(r2), float((guess == truth).double().mean())


def state_bands(states: Sequence[Tensor], level: int) -> Tensor:
    """Return energies of states in V(0), W(−1), ..., W(−level): `[cells, level + 1]`, mean over images, channels."""
    rows = torch.zeros(len(states), level + 1, dtype=torch.float64)
    for row, state in zip(rows, states, strict=True):
        energies = band_energies(state.double().cpu()).flatten(0, -2).mean(0)
        row[: levels(state) + 1] = energies
    return rows


def frechet(a: Tensor, b: Tensor) -> float:
    """Return the squared Fréchet distance between the Gaussians with the moments of features a, b `[images, d]`."""
    a, b = a.double(), b.double()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    ca, cb = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(ca)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cb @ root).clamp(min=0).sqrt().sum()
    return float(mean + ca.trace() + cb.trace() - 2 * cross)
