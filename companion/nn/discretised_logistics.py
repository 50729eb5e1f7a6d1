"""Mixture of discretised logistics with coupled colours (as PixelCNN++), in nats per image."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def logistic_outputs(channels: int, mixtures: int) -> int:
    """Return how many channels `logistics` reads: logits, means, log-scales and couplings of the colours."""
    return mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)


def log_bin(low: Tensor, high: Tensor, width: Tensor, *, first: Tensor, last: Tensor) -> Tensor:
    """Return the log mass of a standard logistic between `low` and `high` = `low` + `width`, all of one shape.

    Where `first` the bin is open below, where `last` above. σ(high) − σ(low) = σ(high) σ(−low) (1 − exp(low − high)),
    exact where PixelCNN++ changes to a density.
    """
    below, above = logsigmoid(high), logsigmoid(-low)
    inside = below + above + (-torch.expm1(-width)).log()
    return torch.where(first, below, torch.where(last, above, inside))


def logistics(outputs: Tensor, x: Tensor, *, mixtures: int = 10, levels: int = 256) -> Tensor:
    """Return −log p(x) `[batch]` in nats of images `[batch, c, h, w]` of `levels` intensities, scaled to [−1, 1].

    Each pixel is a mixture of discretised logistics with bins of half width 1/(levels − 1); a colour's mean moves by
    tanh(coupling) times the colours before it. The first and last bins take the tails.
    Source: Salimans et al. 2017, arXiv 1701.05517.
    """
    half = 1 / (levels - 1)
    channels = x.shape[1]
    parts = outputs.unflatten(1, (-1, mixtures))  # [batch, parameters, mixtures, h, w]
    logits, mean, log_scale, coupling = parts.split([1, channels, channels, channels * (channels - 1) // 2], 1)
    inverse, coupling = (-log_scale.clamp(min=-7.0)).exp(), coupling.tanh()
    pixels, shifted, used = x[:, :, None], [mean[:, 0]], 0
    for channel in range(1, channels):
        shift = sum(coupling[:, used + k] * pixels[:, k] for k in range(channel))
        shifted.append(mean[:, channel] + shift)
        used += channel
    centred = pixels - torch.stack(shifted, 1)
    high, low = inverse * (centred + half), inverse * (centred - half)
    ends = {"first": pixels < -1 + half / 2, "last": pixels > 1 - half / 2}
    log_bins = log_bin(low, high, 2 * half * inverse, **ends)
    return -(log_bins.sum(1) + logits[:, 0].log_softmax(1)).logsumexp(1).flatten(1).sum(1)
