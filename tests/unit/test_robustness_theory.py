"""Chapter 3: losses, attacks, bounds and certificates against closed forms and slow twins; and rules that bite."""

import math

import pytest
import torch
from scipy.stats import chi2, ncx2, page_trend_test
from torch.distributions import Normal, kl_divergence
from torch.special import ndtr, ndtri

from companion.analysis.latent_attacks import penalised_attack
from companion.analysis.latent_margins import (
    certified_margin,
    clean_probability,
    encoder_slopes,
    first_order_margins,
    judge,
    maximum_damage,
    member_deviation,
    one_step,
    pullback_directions,
    refined,
    shift_jacobian,
    strongest,
)
from companion.analysis.margin_profile import two_draws
from companion.analysis.quadratic_forms import linear_margin, quadratic_cdf
from companion.chapters import claims
from companion.chapters.ledger import Measure, passes
from companion.models.robustness_theory import (
    SeatbeltVAE,
    deviation,
    fixed_scale,
    linear_beta_elbo,
    linear_beta_vae,
    log_likelihood,
    normal_kl,
    normal_w2,
    optimal_std,
    output_objective,
    seatbelt_loss,
    stretched,
    total_correlation,
    unit_noise,
    vae,
    vae_loss,
)
from companion.nn.gaussian_vae import gaussian_kl
from companion.seeds import generator
from companion.train import Ensemble

RULES = {claim.id: claim.rule for claim in claims.load("03_robustness_theory").claims}


def holds(claim_id, **measures):
    return passes(RULES[claim_id], {name: Measure.of(name, value) for name, value in measures.items()})


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normals(*shape, purpose="x"):
    return torch.randn(*shape, generator=generator(0, purpose))


def small_vae(purpose="vae"):
    return vae((10, 12, 12), 3, "tanh", generator=generator(0, purpose)).requires_grad_(False)


# --- quadratic forms ---


@pytest.mark.parametrize(("n", "tolerance"), [(2, 1e-4), (5, 1e-7), (8, 1e-9)])
def test_quadratic_cdf_is_chi_square_for_equal_weights(n, tolerance):
    q = torch.linspace(0.5, 20, 9)
    weights, shift = 2 * torch.ones(9, n), torch.full((9, n), 0.7)
    assert (quadratic_cdf(q, weights) - torch.as_tensor(chi2.cdf(q / 2, n))).abs().max() < tolerance
    assert (quadratic_cdf(q, weights, shift) - torch.as_tensor(ncx2.cdf(q / 2, n, 0.49 * n))).abs().max() < tolerance


def test_quadratic_cdf_agrees_with_sampling_and_has_the_right_gradient():
    weights, shift = torch.tensor([2.0, 0.5, 0.1, 0.02]), torch.tensor([0.3, -1.0, 2.0, 0.0])
    draws = (weights * (normals(400_000, 4) + shift).square()).sum(-1)
    q = torch.tensor([0.5, 2.0, 6.0])
    sampled = torch.stack([(draws <= v).double().mean() for v in q])
    assert (quadratic_cdf(q, weights.expand(3, 4), shift.expand(3, 4)) - sampled).abs().max() < 4e-3
    b = shift.clone().requires_grad_(True)
    quadratic_cdf(q[1], weights, b).backward()
    step = torch.tensor([1e-5, 0, 0, 0])
    finite = (quadratic_cdf(q[1], weights, shift + step) - quadratic_cdf(q[1], weights, shift - step)) / 2e-5
    assert float(b.grad[0]) == pytest.approx(float(finite), rel=1e-4)


def test_linear_margin_equals_a_search_over_all_directions_of_two_latents():
    decoder, encoder = normals(3, 6, 2, purpose="decoder"), normals(3, 2, 5, purpose="encoder")
    std, r = torch.tensor([[0.3, 0.9]] * 3), torch.tensor([2.0, 3.0, 4.0])
    found = linear_margin(decoder, encoder, std, r, generator=generator(0, "starts"))
    for k in range(3):
        row_space = torch.linalg.svd(encoder[k], full_matrices=False)[2]
        best = math.inf
        _, scale, right = torch.linalg.svd(decoder[k] * std[k], full_matrices=False)
        for angle in torch.linspace(0, math.pi, 61):
            direction = torch.stack([angle.cos(), angle.sin()]) @ row_space
            unit_shift = right @ (encoder[k] @ direction / std[k])
            t = torch.linspace(0, 10, 1_001)
            inside = quadratic_cdf(
                (r[k] ** 2).expand(1_001), scale.square().expand(1_001, 2), t[:, None] * unit_shift, terms=400
            )
            best = min(best, float(t[inside > 0.5][-1]))
        assert float(found[k]) == pytest.approx(best, abs=0.04)


