"""Chapter 1's networks and regulariser against autograd loops, closed forms and identities, in float64."""

import pytest
import torch
from torch.func import functional_call, grad, vmap

from companion.analysis.calibration import reliability
from companion.analysis.noise_expansion import (
    loss_change,
    quadratic_change,
    second_order_terms,
    taylor_terms,
)
from companion.chapters import claims, ledger
from companion.chapters.ledger import Measure
from companion.models.gaussian_noise_injections import (
    NoisyConvNet,
    NoisyMLP,
    layer_terms,
    noised_loss,
    output_jacobians,
    probe_terms,
    regularised_loss,
    site_noise,
    white_probe,
)
from companion.nn.likelihoods import CrossEntropy, SquaredError
from companion.seeds import generator

CLAIMS = {claim.id: claim for claim in claims.load("01_gaussian_noise_injections").claims}
SIZES = (4, 6, 5, 3)
LIKELIHOODS = [SquaredError, CrossEntropy]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def problem(activation="tanh", likelihood=SquaredError, sizes=SIZES, batch=7):
    net = NoisyMLP(sizes, activation, generator=generator(0, "init")).requires_grad_(False)
    x = torch.randn(batch, sizes[0], generator=generator(0, "x"))
    if likelihood is SquaredError:
        return net, x, torch.randn(batch, sizes[-1], generator=generator(0, "y"))
    return net, x, torch.randint(sizes[-1], (batch,), generator=generator(0, "y"))


def conv_problem():
    net = NoisyConvNet((2, 8, 8), 3, (4, 5), generator=generator(0, "conv")).requires_grad_(False)
    return net, torch.randn(3, 2, 8, 8, generator=generator(0, "x"))


def unit_noise(net, batch, draws):
    stream = generator(0, "noise")
    return [torch.randn(draws, *shape, generator=stream) for shape in net.sites(batch)]


def loop_jacobians(net, x):
    """One autograd call per example and site: the slow twin of `output_jacobians`."""
    rows = []
    for one in x:
        zeros = tuple(torch.zeros(shape) for shape in net.sites(1))
        rows.append(torch.autograd.functional.jacobian(lambda *eps, one=one: net(one[None], eps)[0][0], zeros))
    return [torch.cat([row[k].movedim(1, 0) for row in rows]) for k in range(len(rows[0]))]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihood_residual_and_factor_are_the_first_two_derivatives(likelihood):
    _, _, y = problem(likelihood=likelihood)
    outputs = torch.randn(7, 3, generator=generator(0, "outputs"))
    for f, target in zip(outputs, y, strict=True):

        def one(f, target=target):
            return likelihood.loss(f[None], target[None])[0]

        root = vmap(lambda v, f=f: likelihood.factor(f[None], v[None])[0])(torch.eye(3)).T
        torch.testing.assert_close(likelihood.residual(f[None], target[None])[0], grad(one)(f))
        torch.testing.assert_close(root @ root.T, torch.func.hessian(one)(f))


def test_cross_entropy_factor_survives_saturated_logits():
    logits = torch.tensor([[800.0, 0.0, -800.0]], requires_grad=True)
    CrossEntropy.factor(logits, torch.ones(1, 3)).sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("activation", ["elu", "relu", "softplus", "tanh"])
def test_jacobians_equal_a_loop_over_examples(activation):
    net, x, _ = problem(activation)
    outputs, jacobians = output_jacobians(net, x)
    torch.testing.assert_close(outputs, net(x)[0])
    for vectorised, looped in zip(jacobians, loop_jacobians(net, x), strict=True):
        torch.testing.assert_close(vectorised, looped)
    torch.testing.assert_close(jacobians[-1], net.layers[-1].weight.expand(7, -1, -1))  # J_{L-1} = W_L


def test_conv_jacobians_equal_a_loop_over_examples():
    net, x = conv_problem()
    for vectorised, looped in zip(output_jacobians(net, x)[1], loop_jacobians(net, x), strict=True):
        torch.testing.assert_close(vectorised, looped)


