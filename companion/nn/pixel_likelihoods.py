"""Likelihoods of whole images, in nats per image: Bernoulli pixels and a mixture of discretised logistics."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """Return −log p(x) `[batch]` of pixels in {0, 1} (or of their means) for logits of the same shape."""
    return functional.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def logistic_outputs(channels: int, mixtures: int) -> int:
    """Return how many channels `logistics` reads: logits, means, log-scales and couplings of the colours."""
    return mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)


def logistics(outputs: Tensor, x: Tensor, *, mixtures: int = 10) -> Tensor:
    """Return −log p(x) `[batch]` in nats of 8-bit images `[batch, c, h, w]` scaled to [−1, 1].

    Each pixel is a mixture of discretised logistics with bins of half width 1/255; a colour's mean is shifted by
    tanh(coupling) times the colours before it. The first and last bins take the tails. Source: PixelCNN++.
    """
    channels = x.shape[1]
    parts = outputs.unflatten(1, (-1, mixtures))  # [batch, parameters, mixtures, h, w]
    logits, mean, log_scale, coupling = parts.split([1, channels, channels, channels * (channels - 1) // 2], 1)
    log_scale, coupling = log_scale.clamp(min=-7.0), coupling.tanh()
    pixels, shifted, used = x[:, :, None], [mean[:, 0]], 0
    for channel in range(1, channels):
        shift = sum(coupling[:, used + k] * pixels[:, k] for k in range(channel))
        shifted.append(mean[:, channel] + shift)
        used += channel
    centred = pixels - torch.stack(shifted, 1)
    inverse, half = (-log_scale).exp(), 1 / 255
    high, low, middle = inverse * (centred + half), inverse * (centred - half), inverse * centred
    mass = high.sigmoid() - low.sigmoid()
    # Where the mass of the bin underflows, the density at its centre times its width.
    density = middle - log_scale - 2 * functional.softplus(middle) - math.log(127.5)
    inside = torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), density)
    first, last = high - functional.softplus(high), -functional.softplus(low)
    log_bins = torch.where(pixels < -0.999, first, torch.where(pixels > 0.999, last, inside))
    return -(log_bins.sum(1) + logits[:, 0].log_softmax(1)).logsumexp(1).flatten(1).sum(1)