# --- objectives ---


def test_total_correlation_equals_a_loop_and_ignores_the_size_of_the_data_set():
    mean, std = normals(7, 3), 0.1 + torch.rand(7, 3, generator=generator(0, "std"))
    z = mean + std * normals(7, 3, purpose="eps")
    joint = [torch.stack([Normal(m, s).log_prob(code).sum() for m, s in zip(mean, std, strict=True)]) for code in z]
    each = [torch.stack([Normal(m, s).log_prob(code) for m, s in zip(mean, std, strict=True)]) for code in z]
    expected = torch.stack(
        [j.exp().mean().log() - e.exp().mean(0).log().sum() for j, e in zip(joint, each, strict=True)]
    ).mean()
    torch.testing.assert_close(total_correlation(z, mean, std), expected)


def test_the_loss_is_the_negative_elbo_and_its_weights_reach_kl_and_tc():
    model, x, eps = small_vae(), normals(9, 10), normals(9, 3, purpose="eps")
    mean, std = model.encode(x)
    z = mean + std * eps
    error = -Normal(model.decode(z), 0.3).log_prob(x).sum(-1).mean()
    kl = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum(-1).mean()
    tc = total_correlation(z, mean, std)

    def loss(beta, weight):
        return vae_loss(0.09)(model, (x,), eps, {"beta": torch.tensor(beta), "tc": torch.tensor(weight)})

    torch.testing.assert_close(loss(1.0, 0.0)[0], error + kl)
    torch.testing.assert_close(loss(4.0, 0.0)[0], error + 4 * kl)
    torch.testing.assert_close(loss(1.0, 3.0)[0], error + kl + 3 * tc)
    torch.testing.assert_close(loss(4.0, 0.0)[1]["elbo"], -error - kl)


def test_the_seatbelt_loss_is_the_negative_elbo_of_the_chain():
    model = SeatbeltVAE((10, 12), 2, 8, generator=generator(0, "belt")).requires_grad_(False)
    x, eps = normals(5, 10), normals(5, 4, purpose="eps")
    (m1, s1), (m2, s2) = model.encode(x, eps[:, :2])
    z1, z2 = m1 + s1 * eps[:, :2], m2 + s2 * eps[:, 2:]
    prior_mean, prior_log = model.prior(z2).chunk(2, -1)
    error = -Normal(model.decode(z1, z2), 0.5).log_prob(x).sum(-1)
    kl = kl_divergence(Normal(m1, s1), Normal(prior_mean, (prior_log / 2).exp())) + kl_divergence(
        Normal(m2, s2), Normal(0.0, 1.0)
    )
    value, metrics = seatbelt_loss(0.25)(model, (x,), eps, {"tc": torch.tensor(2.0)})
    torch.testing.assert_close(metrics["elbo"], -(error + kl.sum(-1)).mean())
    torch.testing.assert_close(value, -metrics["elbo"] + 2 * total_correlation(z2, m2, s2))


def test_distances_between_posteriors():
    p, q = (normals(4, 3), normals(4, 3).exp()), (normals(4, 3, purpose="m"), normals(4, 3, purpose="s").exp())
    torch.testing.assert_close(normal_kl(p, q), kl_divergence(Normal(*p), Normal(*q)).sum(-1))
    level = (torch.arange(20_000) + 0.5) / 20_000  # W2 in one dimension: distance of quantile functions
    quantiles = [m + s * ndtri(level) for m, s in ((p[0][0, 0], p[1][0, 0]), (q[0][0, 0], q[1][0, 0]))]
    first = normal_w2((p[0][:1, :1], p[1][:1, :1]), (q[0][:1, :1], q[1][:1, :1]))
    assert float(first) == pytest.approx(float((quantiles[0] - quantiles[1]).square().mean()), rel=1e-2)


