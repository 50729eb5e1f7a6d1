"""Piecewise-stationary sources behind a non-linear mixing: the synthetic sets of the identifiability literature.

Three generators behind `nonlinear_ica`, as in the public code of iVAE ("ivae", after Hyvärinen & Morioka 2016) and of
ICE-BeeM ("tcl", "imca"; Khemakhem et al. 2020). Everything is float64 and invertible, and says its log-determinant.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from companion.errors import CompanionError
from companion.seeds import generator

Kind = Literal["ivae", "tcl", "imca"]
Activation = Literal["leaky", "xtanh"]


@dataclass(frozen=True)
class Mixing:
    """An injective map f: R^d to R^D; `steps` are matrices `[in, out]`, applied to rows, or None for the activation.

    "leaky" is max(v, slope v), piecewise affine; "xtanh" is tanh v + 0.1 v, smooth and increasing.
    """

    steps: tuple[Tensor | None, ...]
    activation: Activation = "leaky"
    slope: float = 0.2

    def __call__(self, s: Tensor) -> Tensor:
        """Return f(s) `[..., D]` for `s` `[..., d]`."""
        for step in self.steps:
            s = self._act(s) if step is None else s @ step.to(s)
        return s

    def inverse(self, x: Tensor) -> Tensor:
        """Return the s with f(s) = x, `[..., d]`, for `x` `[..., D]` in the range of f."""
        for step in reversed(self.steps):
            x = self._undo(x) if step is None else x @ torch.linalg.pinv(step.to(x))
        return x

    def log_det(self, s: Tensor) -> Tensor:
        """Return the log-volume factor ½ log det JᵀJ of f at `s` `[..., d]`, `[...]`; log of abs det J where d = D."""
        jacobian, square, total = torch.eye(s.shape[-1], dtype=s.dtype).to(s), True, s.new_zeros(s.shape[:-1])
        for step in self.steps:
            slopes = self._slope(s) if step is None else None
            if slopes is not None:
                jacobian, total = jacobian * slopes[..., None, :], total + slopes.log().sum(-1)
                s = self._act(s)
            else:
                assert step is not None
                square = square and step.shape[0] == step.shape[1]
                jacobian, s = jacobian @ step.to(s), s @ step.to(s)
                total = total + torch.linalg.slogdet(step.to(s))[1] if square else total
        return total if square else 0.5 * torch.linalg.slogdet(jacobian @ jacobian.mT)[1]

    def _act(self, v: Tensor) -> Tensor:
        return torch.maximum(v, self.slope * v) if self.activation == "leaky" else v.tanh() + 0.1 * v

    def _slope(self, v: Tensor) -> Tensor:
        if self.activation == "leaky":
            return torch.where(v > 0, torch.ones_like(v), torch.full_like(v, self.slope))
        return 1.1 - v.tanh().square()

    def _undo(self, y: Tensor) -> Tensor:
        if self.activation == "leaky":
            return torch.minimum(y, y / self.slope)
        low, high = 10 * (y - 1), 10 * (y + 1)  # |tanh| < 1
        for _ in range(80):  # halving: Newton's steps overshoot where the slope falls to 0.1
            middle = (low + high) / 2
            above = self._act(middle) > y
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2


@dataclass(frozen=True)
class Sources:
    """Observations `x` `[n, D]`, sources `s` `[n, d]`, segment `u` `[n]`, the map, scales `[segments, d]`."""

    x: Tensor
    s: Tensor
    u: Tensor
    mixing: Mixing
    scales: Tensor
    means: Tensor


def nonlinear_ica(
    kind: Kind = "tcl",
    *,
    dim: int | None = None,
    observed: int | None = None,
    segments: int | None = None,
    per_segment: int = 1_000,
    layers: int | None = None,
    slope: float | None = None,
    activation: Activation | None = None,
    base: Literal["gauss", "laplace"] = "gauss",
    mean_range: float = 0.0,
    seed: int,
) -> Sources:
    """Draw `segments` x `per_segment` rows; what is left out takes the generator's published value.

    "ivae": d = 2 sources in D = 4, 40 segments, scales U(0.5, 3), 3 layers of well-conditioned matrices with "xtanh".
    "tcl": d = D = 5, 20 segments, scales U(0.01, 3), `layers` − 1 times (leaky ReLU of slope 0.2, Haar rotation).
    "imca": as "tcl", but sources of a segment are dependent Gaussians. `mean_range` r gives segment means U(−r, r).
    Raises CompanionError for an unknown kind, a `base` that it has not, and `observed` < `dim` or ≠ `dim` where the map
    is square.
    """
    if kind not in ("ivae", "tcl", "imca"):
        raise CompanionError(f"kind must be 'ivae', 'tcl' or 'imca', not '{kind}'")
    if base != "gauss" and kind == "imca":
        raise CompanionError(f"base '{base}' belongs to 'ivae' and 'tcl': the sources of 'imca' are Gaussian")
    first = kind == "ivae"
    dim = dim or (2 if first else 5)
    observed = observed or (4 if first and dim == 2 else dim)
    segments, layers = segments or (40 if first else 20), layers or (3 if first else 2)
    if observed < dim or (not first and observed != dim):
        raise CompanionError(f"{dim} sources cannot be observed injectively in {observed} dimensions by '{kind}'")

    def stream(*purpose: str) -> torch.Generator:
        return generator(seed, "nonlinear_ica", kind, *purpose)

    def uniform(name: str, low: float, high: float) -> Tensor:
        drawn = torch.rand(segments, dim, generator=stream(name), dtype=torch.float64)
        return low + (high - low) * drawn

    scales = uniform("scales", 0.5 if first else 0.01, 3.0)
    means = uniform("means", -mean_range, mean_range)
    unit = torch.randn(segments, per_segment, dim, generator=stream("sources"), dtype=torch.float64)
    if kind == "imca":
        s = means[:, None] + unit @ _dependent_factor(scales, stream("base")).mT
    else:
        if base == "laplace":  # unit variance, from a uniform by the inverse of its distribution
            half = torch.special.ndtr(unit) - 0.5
            unit = -half.sign() * torch.log1p(-2 * half.abs().clamp_max(0.5 - 1e-12)) / 2**0.5
        s = means[:, None] + scales[:, None] * unit
    s = s.flatten(0, 1)
    build = _conditioned if first else _rotations
    default: Activation = "xtanh" if first else "leaky"
    mixing = Mixing(
        build(dim, observed, layers, stream("mixing")),
        activation or default,
        slope if slope is not None else (0.1 if first else 0.2),
    )
    return Sources(mixing(s), s, torch.arange(segments).repeat_interleave(per_segment), mixing, scales, means)


def _dependent_factor(scales: Tensor, stream: torch.Generator) -> Tensor:
    # Precision = inverse of a fixed covariance · 0.5 / d + diag(1 / s²): sources of one segment are dependent.
    dim = scales.shape[1]
    root = torch.randn(dim, dim, generator=stream, dtype=torch.float64)
    covariance = root @ root.mT / dim + 0.1 * torch.eye(dim, dtype=torch.float64)
    precision = torch.linalg.inv(covariance) * 0.5 / dim + torch.diag_embed(scales.pow(-2))
    return torch.linalg.cholesky(torch.linalg.inv(precision))


def _rotations(dim: int, _observed: int, layers: int, stream: torch.Generator) -> tuple[Tensor | None, ...]:
    steps: list[Tensor | None] = []
    for _ in range(layers - 1):
        q, r = torch.linalg.qr(torch.randn(dim, dim, generator=stream, dtype=torch.float64))
        steps += [None, q * r.diagonal().sign()]
    return tuple(steps)


def _conditioned(dim: int, observed: int, layers: int, stream: torch.Generator) -> tuple[Tensor | None, ...]:
    first = _well_conditioned(dim, observed, stream)
    again = first if dim == observed else _well_conditioned(observed, observed, stream)
    steps: list[Tensor | None] = [first]
    for _ in range(layers - 1):
        steps += [None, again]
    return tuple(steps)


def _well_conditioned(rows: int, columns: int, stream: torch.Generator, draws: int = 10_000) -> Tensor:
    # Columns of unit norm, condition number in the best quarter of `draws`: the published rejection rule.
    drawn = 2 * torch.rand(draws + 100, rows, columns, generator=stream, dtype=torch.float64) - 1
    drawn = drawn / drawn.norm(dim=1, keepdim=True)
    condition = torch.linalg.cond(drawn)
    limit = condition[:draws].quantile(0.25)
    return drawn[draws:][int((condition[draws:] < limit).int().argmax())]
