"""Chapter 9: transforms, cells, bounds against slow twins; the skip that cannot deadlock; what must fail each rule."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from companion.analysis import gaussian_hvae as exact
from companion.analysis import multires as mr
from companion.analysis.hvae_probe import Features, evaluate, marks, nearest_mean_accuracy, sample
from companion.chapters import claims, ledger
from companion.chapters.scrubber import scrubber
from companion.data import Batches
from companion.errors import CompanionError
from companion.models.hierarchical_vae import HVAE, parameter_count, rms
from companion.models.hvae_cell import Gaussian, conv, kl, log_ratio
from companion.models.layer_strings import parse, residual_scale, retimed
from companion.models.multires_unet import DOWN, LinearUNet, UNet
from companion.nn import haar
from companion.nn.discretised_logistics import logistic_outputs, logistics
from companion.seeds import generator
from companion.train import Ensemble, fit
from companion.train.careful import Careful
from companion.train.guard import TrainingDiverged

CLAIMS = {claim.id: claim for claim in claims.load("09_multires_unet").claims}
ENCODER, DECODER = "4r3d2,2r3d2,1r1", "1r1,2m1r3,4m2r3"
SIZES = dict(width=6, middle=4, latents=3)


def bernoulli(logits, x):
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
    return loss.flatten(1).sum(1)


def passes(claim_id, **measures):
    values = {name: ledger.Measure.of(name, value) for name, value in measures.items()}
    return ledger.passes(CLAIMS[claim_id].rule, values)


def a_model(encoder=ENCODER, decoder=DECODER, *, seed=0, live=True, **options):
    """A small float64 network; `live`: no weight is zero by initialisation."""
    model = HVAE(encoder, decoder, **SIZES, generator=generator(seed, "weights"), **options).double()
    if live:
        with torch.no_grad():
            for number, weight in enumerate(model.parameters()):
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator(seed, "live", number)))
    return model.requires_grad_(False)


def images(batch=5, side=4):
    return 2 * (torch.rand(batch, 1, side, side, generator=generator(0, "x"), dtype=torch.float64) > 0.5).double() - 1


def draws(model, batch=5, path=None):
    return torch.randn(batch, model.noise_size(path), generator=generator(0, "noise"), dtype=torch.float64)


# The ladder


def pictures(side=16):
    return torch.randn(3, 2, side, side, generator=generator(0, "pictures"), dtype=torch.float64)


def test_haar_is_its_own_inverse_keeps_energy_and_has_an_orthonormal_matrix():
    x = pictures()
    bands = haar.analyse(x)
    torch.testing.assert_close(haar.synthesise(bands), x)
    energy = sum(band.square().flatten(2).sum(2) for band in bands)
    torch.testing.assert_close(energy, x.square().sum((-2, -1)))
    basis = torch.eye(64, dtype=torch.float64).view(64, 8, 8)
    matrix = torch.cat([band.flatten(1) for band in haar.analyse(basis)], 1)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(64, dtype=torch.float64))


def test_pool_up_and_project_equal_loops():
    x = pictures(8)
    slow = torch.stack(
        [x[..., 4 * i : 4 * i + 4, 4 * k : 4 * k + 4].mean((-2, -1)) for i in range(2) for k in range(2)], -1
    )
    torch.testing.assert_close(haar.pool(x, 2), slow.unflatten(-1, (2, 2)))
    torch.testing.assert_close(haar.up(haar.pool(x, 2), 2)[..., 5, 3], slow[..., 2])
    torch.testing.assert_close(haar.project(x, 3), x)
    torch.testing.assert_close(haar.project(haar.project(x, 2), 1), haar.project(x, 1))


def test_band_energies_are_those_of_the_coefficients_and_of_projections():
    x = pictures()
    energies = haar.band_energies(x)
    for level, band in enumerate(haar.analyse(x)):
        torch.testing.assert_close(energies[..., level], band.square().flatten(2).sum(2) / 256)
    torch.testing.assert_close(energies[..., 3:].sum(-1), mr.fine_energy_below(x, 2))
    assert haar.coefficients_per_band(4).sum() == 256


def test_only_dyadic_squares_are_on_the_ladder():
    for shape in ((6, 6), (4, 8)):
        with pytest.raises(CompanionError, match="power of two"):
            haar.levels(torch.zeros(shape))


def test_a_wrong_haar_scale_and_subsampling_change_the_status():
    good = dict(square=1e-12, parseval=1e-12, inverse=1e-12)
    assert passes("C2", **good)
    x = pictures()
    coarse, details = haar.analyse_once(x)
    wrong = float((haar.synthesise_once(coarse / 2, details) - x).abs().max())
    energy = float(((coarse / 2).square().sum() + details.square().sum()) / x.square().sum() - 1)
    assert not passes("C2", **good | dict(inverse=wrong)) and not passes("C2", **good | dict(parseval=abs(energy)))
    found, wrong_trip = (mr.defects(mr.ROUND_TRIPS[name], 8) for name in ("average", "stride"))
    rest = dict(loss=1.0, excess=1.3)
    assert passes("C1", defect=max(found["symmetry"], found["idempotence"]), norm=found["norm"], **rest)
    assert not passes("C1", defect=max(wrong_trip["symmetry"], 0), norm=wrong_trip["norm"], **rest)


# U-Nets


def test_the_linear_unet_multiplies_haar_bands_by_its_gains():
    net = LinearUNet(4).double()
    with torch.no_grad():
        net.gains.copy_(torch.arange(1.0, 6.0))
        x = pictures()[:, :1]
        for gain, into, out in zip(range(1, 6), haar.analyse(x), haar.analyse(net(x)), strict=True):
            torch.testing.assert_close(out, gain * into)


def test_conv_unets_have_equal_parameters_and_cut_parts_of_the_finest_skip():
    nets = [UNet(2, 4, down, generator=generator(0, "unet")).double() for down in DOWN]
    assert len({sum(p.numel() for p in net.parameters()) for net in nets}) == 1
    x = pictures()[:, :1]
    outputs = [net.requires_grad_(False)(x)[0] for net in nets]
    assert not torch.allclose(outputs[0], outputs[1]) and not torch.allclose(outputs[0], outputs[2])
    torch.testing.assert_close(nets[0](x, lambda skip: skip)[0], outputs[0])
    assert not torch.allclose(nets[0](x, lambda skip: haar.up(haar.pool(skip)))[0], outputs[0])


# Layer strings and parameters


def test_strings_say_what_is_applied_where():
    steps = parse("1x1,2m1r2,4m2x2,4d2")
    assert [(s.resolution, s.block, s.mixin, s.down) for s in steps] == [
        (1, 0, None, None), (2, 1, 1, None), (2, 1, None, None), (4, 2, 2, None), (4, 3, None, None), (4, 4, None, 2),
    ]  # fmt: skip
    assert [s.down for s in parse("8x3d2")] == [None, None, 2]
    with pytest.raises(CompanionError, match="8y3"):
        parse("8y3")


def test_published_parameter_counts_are_exact():
    strings = {
        39146: ("32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3", "1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21", 384),
        119281: ("32x15,32d2,16x9,16d2,8x8,8d2,4x6,4d4,1x6", "1x2,4m1,4x4,8m4,8x9,16m8,16x19,32m16,32x40", 512),
        125006: (
            "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5",
            "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12",
            512,
        ),
    }
    for thousands, (encoder, decoder, width) in strings.items():
        options = dict(middle=width // 4, latents=16, channels=3, outputs=100)
        assert round(parameter_count(encoder, decoder, width=width, **options) / 1e3) == thousands
    counts = dict(cifar=39145.7, imagenet32=119280.7, imagenet64=125005.9, paired=21024.5)
    assert passes("C14a", **counts)
    assert not passes("C14a", **counts | dict(cifar=39146.5)) and not passes("C14a", **counts | dict(paired=24480))


def test_shared_cells_have_the_parameters_of_one_and_unequal_counts_change_the_status():
    once = parameter_count("4r1d2,2r1d2,1r1", "1r1,2m1r1,4m2r1", **SIZES)
    assert parameter_count(ENCODER, DECODER, **SIZES) == once
    distinct = parameter_count(ENCODER.replace("r3", "x3"), DECODER.replace("r3", "x3"), **SIZES)
    assert passes("C13", gain=0.3, parameters=1.0)
    assert not passes("C13", gain=0.3, parameters=distinct / once)
    assert passes("C13b", part=0.04, gain=2.0, parameters=0.45)
    assert not passes("C13b", part=0.04, gain=2.0, parameters=0.6)
    assert not passes("C13b", part=0.2, gain=2.0, parameters=0.45)
    assert not passes("C13b", part=0.04, gain=-2.0, parameters=0.45)  # nothing learnt, nothing to share
    assert passes("C13c", gain=0.3, compute=1.1, parameters=1.0)
    assert not passes("C13c", gain=0.3, compute=1.1, parameters=distinct / once)
    assert not passes("C13c", gain=0.3, compute=0.4, parameters=1.0)  # a rival with less computation is none


def test_the_starting_scale_counts_applications():
    assert residual_scale(parse("1r1,2m1r3,4m2r3")) == pytest.approx(7**-0.5)
    assert residual_scale(parse("1r1,2m1r3,4m2r3"), naive=True) == pytest.approx(3**-0.5)
    sizes = []
    for naive in (False, True):
        model = a_model(live=False, naive_scale=naive)
        sizes.append(float(rms(model.descend(draws(model, 50), record=True).states[-1]).mean()))
    assert sizes[1] > 1.3 * sizes[0]


# Cells and bounds


def test_kl_and_log_ratio_equal_torchs_distributions():
    q, p = (Gaussian(*torch.randn(2, 7, generator=generator(0, k), dtype=torch.float64)) for k in "qp")
    a, b = (Normal(law.mean, law.log_std.exp()) for law in (q, p))
    torch.testing.assert_close(kl(q, p), kl_divergence(a, b))
    eps = torch.randn(7, generator=generator(0, "eps"), dtype=torch.float64)
    z = q.mean + q.log_std.exp() * eps
    torch.testing.assert_close(log_ratio(q, p, eps), a.log_prob(z) - b.log_prob(z))


def test_the_mean_of_log_ratio_is_the_kl_and_more_draws_tighten_the_bound():
    member = a_model(gaussian_start=True)
    x = images(3)
    noise = torch.randn(4000, member.noise_size(), generator=generator(0, "mc"), dtype=torch.float64)
    with torch.no_grad():
        trace = member(x[:1].expand(4000, -1, -1, -1), noise, record=True)
    gap = (trace.log_ratio.sum(0) - trace.kl.sum(0)).mean()
    spread = (trace.log_ratio.sum(0) - trace.kl.sum(0)).std() / 4000**0.5
    assert abs(float(gap)) < 4 * float(spread)

    def misfit(output, signed):
        return bernoulli(output, (signed + 1) / 2)

    found = evaluate(Ensemble([member]).double(), x, misfit, noise_size=member.noise_size(), draws=60, seed=0)
    assert float(found["weighted"][0]) < float(found["elbo"][0])


def test_a_generated_cell_is_the_euler_step_and_order_matters():
    model = a_model()
    trace = model.descend(draws(model), record=True)
    cell, z, eps = model.cells[0], trace.entries[0], draws(model)[:, :3].view(5, 3, 1, 1)
    law = cell.prior(z)
    half = z + law[:, 6:] + cell.lift(law[:, :3] + law[:, 3:6].exp() * eps)
    torch.testing.assert_close(half + cell.residual(half), trace.states[0])
    swapped = z + cell.residual(z)
    assert not torch.allclose(swapped + law[:, 6:], trace.states[0])
    assert not passes("C7", generation=1e-3, inference=1e-12)


def test_flags_do_what_they_say():
    x = images()
    plain = a_model()
    base = plain(x, draws(plain), record=True)
    normal = a_model(normalise=True)(x, draws(plain), record=True)
    for state in normal.states:
        torch.testing.assert_close(rms(state), torch.ones(5, dtype=torch.float64), atol=1e-5, rtol=0)
    for off in (dict(normalise=False, sync=False, every=1), dict(keep=True)):
        torch.testing.assert_close(a_model(**off)(x, draws(plain)).output, base.output)
    assert not torch.allclose(a_model(sync=True)(x, draws(plain)).output, base.output)
    assert not torch.allclose(a_model(keep=False)(x, draws(plain)).output, base.output)
    half = a_model(every=2)(x, draws(plain))
    assert (half.kl[1::2] == 0).all() and (half.kl[::2] > 0).all()
    told = a_model(clock=True)
    with torch.no_grad():
        told.places.zero_()
    # the parameters drawn after the table differ, so only shapes are compared with the plain network
    assert told.places.shape == (7, 6, 1, 1) and told(x, draws(told)).output.shape == base.output.shape


def test_a_shared_cell_is_the_same_weights_used_again():
    shared = a_model()
    distinct = a_model(ENCODER.replace("r3", "x3"), DECODER.replace("r3", "x3"))
    with torch.no_grad():
        for mine, step in zip(distinct.cells, shared.down_path, strict=True):
            mine.load_state_dict(shared.cells[step.block].state_dict())
        for mine, step in zip(distinct.blocks, shared.up_path, strict=True):
            mine.load_state_dict(shared.blocks[step.block].state_dict())
        for name in ("stem", "head", "starts"):
            getattr(distinct, name).load_state_dict(getattr(shared, name).state_dict())
        distinct.gain.copy_(shared.gain)
        distinct.shift.copy_(shared.shift)
        torch.testing.assert_close(distinct(images(), draws(shared)).output, shared(images(), draws(shared)).output)


def test_retimed_paths_keep_total_time_and_one_is_the_trained_network():
    path = retimed(parse(DECODER), "1r2,2m1r6,4m2r6")
    assert sum(step.time for step in path) == pytest.approx(7)
    assert {step.time for step in path} == {0.5}
    model = a_model()
    same = retimed(model.down_path, DECODER)
    torch.testing.assert_close(model(images(), draws(model), path=same).kl, model(images(), draws(model)).kl)
    longer = model(images(), draws(model, path=path), path=path)
    assert longer.kl.shape[0] == 14 and longer.output.isfinite().all()
    with pytest.raises(CompanionError, match="distinct cells"):
        retimed(model.down_path, "1r1,2m1r3")


def test_half_steps_take_half_of_every_drift_the_bias_of_the_lift_included():
    model = a_model(live=False)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        for cell in model.cells:
            cell.lift.bias.fill_(1)
    path = retimed(model.down_path, "1r2,2m1r6,4m2r6")
    whole = model.descend(torch.zeros(1, model.noise_size()).double(), record=True).states[-1]
    halves = model.descend(torch.zeros(1, model.noise_size(path)).double(), path=path, record=True).states[-1]
    torch.testing.assert_close(whole, torch.full_like(whole, 7.0))
    torch.testing.assert_close(halves, whole)


def test_the_price_of_unequal_variances_is_a_part_of_the_kl_and_zero_where_they_are_equal():
    model = a_model()
    trace = model(images(), draws(model), record=True)
    assert (trace.price >= 0).all() and (trace.price <= trace.kl + 1e-12).all() and float(trace.price.sum()) > 0
    equal = a_model(live=False)  # the prior starts at N(0, 1)
    with torch.no_grad():
        for cell in equal.cells:
            cell.posterior.convolutions[-1].weight.zero_()
    assert float(equal(images(), draws(equal), record=True).price.abs().max()) == 0


def test_a_cell_that_enlarges_otherwise_breaks_the_inclusion():
    model = a_model(live=False)
    kept = model(images(), draws(model), record=True)
    torch.testing.assert_close(haar.pool(kept.entries[1]), kept.states[0])
    model.enlarge = lambda x, factor: mr.bilinear(x)
    bent = model(images(), draws(model), record=True)
    assert not torch.allclose(haar.pool(bent.entries[4]), bent.states[3])


def test_temperature_zero_is_the_mean_path_and_scale_moves_a_state():
    model = a_model()
    cold = [model.descend(noise, temperature=1e-9).output for noise in (draws(model), -draws(model))]
    torch.testing.assert_close(cold[0], cold[1], atol=1e-6, rtol=0)
    per_cell = torch.ones(7, dtype=torch.float64)
    torch.testing.assert_close(
        model.descend(draws(model), temperature=per_cell).output, model.descend(draws(model)).output
    )
    moved = model(images(), draws(model), scale={4: 2.0}, record=True)
    still = model(images(), draws(model), record=True)
    torch.testing.assert_close(moved.entries[4], 2 * still.entries[4])


def test_an_ensemble_is_its_members_one_by_one_and_traces_into_one_graph():
    members = [a_model(seed=k, normalise=k == 1) for k in range(2)]
    together = Ensemble(members).double()
    noise, given = draws(members[0]), images()
    found = together.call(lambda member: member(given, noise).kl)
    for k, member in enumerate(members):
        torch.testing.assert_close(found[k], member(given, noise).kl)
    captured = torch.compile(lambda x, eps: members[0](x, eps).output, backend="eager", fullgraph=True)
    torch.testing.assert_close(captured(images(), noise), members[0](images(), noise).output)


def test_half_precision_keeps_divergences_in_single():
    model = HVAE(ENCODER, DECODER, **SIZES, generator=generator(0, "half"))
    with torch.autocast("cpu", torch.bfloat16):
        trace = model(images().float(), draws(model).float())
    assert trace.kl.dtype == torch.float32 and trace.output.dtype == torch.float32


# Likelihoods


def test_logistics_sum_to_one_over_all_intensities_and_bernoulli_to_one_over_two():
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64).view(256, 1, 1, 1)
    outputs = torch.randn(1, logistic_outputs(1, 3), 1, 1, generator=generator(0, "dmol"), dtype=torch.float64)
    outputs[:, 6:9] -= 2
    mass = (-logistics(outputs.expand(256, -1, -1, -1), levels, mixtures=3)).exp().sum()
    assert float(mass) == pytest.approx(1, abs=1e-9)
    logits = torch.tensor([[[[0.7]]]])
    total = sum(math.exp(-float(bernoulli(logits, torch.full((1, 1, 1, 1), value)))) for value in (0.0, 1.0))
    assert total == pytest.approx(1, abs=1e-6)


def test_the_last_colour_sums_to_one_given_the_others_and_colours_are_coupled():
    outputs = torch.randn(1, logistic_outputs(3, 1), 1, 1, generator=generator(0, "colour"), dtype=torch.float64)
    assert outputs.shape[1] == 10 and logistic_outputs(3, 10) == 100
    grid = torch.linspace(-1, 1, 256, dtype=torch.float64)
    x = torch.stack([torch.full_like(grid, 0.2), torch.full_like(grid, -0.4), grid], 1)[..., None, None]

    def total(changed):
        return float((-logistics(changed.expand(256, -1, -1, -1), x, mixtures=1)).exp().sum())

    other = outputs.clone()
    other[:, [3, 6, 8, 9]] += 0.7  # mean, scale and couplings of the last colour: p(r, g) does not know them
    assert total(other) == pytest.approx(total(outputs), rel=1e-9)
    other = outputs.clone()
    other[:, 7] += 0.7  # the coupling of green to red changes p(r, g)
    assert total(other) != pytest.approx(total(outputs), rel=1e-3)


@pytest.mark.parametrize("levels", [2, 4, 8])
def test_few_intensities_of_coupled_colours_sum_to_one_jointly(levels):
    outputs = 2 * torch.randn(1, logistic_outputs(3, 3), 1, 1, generator=generator(1, "joint"), dtype=torch.float64)
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64)
    x = torch.cartesian_prod(grid, grid, grid)[..., None, None]
    each = -logistics(outputs.expand(len(x), -1, -1, -1), x, mixtures=3, levels=levels)
    assert float(each.exp().sum()) == pytest.approx(1, abs=1e-9)
    wrong = -logistics(outputs.expand(len(x), -1, -1, -1), x, mixtures=3)  # bins of the wrong width
    assert float(wrong.exp().sum()) < 0.9


def test_each_colour_sums_to_one_given_those_before_as_a_product_of_slow_conditionals():
    outputs = torch.randn(1, logistic_outputs(3, 1), 1, 1, generator=generator(2, "slow"), dtype=torch.float64)
    _, *rest = outputs.flatten()
    mean, log_scale, (a, b, c) = rest[:3], rest[3:6], (torch.stack(rest[6:])).tanh()
    grid = torch.linspace(-1, 1, 256, dtype=torch.float64)

    def conditional(place, channel):
        """Masses of all 256 intensities of a colour with the logistic's mean at `place`."""
        inverse = (-log_scale[channel]).exp()
        edges = torch.sigmoid((grid[:-1] + 1 / 255 - place) * inverse)
        return torch.cat([edges[:1], edges.diff(), 1 - edges[-1:]])

    for r, g, blue in ((0, 0, 0), (255, 255, 255), (3, 200, 255), (128, 0, 77)):
        red = conditional(mean[0], 0)
        green = conditional(mean[1] + a * grid[r], 1)
        last = conditional(mean[2] + b * grid[r] + c * grid[g], 2)
        for masses in (red, green, last):
            assert float(masses.sum()) == pytest.approx(1, abs=1e-12)
        x = torch.stack([grid[r], grid[g], grid[blue]]).view(1, 3, 1, 1)
        slow = -(red[r].log() + green[g].log() + last[blue].log())
        torch.testing.assert_close(logistics(outputs, x, mixtures=1)[0], slow, rtol=1e-8, atol=1e-8)