def test_conv_net_shapes_and_bad_image():
    net, x = conv_problem()
    outputs, hidden = net(x)
    assert outputs.shape == (3, 3)
    assert [tuple(h.shape) for h in hidden] == net.sites(3)
    with pytest.raises(ValueError, match="multiples of 4"):
        NoisyConvNet((1, 10, 10), 2, generator=generator(0))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_layer_terms_are_half_the_trace(likelihood):
    net, x, y = problem(likelihood=likelihood)
    outputs, jacobians = output_jacobians(net, x)
    hessian = torch.stack(
        [
            torch.func.hessian(lambda f, t=t: likelihood.loss(f[None], t[None])[0])(f)
            for f, t in zip(outputs, y, strict=True)
        ]
    )
    expected = [0.5 * torch.einsum("bcf,bcd,bdf->b", j, hessian, j).mean() for j in jacobians]
    torch.testing.assert_close(layer_terms(net, x, likelihood), torch.stack(expected))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_probe_is_unbiased_in_value_and_gradient(likelihood):
    net, x, _ = problem(likelihood=likelihood)
    weights = {name: w.detach() for name, w in net.named_parameters()}
    probes = torch.stack([white_probe(3)(generator(0, "probe", i), (x,)) for i in range(1_500)]).double()

    class Bound:
        def __init__(self, weights):
            self.weights, self.sites = weights, net.sites

        def __call__(self, x, eps=None):
            return functional_call(net, self.weights, (x, eps))

    def exact(w):
        return layer_terms(Bound(w), x, likelihood).sum()

    def sampled(w):
        return vmap(lambda v: probe_terms(Bound(w), x, likelihood, v)[1].sum())(probes).mean()

    assert sampled(weights) == pytest.approx(float(exact(weights)), rel=0.03)
    for name, expected in grad(exact)(weights).items():
        found = grad(sampled)(weights)[name]
        assert (found - expected).norm() < 0.08 * expected.norm(), name


def test_a_sign_probe_is_exact_for_one_output():
    net, x, _ = problem(sizes=(4, 6, 1))
    probe = white_probe(1)(generator(0), (x,)).double()
    torch.testing.assert_close(probe_terms(net, x, SquaredError, probe)[1], layer_terms(net, x, SquaredError))


def test_cross_entropy_terms_ignore_a_constant_in_all_logits():
    net, x, _ = problem(likelihood=CrossEntropy)

    class Shifted:
        sites = net.sites

        def __call__(self, x, eps=None):
            outputs, hidden = net(x, eps)
            return outputs + 5.0, hidden

    torch.testing.assert_close(layer_terms(Shifted(), x, CrossEntropy), layer_terms(net, x, CrossEntropy))


def test_rescaling_divides_one_hidden_term_and_leaves_the_rest():
    net, x, _ = problem("relu")
    before = layer_terms(net, x, SquaredError)
    net.layers[0].weight.mul_(4.0)
    net.layers[1].weight.div_(4.0)
    after = layer_terms(net, x, SquaredError)
    torch.testing.assert_close(after / before, torch.tensor([1.0, 1 / 16, 1.0]))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_second_order_terms_are_blocks_of_the_activation_hessian(likelihood):
    net, x, y = problem(likelihood=likelihood)
    widths = [shape[1] for shape in net.sites(1)]
    total = torch.zeros(len(widths))
    for one, target in zip(x, y, strict=True):

        def loss(flat, one=one, target=target):
            eps = [part[None] for part in flat.split(widths)]
            return likelihood.loss(net(one[None], eps)[0], target[None])[0]

        diagonal = torch.func.hessian(loss)(torch.zeros(sum(widths))).diagonal()
        total += torch.stack([0.5 * part.sum() for part in diagonal.split(widths)]) / len(x)
    torch.testing.assert_close(second_order_terms(net, x, y, likelihood), total)


def test_hutchinson_second_order_terms_approach_the_exact_ones():
    net, x, y = problem(likelihood=CrossEntropy)
    exact = second_order_terms(net, x, y, CrossEntropy)
    sampled = second_order_terms(net, x, y, CrossEntropy, unit_noise(net, len(x), 4_000))
    torch.testing.assert_close(sampled, exact, rtol=0.1, atol=0.01)


