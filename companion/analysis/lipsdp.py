"""LipSDP: the sharpest upper bound on a small network's Lipschitz constant that this book computes."""

from collections.abc import Sequence

import cvxpy
import numpy
from torch import nn

from companion.analysis.lipschitz import linear_layers


def lipsdp(network: nn.Sequential) -> float:
    """Return the LipSDP-Neuron upper bound of a small fully connected network (Fazlyab et al. 2019), by CLARABEL.

    With hidden activations u = φ(Wh) of slope in [0, b], any T = diag(t) >= 0 gives (Δu)ᵀT(bWΔh − Δu) >= 0; ρ bounds
    the squared constant if ρ||Δx||² − ||Δf||² exceeds a sum of such terms for every Δ. The returned number is
    computed from the solver's t by a Schur complement in float64: a bound whatever the solver's tolerance.
    Raises ValueError where the solver's t gives none.
    """
    weights, slopes = linear_layers(network)
    blocks = [w.cpu().numpy() for w in weights]
    if len(blocks) == 1:
        return float(numpy.linalg.norm(blocks[0], 2))
    sizes = [w.shape[0] for w in blocks[:-1]]
    multipliers = [cvxpy.Variable(size, nonneg=True) for size in sizes]
    rho = cvxpy.Variable(nonneg=True)
    # −(the matrix inequality), in the rows of one block tridiagonal matrix, must be positive semidefinite.
    links = [cvxpy.diag(t) @ (b * w) for t, b, w in zip(multipliers, slopes, blocks, strict=False)]
    width = [blocks[0].shape[1], *sizes]
    rows = [[numpy.zeros((i, j)) for j in width] for i in width]
    rows[0][0] = rho * numpy.eye(width[0])
    for k, (t, link) in enumerate(zip(multipliers, links, strict=True), start=1):
        rows[k][k] = 2 * cvxpy.diag(t)
        rows[k][k - 1], rows[k - 1][k] = -link, -link.T
    rows[-1][-1] = rows[-1][-1] - blocks[-1].T @ blocks[-1]
    matrix = cvxpy.bmat(rows)
    cvxpy.Problem(cvxpy.Minimize(rho), [(matrix + matrix.T) / 2 >> 0]).solve(solver=cvxpy.CLARABEL)
    return _schur_bound(blocks, slopes, [numpy.maximum(numpy.asarray(t.value), 0) for t in multipliers])


def _schur_bound(blocks: Sequence[numpy.ndarray], slopes: Sequence[float], t: Sequence[numpy.ndarray]) -> float:
    """Return √ρ for the smallest ρ that the multipliers `t` prove."""
    sizes = [len(v) for v in t]
    ends = numpy.cumsum([0, *sizes])
    hidden = numpy.zeros((ends[-1], ends[-1]))  # the matrix without its first block row
    # A solution lies on the boundary, where this matrix may be singular: a slightly larger t is inside.
    t = [v * (1 + 1e-6) for v in t]
    for k, v in enumerate(t):
        here = slice(ends[k], ends[k + 1])
        hidden[here, here] = 2 * numpy.diag(v)
        if k:
            before = slice(ends[k - 1], ends[k])
            hidden[here, before] = -slopes[k] * v[:, None] * blocks[k]
            hidden[before, here] = hidden[here, before].T
    last = slice(ends[-2], ends[-1])
    hidden[last, last] -= blocks[-1].T @ blocks[-1]
    if numpy.linalg.eigvalsh(hidden)[0] <= 0:
        raise ValueError("the multipliers of the solver prove no bound: the problem may be too large or badly scaled")
    link = numpy.zeros((ends[-1], blocks[0].shape[1]))
    link[: sizes[0]] = slopes[0] * t[0][:, None] * blocks[0]
    return float(numpy.sqrt(numpy.linalg.eigvalsh(link.T @ numpy.linalg.solve(hidden, link))[-1]))
