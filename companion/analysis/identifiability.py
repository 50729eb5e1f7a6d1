"""Do two representations agree? Mean correlation coefficients, and what unrelated ones would score.

Four scores, each blind to another class of maps between the codes of two runs: *strong* (order, sign, scale of
coordinates), *procrustes* (rotation, reflection and one common scale), *weak* (any invertible linear map: the mean
canonical correlation) and *affine* (least squares). All are functions of second moments, so that every pair of an
ensemble is scored in one batched call. Out of sample the map, its match and its signs come from one half of the
rows, the correlations from the other: unrelated codes then score 0.
"""

import numpy
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

SCORES = ("strong", "procrustes", "affine", "weak")
RIDGE = 1e-9  # of the mean variance: a coordinate that never moves has no correlation


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

    The mean absolute correlation over the best one-to-one match of coordinates (Hungarian), blind to order and scale.
    Unrelated representations do not score 0: compare with `rotation_null`.
    """
    table = correlations(a, b, rank=rank).abs().cpu().numpy()
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].mean())


def haar(draws: int, dim: int, *, generator: torch.Generator) -> Tensor:
    """Draw orthogonal matrices `[draws, dim, dim]` (float64) from the Haar measure."""
    gaussian = torch.randn(draws, dim, dim, dtype=torch.float64, generator=generator)
    orthogonal, triangular = torch.linalg.qr(gaussian)
    return orthogonal * triangular.diagonal(dim1=-2, dim2=-1).sign()[:, None]


def rotation_null(dim: int, *, draws: int = 200, generator: torch.Generator) -> tuple[float, float]:
    """Return mean and standard deviation of the MCC of a whitened representation and a random rotation of it."""
    scores = []
    for rotation in haar(draws, dim, generator=generator).abs().numpy():  # the correlations of whitened z and Rz
        rows, columns = linear_sum_assignment(rotation, maximize=True)
        scores.append(rotation[rows, columns].mean())
    values = torch.tensor(scores)
    return float(values.mean()), float(values.std())


def calibrated(score: Tensor | float, null: float) -> Tensor | float:
    """Return (score − null) / (1 − null): 0 for unrelated representations, 1 for equal ones, at every dimension."""
    return (score - null) / (1 - null)


def _moments(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Covariances within a, across, within b, [..., n, n], in float64: ratios of small numbers follow.
    a, b = (v.double() - v.double().mean(-2, keepdim=True) for v in (a, b))
    return tuple(x.mT @ y / x.shape[-2] for x, y in ((a, a), (a, b), (b, b)))  # type: ignore[return-value]


def _regular(c: Tensor) -> Tensor:
    scale = c.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-300)
    return c + RIDGE * scale[..., None, None] * torch.eye(c.shape[-1], dtype=c.dtype, device=c.device)


def _diagonal(left: Tensor, c: Tensor, right: Tensor) -> Tensor:
    return torch.einsum("...ik,...ij,...jk->...k", left, c, right)


def _ratio(cross: Tensor, *variances: Tensor) -> Tensor:
    scale = (variances[0] * variances[1]).clamp_min(0).sqrt()
    return torch.where(scale > 0, cross / scale.clamp_min(1e-300), 0)


def _weak(fit: tuple[Tensor, ...], seen: tuple[Tensor, ...]) -> Tensor:
    first, second = (torch.linalg.cholesky(_regular(c)) for c in (fit[0], fit[2]))
    half = torch.linalg.solve_triangular(first, fit[1], upper=False)
    core = torch.linalg.solve_triangular(second, half.mT, upper=False).mT
    u, _, vt = torch.linalg.svd(core)
    a = torch.linalg.solve_triangular(first.mT, u, upper=True)
    b = torch.linalg.solve_triangular(second.mT, vt.mT, upper=True)
    return _ratio(_diagonal(a, seen[1], b), _diagonal(a, seen[0], a), _diagonal(b, seen[2], b)).mean(-1)


def _affine(fit: tuple[Tensor, ...], seen: tuple[Tensor, ...]) -> Tensor:
    def one(aa: Tensor, ab: Tensor, seen_aa: Tensor, seen_ab: Tensor, seen_bb: Tensor) -> Tensor:
        w = torch.linalg.solve(_regular(aa), ab)
        cross = torch.einsum("...ik,...ik->...k", w, seen_ab)
        return _ratio(cross, _diagonal(w, seen_aa, w), seen_bb.diagonal(dim1=-2, dim2=-1)).mean(-1)

    forth = one(fit[0], fit[1], *seen)
    return (forth + one(fit[2], fit[1].mT, seen[2], seen[1].mT, seen[0])) / 2


def _procrustes(fit: tuple[Tensor, ...], seen: tuple[Tensor, ...]) -> Tensor:
    u, _, vt = torch.linalg.svd(fit[1])
    scale = [c.diagonal(dim1=-2, dim2=-1).sum(-1) for c in (seen[0], seen[2])]
    return _ratio(((u @ vt) * seen[1]).sum((-2, -1)), *scale)


def _strong(fit: tuple[Tensor, ...], seen: tuple[Tensor, ...]) -> Tensor:
    def table(moments: tuple[Tensor, ...]) -> Tensor:
        a, b = (c.diagonal(dim1=-2, dim2=-1) for c in (moments[0], moments[2]))
        return _ratio(moments[1], a[..., :, None].expand_as(moments[1]), b[..., None, :].expand_as(moments[1]))

    fitted, shown = table(fit), table(seen)
    signed = (shown * fitted.sign()).reshape(-1, *shown.shape[-2:]).cpu().numpy()
    values = []
    for sizes, signs in zip(fitted.abs().reshape(signed.shape).cpu().numpy(), signed, strict=True):
        rows, columns = linear_sum_assignment(sizes, maximize=True)
        values.append(signs[rows, columns].mean())
    return torch.from_numpy(numpy.array(values)).reshape(shown.shape[:-2])


def agreement(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Return the scores of `a`, `b` `[..., n, p]` as `{"weak_in", "weak_out", "affine_in", ...}`, each `[...]`.

    `_in`: fitted and judged on the first half of the rows. `_out`: fitted there, judged on the second half.
    """
    rows = a.shape[-2] // 2
    fit = _moments(a[..., :rows, :], b[..., :rows, :])
    held = _moments(a[..., rows:, :], b[..., rows:, :])
    functions = dict(zip(SCORES, (_strong, _procrustes, _affine, _weak), strict=True))
    return {
        f"{name}_{where}": function(fit, seen).cpu()
        for name, function in functions.items()
        for where, seen in (("in", fit), ("out", held))
    }


