"""Chapter 5: bounds and optima against slow twins, the ladder and its schedule, and what must fail each rule."""

import math

import numpy
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch.distributions import Categorical, Independent, MultivariateNormal, Normal, kl_divergence

from companion.analysis import facets
from companion.analysis import opinion_pools as pools
from companion.analysis.clustering import nmi, purity
from companion.chapters import claims
from companion.chapters.ledger import Measure
from companion.chapters.ledger import passes as rule_passes
from companion.data import Batches, load
from companion.data.coloured import paint
from companion.models.mfcvae import (
    BOUNDS,
    MFCVAE,
    ConvLadder,
    DenseLadder,
    DenseShared,
    FadeIn,
    negative_bound,
    sampled,
    start_means,
)
from companion.nn.mixture_prior import MixturePrior
from companion.seeds import generator
from companion.train import Ensemble, fit

CLAIMS = {claim.id: claim for claim in claims.load("05_mfcvae").claims}


def passes(claim_id, *, direction=False, **measures):
    rule = CLAIMS[claim_id].direction if direction else CLAIMS[claim_id].rule
    return rule_passes(rule, {name: Measure.of(name, value) for name, value in measures.items()})


def a_model(latents=(3, 2), clusters=(5, 4), *, network=DenseLadder, inputs=12, seed=0, **options):
    net = network(inputs, (16, 10, 8)[: len(latents)], latents)
    model = MFCVAE(net, latents, clusters, generator=generator(seed, "weights"), **options)
    with torch.no_grad():
        for prior in model.priors:
            prior.raw.add_(0.3)  # clusters that overlap, so that the rules differ
    return model


def noise(latents, samples=1, batch=7):
    return [torch.randn(samples, batch, d, generator=generator(0, "eps", d)) for d in latents]


X = torch.rand(7, 12, generator=generator(0, "x"))

# --- the model ---


@pytest.mark.parametrize("latents", [(3,), (3, 2), (4, 3, 2)])
@pytest.mark.parametrize("network", [DenseLadder, DenseShared])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_one_two_and_three_facets_in_every_variant(latents, network, covariance):
    model = a_model(latents, (5, 4, 3)[: len(latents)], network=network, covariance=covariance, sigma=0.3)
    q = model.encode(X)
    assert [mean.shape for mean, _ in q] == [(7, d) for d in latents]
    assert model.decode([mean for mean, _ in q]).shape == X.shape
    terms = model.facet_terms(q, noise(latents))
    assert set(terms) == set(BOUNDS) and all(t.shape == (len(latents), 7) for t in terms.values())
    assert all(torch.isfinite(t).all() for t in terms.values())


@pytest.mark.parametrize("latents", [(6,), (6, 2), (6, 4, 2)])
def test_convolutional_ladder_trains_on_rooms_and_refuses_a_fourth_facet(latents):
    x = load("rooms", "test").x[:6].flatten(1)
    model = MFCVAE(
        ConvLadder(3, latents, width=4), latents, (5, 4, 3)[: len(latents)], sigma=0.6, covariance="full",
        generator=generator(0, "weights"),
    )  # fmt: skip
    hyper = {"bound": torch.ones(1), "progressive": torch.tensor(0.0)}
    loss, _ = negative_bound(["closed"])(model, (x, torch.ones(len(latents))), noise(latents, batch=6), hyper)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    alone = model.encode(x[:1])[0][0]
    torch.testing.assert_close(model.encode(x)[0][0][:1], alone, atol=1e-4, rtol=1e-4)  # no image sees its batch
    with pytest.raises(ValueError, match="3 facets"):
        ConvLadder(3, (2, 2, 2, 2))


def test_the_released_mnist_ladder_has_the_released_layers():
    sizes = [tuple(p.shape) for p in DenseLadder(784, (500, 2000), (5, 5)).parameters() if p.ndim == 2]
    # Encoder 784-500-2000, two heads each of 5, decoder 5-2000-500 with a rung 5-500, 500-500, 500-784.
    assert sorted(sizes) == sorted(
        [(500, 784), (2000, 500), (10, 500), (10, 2000), (500, 5), (2000, 5), (500, 2000), (500, 500), (784, 500)]
    )


