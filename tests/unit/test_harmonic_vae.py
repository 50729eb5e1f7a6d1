"""Chapter 2's measures of frequency, its losses and its rules: closed forms, identities, and models that must fail."""

import math

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from companion.analysis.gaussian_space import (
    gauss_hermite,
    hermite,
    line_spectrum,
    linear_share,
    mean_degree,
    ornstein_uhlenbeck,
    squared_norm_of_mean,
    stability,
    whitened,
)
from companion.chapters import claims, ledger
from companion.chapters.ledger import Measure
from companion.data import Batches
from companion.models.harmonic_vae import (
    column_energy,
    negative_elbo,
    predicted_variance,
    regression_loss,
    vae_noise,
)
from companion.nn.gaussian_vae import GaussianVAE, gaussian_kl, mlp
from companion.nn.jacobians import jacobians
from companion.seeds import generator
from companion.train import Ensemble, cosine, fit

CLAIMS = {claim.id: claim for claim in claims.load("02_harmonic_vae").claims}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- Gaussian space ---


def test_hermite_polynomials_are_orthonormal():
    z, w = gauss_hermite(60)
    values = hermite(z, 12)
    torch.testing.assert_close((values * w[:, None]).T @ values, torch.eye(13))
    torch.testing.assert_close(values[:, 3], (z**3 - 3 * z) / 6**0.5)


def test_ornstein_uhlenbeck_multiplies_degree_k_by_rho_to_the_k_and_is_a_semigroup():
    u = torch.linspace(-2, 2, 7)
    for k in range(6):
        filtered = ornstein_uhlenbeck(lambda z, k=k: hermite(z, 6)[..., k], 0.7, u)
        torch.testing.assert_close(filtered, 0.7**k * hermite(u, 6)[..., k])
    twice = ornstein_uhlenbeck(lambda z: ornstein_uhlenbeck(torch.sin, 0.6, z), 0.5, u)
    torch.testing.assert_close(twice, ornstein_uhlenbeck(torch.sin, 0.3, u))


def test_mean_degree_is_one_for_affine_maps_k_for_degree_k_and_blind_to_scale():
    z = torch.randn(400_000, 1, generator=generator(0, "z"))
    for k in (1, 2, 3):

        def polynomial(v, k=k):
            return 7 * hermite(v[:, 0], 3)[:, k : k + 1] + 5

        found = mean_degree(vmap(grad(lambda v: polynomial(v[None]).sum()))(z)[:, None], polynomial(z))
        assert float(found) == pytest.approx(k, rel=0.02)
    affine = nn.Linear(3, 4).requires_grad_(False)
    points = 0.5 * torch.randn(50_000, 3, generator=generator(0, "points"))
    assert float(mean_degree(jacobians(affine, points), affine(points), std=0.5)) == pytest.approx(1, rel=0.02)


def test_the_degree_of_a_whitened_function_ignores_the_unit_of_its_codes():
    net = mlp((2, 8, 3), "tanh", generator=generator(0, "net")).double().requires_grad_(False)
    u, mean = torch.randn(2_000, 2, generator=generator(0, "u")), torch.tensor([0.3, -0.1])
    covariance = torch.tensor([[2.0, 0.4], [0.4, 1.0]])
    plain = whitened(net, mean, covariance)
    stretched = whitened(lambda z: net(z / 5), 5 * mean, 25 * covariance)
    degrees = [float(mean_degree(jacobians(f, u), f(u))) for f in (plain, stretched)]
    assert degrees[0] == pytest.approx(degrees[1])
    torch.testing.assert_close(whitened(lambda z: z, mean, covariance)(u).T.cov(), covariance, rtol=0.1, atol=0.05)