def test_gradients_of_the_logistics_are_finite_at_the_extremes():
    x = torch.tensor([-1.0, 1.0, 0.1]).view(3, 1, 1, 1).expand(-1, 3, 2, 2)
    for size in (1.0, 30.0):
        outputs = torch.randn(3, logistic_outputs(3, 2), 2, 2, generator=generator(0, "far")) * size
        outputs.requires_grad_(True)
        value = logistics(outputs, x, mixtures=2)
        value.sum().backward()
        assert value.isfinite().all() and outputs.grad.isfinite().all()


def test_a_hierarchy_trains_on_colours():
    x = (255 * torch.rand(32, 3, 8, 8, generator=generator(0, "paint")).mul(0.2)).round() / 255
    sizes = dict(channels=3, outputs=logistic_outputs(3, 2), patch=2)
    member = HVAE("4r1d2,2r1d2,1r1", "1r1,2m1r1,4m2r1", **SIZES, **sizes, generator=generator(0, "colours"))
    noise = torch.randn(32, member.noise_size(), generator=generator(0, "colour noise"))

    def bound():
        trace = member(2 * x - 1, noise)
        return (logistics(trace.output, 2 * x - 1, mixtures=2) + trace.kl.sum(0)).mean() / x[0].numel() / math.log(2)

    before, optimiser = float(bound().detach()), torch.optim.AdamW(member.parameters(), lr=0.02)
    for _ in range(30):
        optimiser.zero_grad()
        bound().backward()
        optimiser.step()
    assert float(bound().detach()) < before - 1 and before < 12