def test_the_reference_is_deterministic_and_parts_move_what_they_say():
    model, x, v = small_vae(), normals(4, 10), normals(4, 10, purpose="v")
    zero, eps = torch.zeros(1, 4, 3), normals(2, 4, 3, purpose="eps")
    assert deviation(model)(x, x, zero).abs().max() == 0
    (m, s), (mv, sv) = model.encode(x), model.encode(v)
    reference = model.decode(m)
    for part, (mean, std) in {"both": (mv, sv), "mean": (mv, s), "std": (m, sv)}.items():
        expected = (model.decode(mean + std * eps) - reference).norm(dim=-1)
        torch.testing.assert_close(deviation(model, part)(v, x, eps), expected)
    both = normals(2, 4, 6, purpose="pairs")
    expected = (model.decode(mv + sv * both[..., :3]) - model.decode(m + s * both[..., 3:])).norm(dim=-1)
    for chunk in (1, None):
        torch.testing.assert_close(two_draws(model, chunk=chunk)(v, x, both), expected)


def test_the_output_attack_maximises_the_targets_elbo():
    model, x, target, eps = small_vae(), normals(3, 10), normals(3, 10, purpose="t"), normals(64, 3, 3, purpose="eps")
    objective = output_objective(model, target, 0.1, eps)
    mean, std = model.encode(x)
    torch.testing.assert_close(
        objective(x),
        log_likelihood(target, model.decode(mean + std * eps), 0.1).mean(0) - gaussian_kl(mean, std),
    )
    found = penalised_attack(lambda v: -objective(v), x, torch.zeros(3), steps=40, lr=0.1)
    assert (objective(x + found.delta) > objective(x)).all()  # the wrong sign would lower it


def test_penalised_attack_solves_a_case_with_a_closed_form():
    x, target = torch.zeros(3, 5), normals(3, 5)
    price = torch.tensor([0.0, 1.0, 1e6])
    found = penalised_attack(lambda v: (v - target).square().sum(-1), x, price, steps=1_500, lr=0.01)
    norm = target.norm(dim=-1)
    expected = target * (1 - price / (2 * norm)).clamp_min(0)[:, None]
    torch.testing.assert_close(found.delta, expected, atol=5e-3, rtol=0)
    torch.testing.assert_close(found.objective, found.distance + price * found.delta.norm(dim=-1))


# --- closed forms of the linear model ---


def test_the_linear_optimum_is_stationary_and_collapses_where_it_says():
    w, v, q = (t.requires_grad_(True) for t in linear_beta_vae(4.0, 0.5, 3.0))
    gradients = torch.autograd.grad(linear_beta_elbo(w, v, q, 4.0, 0.5, 3.0), (w, v, q))
    assert max(abs(float(g)) for g in gradients) < 1e-12
    assert [float(t) for t in linear_beta_vae(4.0, 0.5, 8.0)] == [0, 0, 1]
    s = optimal_std(torch.tensor([0.5, 40.0]), 4.0).requires_grad_(True)
    objective = -0.5 * torch.tensor([0.5, 40.0]) * s.square() - 4.0 * 0.5 * (s.square() - 1 - 2 * s.log())
    assert torch.autograd.grad(objective.sum(), s)[0].abs().max() < 1e-12


# --- margins ---


def members(count=3):
    return Ensemble([small_vae(f"member {k}") for k in range(count)]).requires_grad_(False)


def test_all_members_at_once_equal_one_after_the_other():
    ensemble, x = members(), normals(2, 10)
    flat = x.repeat(3, 1)
    wide = torch.stack([flat, flat]).flatten(0, 1)
    v, eps = wide + normals(12, 10, purpose="v"), normals(5, 12, 3, purpose="eps")
    together = member_deviation(ensemble, deviation, 2, rows=4)(v, wide, eps).view(5, 2, 3, 2)
    for k in range(3):
        alone = deviation(ensemble.member(k))
        for group in range(2):
            rows = slice(6 * group + 2 * k, 6 * group + 2 * k + 2)
            torch.testing.assert_close(together[:, group, k], alone(v[rows], wide[rows], eps[:, rows]))