def test_linear_share_and_stability_read_the_degrees_of_a_polynomial():
    z, partner = torch.randn(2, 200_000, 1, generator=generator(0, "pairs"))

    def mixed(v):  # energy 0.25 at degree 1 and 0.75 at degree 3
        h = hermite(v[:, 0], 3)
        return (0.25**0.5 * h[:, 1] + 0.75**0.5 * h[:, 3] + 2)[:, None]

    assert float(linear_share(mixed(z), z)) == pytest.approx(0.25, abs=0.02)
    rhos = torch.tensor([0.0, 0.5, 1.0])
    expected = 0.25 * rhos + 0.75 * rhos**3
    torch.testing.assert_close(stability(mixed, z, partner, rhos), expected, atol=0.02, rtol=0)


def test_line_spectrum_finds_a_pure_frequency():
    direction = torch.tensor([[0.6, 0.8]])
    frequency, power = line_spectrum(
        lambda z: torch.sin(2 * math.pi * 1.5 * (z @ direction[0]))[:, None], direction, torch.tensor([[0.8, -0.6]])
    )
    assert float(frequency[power.argmax()]) == pytest.approx(1.5, abs=0.13)
    _, constant = line_spectrum(lambda z: torch.ones(len(z), 1), direction, 0 * direction)
    assert float(constant.max()) < 1e-20


def test_squared_norm_of_mean_is_unbiased_where_the_plain_one_is_not():
    samples = torch.randn(64, 20_000, 3, generator=generator(0, "samples")) + torch.tensor([0.2, 0.0, -0.1])
    error = float(squared_norm_of_mean(samples).std()) / 20_000**0.5
    assert abs(float(squared_norm_of_mean(samples).mean()) - 0.05) < 4 * error
    assert float(samples.mean(0).square().sum(-1).mean()) > 0.05 + 20 * error


# --- the model ---


def tiny(std=None, latent=2, activation="tanh"):
    heads = latent if std is not None else 2 * latent
    encoder = mlp((5, 8, heads), activation, generator=generator(0, "encoder"))
    return GaussianVAE(encoder, mlp((latent, 8, 5), activation, generator=generator(0, "decoder")), std).double()


def test_loss_is_the_negative_elbo_and_its_noise_has_the_std_and_not_the_variance():
    vae, x = tiny(0.5), torch.randn(3, 5, generator=generator(0, "x"))
    eps, eta = torch.randn(3, 2, generator=generator(0, "eps")), torch.randn(3, 5, generator=generator(0, "eta"))
    hyper = {"beta": torch.tensor(2.0), "input_std": torch.tensor(0.3)}
    value, metrics = negative_elbo(0.5)(vae, (x,), (eps, eta), hyper)
    mean = vae.encoder(x + 0.3 * eta)
    error = (x - vae.decoder(mean + 0.5 * eps)).square().sum(1).mean()
    kl = gaussian_kl(mean, torch.full_like(mean, 0.5)).mean()
    torch.testing.assert_close(value, error + 2 * kl)  # 1 / 2v = 1
    torch.testing.assert_close(metrics["error"], error)
    mixed_up = (x - vae.decoder(mean + 0.25 * eps)).square().sum(1).mean()
    assert (mixed_up - error).abs() > 1e-3


def test_noise_is_one_draw_per_example():
    eps, eta = vae_noise(2, input_noise=True)(generator(0), (torch.zeros(4, 5),))
    assert eps.shape == (4, 2)
    assert eta.shape == (4, 5)
    assert not torch.equal(eta[0], eta[1])
    assert vae_noise(2)(generator(0), (torch.zeros(4, 5),))[1] is None


def test_no_encoder_noise_is_a_plain_autoencoder_with_a_penalty():
    vae, x = tiny(1e-9), torch.randn(3, 5, generator=generator(0, "x"))
    eps = torch.randn(3, 2, generator=generator(0, "eps"))
    value, _ = negative_elbo()(vae, (x,), (eps, None), {"beta": torch.tensor(0.0)})
    torch.testing.assert_close(value, 0.5 * (x - vae.reconstruct(x)).square().sum(1).mean())