def test_a_product_of_matrices_is_the_convolution_it_replaces():
    for inputs, outputs, side in ((5, 3, 4), (2, 6, 1)):
        layer = conv(inputs, outputs, 1, generator=generator(0, "conv")).double()
        torch.nn.init.normal_(layer.bias, generator=generator(0, "bias"))
        x = torch.randn(4, inputs, side, side, generator=generator(0, "x"), dtype=torch.float64)
        torch.testing.assert_close(layer(x), torch.nn.functional.conv2d(x, layer.weight, layer.bias))


# The skip


def run_careful(skip, steps, *, patience=3, members=2):
    modules = [torch.nn.Linear(2, 1, bias=False) for _ in range(members)]
    for module in modules:
        torch.nn.init.ones_(module.weight)
    careful = Careful(torch.optim.AdamW, clip=1.0, skip=skip, members=members, patience=patience)
    ensemble = Ensemble(modules)

    def loss(member, batch, noise, hyper):
        return hyper["size"] * member(batch[0]).mean(), {}

    fit(
        ensemble, loss, Batches(torch.ones(4, 2), batch_size=None, seed=0), steps=steps, lr=0.1, optimiser=careful,
        seed=[0, 1], hyper={"size": torch.tensor([1.0, 1000.0])},
    )  # fmt: skip
    return careful.skipped.tolist(), [ensemble.member(k).weight.detach().flatten() for k in range(members)]