def test_a_facet_that_is_switched_off_neither_shows_nor_learns():
    model = a_model(sigma=0.3)
    fade = torch.tensor([0.0, 1.0])
    z = [torch.randn(7, d, generator=generator(0, "z", d)) for d in (3, 2)]
    torch.testing.assert_close(model.decode(z, fade), model.decode([10 * z[0], z[1]], fade))
    hyper = {"bound": torch.ones(1), "progressive": torch.tensor(1.0)}
    negative_bound(["marginal"])(model, (X, fade), noise((3, 2)), hyper)[0].backward()
    frozen = [*model.network.heads[0].parameters(), *model.network.rungs[0].parameters(), *model.priors[0].parameters()]
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in frozen)
    assert all(p.grad.abs().max() > 0 for p in model.network.heads[1].parameters())
    # Joint training (progressive = 0) ignores the schedule.
    hyper = {"bound": torch.ones(1), "progressive": torch.tensor(0.0)}
    negative_bound(["marginal"])(model, (X, fade), noise((3, 2)), hyper)[0].backward()
    assert frozen[0].grad.abs().max() > 0


def test_fade_in_follows_the_phases():
    source = FadeIn(Batches(X, batch_size=4, seed=0), [20, 10, 0], 5)
    fades = {step: source.batch(step)[1].tolist() for step in (0, 10, 12, 15, 22, 40)}
    assert fades[0] == fades[10] == [0, 0, 1]
    assert fades[12] == pytest.approx([0, 0.4, 1])
    assert fades[15] == [0, 1, 1] and fades[22] == pytest.approx([0.4, 1, 1]) and fades[40] == [1, 1, 1]


def test_means_start_inside_the_cloud_of_codes():
    model, x = a_model(sigma=0.3), torch.rand(200, 12, generator=generator(1, "x"))
    start_means(model, x, numpy.random.RandomState(0))
    for (code, _), prior in zip(model.encode(x), model.priors, strict=True):
        assert (prior.means >= code.min(0).values - 1e-5).all() and (prior.means <= code.max(0).values + 1e-5).all()
        assert len(prior.means.unique(dim=0)) == len(prior.means)


# --- the bounds ---


def test_the_marginal_bound_is_the_elbo_with_torch_distributions_and_one_sample_of_samples():
    model, eps = a_model(sigma=0.3).double(), [e.double() for e in noise((3, 2))]
    x = X.double()
    q = model.encode(x)
    z = sampled(q, eps)
    terms = model.facet_terms(q, eps)
    for j, ((mean, std), prior) in enumerate(zip(q, model.priors, strict=True)):
        expected = prior.log_prob(z[j]) - Independent(Normal(mean, std), 1).log_prob(z[j])
        torch.testing.assert_close(terms["marginal"][j], expected)
    torch.testing.assert_close(terms["samples"], terms["marginal"])  # the cancellation
    torch.testing.assert_close(model.log_likelihood(x, z), Independent(Normal(model.decode(z), 0.3), 1).log_prob(x))
    only = model.facet_terms(q, eps, ["closed"])
    torch.testing.assert_close(only["closed"], terms["closed"])


def test_the_closed_form_is_the_five_term_bound_at_the_optimum_and_no_other_q_beats_it():
    model = a_model(sigma=0.3).double()
    q = model.encode(X.double())
    closed = model.facet_terms(q, [e.double() for e in noise((3, 2))])["closed"]
    for j, ((mean, std), prior) in enumerate(zip(q, model.priors, strict=True)):
        r = prior.responsibilities(mean, std)

        def five_terms(r, mean=mean, std=std, prior=prior):
            posterior = MultivariateNormal(mean[:, None], covariance_matrix=std.square().diag_embed()[:, None])
            cluster = MultivariateNormal(prior.means, scale_tril=prior.cholesky())
            kl = kl_divergence(posterior, cluster)  # [batch, K]
            return -(r * kl).sum(-1) - kl_divergence(Categorical(r), Categorical(prior.log_weights().exp()))

        torch.testing.assert_close(five_terms(r), closed[j])
        other = (r + 0.05 * torch.rand(r.shape, dtype=r.dtype, generator=generator(0, "other"))).clamp(min=1e-9)
        assert (five_terms(other / other.sum(-1, keepdim=True)) < closed[j]).all()
        assert (five_terms(prior.responsibilities(mean)) <= closed[j] + 1e-12).all()


