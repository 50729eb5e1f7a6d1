"""How far a matrix is from orthonormal rows, how far a random one will be, and when it whitens."""

import torch
from torch import Tensor


def nearest(matrix: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal rows, the polar factor `[..., k, d]` of a full-rank `[..., k, d]`."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def distance(matrix: Tensor) -> Tensor:
    """Return the Frobenius distance `[...]` to the Stiefel manifold: the root of the sum of (singular value − 1)²."""
    return (torch.linalg.svdvals(matrix) - 1).norm(dim=-1)


def defect(matrix: Tensor) -> Tensor:
    """Return the defect ‖G Gᵀ − I‖_F `[...]` of `matrix` G `[..., k, d]`."""
    gram = matrix @ matrix.mT
    return torch.linalg.matrix_norm(gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))


def distance_bounds(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return bounds `[...]` of `distance`, lower and upper: the defect over 1 + largest, smallest singular value."""
    values, size = torch.linalg.svdvals(matrix), defect(matrix)
    return size / (1 + values.amax(-1)), size / (1 + values.amin(-1))


def expected_square_defect(rows: int, columns: int, kurtosis: float) -> float:
    """Return E‖G Gᵀ − I‖² for iid entries of mean 0, variance 1 / columns and that kurtosis (1 for signs)."""
    return (rows * (rows - 1) + rows * (kurtosis - 1)) / columns


def participation_ratio(covariance: Tensor) -> float:
    """Return (tr C)² / ‖C‖_F² of a covariance C `[d, d]`: how many directions carry the variance, 1 to d."""
    return float(covariance.trace().square() / covariance.square().sum())


def amari(product: Tensor) -> float:
    """Return the Amari index of A⁺ A `[k, k]`, 0 for a scaled permutation and at most 1."""
    size = product.abs()
    rows, columns = size / size.amax(1, keepdim=True), size / size.amax(0, keepdim=True)
    k = len(product)
    return float((rows.sum() + columns.sum() - 2 * k) / (2 * k * (k - 1)))