def test_the_skip_leaves_weights_and_moments_of_that_member_alone():
    skipped, (calm, wild) = run_careful(10.0, 3)
    assert skipped == [0, 3]
    torch.testing.assert_close(wild, torch.ones(2))
    assert (calm < 0.8).all()


def test_a_gradient_that_stays_infinite_is_an_error_after_the_patience():
    weight = torch.nn.Parameter(torch.ones(2, 1))
    optimiser = Careful(torch.optim.AdamW, clip=1.0, skip=10.0, members=2, patience=3)([weight], lr=0.1)
    for _ in range(3):
        weight.grad = torch.tensor([[1.0], [torch.inf]])
        optimiser.step()
    weight.grad = torch.tensor([[1.0], [torch.inf]])
    with pytest.raises(TrainingDiverged, match=r"step 3 \(member 1\)"):
        optimiser.step()
    assert weight[1] == 1 and weight[0] < 1


def test_the_skip_cannot_deadlock():
    skipped, (_, wild) = run_careful(10.0, 8)
    assert skipped[1] == 6 and (wild < 1).all()  # every fourth update is taken, clipped
    skipped, weights = run_careful(1e9, 8)
    assert skipped == [0, 0]
    torch.testing.assert_close(weights[0], weights[1])  # clipping: AdamW sees equal directions and sizes


