"""Does a confidence of 0.8 mean right four times in five?"""

from typing import NamedTuple

import torch
from torch import Tensor


class Reliability(NamedTuple):
    """Equal-width confidence bins: share of examples, mean confidence and accuracy per bin, each `[bins]`."""

    weight: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def ece(self) -> float:
        """Expected calibration error, the weighted mean gap of accuracy and confidence (Guo et al. 2017)."""
        return float((self.weight * (self.accuracy - self.confidence).abs()).sum())


def reliability(logits: Tensor, y: Tensor, *, bins: int = 15) -> Reliability:
    """Bin predictions by confidence, for logits `[n, classes]` and labels `[n]`; an empty bin reads zero."""
    confidence, guess = logits.softmax(-1).max(-1)
    index = (confidence * bins).long().clamp(max=bins - 1)
    hits = torch.zeros(3, bins, dtype=torch.float64)
    for row, value in enumerate((torch.ones_like(confidence), confidence, (guess == y).to(confidence))):
        hits[row].index_add_(0, index.cpu(), value.double().cpu())
    count = hits[0].clamp_min(1)
    return Reliability(hits[0] / len(y), hits[1] / count, hits[2] / count)


def negative_log_likelihood(logits: Tensor, y: Tensor) -> float:
    """Return the mean negative log-likelihood in nats of labels `[n]` under logits `[n, classes]`."""
    return float(torch.nn.functional.cross_entropy(logits, y))


def mean_entropy(logits: Tensor) -> float:
    """Return the mean entropy of the predictions in nats, logits `[n, classes]`."""
    return float(torch.distributions.Categorical(logits=logits).entropy().mean())