def all_pairs(codes: Tensor) -> dict[str, Tensor]:
    """Return the scores of every pair of runs, symmetric `[runs, runs]` with a diagonal of NaN, for `[runs, n, p]`."""
    first, second = torch.triu_indices(len(codes), len(codes), 1)
    tables = {}
    for name, values in agreement(codes[first], codes[second]).items():
        table = torch.full((len(codes), len(codes)), torch.nan, dtype=torch.float64)
        table[first, second] = table[second, first] = values
        tables[name] = table
    return tables


def seed_bootstrap(table: Tensor, *, draws: int = 2_000, generator: torch.Generator) -> dict[str, float]:
    """Return mean, standard error and 95% interval of the mean over pairs of a symmetric `table` `[runs, runs]`.

    Runs are resampled, not pairs: ten runs give 45 pairs but only ten independent draws. A run drawn twice is not
    paired with itself, and spreads are those of the sample times √(n / (n − 1)), since n runs drawn from n vary too
    little. For the difference of two kinds of model with equal seeds pass the difference of their tables.
    """
    runs = len(table)
    picks = torch.randint(runs, (draws, runs), generator=generator)
    sampled = table[picks[:, :, None], picks[:, None, :]]  # [draws, runs, runs]
    means = sampled.nanmean((1, 2))
    means = means[means.isfinite()]  # a draw of one run only has no pair
    means = means.mean() + (means - means.mean()) * (runs / (runs - 1)) ** 0.5
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return {"mean": float(table.nanmean()), "se": float(means.std()), "low": low, "high": high}


def live_tables(codes: list[Tensor]) -> dict[str, Tensor]:
    """Return held-out "strong" and "affine" scores of every pair of `codes`, one `[rows, p_i]` per run, p_i may differ.

    For runs whose dead latents have been left out. Affine: each latent of one run from all of the other, both ways.
    """
    runs, rows = len(codes), len(codes[0]) // 2
    tables = {name: torch.full((runs, runs), torch.nan, dtype=torch.float64) for name in ("strong", "affine")}

    def explained(a: Tensor, b: Tensor) -> Tensor:
        design = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], 1)
        rest = b[rows:] - design[rows:] @ torch.linalg.lstsq(design[:rows], b[:rows]).solution
        return (1 - rest.var(0) / b[rows:].var(0)).clamp_min(0).sqrt().mean()

    for i in range(runs):
        for j in range(i):
            a, b = codes[i].double().cpu(), codes[j].double().cpu()
            tables["strong"][i, j] = tables["strong"][j, i] = _held_strong(a, b)
            tables["affine"][i, j] = tables["affine"][j, i] = (explained(a, b) + explained(b, a)) / 2
    return tables