# Analysis


def test_gaussian_hierarchies_are_tight_with_exact_gains_and_not_with_shared_ones():
    for n in (1, 3, 9):
        value = exact.elbo(*exact.exact_gains(n, 1.1, 0.4), 1.37, 1.1, 0.4)
        assert float(value) == pytest.approx(float(exact.log_likelihood(1.37, 1.1, 0.4)), abs=1e-12)
    perfect = float(exact.log_likelihood(1.09, 1.0, 0.3))
    best = exact.best_shared(4, 1.09, 1.0, 0.3)
    assert best < perfect - 0.1
    for k, rho in ((0.2, 0.8), (0.4, 0.5)):
        some = exact.elbo(torch.full((4,), k).double(), torch.full((4,), rho).double(), 1.09, 1.0, 0.3)
        assert float(some) <= best + 1e-9


def test_the_closed_elbo_equals_monte_carlo():
    gains, ratios = torch.tensor([0.3, 0.5]).double(), torch.tensor([0.7, 0.6]).double()
    stream = generator(0, "mc")
    x = 1.2 * torch.randn(200_000, generator=stream, dtype=torch.float64)
    z, value = torch.zeros_like(x), torch.zeros_like(x)
    for k, rho in zip(gains, ratios, strict=True):
        q, p = Normal(z + k * (x - z), (rho * 0.5).sqrt()), Normal(z, math.sqrt(0.5))
        value -= kl_divergence(q, p)
        z = q.mean + q.stddev * torch.randn(len(x), generator=stream, dtype=torch.float64)
    value += Normal(z, 0.3).log_prob(x)
    assert float(value.mean()) == pytest.approx(float(exact.elbo(gains, ratios, 1.44, 1.0, 0.3)), abs=0.05)