class Identity:
    """μ(x) = x, a constant scale and an identity decoder: D² / σ² is a non-central chi-square."""

    def encode(self, x):
        return x, torch.full_like(x, 0.5)

    def decode(self, z):
        return z


def exact_identity_margin(r):
    grid = torch.linspace(0, 4, 4_001)
    inside = torch.as_tensor(ncx2.cdf((r / 0.5) ** 2, 4, ((grid / 0.5) ** 2).clamp_min(1e-12)))
    return float(grid[inside > 0.5][-1])


def test_attacked_margins_bracket_the_exact_one_for_every_r_and_refining_never_undercuts_it():
    x, radii, r = torch.zeros(5, 4), torch.linspace(0.25, 3.5, 8), torch.tensor([0.5, 1.5, 2.5])
    dev, options = deviation(Identity()), dict(latents=4, generator=generator(0, "attack"))
    delta = maximum_damage(dev, x, radii, draws=16, steps=10, box=None, **options)
    seen = judge(dev, x, delta, r, draws=600, **options)
    assert (seen.radius[0] == 0).all()  # the noise alone breaks r = 0.5
    for k in (1, 2):
        exact = exact_identity_margin(float(r[k]))
        assert (seen.radius[k] >= exact).all()
        assert (seen.radius[k] <= exact + 0.6).all()  # the grid's step and the test's caution
        fine = refined(dev, x, delta, seen.radius[k], float(r[k]), draws=600, **options)
        assert (fine <= seen.radius[k] + 1e-9).all()
        assert (fine >= exact).all()
    p0, low = clean_probability(dev, x, r, draws=20_000, level=0.999, **options)
    expected = torch.as_tensor(chi2.cdf((r / 0.5) ** 2, 4))[:, None].expand(3, 5)
    assert (p0 - expected).abs().max() < 0.02
    assert (low < p0).all()


def test_bounds_are_ordered_zero_for_a_failing_clean_image_and_scale_as_they_should():
    jacobian, std = normals(6, 4, 9), normals(6, 4, purpose="std").exp()
    bounds = first_order_margins(torch.full((6,), 0.9), std, jacobian)
    assert (bounds["frobenius"] <= bounds["spectral"]).all()
    assert (bounds["spectral"] <= bounds["whitened"] * (1 + 1e-12)).all()
    assert all((b == 0).all() for b in first_order_margins(torch.full((6,), 0.4), std, jacobian).values())
    q = ndtri(torch.tensor(0.9))
    torch.testing.assert_close(bounds["frobenius"], q * std.amin(-1) / jacobian.square().sum((1, 2)).sqrt())
    torch.testing.assert_close(
        bounds["whitened"], q / torch.linalg.svdvals(torch.diag_embed(1 / std) @ jacobian).amax(-1)
    )


def test_the_shift_jacobian_is_that_of_the_mean():
    model, x = small_vae(), normals(3, 10)
    slow = torch.stack([torch.autograd.functional.jacobian(lambda v: model.encode(v[None])[0][0], one) for one in x])
    torch.testing.assert_close(shift_jacobian(model, x), slow)


def test_the_pullback_directions_are_singular_vectors_and_one_step_keeps_ball_and_box():
    model, x = small_vae(), torch.rand(3, 10, generator=generator(0, "images"))
    found = pullback_directions(model, x)
    for k in range(3):
        whole = torch.autograd.functional.jacobian(lambda v: model.reconstruct(v[None])[0], x[k])
        top = torch.linalg.svd(whole)[2][0]
        assert float((found[k, 0] * top).sum().abs()) == pytest.approx(1.0, abs=1e-8)
    radii = torch.tensor([0.1, 0.5])
    steps = one_step(x, found[:, 0], radii)
    torch.testing.assert_close(steps.norm(dim=-1), radii[None, :, None].expand(2, 2, 3), atol=1e-6, rtol=0)
    assert ((x + steps >= -1e-9) & (x + steps <= 1 + 1e-9)).all()
    weak = torch.zeros_like(steps[0])
    best = strongest(deviation(model), x, torch.stack([weak, steps[0]]), latents=3, draws=200, generator=generator(0))
    torch.testing.assert_close(best[1], steps[0, 1])  # a step of half a unit does more than none


