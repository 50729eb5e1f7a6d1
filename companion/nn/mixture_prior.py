"""A mixture-of-Gaussians prior over latents: what chapters 5 and 6 put in place of N(0, I).

`log_components` answers for a point z and, given a standard deviation, for its expectation under q(z|x): all rules
for the clusters of x, all bounds and the closed form of the optimal categorical posterior follow from it.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

SHARPNESS = 10.0  # β of the softplus that keeps variances positive, as in the released MFCVAE code
FLOOR = 1e-6  # that softplus underflows to zero


class MixturePrior(nn.Module):
    """p(z) = Σ_k π_k N(z; μ_k, Σ_k) with K = `clusters` components in `dim` dimensions.

    Means are drawn from N(0, `spread`²), weights start uniform and learn unless `learn_weights` is false, every Σ_k
    starts at `variance` times the identity: diagonal, or full by its Cholesky factor. Nothing is shared by clusters.
    Falck et al. 2021, released code. Raises ValueError for another covariance.
    """

    def __init__(
        self,
        clusters: int,
        dim: int,
        *,
        covariance: Literal["diagonal", "full"] = "diagonal",
        variance: float = 0.01,
        spread: float = 1.0,
        learn_weights: bool = True,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if covariance not in ("diagonal", "full"):
            raise ValueError(f"covariance must be 'diagonal' or 'full', not '{covariance}'")
        self.covariance = covariance
        self.logits = nn.Parameter(torch.zeros(clusters), requires_grad=learn_weights)
        self.means = nn.Parameter(spread * torch.randn(clusters, dim, generator=generator))
        # softplus(raw) is the variance (diagonal) or the diagonal of the Cholesky factor (full).
        start = variance if covariance == "diagonal" else math.sqrt(variance)
        self.raw = nn.Parameter(torch.full((clusters, dim), math.log(math.expm1(SHARPNESS * start)) / SHARPNESS))
        self.lower = nn.Parameter(torch.zeros(clusters, dim, dim)) if covariance == "full" else None

    def log_weights(self) -> Tensor:
        """Return log π `[K]`."""
        return self.logits.log_softmax(-1)

    def variances(self) -> Tensor:
        """Return the marginal variances, the diagonals of Σ_k, `[K, dim]`."""
        if self.lower is None:
            return self._positive()
        return self.cholesky().square().sum(-1)

    def cholesky(self) -> Tensor:
        """Return lower triangular factors of Σ_k, `[K, dim, dim]`."""
        if self.lower is None:
            return self._positive().sqrt().diag_embed()
        return self.lower.tril(-1) + self._positive().diag_embed()

    def log_components(self, z: Tensor, std: Tensor | None = None) -> Tensor:
        """Return log π_k + log N(z; μ_k, Σ_k) in nats, `[..., K]`, for `z` `[..., dim]`.

        With `std` `[..., dim]` its expectation under N(z, diag std²), exactly: the trace term and no sample.
        """
        shift = z[..., None, :] - self.means  # [..., K, dim]
        if self.lower is None:
            variance = self._positive()
            quadratic = (shift.square() / variance).sum(-1)
            log_det = variance.log().sum(-1)
            precision = variance.reciprocal()  # [K, dim]
        else:
            factor = self.cholesky()
            identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
            inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
            quadratic = torch.einsum("kij,...kj->...ki", inverse, shift).square().sum(-1)
            log_det = 2 * self._positive().log().sum(-1)
            precision = inverse.square().sum(-2)  # the diagonal of Σ_k⁻¹
        if std is not None:
            quadratic = quadratic + std.square() @ precision.mT
        return self.log_weights() - 0.5 * (quadratic + log_det + z.shape[-1] * math.log(2 * math.pi))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats, `[...]`."""
        return self.log_components(z).logsumexp(-1)

    def responsibilities(self, z: Tensor, std: Tensor | None = None) -> Tensor:
        """Return p(c|z) `[..., K]`; with `std` the optimal q(c|x) of q(z|x) = N(z, diag std²)."""
        return self.log_components(z, std).softmax(-1)

    def kl(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return KL(N(mean, diag std²) || N(μ_k, Σ_k)) in nats, `[..., K]`."""
        negentropy = -(std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1, keepdim=True)
        return negentropy + self.log_weights() - self.log_components(mean, std)

    def sample(self, clusters: Tensor, *, temperature: float = 1.0, generator: torch.Generator) -> Tensor:
        """Draw z `[n, dim]` from N(μ_c, temperature · Σ_c) for `clusters` `[n]` (temperature scales the variance)."""
        noise = torch.randn(*clusters.shape, self.means.shape[-1], generator=generator).to(self.means)
        step = torch.einsum("nij,nj->ni", self.cholesky()[clusters], noise)
        return self.means[clusters] + math.sqrt(temperature) * step

    def _positive(self) -> Tensor:
        return softplus(self.raw, beta=SHARPNESS) + FLOOR