def test_linear_network_changes_by_exactly_r():
    net, x, y = problem("linear")
    r = layer_terms(net, x, SquaredError).sum()
    torch.testing.assert_close(second_order_terms(net, x, y, SquaredError).sum(), r)
    unit = unit_noise(net, len(x), 4_000)
    change = loss_change(net, x, y, SquaredError, unit)
    torch.testing.assert_close(change, quadratic_change(net, x, y, SquaredError, unit))  # draw by draw
    assert abs(float(change.mean() - r)) < 4 * float(change.std()) / 4_000**0.5


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_remainder_is_of_fourth_order_and_only_with_the_missing_term(likelihood):
    net, x, y = problem("tanh", likelihood)
    unit = unit_noise(net, len(x), 400)
    quadratic = quadratic_change(net, x, y, likelihood, unit)
    rest = [
        float((loss_change(net, x, y, likelihood, [v * u for u in unit]) - v**2 * quadratic).mean().abs())
        for v in (0.05, 0.1)
    ]
    assert 12 < rest[1] / rest[0] < 20  # 2⁴ = 16; a wrong second-order constant would give 4
    k = second_order_terms(net, x, y, likelihood).sum() - layer_terms(net, x, likelihood).sum()
    assert abs(float(k)) * 0.1**2 > 3 * rest[1]


def test_taylor_terms_have_the_means_of_the_theory():
    net, x, y = problem("tanh", CrossEntropy, batch=2)
    eps = [0.05 * u for u in unit_noise(net, 2, 20_000)]
    terms = taylor_terms(net, x, y, CrossEntropy, eps)
    r = 0.05**2 * layer_terms(net, x, CrossEntropy).sum()
    for name, expected in (("G", 0.0), ("C", float(r)), ("H", 0.0)):
        error = float(terms[name].std()) / 20_000**0.5
        assert abs(float(terms[name].mean()) - expected) < 4 * error, name
    total = terms["G"] + terms["C"] + terms["H"]
    assert torch.corrcoef(torch.stack([total, terms["change"]]))[0, 1] > 0.99


def test_noised_loss_is_clean_at_zero_and_takes_one_variance_per_site():
    net, x, y = problem()
    noise = [u[0] for u in unit_noise(net, len(x), 1)]
    loss = noised_loss(SquaredError)
    clean = SquaredError.loss(net(x)[0], y).mean()
    torch.testing.assert_close(loss(net, (x, y), noise, {"variance": torch.tensor(0.0)})[0], clean)
    only_input = loss(net, (x, y), noise, {"variance": torch.tensor([0.25, 0.0, 0.0])})[0]
    torch.testing.assert_close(only_input, SquaredError.loss(net(x + 0.5 * noise[0])[0], y).mean())


def test_regularised_loss_adds_the_weighted_terms():
    net, x, y = problem(sizes=(4, 6, 1))
    y = y[:, :1]
    variance = torch.tensor([0.1, 0.3])
    found = regularised_loss(SquaredError)(net, (x, y), torch.ones(7, 1), {"variance": variance})[0]
    expected = SquaredError.loss(net(x)[0], y).mean() + (variance * layer_terms(net, x, SquaredError)).sum()
    torch.testing.assert_close(found, expected)


def test_noise_reaches_every_site_but_not_the_output():
    net, x, _ = problem()
    noise = site_noise(net)(generator(0), (x,))
    assert [tuple(n.shape) for n in noise] == [(7, 4), (7, 6), (7, 5)]
    torch.set_default_dtype(torch.float64)
    eps = [torch.zeros(n.shape) for n in noise]
    eps[-1] += 1.0
    shifted = net(x, eps)[0] - net(x)[0]
    torch.testing.assert_close(shifted, net.layers[-1].weight.sum(1).expand(7, -1))


def test_layer_norms_are_those_of_masked_weights_for_relu():
    net, x, _ = problem("relu")
    _, hidden = net(x)
    masked = [
        (layer.weight * (h > 0)[..., None]).norm(dim=(1, 2)).mean()
        for layer, h in zip(net.layers[:-1], hidden[1:], strict=True)
    ]
    torch.testing.assert_close(net.layer_norms(x), torch.stack(masked))