def test_encoder_slopes_bound_every_sampled_slope():
    model, x = small_vae(), 2 * normals(200, 10)
    std = model.encode(x)[1]
    mean_slope, log_slope = encoder_slopes(model.encoder, std[:1])
    one, two = x[::2], x[1::2]
    distance = (one - two).norm(dim=-1)
    (m1, s1), (m2, s2) = model.encode(one), model.encode(two)
    assert (((m1 - m2) / std[:1]).norm(dim=-1) <= mean_slope * distance).all()
    assert ((s1.log() - s2.log()).norm(dim=-1) <= log_slope * distance).all()
    assert encoder_slopes(fixed_scale(model, 0.1).encoder, std[:1])[1] == 0


def test_the_certificate_is_the_quantile_over_the_slope_and_pays_for_a_moving_scale():
    p0, slope = torch.tensor([0.6, 0.9, 0.999]), torch.tensor([1.0, 2.0, 30.0])
    torch.testing.assert_close(certified_margin(p0, slope), ndtri(p0) / slope)
    assert (certified_margin(p0, slope, 0.5) < ndtri(p0) / slope).all()
    assert (certified_margin(torch.tensor([0.5, 0.2]), slope[:2]) < 1e-12).all()
    # The total variation that it charges is enough: exact mass of a half-line and of an interval under a changed scale.
    for c in (0.1, 0.5):
        reach = float(certified_margin(torch.tensor([0.9]), torch.tensor([1.0]), c))
        for log_ratio in torch.linspace(-c * reach, c * reach, 21):
            k = ndtri(torch.tensor(0.9))
            assert float(ndtr((k - reach) / log_ratio.exp())) >= 0.5 - 1e-9
            half = ndtri(torch.tensor(0.95))
            inside = ndtr((half - reach) / log_ratio.exp()) - ndtr((-half - reach) / log_ratio.exp())
            assert float(inside) >= 0.5 - 1e-9


def test_a_stretched_model_is_the_same_model_in_other_coordinates():
    model, x, eps = small_vae(), normals(4, 10), normals(6, 4, 3, purpose="eps")
    other = stretched(model, 1, 10.0)
    v = x + 0.1 * normals(4, 10, purpose="v")
    torch.testing.assert_close(deviation(other)(v, x, eps), deviation(model)(v, x, eps))
    p0 = torch.full((4,), 0.9)
    before, after = (first_order_margins(p0, m.encode(x)[1], shift_jacobian(m, x)) for m in (model, other))
    torch.testing.assert_close(before["whitened"], after["whitened"])
    assert (after["frobenius"] < 0.5 * before["frobenius"]).all()


def test_a_fixed_scale_keeps_means_and_decoder():
    model, x = small_vae(), normals(4, 10)
    other = fixed_scale(model, 0.2)
    torch.testing.assert_close(other.encode(x)[0], model.encode(x)[0])
    torch.testing.assert_close(other.reconstruct(x), model.reconstruct(x))
    assert (other.encode(x)[1] == 0.2).all()
    assert unit_noise(3)(generator(0), (x,)).shape == (4, 3)


# --- rules that bite ---


def slab_margin(k):
    low, high = 0.0, k + 1.0
    for _ in range(60):
        middle = (low + high) / 2
        inside = ndtr(torch.tensor(k - middle)) - ndtr(torch.tensor(-k - middle)) > 0.5
        low, high = (middle, high) if inside else (low, middle)
    return low


@pytest.mark.parametrize(
    ("mistake", "passes_rule"),
    [
        (lambda p: ndtri(p), True),
        (lambda p: ndtri((1 + p) / 2), False),  # the two-sided quantile
        (lambda p: 2 * ndtri(p), False),  # a missing ½
        (lambda p: ndtri(p) + 0.3, False),
    ],
)
def test_a_wrong_quantile_or_factor_fails_the_main_theorems_rule(mistake, passes_rule):
    p = 2 * ndtr(torch.tensor(3.0)) - 1
    lowest = slab_margin(3.0) / float(mistake(p))
    half = float(ndtri(torch.tensor(0.9)) / mistake(torch.tensor(0.9)))  # a half-space attains the right bound
    assert holds("C4", lowest=lowest, order=1.0, tight=abs(half - 1), slope=2.0) == passes_rule