def test_bounds_keep_their_order_on_the_mean_of_many_samples():
    model = a_model(sigma=0.3).double()
    q = model.encode(X.double())
    eps = [torch.randn(1, 4000, 7, d, dtype=torch.float64, generator=generator(0, "many", d)) for d in (3, 2)]
    wide = [(mean.expand(4000, 7, -1), std.expand(4000, 7, -1)) for mean, std in q]
    terms = {name: value.mean(1) for name, value in model.facet_terms(wide, eps).items()}
    assert (terms["vade"] < terms["closed"]).all() and (terms["closed"] < terms["marginal"]).all()


def test_four_samples_lie_between_one_and_the_closed_form():
    model = a_model(sigma=0.3).double()
    q = model.encode(X.double())
    wide = [(mean.expand(3000, 7, -1), std.expand(3000, 7, -1)) for mean, std in q]
    eps = [torch.randn(4, 3000, 7, d, dtype=torch.float64, generator=generator(0, "four", d)) for d in (3, 2)]
    terms = {name: value.mean() for name, value in model.facet_terms(wide, eps).items()}
    assert terms["closed"] < terms["samples"] < terms["marginal"]


def test_evaluated_bounds_are_ordered_and_below_the_importance_weighted_one():
    found = facets.bounds(a_model(sigma=0.3), X, draws=200, generator=generator(0, "bounds"))
    assert set(found) == {"closed", "marginal", "vade", "iwae"}
    means = {name: float(value.mean()) for name, value in found.items()}
    assert means["vade"] < means["closed"] < means["marginal"] < means["iwae"]


def test_an_ensemble_of_objectives_trains_each_member_as_alone():
    x = torch.rand(40, 12, generator=generator(0, "train"))

    def train(models, bounds_, seeds):
        stacked = len(models) > 1
        module = Ensemble(models) if stacked else models[0]
        picked = torch.tensor([[float(name == bound) for name in BOUNDS] for bound in bounds_])
        on = torch.ones(len(models))
        fit(
            module, negative_bound(), FadeIn(Batches(x, batch_size=8, seed=0), [3, 0], 4), steps=8, lr=1e-3,
            seed=seeds if stacked else seeds[0],
            noise=lambda g, batch: [torch.randn(2, 8, d, generator=g) for d in (3, 2)],
            hyper={"bound": picked if stacked else picked[0], "progressive": on if stacked else on[0]},
        )  # fmt: skip
        return module

    together = train([a_model(sigma=0.3, seed=k) for k in range(4)], BOUNDS, list(range(4)))
    for k, bound in enumerate(BOUNDS):
        alone = train([a_model(sigma=0.3, seed=k)], [bound], [k])
        for one, other in zip(alone.parameters(), together.member(k).parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-3)


# --- opinion pools ---


def case(seed=0, clusters=4, dim=2):
    prior = MixturePrior(clusters, dim, spread=1.5, generator=generator(seed, "prior")).double()
    with torch.no_grad():
        prior.raw.add_(0.5)
    prior.requires_grad_(False)
    stream = generator(seed, "posterior")
    mean, std = torch.randn(1, dim, generator=stream).double(), 0.4 + torch.rand(1, dim, generator=stream).double()
    z, weights = pools.gauss_hermite(mean, std, 50)
    log_posteriors = prior.log_components(z).log_softmax(-1)[:, 0]
    return prior, mean, std, log_posteriors.exp(), weights, weights @ log_posteriors


def test_quadrature_has_the_moments_of_the_gaussian():
    z, weights = pools.gauss_hermite(torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[0.5, 3.0]]).double(), 12)
    mean = (weights[:, None] * z[:, 0]).sum(0)
    torch.testing.assert_close(mean, torch.tensor([1.0, -2.0]).double())
    torch.testing.assert_close((weights[:, None] * (z[:, 0] - mean) ** 2).sum(0), torch.tensor([0.25, 9.0]).double())


