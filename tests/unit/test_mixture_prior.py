"""The mixture prior against torch.distributions and Monte Carlo; partitions and MCC against known cases."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from companion.analysis.clustering import ari, contingency, hungarian_accuracy, nmi, nmi_interval, purity
from companion.analysis.identifiability import correlations, mcc, rotation_null
from companion.nn.mixture_prior import MixturePrior
from companion.seeds import generator, numpy_generator
from companion.train import Ensemble


def a_prior(covariance, seed=0):
    prior = MixturePrior(4, 3, covariance=covariance, generator=generator(seed, "means")).double()
    with torch.no_grad():
        stream = generator(seed, "rest")
        prior.logits.copy_(torch.randn(4, generator=stream))
        prior.raw.copy_(torch.rand(4, 3, generator=stream) + 0.3)
        if prior.lower is not None:
            prior.lower.copy_(torch.randn(4, 3, 3, generator=stream))
    return prior


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_densities_agree_with_torch_distributions(covariance):
    prior = a_prior(covariance)
    parts = MultivariateNormal(prior.means, scale_tril=prior.cholesky())
    mixture = MixtureSameFamily(Categorical(logits=prior.logits), parts)
    z = torch.randn(5, 3, dtype=torch.float64, generator=generator(0, "z"))
    torch.testing.assert_close(prior.log_prob(z), mixture.log_prob(z))
    torch.testing.assert_close(prior.responsibilities(z).sum(-1), torch.ones(5).double())
    torch.testing.assert_close(prior.variances(), parts.covariance_matrix.diagonal(dim1=-2, dim2=-1))
    std = torch.rand(5, 3, dtype=torch.float64, generator=generator(0, "std")) + 0.1
    for k in range(4):
        q = MultivariateNormal(z, covariance_matrix=std.square().diag_embed())
        one = MultivariateNormal(prior.means[k], scale_tril=prior.cholesky()[k])
        torch.testing.assert_close(prior.kl(z, std)[:, k], kl_divergence(q, one))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_the_expectation_is_that_of_many_samples_and_needs_the_trace_term(covariance):
    prior = a_prior(covariance)
    mean, std = torch.zeros(1, 3).double(), torch.full((1, 3), 0.7).double()
    noise = torch.randn(200_000, 3, dtype=torch.float64, generator=generator(0, "noise"))
    sampled = prior.log_components(mean + std * noise)
    error = sampled.std(0) / len(noise) ** 0.5
    assert ((sampled.mean(0) - prior.log_components(mean, std)[0]).abs() < 5 * error).all()
    assert ((sampled.mean(0) - prior.log_components(mean)[0]).abs() > 5 * error).all()


def test_samples_have_the_component_s_moments_and_temperature_scales_the_variance():
    prior = a_prior("full")
    clusters = torch.full((100_000,), 2)
    z = prior.sample(clusters, temperature=0.25, generator=generator(0, "sample")).detach()
    torch.testing.assert_close(z.mean(0), prior.means[2].detach(), atol=0.02, rtol=0)
    torch.testing.assert_close(z.var(0), 0.25 * prior.variances()[2].detach(), atol=0.0, rtol=0.03)


def test_it_starts_at_the_stated_variance_and_runs_in_an_ensemble():
    members = [MixturePrior(4, 3, learn_weights=False, generator=generator(seed, "means")) for seed in range(2)]
    torch.testing.assert_close(members[0].variances(), torch.full((4, 3), 0.01), atol=2e-6, rtol=0)
    assert not members[0].logits.requires_grad
    z = torch.zeros(5, 3)
    together = Ensemble(members).call(lambda prior: prior.log_components(z, torch.ones(5, 3)))
    torch.testing.assert_close(together[1], members[1].log_components(z, torch.ones(5, 3)))
    with pytest.raises(ValueError, match="diagonal"):
        MixturePrior(4, 3, covariance="spherical", generator=generator(0, "means"))  # type: ignore[arg-type]


def test_the_full_factor_of_a_diagonal_prior_gives_the_same_numbers():
    diagonal = a_prior("diagonal")
    full = MixturePrior(4, 3, covariance="full", generator=generator(0, "means")).double()
    with torch.no_grad():
        full.logits.copy_(diagonal.logits)
        full.means.copy_(diagonal.means)
        scale = diagonal.variances().sqrt() - 1e-6
        full.raw.copy_((10 * scale).expm1().log() / 10)
    z, std = torch.ones(2, 3).double(), torch.full((2, 3), 0.2).double()
    torch.testing.assert_close(full.log_components(z, std), diagonal.log_components(z, std))
    q = Independent(Normal(z, std), 1)
    k = Independent(Normal(diagonal.means[0].expand(2, 3), diagonal.variances()[0].sqrt().expand(2, 3)), 1)
    torch.testing.assert_close(full.kl(z, std)[:, 0], kl_divergence(q, k))


# --- partitions ---


def test_partition_scores_of_known_cases():
    labels = torch.arange(10).repeat(30)
    renamed, split = 9 - labels, labels + 10 * (torch.arange(300) >= 150)
    for score in (purity, hungarian_accuracy, nmi, ari):
        assert score(renamed, labels) == pytest.approx(1.0)
    # Splitting every class in two costs purity nothing, one-to-one accuracy half: the two are not comparable.
    assert purity(split, labels) == 1.0
    assert hungarian_accuracy(split, labels) == pytest.approx(0.5)
    shuffled = labels[torch.randperm(300, generator=generator(0, "shuffle"))]
    assert abs(ari(shuffled, labels)) < 0.03
    assert purity(torch.arange(300), shuffled) == 1.0
    assert contingency(split, labels).sum() == 300
    low, high = nmi_interval(shuffled, labels, generator=numpy_generator(0, "bootstrap"), draws=50)
    assert 0 < low < high < 0.4


# --- representations ---


def test_mcc_ignores_order_sign_and_scale_and_nothing_else():
    z = torch.randn(2000, 3, dtype=torch.float64, generator=generator(0, "z"))
    assert mcc(z, z[:, [2, 0, 1]] * torch.tensor([-3.0, 0.1, 5.0])) == pytest.approx(1.0)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator(1, "R"))).Q
    assert mcc(z, z @ rotation) < 0.97
    assert mcc(z, z[torch.randperm(2000, generator=generator(2, "rows"))]) < 0.1
    assert mcc(z, z.exp(), rank=True) == pytest.approx(1.0)
    assert mcc(z, (3 * z).exp()) < 0.8
    assert correlations(z, torch.ones(2000, 1).double()).abs().max() == 0


@pytest.mark.parametrize(("dim", "expected", "spread"), [(2, 0.9003, 0.088), (6, 0.685, 0.051), (20, 0.468, 0.014)])
def test_rotation_null_has_the_known_values(dim, expected, spread):
    # In the plane exactly: the mean of max(|cos θ|, |sin θ|) is 2√2/π.
    mean, deviation = rotation_null(dim, draws=1000, generator=generator(0, "null"))
    assert mean == pytest.approx(expected, abs=0.01)
    assert deviation == pytest.approx(spread, abs=0.01)
