"""Where a Bijecta starts: a random flow as the paper has it, or an affine one that already fits to second order.

"sketch" is the paper's, as far as seen: the data are seen by ActNorm only. The others end in a matrix that gives the
codes the model's covariance, in directions left to chance ("random"), of the leading principal components ("pca") or
of their independent ones ("ica"). To a Gaussian eye these three are equally likely.
"""

from typing import Any

import torch
from sklearn.decomposition import FastICA
from torch import Tensor

from companion.models.bijective_ica import Bijecta, gg_variance
from companion.nn.spline_flows import Flow
from companion.seeds import generator, numpy_generator

STARTS = ("sketch", "random", "pca", "ica")


def whitening(x: Tensor) -> Tensor:
    """Return the map `[d, d]`, float64, from data `[n, d]` to unit-variance principal components, largest first."""
    values, vectors = torch.linalg.eigh(x.double().mT.cov())
    return torch.diag(values.flip(0).clamp_min(1e-9).rsqrt()) @ vectors.flip(1).mT


def components(x: Tensor, start: str, sources: int, *, seed: int) -> Tensor:
    """Return a whitening map `[d, d]` of data `[n, d]` whose first rows are what `start` names."""
    rows = whitening(x)
    if start == "random":
        mix = torch.randn(len(rows), len(rows), generator=generator(seed, "start"), dtype=torch.float64)
        return torch.linalg.qr(mix)[0] @ rows.cpu()
    if start == "ica":
        leading = ((x - x.mean(0)).double() @ rows[:sources].mT).cpu().numpy()
        first = numpy_generator(seed, "fastica").normal(size=(sources, sources))
        turn = FastICA(whiten=False, fun="cube", max_iter=1000, tol=1e-3, w_init=first).fit(leading).components_
        rows[:sources] = torch.as_tensor(turn) @ rows[:sources].cpu()
    elif start != "pca":
        raise ValueError(f"no start called {start!r}: choose one of {', '.join(STARTS)}")
    return rows.cpu()


def started(
    flow: Flow,
    x: Tensor,
    unmixing: Tensor,
    *,
    start: str,
    rho: int,
    noise: float,
    seed: int,
    active: int | None = None,
    plain: bool = False,
    **options: Any,
) -> Bijecta:
    """Return a Bijecta on the CPU; except for "sketch" its codes of `x` `[n, d]` have the covariance of the model.

    That is Var(s) A Aᵀ + noise² I with A = pinv(A⁺) of the `active` sources; for a `plain` flow 2 I, the covariance
    of the Laplace base. "sketch" sets one gain only, by which A⁺z has the variance of the sources.
    """
    size = unmixing.shape[1]
    sources = len(unmixing) if active is None else active
    flow.initialise(x[: min(len(x), 1024)])
    if start == "sketch":
        flow.last.set(torch.eye(size))
        with torch.no_grad():
            codes = flow(x[:1024])[0]
        seen = codes if plain else codes @ unmixing[:sources].mT
        wanted = gg_variance(1 if plain else rho)
        flow.last.set(torch.eye(size) * (wanted / float(seen.var(0).mean())) ** 0.5)
    else:
        left, sizes, right = torch.linalg.svd(torch.linalg.pinv(unmixing[:sources].double()), full_matrices=False)
        rest = torch.randn(size, size - sources, generator=generator(seed, "rest"), dtype=torch.float64)
        basis = torch.linalg.qr(torch.cat([left, rest], 1))[0]
        basis[:, :sources] = left
        variances = torch.full((size,), gg_variance(1) if plain else noise**2, dtype=torch.float64)
        variances[:sources] += 0.0 if plain else gg_variance(rho) * sizes.square()
        root = basis * variances.sqrt()
        root[:, :sources] = root[:, :sources] @ right  # source i along column i of A
        flow.align(root @ components(x, start, sources, seed=seed))
    return Bijecta(flow, unmixing, rho=rho, noise=noise, active=active, plain=plain, **options)
