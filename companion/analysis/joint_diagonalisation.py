"""Axes from covariances: the one linear map that makes many covariance matrices diagonal at once.

If Σ_k = A D_k Aᵀ with diagonal D_k and some pair of components has pairwise distinct ratios, the map is A⁻¹ up to
order and scale of its rows; if all D_k are multiples of one matrix, it is arbitrary up to a rotation.
"""

import math

import numpy
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import one_hot


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
    """Return the root mean square off-diagonal correlation of W Σ_k Wᵀ over k."""
    turned = w @ covariances @ w.mT
    scale = turned.diagonal(dim1=-2, dim2=-1).sqrt()
    correlation = turned / (scale[:, :, None] * scale[:, None, :])
    n = correlation.shape[-1]
    off = correlation - torch.eye(n, dtype=w.dtype)
    return float((off.square().sum((1, 2)) / (n * (n - 1))).mean().sqrt())


def label_covariances(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return covariance `[k, n, n]` and share `[k]` of every label with more than 2n rows of `x` `[rows, n]`."""
    groups = [x[labels == k].double() for k in labels.unique()]
    groups = [g for g in groups if len(g) > 2 * x.shape[1]]
    return torch.stack([torch.atleast_2d(torch.cov(g.mT)) for g in groups]), torch.tensor(
        [len(g) / len(x) for g in groups]
    )


def mixture_covariances(x: Tensor, components: int, *, seed: int, starts: int = 1) -> tuple[Tensor, Tensor]:
    """Return covariances `[k, n, n]` and weights `[k]` of a full Gaussian mixture fitted to `x` by EM, no labels."""
    rows, random = x.double().cpu(), numpy.random.RandomState(seed)
    runs = []
    for _ in range(starts):
        groups = KMeans(components, n_init=1, random_state=random).fit(rows.numpy()).labels_
        runs.append(_em(rows, one_hot(torch.from_numpy(groups).long(), components).double()))
    return max(runs, key=lambda run: run[0])[1:]


def _em(
    x: Tensor, shares: Tensor, *, steps: int = 100, floor: float = 1e-6, tolerance: float = 1e-3
) -> tuple[float, Tensor, Tensor]:
    """Return mean log-likelihood, covariances and weights of a full mixture, from responsibilities `[rows, k]`.

    scikit-learn's `GaussianMixture`, all components at once: with few rows its loop over them is most of the time.
    """
    x = x - x.mean(0)  # second moments about 0 then lose no digits
    n = x.shape[1]
    outer = (x[:, :, None] * x[:, None, :]).flatten(1)  # [rows, n²]
    identity = torch.eye(n, dtype=x.dtype)
    last = bound = -math.inf
    for step in range(steps + 1):
        counts = shares.sum(0) + 10 * torch.finfo(x.dtype).eps
        means = shares.mT @ x / counts[:, None]
        moments = (shares.mT @ outer / counts[:, None]).unflatten(1, (n, n))
        covariances = moments - means[:, :, None] * means[:, None, :] + floor * identity
        weights = counts / counts.sum()
        if step == steps or abs(bound - last) < tolerance:
            break
        inverse = torch.linalg.solve_triangular(torch.linalg.cholesky(covariances), identity, upper=False)
        distance = (inverse @ (x.mT - means[:, :, None])).square().sum(1)  # [k, rows]
        scale = inverse.diagonal(dim1=1, dim2=2).log().sum(1) + weights.log() - n / 2 * math.log(2 * math.pi)
        log_joint = (scale[:, None] - distance / 2).mT
        log_rows = log_joint.logsumexp(1)
        shares = (log_joint - log_rows[:, None]).exp()
        last, bound = bound, float(log_rows.mean())
    return bound, covariances, weights
