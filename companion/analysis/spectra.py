"""Fourier readings of one-dimensional functions on a uniform grid."""

import torch
from torch import Tensor


def amplitudes(values: Tensor, frequencies: Tensor) -> Tensor:
    """Return amplitudes `[..., q]` of `values` `[..., n]`, given over one period, at integer `frequencies`.

    A pure sine of amplitude 1 reads 1 (modulus of the FFT × 2 / n, as in the authors' Fourier notebook).
    Raises ValueError for a frequency beyond Nyquist's.
    """
    n = values.shape[-1]
    if frequencies.max() >= n / 2:
        raise ValueError(f"frequency {int(frequencies.max())} needs more than {n} grid points (Nyquist)")
    return torch.fft.rfft(values).abs()[..., frequencies] * 2 / n


def fourier_integrand(values: Tensor, density: Tensor, spacing: float) -> tuple[Tensor, Tensor]:
    """Return ω `[n]` and the integrand (2π)^{−1/2} G(ω) conj((G∗P)(ω)), complex `[n]`, sorted by frequency.

    F and P are unitary transforms of f and of the density p, and G(ω) = ω F(ω). The integral of the real part
    is ∫ p f'² (Plancherel); with the modulus inside the integral, as printed, it is an upper bound.
    """
    n = values.shape[-1]
    omega = _omega(n, spacing).to(values)
    g = omega * _unitary(values, spacing)  # the transform of −i f'
    # Convolution theorem: (G ∗ P)(ω) = √(2π) × transform of (p × inverse transform of G).
    convolved = _unitary(density * _inverse(g, spacing), spacing) * (2 * torch.pi) ** 0.5
    integrand = (2 * torch.pi) ** -0.5 * g * convolved.conj()
    order = omega.argsort()
    return omega[order], integrand[order]


def _omega(n: int, spacing: float) -> Tensor:
    return 2 * torch.pi * torch.fft.fftfreq(n, spacing, dtype=torch.float64)


def _unitary(values: Tensor, spacing: float) -> Tensor:
    return torch.fft.fft(values) * spacing / (2 * torch.pi) ** 0.5


def _inverse(transform: Tensor, spacing: float) -> Tensor:
    return torch.fft.ifft(transform) * (2 * torch.pi) ** 0.5 / spacing