def test_regression_loss_adds_noise_of_the_given_std():
    model, z, x = nn.Linear(2, 3).double(), torch.randn(4, 2), torch.randn(4, 3)
    noise = torch.randn(4, 2)
    plain, _ = regression_loss(model, (z, x), None, {})
    torch.testing.assert_close(plain, 0.5 * (x - model(z)).square().sum(1).mean())
    noisy, _ = regression_loss(model, (z, x), noise, {"std": torch.tensor(0.2)})
    torch.testing.assert_close(noisy, 0.5 * (x - model(z + 0.2 * noise)).square().sum(1).mean())


def test_probabilistic_pca_learns_the_predicted_variance():
    w = torch.randn(5, 2, generator=generator(0, "w")) * torch.tensor([2.0, 0.5])
    decoder = nn.Linear(2, 5, bias=False).requires_grad_(False)
    decoder.weight.copy_(w)
    encoder = nn.Linear(5, 4)
    nn.init.zeros_(encoder.weight)
    nn.init.zeros_(encoder.bias)
    vae = GaussianVAE(encoder, decoder)
    x = torch.randn(400, 5, generator=generator(0, "x"))
    beta, v = 0.7, 0.5
    fit(
        vae, negative_elbo(v), Batches(x, batch_size=None, seed=0), steps=1_500, lr=5e-2, schedule=cosine,
        noise=vae_noise(2), hyper={"beta": beta}, record_every=1_500,
    )  # fmt: skip
    _, std = vae.encode(x)
    energy = column_energy(vae, x[:3], torch.randn(4, 3, 2))
    gram = w.T @ w
    torch.testing.assert_close(energy, gram.diagonal().expand(3, -1))
    # The posterior is diagonal whatever the columns' inner product, so the formula holds column by column.
    expected = predicted_variance(gram.diagonal(), beta, v)
    torch.testing.assert_close(std.square().mean(0).detach(), expected, rtol=0.05, atol=0)
    assert not torch.allclose(std.mean(0).detach(), expected, rtol=0.05)  # a std mistaken for a variance


# --- the rules bite ---


def judged(claim_id, **values):
    claim = CLAIMS[claim_id]
    given = {name: Measure.of(name, value) for name, value in values.items()}
    return ledger.passes([c for c in claim.rule if c.names() <= given.keys()], given)


def refused(claim_id, **values):
    """Whether a twin that gives every measure ruled on gets no status, neither by the rule nor by its direction."""
    claim = CLAIMS[claim_id]
    given = {name: Measure.of(name, value) for name, value in values.items()}
    assert claim.ruled() <= given.keys()
    return not ledger.lets_through(claim, given)


def small_family(steps, stds=(0.1, 1.0), seed=0):
    torch.set_default_dtype(torch.float32)
    t = torch.rand(1_024, 1, generator=generator(seed, "t")) * 2 - 1
    x = torch.cat([t, torch.sinc(5 * t)], 1)

    def vae(std):
        encoder = mlp((2, 32, 32, 1), "tanh", generator=generator(seed, "encoder"))
        return GaussianVAE(encoder, mlp((1, 32, 32, 2), "tanh", generator=generator(seed, "decoder")), std)

    ensemble = Ensemble([vae(std) for std in stds])
    if steps:
        fit(
            ensemble, negative_elbo(0.01), Batches(x, batch_size=128, seed=0), steps=steps, lr=5e-3, noise=vae_noise(1),
            seed=[seed] * len(stds), hyper={"beta": torch.ones(len(stds))}, record_every=steps,
        )  # fmt: skip
    return [ensemble.member(k).requires_grad_(False) for k in range(len(stds))], x


def sinc_degrees(members):
    z = torch.randn(2_000, 1, generator=generator(0, "prior"))
    return [mean_degree(jacobians(lambda v, m=m: m.decode(v)[:, 1:], z), m.decode(z)[:, 1:]) for m in members]


def test_the_order_of_frequencies_needs_training_and_the_right_order_of_stds():
    trained, _ = small_family(600)
    low, high = sinc_degrees(trained)
    assert judged("C4b", degree_01=low, degree_10=high, degree_03=(low + high) / 2, degree_05=0.4 * low + 0.6 * high,
                  degree_07=0.2 * low + 0.8 * high)  # fmt: skip
    assert float(low) > 2 * float(high)
    untrained, _ = small_family(0)
    equal = sinc_degrees(untrained)
    assert equal[0] == equal[1]
    degrees = {f"degree_{label}": equal[0] for label in ("01", "03", "05", "07")} | {"degree_10": equal[1]}
    assert not judged("C4b", **degrees)


