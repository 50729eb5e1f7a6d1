"""Total correlation of codes by three estimators whose scales differ: compare within one only."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from companion.data import Batches
from companion.seeds import generator
from companion.train import Ensemble, fit


def gaussian_tc(codes: Tensor) -> float:
    """Return −½ log det of the correlation matrix of `codes` `[n, k]`, nats: exact for Gaussian codes."""
    return -0.5 * float(torch.logdet(torch.corrcoef(codes.double().mT)))


def weighted_tc(logs: Tensor) -> float:
    """Return the TC in nats of the mixture of n posteriors, from `logs[i, j, c]` = log q(code i, coordinate c | x_j).

    What minibatch-weighted sampling estimates when the batch is the whole sample. It cannot exceed (k − 1) log n, and
    gets there for sharp posteriors whatever the codes are.
    """
    n = len(logs)
    joint = torch.logsumexp(logs.sum(-1), 1) - math.log(n)
    single = torch.logsumexp(logs, 1) - math.log(n)
    return float((joint - single.sum(-1)).mean())


def laplace_logs(codes: Tensor, means: Tensor, scale: Tensor) -> Tensor:
    """Return log Laplace(codes_i; means_j, scale) `[n, n, k]`."""
    return -(codes[:, None] - means).abs() / scale - (2 * scale).log()


def normal_logs(codes: Tensor, means: Tensor, variance: Tensor) -> Tensor:
    """Return log N(codes_i; means_j, variance_j) `[n, n, k]`."""
    return -0.5 * ((codes[:, None] - means).square() / variance + (2 * math.pi * variance).log())


class _Critic(nn.Module):
    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
        stream = generator(seed, "critic")
        with torch.no_grad():
            for layer in self.net:
                if isinstance(layer, nn.Linear):
                    scale = (2 / layer.in_features) ** 0.5
                    layer.weight.copy_(scale * torch.randn(layer.weight.shape, generator=stream))
                    layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)


def _loss(critic: Any, batch: tuple[Tensor, ...], noise: Any, hyper: Mapping[str, Tensor]) -> Any:
    joint, product = batch
    loss = nn.functional.softplus(-critic(joint)).mean() + nn.functional.softplus(critic(product)).mean()
    return loss, {}


def ratio_tc(codes: Tensor, *, seed: int, steps: int = 300) -> list[float]:
    """Return the TC in nats of each of `codes` `[models, n, k]` by a classifier of joint against shuffled coordinates.

    Trained on one half and evaluated on the other, as the Donsker-Varadhan bound E_joint f − log E_product exp f.
    """
    models, n, k = codes.shape
    ranks = codes.argsort(1).argsort(1).to(codes)  # TC does not see monotone maps of coordinates: all become normal
    normal = torch.special.ndtri((ranks + 0.5) / n)

    def shuffled(rows: Tensor, purpose: str) -> Tensor:
        stream = generator(seed, "shuffle", purpose)
        order = torch.stack([torch.randperm(rows.shape[1], generator=stream) for _ in range(k)], -1)
        return rows.gather(1, order.to(rows.device).expand(models, -1, -1))

    half = n // 2
    fitted, held = normal[:, :half], normal[:, half:]
    product = shuffled(fitted.repeat(1, 4, 1), "train")
    joint = fitted.repeat(1, 4, 1)
    critics = Ensemble([_Critic(k, seed) for _ in range(models)]).to(codes.device)
    sources = [Batches(joint[m], product[m], batch_size=min(256, joint.shape[1]), seed=seed) for m in range(models)]
    fit(critics, _loss, sources, steps=steps, lr=2e-3, seed=[seed] * models, record_every=steps, desc="density ratio")
    with torch.no_grad():
        true = critics.call(lambda critic, x: critic(x), held)
        false = critics.call(lambda critic, x: critic(x), shuffled(held, "test"))
    bound = true.mean(1) - (torch.logsumexp(false, 1) - math.log(false.shape[1]))
    return [float(value) for value in bound]
