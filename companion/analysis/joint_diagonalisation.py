"""Axes from covariances: the one linear map that makes many covariance matrices diagonal at once.

If Σ_k = A D_k Aᵀ with diagonal D_k and some pair of components has pairwise distinct ratios, the map is A⁻¹ up to
order and scale of its rows; if all D_k are multiples of one matrix, it is arbitrary up to a rotation.
"""

import math

import numpy
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor


def jacobi(matrices: Tensor, *, sweeps: int = 60, tolerance: float = 1e-9) -> Tensor:
    """Return an orthogonal V `[n, n]` that makes every Vᵀ M_k V as diagonal as it can, `matrices` `[k, n, n]`.

    Plane rotations in their closed form (Cardoso & Souloumiac 1996), float64, until no angle exceeds `tolerance`.
    """
    m = matrices.double().cpu().numpy().copy()  # NumPy: thousands of tiny operations, each costs its call
    n = m.shape[-1]
    v = numpy.eye(n)
    for _ in range(sweeps):
        largest = 0.0
        for i in range(n - 1):
            for j in range(i + 1, n):
                difference, twice = m[:, i, i] - m[:, j, j], 2 * m[:, i, j]
                on, off = difference @ difference - twice @ twice, 2 * difference @ twice
                angle = 0.5 * math.atan2(off, on + math.hypot(on, off))
                if abs(angle) <= tolerance:
                    continue
                largest = max(largest, abs(angle))
                c, s = math.cos(angle), math.sin(angle)
                for array in (m, v):  # columns of all, then rows of the matrices
                    first, second = array[..., i].copy(), array[..., j].copy()
                    array[..., i], array[..., j] = c * first + s * second, c * second - s * first
                first, second = m[:, i].copy(), m[:, j].copy()
                m[:, i], m[:, j] = c * first + s * second, c * second - s * first
        if largest == 0.0:
            break
    return torch.from_numpy(v)


def unmixing(covariances: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return W `[n, n]` with W Σ_k Wᵀ as diagonal as can be, for `covariances` `[k, n, n]` (exact where they commute).

    The weighted mean of the covariances becomes the identity; what is left is a rotation.
    """
    covariances = covariances.double()
    w = torch.ones(len(covariances), dtype=torch.float64) if weights is None else weights.double()
    w = w / w.sum()
    mean = torch.einsum("k,kij->ij", w, covariances)
    values, vectors = torch.linalg.eigh(mean)
    white = (vectors / values.clamp_min(1e-12).sqrt()) @ vectors.mT
    turned = white @ covariances @ white
    return jacobi(turned * w.sqrt()[:, None, None]).mT @ white


def off_diagonal(w: Tensor, covariances: Tensor) -> float:
    """Return the root mean square correlation off the diagonal of W Σ_k Wᵀ: `w` `[n, n]`, `covariances` `[k, n, n]`."""
    turned = w @ covariances @ w.mT
    scale = turned.diagonal(dim1=-2, dim2=-1).sqrt()
    correlation = turned / (scale[:, :, None] * scale[:, None, :])
    n = correlation.shape[-1]
    off = correlation - torch.eye(n, dtype=w.dtype, device=w.device)
    return float((off.square().sum((1, 2)) / (n * (n - 1))).mean().sqrt())


def label_covariances(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return covariance `[k, n, n]` and share `[k]` of every label with more than 2n rows of `x` `[rows, n]`."""
    groups = [x[labels == k].double() for k in labels.unique()]
    groups = [g for g in groups if len(g) > 2 * x.shape[1]]
    shares = torch.tensor([len(g) / len(x) for g in groups], device=x.device)
    return torch.stack([torch.atleast_2d(torch.cov(g.mT)) for g in groups]), shares


def mixture_covariances(x: Tensor, components: int, *, seed: int, starts: int = 1) -> tuple[Tensor, Tensor]:
    """Return covariances `[k, n, n]` and weights `[k]` of a full Gaussian mixture fitted to `x` by EM, no labels.

    scikit-learn draws its start from the number `seed`: take one of a stream, `companion.seeds.random_state`.
    """
    model = GaussianMixture(components, n_init=starts, random_state=seed, reg_covar=1e-6, max_iter=100)
    model.fit(x.double().cpu().numpy())
    return torch.from_numpy(model.covariances_), torch.from_numpy(model.weights_)