def test_a_collapsed_vae_is_smooth_for_nothing_and_fails_the_formula_and_the_error():
    """All codes at the prior: σ = 1, a constant decoder."""
    learned, predicted = torch.ones(50, 2), torch.ones(50, 2)
    flat = torch.corrcoef(torch.stack([learned.log().flatten(), predicted.log().flatten()]))[0, 1]
    assert not judged("C8b", correlation_01=flat, ratio_01=1.0)
    trained, x = small_family(600)
    error = (x - trained[0].reconstruct(x)).square().sum(1).mean()
    collapsed = (x - x.mean(0)).square().sum(1).mean()
    assert not judged("C12", error_01=collapsed, error_03=error, error_05=error, error_07=error, error_10=error)


def test_a_variance_taken_for_a_std_fails_the_ratio_but_not_the_correlation():
    predicted = torch.rand(200, generator=generator(0, "variance")) * 0.5 + 0.05
    mixed_up = predicted.sqrt()
    correlation = torch.corrcoef(torch.stack([predicted.log(), mixed_up.log()]))[0, 1]
    assert float(correlation) == pytest.approx(1)  # why the rule has a ratio
    assert judged("C8b", correlation_01=0.99, ratio_01=1.0)
    assert not judged("C8b", correlation_01=correlation, ratio_01=predicted.mean() / mixed_up.mean())


def test_predictions_of_other_images_pass_the_pooled_correlation_and_fail_inside_a_dimension():
    level = torch.tensor([0.05, 0.1, 1.0, 1.0])  # two dimensions in use, two idle: the pooled correlation sees these
    learned = level * (0.1 * torch.randn(200, 4, generator=generator(0, "images"))).exp()
    other = learned[torch.randperm(200, generator=generator(0, "other"))]

    def correlation(a, b):
        return torch.corrcoef(torch.stack([a.log().flatten(), b.log().flatten()]))[0, 1]

    pooled, within = correlation(learned, other), correlation(learned[:, 0], other[:, 0])
    labels = ("01", "03", "10", "30")
    twin = {f"correlation_{k}": pooled for k in labels} | {f"within_{k}": within for k in labels}
    assert judged("C8b", correlation_01=pooled)
    assert refused("C8b", **twin, **{f"ratio_{k}": 1.0 for k in labels})


def test_a_mere_stretch_lowers_degrees_and_constants_and_gets_no_status():
    """Under the prior all fall; under the codes' own Gaussian, and times the spread of the codes, nothing does."""
    falling = {"01": 5.0, "03": 4.0, "05": 3.0, "07": 2.5, "10": 2.0}
    degree = {f"degree_{k}": v for k, v in falling.items()}
    centroid = {f"centroid_{k}": v for k, v in falling.items() if k != "07"}
    seen = {f"seen_{k}": 5.0 for k in falling}
    assert refused("C4a", **{k: v for k, v in (degree | centroid | seen).items() if not k.endswith("_07")})
    assert refused("C4b", **degree, **seen, linear_01=0.8, linear_10=0.9)
    raw = {f"{name}_{k}": falling[k] for name in ("mean", "sampled", "product", "sdp") for k in ("01", "10")}
    scaled = {f"{name}_{k}": 5.0 for name in ("scaled", "scaled_product", "scaled_sdp") for k in ("01", "10")}
    assert refused("C5b", violations=0.0, small_error=0.5, **raw, **scaled)
    assert not refused("C5b", violations=0.0, small_error=0.5, **raw, **scaled | {"scaled_10": 4.0})  # so it can be met


def test_a_product_bound_that_falls_less_than_the_codes_spread_fails_the_rule():
    assert judged("C5b", product_01=50.0, product_10=28.0)
    assert not judged("C5b", product_01=50.0, product_10=28.0, scaled_product_01=50.0, scaled_product_10=28.0 * 2)