def test_the_norm_clock_improves_with_dimensions():
    options = dict(steps=6, x_var=1.09, s=1.0, tau=0.3, draws=300)
    values = [exact.norm_clock_elbo(d, **options, generator=generator(0, d)) for d in (1, 30, 1000)]
    assert values[0] < values[1] < values[2] < float(exact.log_likelihood(1.09, 1.0, 0.3))


def test_follmers_drift_is_the_derivative_of_its_definition():
    weights, means, stds = torch.tensor([0.3, 0.7]), torch.tensor([-1.0, 0.5]), torch.tensor([0.3, 0.6])
    mixture = [t.double() for t in (weights, means, stds)]
    nodes = torch.linspace(-9, 9, 20_001, dtype=torch.float64)

    def log_expectation(z, t):
        y = z + (1 - t) ** 0.5 * nodes
        target = (mixture[0] * Normal(*mixture[1:]).log_prob(y[:, None]).exp()).sum(-1)
        ratio = target / Normal(0.0, 1.0).log_prob(y).exp()
        return torch.trapezoid(ratio * Normal(0.0, 1.0).log_prob(nodes).exp(), nodes).log()

    for z, t in ((0.2, 0.3), (-0.7, 0.6)):
        slope = (log_expectation(z + 1e-4, t) - log_expectation(z - 1e-4, t)) / 2e-4
        drift = exact.follmer_drift(torch.tensor(z).double(), t, *mixture)
        assert float(drift) == pytest.approx(float(slope), abs=1e-4)