def test_a_wrong_norm_fails_the_main_theorems_rule():
    jacobian, std = normals(6, 4, 9), torch.ones(6, 4)
    bounds = first_order_margins(torch.full((6,), 0.9), std, jacobian)
    # The smallest singular value, or the largest entry, in the place of the operator norm overstates the bound.
    wrong = [torch.linalg.svdvals(jacobian).amin(-1), jacobian.abs().amax((1, 2))]
    q = ndtri(torch.tensor(0.9))
    good = float((bounds["whitened"] / bounds["spectral"]).min())
    assert holds("C4", lowest=1.07, order=good, tight=0.0, slope=2.0)
    for norm in wrong:
        order = float((bounds["whitened"] / (q / norm)).min())
        assert not holds("C4", lowest=1.07, order=order, tight=0.0, slope=2.0)


def test_half_the_shift_fails_the_neyman_pearson_rule():
    p0, m = torch.tensor(0.9), torch.tensor(0.8)
    truth = ndtr(ndtri(p0) - m)  # of a half-space, exactly
    wrong = ndtr(ndtri(p0) - m / 2)
    assert holds("C3", violations=float(truth < truth), missed=0)
    assert not holds("C3", violations=float(truth < wrong), missed=1)


def test_variance_for_standard_deviation_fails_the_chi_square_rule():
    weights = torch.tensor([1.0, 1.0, 0.3, 0.3])
    q = torch.linspace(0.3, 8, 9)
    right, wrong = (quadratic_cdf(q, w.expand(9, 4)) for w in (weights, weights.sqrt()))
    assert not holds("C2", form=float((right - wrong).abs().max()), slope=2.0, at_trace=0.56, markov=-0.1)


def test_a_collapsed_model_fails_the_rule_on_trends_and_an_untrained_one_that_on_correlation():
    model, x = small_vae(), torch.rand(30, 10, generator=generator(0, "images"))
    model.decoder[-1].weight.zero_()
    model.decoder[-1].bias.copy_(x.mean(0))  # a constant output: the best one
    eps = normals(20, 30, 3, purpose="eps")
    assert deviation(model)(x + 5, x, eps).max() == 0  # robust to everything
    informative = float((model.reconstruct(x) - x).norm(dim=-1).mean() / (x - x.mean(0)).norm(dim=-1).mean())
    trends = dict(std=0.9, jacobian=-0.9, bound=0.9, margin=0.9)
    assert holds("C7", **trends, page=0.001, informative=0.8)
    assert not holds("C7", **trends, page=0.001, informative=informative)
    chance = torch.rand(10, 6, generator=generator(0, "chance")).numpy()  # images by betas, no trend
    assert not holds("C7", **trends, page=float(page_trend_test(chance).pvalue), informative=0.8)
    blank, dev = members(), member_deviation(members(), deviation, 4)
    wide, options = x[:4].repeat(len(blank), 1), dict(latents=3, generator=generator(0, "untrained"))
    delta = maximum_damage(dev, wide, torch.tensor([0.5]), draws=4, steps=5, **options)
    margin = judge(dev, wide, delta, torch.tensor([3.0]), draws=100, **options).radius.clamp_max(0.5)
    assert margin.unique().tolist() == [0.5]  # untrained decoders hardly move: all margins are the end of the grid
    assert not holds("C6", correlation=0.0, violations=0.0)  # and a constant has no correlation
    assert not holds("C6", correlation=0.9, violations=0.05)


def test_beta_left_out_or_a_standard_deviation_fails_the_posterior_scale_rule():
    curvature, beta = torch.tensor([5.0, 50.0]), 4.0
    learnt = optimal_std(curvature, beta).square()
    assert holds("C5b", ratio=(learnt / optimal_std(curvature, beta).square()).tolist(), correlation=0.99)
    assert not holds("C5b", ratio=(learnt / optimal_std(curvature, 1.0).square()).tolist(), correlation=0.99)
    assert not holds("C5b", ratio=(learnt / optimal_std(curvature, beta)).tolist(), correlation=0.99)
    assert not holds("C5b", ratio=0.0, correlation=0.99)  # no latent is active: nothing was predicted