@pytest.mark.parametrize("seed", range(4))
def test_the_log_pool_is_the_closed_form_and_the_minimum(seed):
    prior, mean, std, posteriors, weights, expected = case(seed)
    best, minimum = pools.log_pool(expected)
    torch.testing.assert_close(best, prior.responsibilities(mean, std)[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(pools.cost(best, expected), minimum)
    solved = pools.minimise_on_simplex(lambda r: pools.cost(r, expected), torch.full((4,), 0.25).double())
    torch.testing.assert_close(solved, best, atol=1e-5, rtol=0)
    linear = pools.linear_pool(posteriors, weights)
    assert pools.cost(linear, expected) > minimum
    assert pools.single_sample_cost(posteriors, weights, expected) > pools.cost(linear, expected)


def test_vade_s_rule_in_place_of_the_optimum_fails_the_theorems_rules():
    _, _, _, posteriors, weights, expected = case(1)
    best, minimum = pools.log_pool(expected)
    linear = pools.linear_pool(posteriors, weights)
    good = dict(minimiser=0.0, value=0.0, least=float(minimum))
    assert passes("C1", **good)
    wrong = {"minimiser": float((linear - best).abs().max()), "value": float(pools.cost(linear, expected) - minimum)}
    assert not passes("C1", **good | wrong)
    assert not passes("C4b", minimiser=float((best - linear).abs().max()))
    assert not passes("C3b", below_optimum=float(minimum - pools.cost(linear, expected)), above_optimum=0.1)
    assert not passes("C4a", deficit=-1.0, unattained=0.1, vanishing=0.0)


def test_forgetting_the_posterior_s_variance_or_the_shared_sample_fails_its_rule():
    prior, mean, std, _, weights, _ = case(2)
    z, _ = pools.gauss_hermite(mean, std, 50)
    gap = weights @ prior.log_prob(z)[:, 0] - prior.log_components(mean).logsumexp(-1)[0]
    assert not passes("C3b", below_optimum=0.1, above_optimum=float(gap)) or gap > 0
    assert not passes("C3a", posterior=0.0, gap=float((gap - pools.log_pool(case(2)[5])[1]).abs()))
    model = a_model(sigma=0.3)
    q = model.encode(X)
    terms = model.facet_terms(q, noise((3, 2), samples=2))
    apart = float((terms["vade"] - terms["marginal"]).detach().abs().max())
    assert passes("C3c", difference=0.0) and not passes("C3c", difference=apart)


# --- what the facets hold ---

DATA = paint(load("digits"), strength=0.6)
COLOURED, FACTORS = DATA.x.flatten(1), DATA.y


def perfect(factors):
    return [factors[:, 0], factors[:, 1]]


def measures(clusters, factors):
    matrix = facets.information(clusters, factors)
    off = min(max(matrix[0, 1], matrix[1, 0]), max(matrix[0, 0], matrix[1, 1]))
    best = [max(purity(c, factor) for c in clusters) for factor in factors.unbind(1)]
    return dict(diagonal=float(off <= 0.05), colour=[best[1]] * 2, digit=[best[0]] * 2)


def test_shuffled_labels_and_an_untrained_model_fail_the_separation_rules():
    assert passes("C6a", **measures(perfect(FACTORS), FACTORS))
    shuffled = FACTORS[torch.randperm(len(FACTORS), generator=generator(0, "shuffle"))]
    assert not passes("C6a", **measures(perfect(FACTORS), shuffled))
    model = MFCVAE(
        DenseLadder(COLOURED.shape[1], (32, 32), (4, 2)), (4, 2), (20, 8), sigma=0.2, generator=generator(3, "weights")
    )
    start_means(model, COLOURED, numpy.random.RandomState(0))
    untrained = measures(facets.assignments(model, COLOURED), FACTORS)
    assert not passes("C6a", **untrained)
    assert not passes("C6a", **measures([FACTORS[:, 1], FACTORS[:, 1]], FACTORS))  # colour twice
    assert not passes("C8a", purity=[float(v) for v in untrained["digit"]])


def test_roles_are_consistent_only_where_every_seed_agrees():
    straight = torch.tensor([[0.7, 0.0], [0.0, 0.9]]).double()
    both_in_one = torch.tensor([[0.7, 0.8], [0.0, 0.1]]).double()
    assert facets.role_consistency(torch.stack([straight] * 4)) == 1.0
    assert facets.role_consistency(torch.stack([straight, straight, straight, straight.flip(0)])) == 0.75
    assert facets.role_consistency(torch.stack([both_in_one] * 4)) == 0.0
    good = dict(both=1.0, best_joint=0.5, best_other=0.8, leak=[0.0, 0.01], leak_joint=[0.3, 0.3])
    assert passes("C7a", **good)
    assert not passes("C7a", **good | {"best_other": 1.0})
    assert not passes("C7a", **good | {"both": 0.75})
    for direction in (False, True):  # one seed's role apart, and facets as mixed as under joint training
        assert not passes("C7a", direction=direction, **good | {"best_joint": 0.8, "leak": [0.3, 0.3]})


class Oracle:
    """A stand-in with perfect facets: first six numbers are facet 0's one-hot cluster, the rest facet 1's."""

    def __init__(self, entangled=False):
        self.entangled = entangled
        self.priors = [MixturePrior(3, 3, generator=generator(0, "p")).requires_grad_(False) for _ in range(2)]
        for prior in self.priors:
            prior.means.copy_(torch.eye(3))

    def encode(self, x):
        parts = x.split(3, -1)
        if self.entangled:
            parts = [parts[0], parts[0]]
        return [(part, torch.full_like(part, 0.01)) for part in parts]

    def decode(self, z):
        return torch.cat(z, -1)


def test_swaps_of_perfect_facets_are_consistent_and_of_entangled_ones_are_not():
    stream = generator(0, "oracle")
    clusters = torch.randint(3, (60, 2), generator=stream)
    x = torch.cat([torch.eye(3)[clusters[:, 0]], torch.eye(3)[clusters[:, 1]]], 1)
    donors = x[torch.randperm(60, generator=stream)]
    good = facets.swap_consistency(Oracle(), x, donors, 1)
    assert good["taken"] == good["kept"] == good["taken_plain"] == good["kept_plain"] == 1.0
    assert 0.2 < good["taken_chance"] < 0.6 and 0.2 < good["kept_chance"] < 0.6
    bad = facets.swap_consistency(Oracle(entangled=True), x, donors, 1)
    assert bad["taken"] < 0.8
    loss = {"taken_loss": bad["taken_plain"] - bad["taken"], "kept_loss": 0.0}
    assert passes("C9a", taken=1.0, kept=1.0, taken_loss=0.0, kept_loss=0.0)
    assert not passes("C9a", taken=bad["taken"], kept=bad["kept"], **loss)


def test_generated_images_carry_their_cluster_and_draw_the_others_from_the_weights():
    oracle = Oracle()
    wanted = torch.arange(3).repeat_interleave(200)
    images, drawn = facets.generate(oracle, 0, wanted, temperature=0.25, generator=generator(0, "generate"))
    found = facets.assignments(oracle, images)
    assert (found[0] == wanted).double().mean() > 0.99
    assert torch.equal(drawn[0], wanted)
    assert facets.entropy(drawn[1], 3) == pytest.approx(math.log(3), abs=0.02)
    assert facets.entropy(torch.zeros(10, dtype=torch.int64), 3) == 0


def test_the_three_rules_agree_for_narrow_posteriors_only():
    model = a_model(sigma=0.3)
    narrow = facets.cluster_rules(model, X, draws=50, generator=generator(0, "rules"))
    for rules in narrow:
        torch.testing.assert_close(rules["linear"].sum(-1), torch.ones(7))
    with torch.no_grad():
        for head in model.network.heads:
            head.bias[head.out_features // 2 :] = -20.0  # log variances
            head.weight[head.out_features // 2 :] = 0.0
    for rules in facets.cluster_rules(model, X, draws=50, generator=generator(0, "rules")):
        torch.testing.assert_close(rules["closed"], rules["point"], atol=1e-4, rtol=0)
        torch.testing.assert_close(rules["linear"], rules["point"], atol=1e-3, rtol=0)


def test_stroke_factors_see_a_shear_and_a_thick_pen():
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")

    def bar(shear, width):
        ink = ((columns - 14 + shear * (rows - 14)).abs() <= width) & ((rows - 14).abs() <= 9)
        return ink.float()[None]

    images = torch.stack([bar(shear, width) for shear in (-0.5, -0.2, 0.0, 0.2, 0.5) for width in (1, 2, 3, 4, 5)])
    factors = facets.stroke_factors(images).view(5, 5, 2)
    assert (factors[:, :, 0].float().mean(1).diff() > 0).all()
    assert (factors[:, :, 1].float().mean(0).diff() > 0).all()
    assert nmi(factors[:, :, 1].flatten(), torch.arange(25) % 5) > 0.5


def test_posteriors_twice_as_wide_fail_both_halves_of_the_agreement_of_rules():
    prior = MixturePrior(8, 2, generator=generator(2, "p")).requires_grad_(False)
    prior.raw.copy_(0.05 + torch.rand(8, 2, generator=generator(0, "raw")))
    codes = torch.randn(400, 2, generator=generator(0, "codes"))

    class Fixed:
        priors = (prior,)

        def encode(self, x):
            return [(x, torch.full_like(x, 0.5))]

    def agree(widen):
        (found,) = facets.cluster_rules(Fixed(), codes, draws=400, widen=widen, generator=generator(0, "rules"))
        best = found["closed"].argmax(-1)
        return {name: [float((found[name].argmax(-1) == best).double().mean())] * 2 for name in ("point", "linear")}

    narrow, wide = agree(1e-3), agree(2.0)
    assert passes("C5b", **narrow)
    assert not passes("C5b", **narrow | {"point": wide["point"]})
    assert not passes("C5b", **narrow | {"linear": wide["linear"]})


def test_vade_s_released_log_weight_inside_the_sum_over_dimensions_is_a_power_of_the_weight():
    """Released get_gamma: exp(sum over D of log π_c - log(2πλ)/2 - (z-μ)²/2λ), normalised over c."""
    dim, prior = 10, MixturePrior(3, 10, variance=1.0, generator=generator(0, "vade")).double().requires_grad_(False)
    prior.logits.copy_(torch.tensor([0.0, 0.4, -0.7]))
    z, variance = torch.randn(20, 1, dim, generator=generator(0, "z")).double(), prior.variances()
    inside = prior.log_weights()[:, None] - 0.5 * ((2 * math.pi * variance).log() + (z - prior.means) ** 2 / variance)
    released = inside.sum(-1).softmax(-1)
    assert float((released - prior.responsibilities(z[:, 0])).abs().max()) > 0.05  # not p(c|z)
    prior.logits.copy_(dim * prior.logits)  # π to the power of D
    torch.testing.assert_close(released, prior.responsibilities(z[:, 0]))


def test_cells_that_carry_a_facet_s_optimum_come_from_its_marginal_alone():
    first, second = (MixturePrior(k, 1, spread=1.5, generator=generator(k, "c2")).double() for k in (3, 4))
    for prior in (first.requires_grad_(False), second.requires_grad_(False)):
        prior.raw.add_(0.8)
    eps, weights = pools.gauss_hermite(torch.zeros(1, 2).double(), torch.ones(1, 2).double(), 60)
    one, two = eps[:, 0, :1], 0.9 * eps[:, 0, :1] + math.sqrt(1 - 0.81) * eps[:, 0, 1:]
    log_1, log_2 = (p.log_components(z).log_softmax(-1) for p, z in ((first, one), (second, two)))
    joint = (log_1[:, :, None] + log_2[:, None, :]).flatten(1)
    solved = pools.minimise_on_simplex(
        lambda r: (weights[:, None] * (torch.xlogy(r, r) - r * joint)).sum(), torch.full((12,), 1 / 12).double()
    )
    z, w = pools.gauss_hermite(torch.zeros(1, 1).double(), torch.ones(1, 1).double(), 200)
    parts = [pools.log_pool(w @ p.log_components(z)[:, 0].log_softmax(-1))[0] for p in (first, second)]
    product = (parts[0][:, None] * parts[1]).flatten()
    apart = float((solved - product).abs().max())
    assert passes("C2", cells=apart, information=0.0, value=0.0)
    mean = weights @ joint.exp()
    assert not passes("C2", cells=float((mean - product).abs().max()), information=0.0, value=0.0)


def test_missing_effects_fail_their_rules():
    assert passes("C5a", four_by=[0.0, 0.01, -0.01], closed_by=[0.0, 0.01, -0.01])
    for wrong in ([-0.3, -0.2, -0.25], [0.06, -0.06, 0.0]):  # worse, and too few runs to tell
        assert not passes("C5a", four_by=wrong, closed_by=[0.0, 0.01, -0.01])
        assert not passes("C5a", four_by=[0.0, 0.01, -0.01], closed_by=wrong)
    assert not passes("C5b", point=[0.9, 0.9], linear=[1.0, 1.0])
    narrowly = dict(diagonal=1.0, colour=[1.0, 1.0, 1.0, 1.0, 0.82], digit=[0.75, 0.76, 0.75, 0.77, 0.76])
    assert not passes("C6a", **narrowly) and passes("C6a", direction=True, **narrowly)  # means that luck may lift
    assert not passes("C6b", leak=[0.01, 0.01], colour=[1.0, 1.0], ratio=[1.0, 1.0])
    assert not passes("C6c", digit=[-0.2, -0.1], style=[0.1, 0.1])
    assert not passes("C6d", floor_hue=[0.2], floor_shape=[0.3], wall_hue=[0.2], wall_shape=[0.3])
    same, same_two = [0.7, 0.71, 0.72], [0.79, 0.79]
    assert not passes("C7b", both=same, ladder_joint=same, shared_progressive=same, shared_joint=same)
    assert not passes("C8b", ours=[0.6, 0.6], kmeans=[0.7, 0.7], gmm=[0.5, 0.5])
    assert not passes("C8c", ours=[0.4, 0.4], kmeans=[0.39, 0.39], grey=[0.0, 0.0])
    judge = dict(
        read=[0.8] * 2, colour_taken=[1.0] * 2, digit_kept=[1.0] * 2, digit_taken=[1.0] * 2, colour_kept=[1.0] * 2
    )
    assert passes("C9b", **judge)
    assert not passes("C9b", **judge | {"read": [0.1] * 2})  # a digit facet that decodes to nothing readable
    assert not passes("C9b", **judge | {"digit_taken": [0.1] * 2})
    assert not passes("C8d", ours=same_two, twice=[0.8, 0.8], image_ours=[0.6, 0.6], image_twice=[0.5, 0.5])
    assert not passes("C10", agreement=[0.1, 0.1], diversity=[1.0, 1.0])
    assert not passes("C11", shallow=[0.0, 0.0], deep=[0.2, 0.2])
    assert not passes("C11", direction=True, shallow=[0.0, 0.0], deep=[0.006, -0.006])
    assert not passes("B1", closed=same, marginal=same)
    good = dict(within=[0.9] * 4, regret=0.0, chance=0.04)
    assert passes("B2", **good) and not passes("B2", **good | {"within": [0.0] * 4})
    for direction in (False, True):  # a bad choice, and one that a third of all models match
        assert not passes("B2", direction=direction, **good | {"regret": 0.3})
        assert not passes("B2", direction=direction, **good | {"chance": 0.36})
    moves = dict(strong=[0.9, 0.9], middle=[0.4, 0.3], weak=[-0.4, -0.4], digit_share=0.3, colour_share=0.2)
    assert passes("B3", **moves)
    assert not passes("B3", **moves | {"middle": [-0.4, -0.5]})  # k-means and untrained networks follow the variance
    assert not passes("B3", **moves | {"digit_share": 0.2, "colour_share": 0.3})
    assert not passes("B3", **moves | {"strong": [0.0, 0.0], "middle": [0.0, 0.0], "weak": [0.0, 0.0]})


def test_mutual_information_is_that_of_scikit_learn():
    labels = torch.randint(4, (90,), generator=generator(0, "labels"))
    noisy = torch.where(torch.arange(90) % 3 == 0, labels, torch.randint(9, (90,), generator=generator(0, "noise")))
    for one, two in ((noisy, labels), (labels, labels), (noisy, torch.zeros_like(labels))):
        assert nmi(one, two) == pytest.approx(normalized_mutual_info_score(two.numpy(), one.numpy()), abs=1e-12)
    assert nmi(torch.zeros(5).long(), torch.zeros(5).long()) == 1