def _held_strong(a: Tensor, b: Tensor) -> float:
    rows = len(a) // 2
    return _matched(*(correlations(a[part], b[part]) for part in (slice(rows), slice(rows, None))))


def _matched(fit: Tensor, held: Tensor) -> float:
    fitted, shown = fit.numpy(), held.numpy()
    first, second = linear_sum_assignment(abs(fitted), maximize=True)  # any shape: the smaller side is matched
    return float((shown[first, second] * numpy.sign(fitted[first, second])).mean())


def random_axes(codes: list[Tensor], *, white: bool, draws: int, generator: torch.Generator) -> Tensor:
    """Return the mean strong score over pairs `[draws]` after every run was put into random axes of its own latents.

    The codes are standardised, or whitened, and rotated. The null of "these latents share a space, not their axes".
    """
    halves = []
    for code in codes:
        z = code.double().cpu()
        first = z[: len(z) // 2]
        if white:
            factor = torch.linalg.cholesky(_regular(torch.cov(first.mT).view(z.shape[1], z.shape[1])))
            z = torch.linalg.solve_triangular(factor, z.mT, upper=False).mT
        else:
            z = z / first.std(0)
        halves.append([part - part.mean(0) for part in (z[: len(first)], z[len(first) :])])
    drawn = [[haar(1, z.shape[1], generator=generator)[0] for z in codes] for _ in range(draws)]
    turns = [torch.stack(own) for own in zip(*drawn, strict=True)]  # [draws, p_i, p_i] of every run
    # Rotating the moments of a pair rotates its codes, without a pass over their rows at every draw.
    sizes = [[(turn.mT @ (z.mT @ z) @ turn).diagonal(dim1=1, dim2=2).sqrt() for z in own]
             for own, turn in zip(halves, turns, strict=True)]  # fmt: skip
    total, pairs = torch.zeros(draws, dtype=torch.float64), [(i, j) for i in range(len(codes)) for j in range(i)]
    for i, j in pairs:
        tables = [
            turns[i].mT @ (halves[i][k].mT @ halves[j][k]) @ turns[j] / (sizes[i][k][:, :, None] * sizes[j][k][:, None])
            for k in (0, 1)
        ]
        total += torch.tensor([_matched(*both) for both in zip(*tables, strict=True)], dtype=torch.float64)
    return total / len(pairs)


def ladder(a: Tensor, b: Tensor, *, neighbours: int = 10) -> dict[str, float]:
    """Return the share of the variance of `b` that `a` leaves unexplained, by ever wider classes of maps.

    `a` `[n, p]`, `b` `[n, q]`, each coordinate standardised. "match": order, sign and scale; "linear": least squares;
    "nearest": the mean residual of the nearest `neighbours` of whitened `a`, besides. Fitted on one half, judged on
    the other.
    """
    from sklearn.neighbors import NearestNeighbors

    rows = len(a) // 2
    a, b = (((v - v[:rows].mean(0)) / v[:rows].std(0)).double().cpu() for v in (a, b))
    table = correlations(a[:rows], b[:rows]).numpy()
    chosen, columns = linear_sum_assignment(abs(table), maximize=True)
    matched = torch.zeros_like(b)
    matched[:, columns] = a[:, chosen] * torch.from_numpy(table[chosen, columns])
    design = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], 1)
    linear = design @ torch.linalg.lstsq(design[:rows], b[:rows]).solution
    rest = b - linear
    factor = torch.linalg.cholesky(_regular(torch.cov(a[:rows].mT)))
    white = torch.linalg.solve_triangular(factor, a.mT, upper=False).mT.numpy()
    near = NearestNeighbors(n_neighbors=neighbours).fit(white[:rows]).kneighbors(white[rows:], return_distance=False)
    curved = linear[rows:] + rest[:rows][torch.from_numpy(near)].mean(1)

    def missed(prediction: Tensor) -> float:
        return float((b[rows:] - prediction).square().mean() / b[rows:].var(0).mean())

    return {"match": missed(matched[rows:]), "linear": missed(linear[rows:]), "nearest": missed(curved)}