def test_raw_jacobians_that_fall_as_codes_shrink_are_no_sign_of_one_knob():
    labels = ("01", "03", "10", "30")
    raw = {f"{name}_{k}": 4.0 - i for name in ("decoder", "encoder") for i, k in enumerate(labels)}
    still = {f"{name}_{k}": 1.2 for name in ("seen", "rough") for k in labels}
    assert refused("C8c", **raw, **still)


def test_an_encoder_that_reads_smoother_directions_fails_the_degree():
    """A linear encoder: degree one whatever it reads, though its Jacobian and roughness fall."""
    falling = dict(zip(("000", "025", "050", "100"), (1.2, 1.1, 1.0, 0.9), strict=True))
    smoother = {f"{name}_{k}": v for name in ("jacobian", "rough") for k, v in falling.items()}
    assert not judged("C6b", **smoother, nonlinear_000=1.0, nonlinear_100=1.0)
    assert judged("C6b", **smoother, nonlinear_000=1.1, nonlinear_100=1.0)
    orders = dict(zip(("01", "03", "05", "07", "10"), (1.5, 1.4, 1.3, 1.2, 1.1), strict=True))
    assert not judged("C7", **{f"rough_{k}": v for k, v in orders.items()}, nonlinear_01=1.0, nonlinear_10=1.0)


def test_shrunk_outputs_are_not_robust_though_every_damage_falls():
    raw = dict(small_01=1.6, small_05=1.4, small_10=1.2, large_01=6.4, large_05=5.6, large_10=4.8, spearman=1.0)
    assert judged("C9", **raw)
    assert refused("C9", **raw, relative_01=0.17, relative_10=0.17, relative_large_01=0.6, relative_large_10=0.6)
    assert not judged("C11", damage=[1.0, 1.0])


def test_a_tenth_of_a_tight_bound_is_still_below_and_fails_the_tightness():
    n = 8
    attacked = torch.linspace(1, 2, 40)
    bound = attacked / 1.5  # spectral norm in place of the Frobenius norm would make it exact
    for factor, holds in ((1.0, True), (0.1, False)):
        below, tightness = (factor * bound <= attacked).double().mean(), (attacked / (factor * bound)).median()
        assert below == 1
        assert judged("C10", below=below, tightness=tightness, norms=n**0.5) is holds


def test_shrinking_the_outputs_is_no_defence_and_retraining_on_noise_recovers_nothing_by_missing_noise():
    assert judged("B2", cost=0.4, shrinking=0.8)
    assert not judged("B2", cost=0.4, shrinking=1.0)
    assert refused("B3", recovered=0.9, added=[0.0, 0.0])
    assert not judged("B3", recovered=0.9, added=[0.6, 0.4])


def test_codes_with_the_variance_in_place_of_the_std_fail_the_oracle():
    harmonics = torch.arange(1, 11)
    right = torch.exp(-2 * math.pi**2 * harmonics**2 * 0.06**2)
    wrong = torch.exp(-2 * math.pi**2 * harmonics**2 * 0.06**4)
    assert judged("C2", multiplier=0.0, regression=0.0, trained=0.0)
    assert not judged("C2", multiplier=0.0, regression=(right - wrong).abs().max(), trained=0.0)


def test_a_linear_decoder_meets_the_soft_bound_with_equality_and_a_wrong_std_breaks_it():
    decoder = nn.Linear(3, 6).requires_grad_(False)
    z = 0.3 * torch.randn(200_000, 3, generator=generator(0, "cloud"))
    right = decoder(z).var(0).sum().sqrt() / 0.3
    ratio = float(decoder.weight.norm() / right)
    assert ratio == pytest.approx(1, rel=0.01)
    assert judged("C5a", affine=1.0, jump=1.0, unit=1.0, networks=1.0)
    assert not judged("C5a", affine=ratio * 0.3, jump=1.0, unit=1.0, networks=1.0)