def test_without_the_clean_probability_the_bridge_to_two_draws_is_false():
    # g(z) = z, σ(x) = 1, σ(x + δ) = 0, the mean unmoved, r = 1: two draws are apart by one normal.
    two, clean = (2 * ndtr(torch.tensor(r)) - 1 for r in (1.0, 0.5))
    attacked = torch.tensor(1.0)
    assert two >= attacked * clean
    assert two < attacked.square()


def test_an_untrained_network_passes_the_rule_on_the_mean_only_while_its_noise_is_counted():
    model = vae((196, 64, 64), 8, generator=generator(0, "untrained")).requires_grad_(False)
    x = torch.rand(6, 196, generator=generator(0, "images"))
    damage = {}
    for part in ("both", "mean"):
        options = dict(latents=8, generator=generator(0, "attack"))
        delta = maximum_damage(deviation(model, part), x, torch.tensor([0.5, 2.0]), draws=8, steps=10, **options)
        damage[part] = judge(deviation(model), x, delta, torch.tensor([1.0]), draws=200, **options).median
    clean = damage["both"][0]
    counted = (damage["mean"][1:] / damage["both"][1:]).median(1).values.tolist()
    beyond = ((damage["mean"][1:] - clean) / (damage["both"][1:] - clean)).median(1).values.tolist()
    assert holds("C8", mean_share=counted)
    assert not holds("C8", mean_share=beyond)


def test_a_tiny_certificate_and_one_that_forgets_the_moving_scale_fail_the_rule():
    exact = float((ndtri(torch.tensor(0.95)) / ndtri(torch.tensor(0.75))).log())  # |z| <= k under scales e^R, p₀ = 0.9
    moving, held = (float(certified_margin(torch.tensor([0.9]), torch.tensor([0.1]), c)) / exact for c in (1.0, 0.0))
    fine = dict(violations=0, positive=1, trap=0.1)
    assert holds("B2", **fine, price=5.0, trap_scale=moving)
    assert not holds("B2", **fine, price=5.0, trap_scale=held)
    assert not holds("B2", **fine, price=1e7, trap_scale=1e-9)


def test_another_seed_of_the_same_model_fails_the_rules_of_the_companion_paper():
    assert not holds("C12a", latent=4.5, output=1.0, seeds=4.5)  # the better of two seeds, over the other
    assert holds("C12a", latent=[5.0, 7.0], output=1.0, seeds=4.5)
    assert not holds("C12c", encoder=0.05, decoder=-0.01, encoder_seeds=0.05, decoder_seeds=0.01)
    assert holds("C12c", encoder=[0.06, 0.2], decoder=[-0.02, -0.1], encoder_seeds=0.05, decoder_seeds=0.01)
    assert not holds("C12d", std=1.1, error=0.9, std_seeds=1.1, error_seeds=0.9)
    assert not holds("C12b", seatbelt=-0.1, top=0.3)  # a top layer that carries nothing
    assert not holds("C12b", seatbelt=0.9, top=20.0)


def test_ratios_with_nothing_matched_fail_the_rule_on_equal_noise():
    unmatched = [1.046, 1.028, 1.006, 1.0]
    gap = sum(abs(v - 1) for v in unmatched) / 4
    assert not holds("B6", matched=unmatched, gap=gap, gap_unmatched=gap)
    assert holds("B6", matched=[1.01, 0.99], gap=0.01, gap_unmatched=gap)


def test_weaker_statuses_need_a_trend_on_every_data_set():
    weaker = next(c.direction for c in claims.load("03_robustness_theory").claims if c.id == "C7")
    trends = dict(std=0.9, jacobian=-0.9, bound=0.9)

    def found(**measures):
        return passes(weaker, {name: Measure.of(name, value) for name, value in {**trends, **measures}.items()})

    assert found(margin=[0.5, 0.2], page=[0.001, 0.04])
    assert not found(margin=[0.5, -0.03], page=[0.001, 0.04])
    assert not found(margin=[0.5, 0.02], page=[0.001, 0.4])