def test_gbm_orders_and_a_wrong_noise_scale_changes_the_status():
    steps = [8, 16, 32, 64]
    inverse = [1 / n for n in steps]
    strong, weak = mr.gbm_errors(steps, paths=5_000, generator=generator(0, "gbm"))
    wrong, _ = mr.gbm_errors(steps, paths=5_000, noise_power=1.0, generator=generator(0, "gbm"))
    weak_slope = mr.log_slope(inverse, weak)
    assert passes("C8", strong=mr.log_slope(inverse, strong), weak=weak_slope)
    assert not passes("C8", strong=mr.log_slope(inverse, wrong), weak=weak_slope)


def test_the_clock_is_read_on_other_images_and_an_untrained_one_fails_the_rule():
    true = torch.arange(5.0)[:, None] + 0.01 * torch.randn(5, 40, generator=generator(0, "clock"))
    assert mr.clock_r2(true) == (1.0, 1.0)
    r2, accuracy = mr.clock_r2(torch.randn(5, 4000, generator=generator(0, "noise")))
    assert r2 < 0 and accuracy == pytest.approx(0.2, abs=0.05)
    assert nearest_mean_accuracy(true[..., None]) == 1.0
    members = Ensemble([a_model(seed=k, live=False) for k in range(2)]).double()
    x = images(60)
    noise = draws(a_model(), len(x))
    untrained = [mr.clock_r2(one)[0] for one in marks(members.call(lambda m: m(x, noise, record=True).states))]
    rest = dict(halved=[0.1, 0.1], doubled=[0.1, 0.1])
    assert not passes("C11", trained=untrained, raised=[0.0, 0.0], **rest)
    assert passes("C11", trained=[0.97, 0.98], raised=[0.2, 0.3], **rest)
    assert not passes("C11", trained=[0.97, 0.98], raised=[0.2, 0.3], halved=[-0.1, 0.1], doubled=[0.1, 0.1])


