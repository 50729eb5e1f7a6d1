"""How far samples are from data, and which spatial frequencies a change of an image has."""

import torch
from torch import Tensor


def median_bandwidth(x: Tensor) -> Tensor:
    """Return the median distance of two different rows of `x` `[n, d]`."""
    return torch.pdist(x).median()


def mmd(x: Tensor, y: Tensor, bandwidth: Tensor | float) -> Tensor:
    """Return the unbiased squared MMD of `x` `[..., n, d]` and `y` `[..., m, d]`, Gaussian kernel.

    Zero in expectation for equal distributions, so that small values may be negative.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-torch.cdist(a, b).square() / (2 * bandwidth**2)).exp()

    def within(a: Tensor) -> Tensor:
        n = a.shape[-2]
        return (kernel(a, a).sum((-1, -2)) - n) / (n * (n - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean((-1, -2))


def radial_power(change: Tensor) -> Tensor:
    """Return the power `[..., side // 2 + 1]` of images `[..., side, side]` by radial frequency in cycles per image.

    Corners beyond the Nyquist frequency of one axis are counted at the last bin.
    """
    side = change.shape[-1]
    one = torch.fft.fftfreq(side, 1 / side).to(change.device)
    radius = (one[:, None].square() + one[None].square()).sqrt().round().long().clamp_max(side // 2)
    power = torch.fft.fft2(change).abs().square()
    bins = torch.zeros(*change.shape[:-2], side // 2 + 1, dtype=change.dtype, device=change.device)
    return bins.index_add(-1, radius.flatten(), power.flatten(-2))


def centroid(power: Tensor) -> Tensor:
    """Return the mean frequency `[...]` of `power` `[..., bins]`, cycles per image."""
    frequencies = torch.arange(power.shape[-1]).to(power)
    return (power * frequencies).sum(-1) / power.sum(-1)
