"""Chapter 6: scores, nulls, joint diagonalisation, generators and models against slow twins; rules against mix-ups."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cross_decomposition import CCA

from companion.analysis import symmetries as sym
from companion.analysis.identifiability import (
    _held_strong,
    agreement,
    all_pairs,
    calibrated,
    haar,
    ladder,
    live_tables,
    mcc,
    random_axes,
    rotation_null,
    seed_bootstrap,
)
from companion.analysis.joint_diagonalisation import (
    jacobi,
    label_covariances,
    mixture_covariances,
    off_diagonal,
    unmixing,
)
from companion.chapters import claims, ledger
from companion.data import Batches
from companion.data.nonlinear_ica import Mixing, nonlinear_ica
from companion.errors import CompanionError
from companion.models.identifiable_ica import (
    KINDS,
    LatentPrior,
    LatentVAE,
    PatchCoder,
    PiecewiseAffineFlow,
    gaussian,
    negative_elbo,
    negative_log_likelihood,
    patch_loss,
)
from companion.seeds import generator
from companion.train import Ensemble, WarmUp, fit

CLAIMS = {claim.id: claim for claim in claims.load("06_identifiable_ica").claims}


def passes(claim_id, **measures):
    values = {name: ledger.Measure.of(name, value) for name, value in measures.items()}
    return ledger.passes(CLAIMS[claim_id].rule, values)


def codes(rows=400, dim=4, *purpose):
    return torch.randn(rows, dim, generator=generator(0, "codes", *purpose), dtype=torch.float64)


def mixture(dim, clusters, *purpose):
    stream = generator(0, "mixture", *purpose)
    means = torch.rand(clusters, dim, generator=stream, dtype=torch.float64) * 8 - 4
    return means, (torch.rand(clusters, dim, generator=stream, dtype=torch.float64) + 0.25).square()


def draw(means, variances, rows, *purpose):
    stream = generator(0, "draw", *purpose)
    u = torch.randint(len(means), (rows,), generator=stream)
    noise = torch.randn(rows, means.shape[1], generator=stream, dtype=torch.float64)
    return means[u] + variances[u].sqrt() * noise, u


# Scores


def test_every_score_is_one_for_equal_codes_and_blind_to_its_own_maps():
    a = codes()
    order = a[:, [2, 0, 3, 1]] * torch.tensor([2.0, -0.5, 1.0, -3.0]).double() + 1
    turned = 2 * a @ haar(1, 4, generator=generator(0, "turn"))[0] - 3
    bent = a @ codes(4, 4, "map")
    for name, value in agreement(a, a).items():
        assert float(value) == pytest.approx(1, abs=1e-6), name
    blind = {
        "strong": (order,),
        "procrustes": (turned,),
        "affine": (order, turned, bent),
        "weak": (order, turned, bent),
    }
    for name, images in blind.items():
        for image in images:
            for where in ("in", "out"):
                assert float(agreement(a, image)[f"{name}_{where}"]) == pytest.approx(1, abs=1e-5)
    assert float(agreement(a, bent)["procrustes_out"]) < 0.99
    assert float(agreement(a, turned)["strong_out"]) < 0.99


def test_weak_score_is_the_canonical_correlation_of_a_slow_twin():
    a, noise = codes(), codes(400, 4, "noise")
    b = a @ codes(4, 4, "map") + 2 * noise
    found = agreement(a, b)
    slow = CCA(4, scale=False, max_iter=20_000, tol=1e-14).fit(a[:200].numpy(), b[:200].numpy())
    u, v = (torch.from_numpy(t) for t in slow.transform(a.numpy(), b.numpy()))
    for where, rows in (("in", slice(0, 200)), ("out", slice(200, None))):
        pairs = [torch.corrcoef(torch.stack([u[rows, k], v[rows, k]]))[0, 1] for k in range(4)]
        assert float(found[f"weak_{where}"]) == pytest.approx(float(sum(pairs)) / 4, abs=1e-4)


def test_affine_strong_and_procrustes_equal_slow_twins_on_held_out_rows():
    a = codes()
    b = a @ codes(4, 4, "map") + codes(400, 4, "noise")
    found, fit_rows, held = agreement(a, b), slice(0, 200), slice(200, None)

    def forth(x, y):
        design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        out = design @ torch.linalg.lstsq(design[fit_rows], y[fit_rows]).solution
        return sum(float(torch.corrcoef(torch.stack([out[held, k], y[held, k]]))[0, 1]) for k in range(4)) / 4

    assert float(found["affine_out"]) == pytest.approx((forth(a, b) + forth(b, a)) / 2, abs=1e-6)
    table = torch.corrcoef(torch.cat([a[fit_rows], b[fit_rows]], 1).mT)[:4, 4:]
    rows, columns = linear_sum_assignment(table.abs().numpy(), maximize=True)
    seen = torch.corrcoef(torch.cat([a[held], b[held]], 1).mT)[:4, 4:] * table.sign()
    assert float(found["strong_out"]) == pytest.approx(float(seen[rows, columns].mean()), abs=1e-9)
    assert float(found["strong_in"]) == pytest.approx(mcc(a[fit_rows], b[fit_rows]), abs=1e-9)
    centred = [v[fit_rows] - v[fit_rows].mean(0) for v in (a, b)]
    cosine = torch.linalg.matrix_norm(centred[0].mT @ centred[1], "nuc") / (centred[0].norm() * centred[1].norm())
    assert float(found["procrustes_in"]) == pytest.approx(float(cosine), abs=1e-9)


def test_whitened_procrustes_is_the_weak_score():
    def white(v):
        v = v - v[:200].mean(0)
        return torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(v[:200].mT)), v.mT, upper=False).mT

    a = codes()
    b = a @ codes(4, 4, "map") + codes(400, 4, "noise")
    found, whitened = agreement(a, b), agreement(white(a), white(b))
    assert float(whitened["procrustes_in"]) == pytest.approx(float(found["weak_in"]), abs=1e-6)


def test_all_pairs_equals_one_call_per_pair_and_a_dead_latent_does_no_harm():
    runs = torch.stack([codes(200, 3, k) for k in range(3)])
    runs[1, :, 2] = 0.0
    tables = all_pairs(runs)
    for name, table in tables.items():
        assert table.diagonal().isnan().all()
        torch.testing.assert_close(table, table.T, equal_nan=True)
        assert float(table[0, 1]) == pytest.approx(float(agreement(runs[0], runs[1])[name]))
        assert table[0, 1].isfinite()


def test_in_sample_scores_of_independent_codes_have_the_closed_mean_and_held_out_ones_none():
    a, b = (torch.randn(200, 200, 10, dtype=torch.float64, generator=generator(0, k)) for k in range(2))
    found = {name: float(values.mean()) for name, values in agreement(a, b).items()}
    assert found["weak_in"] ** 2 < 10 / 99  # Jensen: the mean of r is below the root of the mean of r²
    assert found["weak_in"] ** 2 > 0.7 * 10 / 99
    assert all(abs(found[f"{name}_out"]) < 0.02 for name in ("strong", "procrustes", "affine", "weak"))


def test_rotation_null_at_two_dimensions_and_calibration():
    mean, std = rotation_null(2, draws=20_000, generator=generator(0))
    assert mean == pytest.approx(2 * 2**0.5 / math.pi, abs=0.003)
    assert std == pytest.approx((0.5 + 1 / math.pi - 8 / math.pi**2) ** 0.5, abs=0.003)
    assert calibrated(mean, mean) == 0
    assert calibrated(1.0, mean) == 1


def test_bootstrap_resamples_runs_not_pairs():
    effect = torch.randn(12, generator=generator(0, "runs"), dtype=torch.float64)
    table = effect[:, None] + effect[None]
    table.fill_diagonal_(torch.nan)
    found = seed_bootstrap(table, generator=generator(0))
    by_runs = 2 * float(effect.std()) / 12**0.5  # the mean over pairs is twice the mean over runs
    assert found["se"] == pytest.approx(by_runs, rel=0.25)
    pairs = table[*torch.triu_indices(12, 12, 1)]
    assert found["se"] > 2 * float(pairs.std()) / 66**0.5  # what 66 independent pairs would suggest
    assert found["low"] < found["mean"] < found["high"]


def test_ladder_tells_rotation_from_curvature():
    z = codes(2_000, 3)
    rotated = ladder(z, z @ haar(1, 3, generator=generator(0, "ladder"))[0])
    assert rotated["linear"] < 1e-9 < 0.05 < rotated["match"]
    curved = ladder(z, sym.radial_rotation(z, 0.5))
    assert curved["nearest"] < 0.7 * curved["linear"]


# Joint diagonalisation


def test_unmixing_recovers_sources_from_labels_and_without():
    means, variances = mixture(3, 6)
    s, u = draw(means, variances, 5_000)
    x = s @ codes(3, 3, "A").mT
    assert mcc(x @ unmixing(*label_covariances(x, u)).mT, s) > 0.995
    assert mcc(x @ unmixing(*mixture_covariances(x, 6, seed=0, starts=5)).mT, s) > 0.99
    assert mcc(x, s) < 0.97


def test_jacobi_is_exact_on_commuting_matrices_and_unmixing_whatever_the_weights():
    q = haar(1, 4, generator=generator(0, "q"))[0]
    diagonals = torch.rand(5, 4, generator=generator(0, "d"), dtype=torch.float64) + 0.1
    v = jacobi(q @ diagonals.diag_embed() @ q.T)
    assert sym.monomial_error(v.T @ q) < 1e-9
    a = codes(4, 4, "A")
    mixed = a @ diagonals.diag_embed() @ a.T
    for weights in (None, torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1])):
        w = unmixing(mixed, weights)
        assert sym.monomial_error(w @ a) < 1e-7
        assert off_diagonal(w, mixed) < 1e-7
    assert off_diagonal(torch.eye(4, dtype=torch.float64), mixed) > 0.05


# Symmetries


def test_twist_preserves_volume_and_radius():
    z = codes(50, 3)
    torch.testing.assert_close(sym.radial_rotation(z, 0.7).norm(dim=1), z.norm(dim=1))
    assert float(sym.volume_change(lambda v: sym.radial_rotation(v, 0.7), z).abs().max()) < 1e-12


def test_the_diagonal_gap_is_the_minimum_over_diagonal_gaussians():
    w = codes(3, 2, "W")
    precision = torch.eye(2, dtype=torch.float64) + w.T @ w / 0.5

    def divergence(log_variance):
        v = log_variance.exp()
        return 0.5 * ((precision.diagonal() * v).sum() - 2 - log_variance.sum() - torch.linalg.slogdet(precision)[1])

    free = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([free], max_iter=100, tolerance_grad=1e-12)

    def closure():
        descent.zero_grad()
        value = divergence(free)
        value.backward()
        return value

    descent.step(closure)
    assert sym.diagonal_gap(w, 0.5) == pytest.approx(float(divergence(free).detach()), abs=1e-9)


def test_shortfall_counts_differences():
    means, variances = mixture(3, 7)
    lam = sym.natural(means, variances)
    assert sym.shortfall(lam) == 0
    assert sym.shortfall(lam[:6]) == 1
    assert sym.shortfall(lam[:6], subtract=False) == 0  # the mistake that the chapter's control makes


def test_extra_symmetries_are_those_of_finite_differences():
    tied = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 1.0]], dtype=torch.float64)  # coordinates 0 and 1 in ratio
    assert sym.extra_symmetries(tied) == 1
    assert sym.extra_symmetries(torch.ones(3, 4, dtype=torch.float64)) == 6
    # A finite rotation of the tied, rescaled pair keeps both covariances diagonal
    scale = torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)).sqrt()
    turn = torch.eye(3, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    h = turn @ scale
    kept = h @ tied.diag_embed() @ h.T
    assert float((kept - kept.diagonal(dim1=1, dim2=2).diag_embed()).abs().max()) < 1e-12


def test_monomial_error():
    assert sym.monomial_error(torch.tensor([[0.0, -3.0], [0.5, 0.0]])) == 0
    assert sym.monomial_error(torch.tensor([[1.0, 0.0], [1.0, 0.1]])) == 1
    assert sym.monomial_error(torch.tensor([[1.0, 1.0], [0.2, -1.0]])) > 0.01


def test_a_kink_is_seen_by_samples_too():
    """A leaky kink moves mass: the density on both sides of it differs by the slope, by a histogram."""
    density = sym.mixture_log_density(*(torch.tensor(v).double() for v in ([[0.0]], [[1.0]], [1.0])))
    one = torch.ones(1, dtype=torch.float64)
    value, _ = sym.kink(density, 0 * one, one[None], one, -0.5 * one)
    assert float(value) == pytest.approx(math.log(2))
    z = torch.randn(400_000, generator=generator(0, "kink"))
    h = torch.where(z > 0, z, 0.5 * z)
    above, below = ((h > 0) & (h < 0.05)).sum(), ((h < 0) & (h > -0.05)).sum()
    assert math.log(float(below / above)) == pytest.approx(float(value), abs=0.05)


# Generators


@pytest.mark.parametrize("kind", ["ivae", "tcl", "imca"])
@pytest.mark.parametrize("activation", ["leaky", "xtanh"])
def test_mixings_are_invertible_and_know_their_volume(kind, activation):
    data = nonlinear_ica(kind, per_segment=10, activation=activation, layers=3, seed=0)
    torch.testing.assert_close(data.mixing.inverse(data.x), data.s, rtol=1e-8, atol=1e-8)
    some = data.s[:20]
    jacobian = torch.func.vmap(torch.func.jacrev(data.mixing))(some)
    expected = 0.5 * torch.linalg.slogdet(jacobian.mT @ jacobian)[1]
    torch.testing.assert_close(data.mixing.log_det(some), expected)


def test_published_values_and_moments():
    data = nonlinear_ica("ivae", seed=0)
    assert data.x.shape == (40_000, 4)
    assert data.s.shape == (40_000, 2)
    assert data.scales.min() >= 0.5
    assert data.scales.max() <= 3
    steps = [step for step in data.mixing.steps if step is not None]
    assert [tuple(step.shape) for step in steps] == [(2, 4), (4, 4), (4, 4)]
    assert steps[1] is steps[2]  # the same square matrix again
    torch.testing.assert_close(steps[1].norm(dim=0), torch.ones(4, dtype=torch.float64))
    tcl = nonlinear_ica("tcl", per_segment=2_000, seed=1)
    groups = torch.stack([tcl.s[tcl.u == k].std(0) for k in range(20)])
    torch.testing.assert_close(groups, tcl.scales, rtol=0.1, atol=0.01)
    assert sum(step is None for step in tcl.mixing.steps) == 1  # "L = 2" has one non-linearity
    laplace = nonlinear_ica("tcl", per_segment=20_000, segments=1, base="laplace", seed=1)
    unit = laplace.s / laplace.scales[0]
    assert float(unit.var()) == pytest.approx(1, abs=0.05)
    assert float(unit.pow(4).mean()) == pytest.approx(6, abs=0.7)  # excess kurtosis 3
    assert float(nonlinear_ica("tcl", mean_range=3.0, seed=1).means.abs().max()) <= 3


def test_imca_sources_depend_within_a_segment_and_tcl_ones_do_not():
    def largest(kind):
        data = nonlinear_ica(kind, per_segment=4_000, seed=2)
        tables = torch.stack([torch.corrcoef(data.s[data.u == k].mT) for k in range(20)])
        return float((tables - torch.eye(5, dtype=torch.float64)).abs().max())

    assert largest("tcl") < 0.1 < 0.3 < largest("imca")


def test_impossible_generators_are_refused():
    with pytest.raises(CompanionError, match="kind"):
        nonlinear_ica("other", seed=0)
    with pytest.raises(CompanionError, match="injectively"):
        nonlinear_ica("ivae", dim=4, observed=2, seed=0)
    with pytest.raises(CompanionError, match="injectively"):
        nonlinear_ica("tcl", dim=2, observed=4, seed=0)


def test_rectangular_steps_use_the_left_inverse():
    mixing = Mixing((torch.tensor([[1.0, 0.0, 2.0]]).double(),))
    s = torch.tensor([[3.0]]).double()
    torch.testing.assert_close(mixing.inverse(mixing(s)), s)
    assert float(mixing.log_det(s)) == pytest.approx(0.5 * math.log(5))


# Models


def vae(kind, member=0, **options):
    return LatentVAE(kind, 6, (8,), 3, clusters=5, labels=4, generator=generator(member, "vae"), **options)


def test_priors_of_the_four_kinds():
    z, u = torch.randn(7, 3, generator=generator(0, "z")), torch.arange(7) % 4
    priors = {kind: LatentPrior(kind, 5, 3, generator=generator(0, "prior")) for kind in KINDS}
    for prior in priors.values():
        with torch.no_grad():
            prior.mixture.raw.add_(0.3 * torch.randn(5, 3, generator=generator(0, "raw")))
    means, variances = priors["vae"].mixture.means, priors["vae"].mixture.variances()
    parts = torch.stack([gaussian(z, means[k], variances[k]) for k in range(5)], -1)
    expected = {
        "vae": torch.distributions.Normal(0, 1).log_prob(z).sum(-1),
        "vade": (parts + math.log(1 / 5)).logsumexp(-1),
        "label": parts[torch.arange(7), u],
        "ivae": torch.distributions.Normal(0, variances[u].sqrt()).log_prob(z).sum(-1),
    }
    for kind, prior in priors.items():
        torch.testing.assert_close(prior(z, u), expected[kind])


def test_the_label_reaches_encoder_and_prior_of_the_right_kinds_only():
    x = torch.rand(7, 6, generator=generator(0, "x"))
    u, other = torch.zeros(7, dtype=torch.int64), torch.ones(7, dtype=torch.int64)
    for kind in KINDS:
        model = vae(kind)
        with torch.no_grad():
            model.prior.mixture.raw.add_(0.3 * torch.randn(5, 3, generator=generator(0, "raw")))
        z = model.encode(x, u)[0]
        assert torch.equal(z, model.encode(x, other)[0]) == (kind != "ivae")
        assert torch.equal(model.prior(z, u), model.prior(z, other)) == (kind in ("vae", "vade"))


def test_elbo_is_a_bound_and_tight_for_the_right_posterior():
    """On a linear-Gaussian decoder with the exact posterior every draw of the ELBO is log p(x)."""
    model = LatentVAE("vae", 2, (), 2, clusters=3, labels=2, noise=0.5, generator=generator(0))
    w = torch.diag(torch.tensor([1.5, 0.5]))
    precision = 1 + w.diagonal().square() / 0.25
    with torch.no_grad():
        model.decoder[0].weight.copy_(w)
        model.decoder[0].bias.zero_()
        model.encoder[0].weight.zero_()
        model.encoder[0].weight[:2, :2] = torch.diag(w.diagonal() / 0.25 / precision)
        model.encoder[0].bias.zero_()
        model.encoder[0].bias[2:] = torch.log(torch.expm1(1 / precision - 1e-6))
    x = torch.randn(5, 2, generator=generator(0, "x"))
    batch = (x, torch.zeros(5, dtype=torch.int64), torch.tensor(1.0))
    noise = torch.randn(5, 2, generator=generator(0, "noise"))
    loss, _ = negative_elbo(model, batch, noise, {})
    exact = torch.distributions.MultivariateNormal(torch.zeros(2), w @ w.T + 0.25 * torch.eye(2)).log_prob(x)
    torch.testing.assert_close(-loss, exact.mean(), rtol=1e-4, atol=1e-4)


def test_bernoulli_on_grey_values_is_the_mean_over_binarisations():
    model = vae("vae")
    x, z = torch.rand(1, 6, generator=generator(0, "x")), torch.randn(1, 3, generator=generator(0, "z"))
    draws = torch.rand(40_000, 6, generator=generator(0, "binary")) < x
    with torch.no_grad():
        sampled = model.likelihood(draws.float(), z.expand(len(draws), -1)).mean()
        exact = model.likelihood(x, z)
    assert float(exact) == pytest.approx(float(sampled), abs=0.02)


def test_flow_density_integrates_to_one_and_equals_autograd():
    flow = PiecewiseAffineFlow("vade", 2, 2, clusters=3, generator=generator(3)).double()
    x = torch.randn(9, 2, generator=generator(0, "x"), dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: flow.inverse(v[None])[0][0]))(x)
    torch.testing.assert_close(flow.inverse(x)[1], torch.linalg.slogdet(jacobian)[1])
    axis = torch.linspace(-12, 12, 500, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        density = flow.log_prob(grid, torch.zeros(len(grid), dtype=torch.int64)).exp()
    mass = density.sum() * (axis[1] - axis[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=0.02)


def test_members_train_as_they_would_alone():
    x, u = torch.rand(64, 6, generator=generator(0, "x")), torch.arange(64) % 4
    names = [("vae", 0), ("vade", 1), ("label", 1), ("ivae", 2)]

    def source(m):
        return WarmUp(Batches(x, u, batch_size=16, seed=m), 4)

    def noise(g, batch):
        return torch.randn(len(batch[0]), 3, generator=g)

    ensemble = Ensemble([vae(kind, m) for kind, m in names])
    fit(ensemble, negative_elbo, [source(m) for _, m in names], steps=6, noise=noise, seed=[m for _, m in names])
    for k, (kind, m) in enumerate(names):
        alone = vae(kind, m)
        fit(alone, negative_elbo, source(m), steps=6, noise=noise, seed=m)
        torch.testing.assert_close(ensemble.member(k).encode(x, u)[0], alone.encode(x, u)[0], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_relaxed_code_lies_in_the_hull_of_the_codebook():
    coder = PatchCoder(True, 9, 8, 2, codes=5, generator=generator(0))
    x = torch.rand(3, 4, 9, generator=generator(0, "x"))
    assert float(coder.codes(x).amax()) <= float(coder.codebook.amax())
    plain = PatchCoder(False, 9, 8, 2, codes=5, generator=generator(0))
    torch.testing.assert_close(plain.codes(x), plain.encoder(x))
    sharp = coder.codes(x, temperature=1e-6)
    nearest = coder.codebook[torch.cdist(coder.encoder(x), coder.codebook).argmin(-1)]
    torch.testing.assert_close(sharp, nearest)
    loss, _ = patch_loss(coder, (x,), torch.zeros(3, 4, 5), {})
    assert loss.isfinite()


def test_flow_loss_is_per_example():
    flow = PiecewiseAffineFlow("label", 2, 1, clusters=3, generator=generator(0))
    x, u = torch.randn(5, 2, generator=generator(0, "x")), torch.arange(5) % 3
    loss, _ = negative_log_likelihood(flow, (x, u), None, {})
    torch.testing.assert_close(loss, -flow.log_prob(x, u).mean())


# Rules: what must change a status


def family(count=8, rows=1_000, dim=4, noise=0.2, *purpose, moves=None):
    """Runs that agree up to a linear map (or `moves`) and a little noise."""
    z = codes(rows, dim, "truth")
    maps = codes(count * dim, dim, "maps", *purpose).view(count, dim, dim) if moves is None else moves
    rough = torch.randn(count, rows, dim, generator=generator(0, "noise", *purpose), dtype=torch.float64)
    return z @ maps + noise * rough


def low(table):
    return seed_bootstrap(table, generator=generator(0))["low"]


def c4(vade, label, plain, leak=0.0):
    tables = [all_pairs(v) for v in (vade, label, plain)]
    return {
        "weak": low(tables[0]["weak_out"] - tables[1]["weak_out"]),
        "affine": low(tables[0]["affine_out"] - tables[1]["affine_out"]),
        "above_vae": low(tables[0]["weak_out"] - tables[2]["weak_out"]),
        "leak": leak,
    }


def test_a_permuted_pairing_and_a_leaked_label_fail_c4():
    same = torch.eye(4, dtype=torch.float64).expand(8, 4, 4)
    good, label, plain = (family(noise=n, moves=same) for n in (0.2, 0.2, 0.8))
    assert passes("C4", **c4(good, label, plain))
    order = [torch.randperm(1_000, generator=generator(0, "order", k)) for k in range(8)]
    permuted = torch.stack([z[o] for z, o in zip(good, order, strict=True)])
    assert not passes("C4", **c4(permuted, label, plain))
    assert not passes("C4", **c4(good, label, plain, leak=1e-3))
    assert not passes("C4", **c4(plain, label, plain))  # a plain VAE in VaDE's place


def test_a_random_rotation_changes_strong_claims_and_no_affine_one():
    turns = haar(8, 4, generator=generator(0, "turns"))
    aligned = family(noise=0.2, moves=torch.eye(4, dtype=torch.float64).expand(8, 4, 4))
    rotated = aligned @ turns

    def z_score(stack):
        g = generator(0, "axes")
        null = random_axes(list(stack), white=False, draws=30, generator=g)
        return float((live_tables(list(stack))["strong"].nanmean() - null.mean()) / null.std())

    assert passes("B2", z_score=abs(z_score(rotated)))
    assert not passes("B2", z_score=abs(z_score(aligned)))
    tables = [all_pairs(v)["weak_out"] for v in (aligned, rotated)]
    torch.testing.assert_close(*tables, rtol=0, atol=1e-6, equal_nan=True)
    assert not passes("C6", pca=float(all_pairs(rotated)["strong_out"].nanmean()), fastica=0.95)


def test_half_dead_codes_that_agree_exactly_are_not_at_the_null():
    """Latents that agree one by one, beside dead ones: the null of full dimension would call this chance."""
    alive = family(noise=0.05, moves=torch.eye(4, dtype=torch.float64).expand(8, 4, 4))
    dead = 1e-3 * torch.randn(8, 1_000, 4, generator=generator(0, "dead"), dtype=torch.float64)
    whole = all_pairs(torch.cat([alive, dead], 2))["strong_out"].nanmean()
    assert float(whole) < rotation_null(8, generator=generator(0))[0]
    assert float(live_tables(list(alive))["strong"].nanmean()) > 0.99
    g = generator(0, "axes")
    assert float(random_axes(list(alive), white=True, draws=1, generator=g)) < 0.9


@pytest.mark.parametrize("white", [False, True])
def test_random_axes_are_rotations_of_the_codes(white):
    runs = [codes(400, 3, k) + codes(400, 3, "shared") for k in range(3)]
    found = random_axes(runs, white=white, draws=2, generator=generator(0, "slow axes"))
    g = generator(0, "slow axes")
    for draw_ in range(2):
        turned = []
        for z in (run.double() for run in runs):
            first = z[:200]
            scale = torch.linalg.cholesky(torch.cov(first.mT)) if white else first.std(0).diag()
            turned.append((z - first.mean(0)) @ torch.linalg.inv(scale).mT @ haar(1, 3, generator=g)[0])
        slow = [_held_strong(turned[i], turned[j]) for i in range(3) for j in range(i)]
        assert float(found[draw_]) == pytest.approx(sum(slow) / 3, abs=1e-9)


def test_live_tables_equal_the_batched_scores_and_take_runs_of_unequal_width():
    runs = torch.stack([codes(400, 3, k) + codes(400, 3, "shared") for k in range(3)])
    tables, batched = live_tables(list(runs)), all_pairs(runs)
    torch.testing.assert_close(tables["strong"], batched["strong_out"], equal_nan=True)
    torch.testing.assert_close(tables["affine"], batched["affine_out"], rtol=0, atol=0.05, equal_nan=True)
    mixed = live_tables([runs[0], runs[1][:, :2], runs[2]])
    assert mixed["strong"][0, 1].isfinite()
    assert mixed["affine"][0, 1].isfinite()


def test_a_label_leaked_into_the_codes_changes_c5():
    """A VAE whose codes carry the class label besides looks as reproducible as anything."""
    u = torch.randint(4, (1_000,), generator=generator(0, "u"))
    moves = torch.eye(4, dtype=torch.float64).expand(8, 4, 4)
    vade, plain = family(noise=0.4, moves=moves), family(noise=0.8, moves=moves)
    leaked = plain + 5 * torch.nn.functional.one_hot(u, 4)

    def gain(first, second):
        found = seed_bootstrap(all_pairs(first)["affine_out"] - all_pairs(second)["affine_out"], generator=generator(0))
        return found["mean"] / found["se"]

    good, bad = gain(vade, plain), gain(vade, leaked)
    assert passes("C5", vade=good, label=good, vade_live=good, label_live=good)
    assert not passes("C5", vade=bad, label=good, vade_live=bad, label_live=good)


def test_isotropic_components_fail_the_solvable_claim():
    means, variances = mixture(5, 10)
    x, u = draw(means, 0 * variances + 0.49, 4_000)
    mixed = x @ haar(1, 5, generator=generator(0, "A"))[0]
    free = mcc(mixed @ unmixing(*label_covariances(mixed, u)).mT, x)
    assert not passes("C8a", free=free, gap=0.0)


def test_wrong_constants_fail_the_theorems():
    assert passes("C9", angle=1, pillai=1, held_out=0, deviation=1)
    assert not passes("C9", angle=2 / math.pi / (2 * 2**0.5 / math.pi), pillai=1, held_out=0, deviation=1)
    assert not passes("C9", angle=1, pillai=20 / 19, held_out=0, deviation=1)
    assert not passes("C3a", images=[0], synthetic=[0])
    assert not passes("C7b", kinked=0, affine=0, formula=0)
    assert not passes("C2", residual=0, recovered=0, others=0)  # a rotation that kept T affine
