"""Do two representations agree? Mean correlation coefficients, and what unrelated ones would score."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def correlations(a: Tensor, b: Tensor, *, rank: bool = False) -> Tensor:
    """Return corr(a_i, b_j) `[p, q]` for `a` `[n, p]`, `b` `[n, q]`; with `rank` Spearman's, without ties.

    A constant column correlates with nothing: 0.
    """
    if rank:
        a, b = (columns.argsort(0).argsort(0).to(torch.float64) for columns in (a, b))
    a, b = a - a.mean(0), b - b.mean(0)
    scale = a.norm(dim=0)[:, None] * b.norm(dim=0)
    return torch.where(scale > 0, a.mT @ b / scale, 0)


def mcc(a: Tensor, b: Tensor, *, rank: bool = False) -> float:
    """Return the strong mean correlation coefficient of `a` `[n, p]` and `b` `[n, p]`.

    The mean of |corr| over the best one-to-one match of coordinates (Hungarian): blind to order, sign and scale.
    Unrelated representations do not score 0: compare with `rotation_null`.
    """
    table = correlations(a, b, rank=rank).abs().cpu().numpy()
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].mean())


def rotation_null(dim: int, *, draws: int = 200, generator: torch.Generator) -> tuple[float, float]:
    """Return mean and standard deviation of the MCC of a whitened representation and a random rotation of it."""
    gaussian = torch.randn(draws, dim, dim, dtype=torch.float64, generator=generator)
    orthogonal, triangular = torch.linalg.qr(gaussian)
    orthogonal = orthogonal * triangular.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # Haar measure
    scores = []
    for rotation in orthogonal.abs().numpy():  # the correlations of whitened z and Rz are the entries of R
        rows, columns = linear_sum_assignment(rotation, maximize=True)
        scores.append(rotation[rows, columns].mean())
    values = torch.tensor(scores)
    return float(values.mean()), float(values.std())