def test_frechet_distance_and_samples():
    a = torch.randn(4000, 3, generator=generator(0, "a"), dtype=torch.float64)
    assert mr.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert mr.frechet(a, a + 2) == pytest.approx(12, abs=1e-6)
    assert mr.frechet(a, 2 * a) == pytest.approx(float(torch.cov(a.T).trace() + a.mean(0).square().sum()), abs=1e-3)
    members = Ensemble([HVAE(ENCODER, DECODER, **SIZES, generator=generator(k, "s")) for k in range(2)])
    drawn = sample(members, 30, noise_size=a_model().noise_size(), seed=0)
    assert drawn.shape == (2, 30, 1, 4, 4) and set(drawn.unique().tolist()) <= {0.0, 1.0}
    features = Features(drawn[0], 4)
    assert features.distance(drawn[0], drawn[0]) == pytest.approx(0, abs=1e-6)


def test_the_scrubber_needs_no_network_and_names_every_frame():
    import matplotlib.pyplot as plt

    page = scrubber([plt.figure(figsize=(1, 1)) for _ in range(2)], ["first frame", 'the "second"'], title="Frames")
    assert page.count("<img alt=") == 2 and "&quot;second&quot;" in page and "http" not in page
    with pytest.raises(ValueError, match="label"):
        scrubber([], [], title="none")


def test_a_residual_scale_of_zero_is_zero():
    still, scaled = (a_model(live=False, last=last) for last in (0.0, None))
    assert all(float(cell.lift.weight.abs().max()) == 0 for cell in still.cells)
    assert all(float(cell.lift.weight.abs().max()) > 0 for cell in scaled.cells)


@pytest.mark.parametrize(
    ("claim_id", "good", "bad"),
    [
        ("C3a", dict(gap=0.01, split=1e-12), dict(gap=0.2)),
        ("C4", dict(pythagoras=1e-12, nesting=0.0, bound=0.4), dict(pythagoras=0.5)),
        ("C5", dict(smooth=[1.0, 1.0], disc=0.5, constant=[0.28, 0.29]), dict(constant=[0.577, 0.577])),
        ("C9", dict(norm=1e-7, projection=1e-7, details=1e-7), dict(details=0.1)),
        ("C10b", dict(equal=1e-12, slope=1.0), dict(slope=2.0)),
        ("C12", dict(interaction=0.2, mean=0.6, chance=0.4, cost=0.5), dict(mean=0.3)),
        ("C3b", dict(share=[0.8, 0.9], white=[0.6, 0.8], damage=[0.3, 0.3]), dict(white=[0.6, 0.9])),
        ("C3b", dict(share=[0.8, 0.9], white=[0.4, 0.4], damage=[0.3, 0.3]), dict(share=[0.45, 0.9])),
        ("C16", dict(low=-0.01, high=0.015), dict(high=0.03)),
        ("B1", dict(part=0.02, stack=0.4, fewer=[1.0, 0.2]), dict(stack=0.01)),
        ("B1", dict(part=0.02, stack=0.4, fewer=[1.0, 0.2]), dict(fewer=[-65.0, 0.2])),
        ("B1", dict(part=0.02, stack=2.0, fewer=[1.0, 0.2]), dict(part=1.0)),  # independent pixels
        ("B4", dict(ratio=[0.5, 0.9, 1.2]), dict(ratio=[3.0, 3.0, 3.0])),
        ("C15", dict(cost=[2.0, 1.5]), dict(cost=[2.0, 0.5])),
        ("C14b", dict(nats=[1.0, 1.01], parameters=0.5), dict(nats=[1.02, 1.03])),  # one cell, applied once
        ("C14b", dict(nats=[1.0, 1.01], parameters=0.5), dict(parameters=1.0)),  # distinct cells
        ("C19", dict(order=1.0, memory=1.0), dict(memory=0.0)),
        ("B2", dict(exact=1e-12, shared=0.54, clock=0.02, low=1.1, growth=1.01), dict(clock=0.5)),
    ],
)
def test_rules_pass_what_they_should_and_nothing_else(claim_id, good, bad):
    assert passes(claim_id, **good)
    assert not passes(claim_id, **good | bad)