def test_initialisations():
    plain = NoisyMLP((300, 400, 2), generator=generator(0))
    assert all(layer.bias is None for layer in plain.layers)
    assert float(plain.layers[0].weight.detach().std()) == pytest.approx((2 / 700) ** 0.5, rel=0.02)  # Glorot
    biased = NoisyMLP((300, 400, 2), bias=True, generator=generator(0))
    assert float(biased.layers[0].weight.detach().abs().max()) == pytest.approx(300**-0.5, rel=0.01)
    same = NoisyMLP((300, 400, 2), generator=generator(0))
    assert torch.equal(plain.layers[1].weight, same.layers[1].weight)


def test_no_step_within_the_global_margin_bound_changes_the_answer():
    net, x, _ = problem("elu", CrossEntropy)
    steepest = float(torch.stack([torch.linalg.matrix_norm(w.weight, 2) for w in net.layers]).prod())
    two = net(x)[0].topk(2).values
    bound = (two[:, 0] - two[:, 1]) / (2**0.5 * steepest)
    walk = torch.randn(2_000, *x.shape, generator=generator(0, "walk"))
    walk = bound[:, None] * walk / walk.norm(dim=-1, keepdim=True)
    assert (vmap(lambda step: net(x + step)[0].argmax(-1))(walk) == net(x)[0].argmax(-1)).all()


# --- the rules bite ---


def full(claim_id, **values):
    return ledger.passes(CLAIMS[claim_id].rule, {name: Measure.of(name, value) for name, value in values.items()})


def status(claim_id, **values):
    """Whether a twin that gives every measure ruled on would get a status, by the rule or by its direction."""
    given = {name: Measure.of(name, value) for name, value in values.items()}
    assert CLAIMS[claim_id].ruled() <= given.keys()
    return ledger.lets_through(CLAIMS[claim_id], given)


def test_three_times_r_meets_the_papers_criterion_and_gets_no_status():
    assert full("C4", share=[1.0] * 4, low=[0.6] * 4, high=[1.1] * 4, early=[2.8] * 5)
    assert not status("C4", share=[1.0] * 4, low=[0.6 / 3] * 4, high=[1.1 / 3] * 4, early=[1.3] * 5)


def test_a_network_that_is_only_late_or_at_another_scale_is_no_low_pass():
    spectrum = {"top": [0.36] * 3, "lowest": [1.0] * 3, "gap": 0.05}
    assert full("C8", **spectrum, settled=[1.0] * 3)
    assert not status("C8", **spectrum, settled=[1.5] * 3)
    assert not status("C8", **spectrum | {"lowest": [0.36] * 3}, settled=[1.0] * 3)


def test_an_order_within_the_spread_over_seeds_is_none():
    spread = torch.tensor([-0.5, 0.0, 0.5])
    means = {f"{role}_{k}": 8.0 - k for role in ("noise", "regulariser") for k in range(1, 5)}
    assert full("C9", **{name: mean + spread for name, mean in means.items()})
    flips = {name: mean + 4 * spread.roll(int(name[-1])) for name, mean in means.items()}
    assert not status("C9", **flips)


def test_a_gain_that_stopping_early_has_too_is_not_credited_to_noise():
    assert full("C10", noise=[1.9] * 3, regulariser=[1.9] * 3, stopped=[1.6] * 3)
    assert not full("C10", noise=[1.9] * 3, regulariser=[1.9] * 3, stopped=[2.0] * 3)
    assert full("C11", noise=[0.4] * 3, accuracy=[1.0] * 3, stopped=[0.5] * 3)
    assert not full("C11", noise=[0.4] * 3, accuracy=[1.0] * 3, stopped=[0.3] * 3)
    assert full("C15", images=[0.5] * 3, stopped=[0.6] * 3, table_1=[0.9] * 5, table_2=[0.9] * 5)
    assert not full("C15", images=[0.6] * 3, stopped=[0.6] * 3, table_1=[0.9] * 5, table_2=[0.9] * 5)


def test_a_constant_is_calibrated_and_gets_no_status():
    y = torch.arange(10).repeat(100)
    constant = torch.full((len(y), 10), 0.1).log()
    ece, accuracy = reliability(constant, y).ece, float((constant.argmax(1) == y).double().mean())
    assert ece < 0.01
    assert not status("C11", noise=[ece / 0.2] * 3, accuracy=[accuracy / 0.8] * 3, stopped=[0.5] * 3)
