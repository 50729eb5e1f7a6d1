"""Measurements against functions whose answer is known."""

import math

import pytest
import torch
from torch.func import grad, vmap

from companion.analysis.calibration import mean_entropy, negative_log_likelihood, reliability
from companion.analysis.curvature import hessian_trace
from companion.analysis.margins import deepfool_radius, linear_margin
from companion.analysis.spectra import amplitudes, fourier_integrand
from companion.seeds import generator


def test_amplitudes_of_sines():
    t = torch.arange(200) / 200
    values = 0.7 * torch.sin(2 * math.pi * 3 * t + 1.0) + 0.2 * torch.cos(2 * math.pi * 50 * t)
    found = amplitudes(values.expand(2, -1), torch.tensor([3, 4, 50]))
    torch.testing.assert_close(found, torch.tensor([[0.7, 0.0, 0.2]] * 2), atol=1e-5, rtol=0)


def test_amplitudes_beyond_nyquist_are_refused():
    with pytest.raises(ValueError, match="Nyquist"):
        amplitudes(torch.zeros(20), torch.tensor([10]))


@pytest.mark.parametrize(("centre", "width"), [(0.7, 0.3), (0.7, 0.5)])
def test_fourier_integral_is_the_gradient_energy_and_bars_bound_it(centre, width):
    n, spacing = 2_048, 0.02
    t = (torch.arange(n, dtype=torch.float64) - n / 2) * spacing

    def wave(t):
        return torch.exp(-(t**2) / 4) * torch.sin(5 * t)

    density = torch.exp(-0.5 * ((t - centre) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    truth = (density * vmap(grad(wave))(t) ** 2).sum() * spacing
    omega, integrand = fourier_integrand(wave(t), density, spacing)
    step = omega[1] - omega[0]
    torch.testing.assert_close(integrand.real.sum() * step, truth)
    assert float(integrand.abs().sum() * step) > 1.001 * float(truth)


def linear(weight, bias):
    return lambda x: x.flatten(1) @ weight.T + bias


def test_margin_of_a_linear_classifier_is_the_distance_to_the_plane():
    weight, bias = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([-5.0, 0.0])
    x, y = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1, 0])
    torch.testing.assert_close(linear_margin(linear(weight, bias), x, y), torch.tensor([4.0, 1.0, -1.0]))


def test_margin_takes_the_nearest_rival():
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 10.0]])
    found = linear_margin(linear(weight, torch.tensor([2.0, 0.0, 0.0])), torch.zeros(1, 2), torch.tensor([0]))
    torch.testing.assert_close(found, torch.tensor([0.2]))  # 2 / 10, not 2 / 1


def test_deepfool_agrees_with_the_margin_where_the_boundary_is_flat():
    stream = generator(0)
    weight, x = torch.randn(4, 6, generator=stream), torch.randn(20, 1, 2, 3, generator=stream)
    logits = linear(weight, torch.zeros(4))
    margin = linear_margin(logits, x, logits(x).argmax(1))
    torch.testing.assert_close(deepfool_radius(logits, x), margin, atol=5e-3, rtol=0)


def test_deepfool_finds_a_curved_boundary():
    def ball(x):  # class 1 outside the unit sphere
        return torch.stack([1 - x.square().sum(1), torch.zeros(len(x))], 1)

    radius = deepfool_radius(ball, torch.tensor([[0.5, 0.0], [0.0, -0.8]]))
    torch.testing.assert_close(radius, torch.tensor([0.5, 0.2]), atol=0.01, rtol=0)


def test_deepfool_says_nan_when_nothing_is_crossed():
    def constant(x):
        return torch.stack([1 + 0 * x.sum(1), 0 * x.sum(1)], 1)

    assert deepfool_radius(constant, torch.zeros(2, 3), steps=3).isnan().all()


def test_reliability_by_hand():
    # confidences 0.9 (twice, one right) and 0.6 (right)
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]], dtype=torch.float64)
    found = reliability(p.log(), torch.tensor([0, 1, 1]), bins=10)
    assert found.ece == pytest.approx((2 * abs(0.9 - 0.5) + abs(0.6 - 1)) / 3)
    assert float(found.weight.sum()) == pytest.approx(1)


def test_calibrated_labels_have_a_small_error_and_sharpened_logits_do_not():
    stream = generator(0)
    logits = 2 * torch.randn(20_000, 5, generator=stream)
    y = torch.multinomial(logits.softmax(1), 1, generator=stream)[:, 0]
    assert reliability(logits, y).ece < 0.01
    assert reliability(3 * logits, y).ece > 0.1
    assert negative_log_likelihood(logits, y) < negative_log_likelihood(3 * logits, y)
    assert negative_log_likelihood(logits, y) == pytest.approx(mean_entropy(logits), rel=0.03)


def test_hessian_trace_of_a_quadratic():
    stream = generator(0)
    root = torch.randn(6, 6, generator=stream)
    matrix = root @ root.T
    parameters = {"a": torch.randn(2, generator=stream), "b": torch.randn(2, 2, generator=stream)}

    def loss(p):
        v = torch.cat([p["a"], p["b"].flatten()])
        return 0.5 * v @ matrix @ v

    found = hessian_trace(loss, parameters, probes=4_000, generator=stream)
    assert float(found) == pytest.approx(float(matrix.trace()), rel=0.05)
    diagonal = torch.arange(6.0)  # sign probes are exact for a diagonal Hessian

    def separable(p):
        return 0.5 * (diagonal * torch.cat([p["a"], p["b"].flatten()]).square()).sum()

    assert float(hessian_trace(separable, parameters, probes=1, generator=stream)) == pytest.approx(15.0)
