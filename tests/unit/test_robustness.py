"""r-robustness: exact confidence bounds and attacked margins against a case with a known margin."""

import pytest
import torch
from scipy.stats import binom, ncx2

from companion.analysis.robustness import attacked_margin, clopper_pearson, judged, median_bounds
from companion.seeds import generator


def test_clopper_pearson_inverts_the_binomial_test():
    low, high = clopper_pearson(torch.tensor([0, 7, 20]), 20, 0.99)
    assert low[0] == 0
    assert high[2] == 1
    assert binom.sf(6, 20, float(low[1])) == pytest.approx(0.01)
    assert binom.cdf(7, 20, float(high[1])) == pytest.approx(0.01)


def test_median_bounds_cover_the_median_as_often_as_they_say():
    samples = torch.randn(40, 20_000, generator=generator(0, "samples"))
    low, high = median_bounds(samples, 0.95)
    for wrong in ((low > 0).double().mean(), (high < 0).double().mean()):
        assert 0.01 < float(wrong) <= 0.053  # at most 5%, and not idle either
    with pytest.raises(ValueError, match="no bound"):
        median_bounds(samples[:4], 0.99)


def linear_deviation(scale):
    """z' − μ(x) for μ(x) = x and a constant std: the deviation of an identity decoder from g(μ(x))."""
    return lambda v, x, eps: (v - x + scale * eps).norm(dim=-1)


def test_the_attacked_margin_brackets_the_exact_one_and_a_swapped_r_does_not():
    x, scale, r = torch.zeros(6, 4), 0.5, 2.0
    # D² / σ² is non-central chi-square with (R / σ)²: its median crosses r at the exact margin.
    grid = torch.linspace(0.05, 3, 60)
    exact = max(c for c in grid.tolist() if ncx2.cdf((r / scale) ** 2, 4, (c / scale) ** 2) > 0.5)
    found = attacked_margin(linear_deviation(scale), x, r, grid, noise_size=4, generator=generator(0, "attack"))
    assert (found.radius >= exact).all()
    assert (found.radius <= exact + 0.25).all()  # the test needs a clear majority, hence a little more
    other = attacked_margin(linear_deviation(scale), x, 1.0, grid, noise_size=4, generator=generator(0, "attack"))
    assert (other.radius < exact).all()


def test_judging_takes_the_smallest_norm_that_certainly_breaks_each_r_and_zero_where_the_clean_data_fail():
    clean = torch.full((100, 2), 0.5)
    attacked = torch.stack([clean, clean + 1, clean + 2], 1)  # [draws, sizes, batch]
    attacked[:55, 1] = 0.5  # just over half within 1 keeps it
    norms = torch.tensor([[1.0, 1.5], [2.0, 2.5], [3.0, 3.5]])
    found = judged(attacked, clean, norms, torch.tensor([0.4, 1.0, 2.0, 9.0]), level=0.999)
    assert found.radius.tolist() == [[0, 0], [3.0, 3.5], [3.0, 3.5], [torch.inf] * 2]
    assert found.share[1, :, 0].tolist() == pytest.approx([1, 0.55, 0])
    assert found.clean[:, 0].tolist() == [0, 1, 1, 1]
    assert found.median[:, 0].tolist() == [0.5, 0.5, 0.5, 2.5]
    attacked[:45, 1], attacked[45:, 1] = 0.5, 1.5  # 45 of 100 within r are no proof of a minority, 30 are
    assert judged(attacked, clean, norms, torch.tensor([1.0]), level=0.999).radius[0, 0] == 3
    attacked[30:, 1] = 1.5
    assert judged(attacked, clean, norms, torch.tensor([1.0]), level=0.999).radius[0, 0] == 2


def test_noise_alone_gives_margin_zero_and_no_attack_gives_infinity():
    x = torch.zeros(3, 4)
    options = dict(noise_size=4, generator=generator(0, "attack"))
    assert (attacked_margin(linear_deviation(2.0), x, 1.0, torch.tensor([0.5]), **options).radius == 0).all()
    assert attacked_margin(linear_deviation(0.1), x, 9.0, torch.tensor([0.5]), **options).radius.isinf().all()
