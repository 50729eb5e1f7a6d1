"""What sources carry: linear probes of factors and labels, and reconstruction, closed forms only."""

import torch
from torch import Tensor


def _affine(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], 1).double()


def linear_r2(sources: Tensor, factors: Tensor) -> Tensor:
    """Return the R² `[p]` of the best affine map from `sources` `[n, k]` to each of `factors` `[n, p]`, in sample."""
    x, y = _affine(sources), factors.double()
    scale = x.norm(dim=0).clamp_min(1e-300)
    weights = torch.linalg.pinv(x / scale) @ y
    error = (y - (x / scale) @ weights).square().sum(0)
    return 1 - error / (y - y.mean(0)).square().sum(0)


def probe_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> float:
    """Return the test accuracy of a least-squares classifier on standardised `train` `[n, k]` and their squares."""
    mean, std = train.mean(0), train.std(0).clamp_min(1e-9)

    def features(codes: Tensor) -> Tensor:
        scaled = ((codes - mean) / std).clamp(-4, 4)
        return _affine(torch.cat([scaled, scaled.square()], 1))

    x = features(train)
    targets = torch.nn.functional.one_hot(labels, int(labels.max()) + 1).double()
    gram = x.mT @ x + 1e-3 * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weights = torch.linalg.solve(gram, x.mT @ targets)
    return float(((features(test) @ weights).argmax(1) == truth).double().mean())


def explained(x: Tensor, reconstruction: Tensor) -> float:
    """Return the share of the variance of `x` `[n, d]` that `reconstruction` `[n, d]` explains."""
    return float(1 - (x - reconstruction).square().sum() / (x - x.mean(0)).square().sum())


def pca_reconstruction(train: Tensor, x: Tensor, k: int) -> Tensor:
    """Return `x` `[n, d]` projected on the first k principal components of `train`."""
    mean = train.mean(0)
    basis = torch.linalg.eigh((train - mean).double().mT.cov())[1][:, -k:].to(x)
    return mean + (x - mean) @ basis @ basis.mT
