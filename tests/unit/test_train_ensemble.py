"""An ensemble: each member is what it would be alone."""

from functools import partial

import numpy
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vjp, vmap

from companion.data.batches import Batches
from companion.errors import CompanionError
from companion.nn.pixel_likelihoods import LogisticMixture
from companion.seeds import generator
from companion.train import Ensemble, cosine, fit

F = nn.functional


class Net(nn.Module):
    """As chapter 1's: noise at the activations, and a public method besides `forward`."""

    def __init__(self, seed: int, width: int = 6, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        draw = generator(seed, "init")
        sizes = [(width, 4), (width, width), (3, width)]
        self.weights = nn.ParameterList(0.5 * torch.randn(s, generator=draw).to(dtype) for s in sizes)
        self.register_buffer("shift", torch.randn(4, generator=draw).to(dtype))

    def forward(self, x, eps=None):
        h, hidden = x + self.shift, []
        for k, weight in enumerate(self.weights):
            h = h if eps is None else h + eps[k]
            hidden.append(h)
            h = h @ weight.T if k == 2 else torch.tanh(h @ weight.T)
        return h, hidden

    def jacobians(self, x):
        return vmap(jacrev(lambda one: self(one)[0]))(x)


class ConvNet(nn.Module):
    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 4, 2), nn.Linear(4, 3)
        self.to(dtype)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.5, generator=generator(seed, "init"))

    def forward(self, x, eps=None):
        h = torch.relu(self.conv(x.unflatten(1, (1, 2, 2)))).flatten(1)
        return self.last(h), [h]


def data(dtype: torch.dtype = torch.float64):
    draw = generator(0, "test data")
    return torch.randn(90, 4, generator=draw).to(dtype), torch.randint(3, (90,), generator=draw)


def noised(module, batch, noise, hyper):
    x, y = batch
    eps = None if noise is None else [hyper["sigma"] * e for e in noise]
    value = F.cross_entropy(module(x, eps)[0], y)
    return value, {"accuracy": (module(x)[0].argmax(1) == y).to(x.dtype).mean()}


def method(module, batch, noise, hyper):
    x, y = batch
    penalty = module.jacobians(x).square().sum((1, 2)).mean()
    return F.cross_entropy(module(x)[0], y) + hyper["sigma"] * penalty, {"penalty": penalty}


def gradient_penalty(module, batch, noise, hyper):
    x, y = batch
    logits, pull = vjp(lambda x: module(x)[0], x)
    (slope,) = pull(logits.softmax(1) - F.one_hot(y, 3))
    return F.cross_entropy(logits, y) + hyper["sigma"] * slope.square().sum(1).mean(), {}


def draw_noise(draw, batch):
    shape, dtype = len(batch[0]), batch[0].dtype
    return [torch.randn(shape, size, generator=draw, dtype=dtype) for size in (4, 6, 6)]


def members(count=4, build=Net, **settings):
    return [build(seed, **settings) for seed in range(count)]


SGD = partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-3)
CASES = {
    "adam, clip, ema": (Net, noised, {"clip": 0.3, "ema": 0.9, "noise": draw_noise}),
    "adamw, schedule": (
        Net,
        noised,
        {"optimiser": torch.optim.AdamW, "schedule": cosine, "noise": draw_noise},
    ),
    "sgd with momentum, clip": (
        Net,
        noised,
        {"optimiser": SGD, "lr": 0.05, "clip": 0.5, "noise": draw_noise},
    ),
    "no noise": (Net, noised, {}),
    "a method of the module": (Net, method, {"ema": 0.9}),
    "vjp in the loss": (Net, gradient_penalty, {"clip": 1.0}),
    "convolutions": (ConvNet, noised, {"clip": 0.3}),
}


@pytest.mark.parametrize(
    ("case", "source"),
    [(case, "one each") for case in CASES]
    + [("adam, clip, ema", source) for source in ("shared", "whole", "stream")]
    + [("a method of the module", "shared")],
)
def test_a_member_trains_as_it_would_alone(case, source):
    """float64: 1e-9 after 30 steps. Two seeds by a grid of two hyper-parameters."""
    build, criterion, settings = CASES[case]
    seeds, sigma = [5, 5, 6, 6], [0.0, 0.3, 0.0, 0.3]
    settings = {"lr": 1e-2, **settings, "steps": 30, "record_every": 20}
    size = None if source == "whole" else 16
    sets = [Batches(*data(), batch_size=size, seed=0 if source == "shared" else seed) for seed in seeds]
    given = {"shared": sets[0], "stream": [Stream(one) for one in sets]}.get(source, sets)
    together = fit(Ensemble(members(build=build)), criterion, given, seed=seeds, hyper={"sigma": sigma}, **settings)
    for k, module in enumerate(members(build=build)):
        alone = fit(module, criterion, sets[k], seed=seeds[k], hyper={"sigma": sigma[k]}, **settings)
        close(together.module.member(k), alone.module)
        if alone.ema is not None:
            close(together.ema.member(k), alone.ema)
        for name, column in alone.metrics.items():
            assert torch.allclose(together.metrics[name][:, k], column, rtol=1e-9, atol=1e-9), name
    finals = torch.cat([p.detach().flatten(1) for p in together.module.parameters()], 1)
    assert torch.pdist(finals).min() > 1e-6  # the members do differ: the test could fail


class Stream:
    """A source that offers no more than the protocol."""

    def __init__(self, source: Batches) -> None:
        self.batch = source.batch


def close(one: nn.Module, two: nn.Module, tolerance: float = 1e-9) -> None:
    assert one.state_dict().keys() == two.state_dict().keys()
    for name, tensor in two.state_dict().items():
        assert torch.allclose(one.state_dict()[name], tensor, rtol=0, atol=tolerance), name


def test_in_float32_a_member_agrees_with_itself_alone_to_rounding():
    """float32: 1e-4 in the weights after 100 steps of Adam with clipping."""
    sets = [Batches(*data(torch.float32), batch_size=16, seed=seed) for seed in range(4)]
    settings = {"steps": 100, "clip": 0.5, "noise": draw_noise}
    ensemble = Ensemble(members(dtype=torch.float32))
    fit(ensemble, noised, sets, seed=range(4), hyper={"sigma": [0.1] * 4}, **settings)
    for k, module in enumerate(members(dtype=torch.float32)):
        fit(module, noised, sets[k], seed=k, hyper={"sigma": 0.1}, **settings)
        close(ensemble.member(k), module, 1e-4)


def test_an_ensemble_resumes_bit_identically(tmp_path):
    def run(steps_before_failure=None):
        calls = []

        def criterion(module, batch, noise, hyper):
            calls.append(1)
            if len(calls) == steps_before_failure:
                raise KeyboardInterrupt
            return noised(module, batch, noise, hyper)

        sets = [Batches(*data(), batch_size=16, seed=seed) for seed in range(3)]
        checkpoint = tmp_path / "e.pt" if steps_before_failure else None
        settings = {"steps": 30, "noise": draw_noise, "hyper": {"sigma": [0.1, 0.2, 0.3]}, "ema": 0.9}
        settings |= {"checkpoint_every": 10, "record_every": 10, "checkpoint": checkpoint}
        return fit(Ensemble(members(3)), criterion, sets, seed=range(3), **settings)

    with pytest.raises(KeyboardInterrupt):
        run(17)
    resumed, straight = run(1000), run()
    close(resumed.module, straight.module, 0.0)
    close(resumed.ema, straight.ema, 0.0)
    assert torch.equal(resumed.metrics["loss"], straight.metrics["loss"])


def test_call_gives_the_real_module_with_its_methods_and_attributes():
    modules, (x, _) = members(3), data()
    ensemble = Ensemble(modules)
    jacobians = ensemble.call(lambda member: member.jacobians(x[:5]))
    assert jacobians.shape == (3, 5, 3, 4)
    for k, module in enumerate(modules):
        assert torch.allclose(jacobians[k], module.jacobians(x[:5]), atol=1e-12)
    norms = ensemble.call(lambda member: torch.stack([w.norm() for w in member.weights]))
    assert torch.allclose(norms[1], torch.stack([w.norm() for w in modules[1].weights]))
    assert ensemble.call(lambda member: torch.tensor(isinstance(member, Net))).all()
    own = ensemble.call(lambda member, x: member(x)[0], torch.stack([x[:5], x[5:10], x[10:15]]))
    assert torch.allclose(own[2], modules[2](x[10:15])[0], atol=1e-12)

    def nested(member):
        return functional_call(member, dict(member.named_parameters()), (x[:5],))[0]

    assert torch.allclose(ensemble.call(nested)[0], modules[0](x[:5])[0], atol=1e-12)


def test_a_member_is_a_copy_and_the_modules_given_are_left_alone():
    modules = members(2)
    ensemble = Ensemble(modules)
    close(ensemble.member(1), members(2)[1], 0.0)
    fit(ensemble, noised, Batches(*data(), batch_size=16, seed=0), steps=3, seed=[0, 1])
    close(modules[1], members(2)[1], 0.0)
    before = ensemble.member(0)
    with torch.no_grad():
        ensemble.member(0).weights[0].zero_()
    close(ensemble.member(0), before, 0.0)
    assert len(ensemble) == 2
    with pytest.raises(CompanionError, match="count from 0 to 1"):
        ensemble.member(2)


def test_tied_and_frozen_parameters_stay_tied_and_frozen():
    def build():
        module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3)).double()
        module[2].weight = module[0].weight
        module[3].weight.requires_grad_(False)
        return module

    def criterion(module, batch, noise, hyper):
        return F.cross_entropy(module(batch[0]), batch[1]), {}

    modules = [build(), build()]
    start = modules[1][3].weight.clone()
    source = Batches(*data(), batch_size=16, seed=0)
    together = fit(Ensemble(modules), criterion, source, steps=20, seed=[0, 1], clip=0.5).module.member(1)
    alone = fit(modules[1], criterion, source, steps=20, seed=1, clip=0.5).module
    close(together, alone)
    assert together[2].weight is together[0].weight
    assert torch.equal(together[3].weight, start)


class Gain(nn.Linear):
    """A parameter without dimensions, of which each member has one number."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.gain * super().forward(x)


def test_clipping_a_scalar_parameter():
    def criterion(module, batch, noise, hyper):
        return F.cross_entropy(module(batch[0]), batch[1]), {}

    modules = [Gain().double(), Gain().double()]
    source = Batches(*data(), batch_size=16, seed=0)
    together = fit(Ensemble(modules), criterion, source, steps=20, seed=[0, 1], clip=0.01).module.member(1)
    alone = fit(modules[1], criterion, source, steps=20, seed=1, clip=0.01).module
    close(together, alone)
    assert alone.gain != 2.0


def scaling(factor):
    return lambda x: factor * x


class Scaled(nn.Linear):
    def __init__(self, scale) -> None:
        super().__init__(4, 3)
        self.scale = scale


class Factor:
    def __init__(self, value) -> None:
        self.value = value

    def times(self, x):
        return self.value * x


def defaults(value):
    def scale(x, factor=value, *, shift=value):
        return factor * x + shift

    return scale


@pytest.mark.parametrize(
    ("modules", "found"),
    [
        ([], "at least one member"),
        ([nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))] * 2, "layer '1' .BatchNorm1d. keeps running"),
        ([nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))] * 2, "layer '0' .Dropout. draws its own noise"),
        ([nn.Sequential(nn.Linear(4, 3), act) for act in (nn.ReLU(), nn.Tanh())], "the same layers"),
        ([nn.Linear(4, 3), nn.Linear(5, 3)], "differ in"),
        ([Scaled(0.1), Scaled(0.2)], "differ in 'scale'"),
        ([Scaled(torch.tanh), Scaled(torch.relu)], "differ in 'scale'"),
        ([Scaled(lambda x: x), Scaled(lambda x: 2 * x)], "differ in 'scale'"),
        ([Scaled(scaling(1.0)), Scaled(scaling(2.0))], "differ in 'scale'"),
        ([Scaled((("r", 2),)), Scaled((("r", 3),))], "differ in 'scale'"),
        ([Scaled(LogisticMixture(2, 1)), Scaled(LogisticMixture(16, 1))], "differ in 'scale'"),
        ([Scaled(torch.zeros(2)), Scaled(torch.ones(2))], "differ in 'scale'"),
        ([Scaled(defaults(1.0)), Scaled(defaults(2.0))], "differ in 'scale'"),
        ([Scaled(Factor(1.0).times), Scaled(Factor(2.0).times)], "differ in 'scale'"),
        ([Scaled(numpy.zeros(2)), Scaled(numpy.ones(2))], "differ in 'scale'"),
        ([Scaled({1, 2}), Scaled({1, 3})], "differ in 'scale'"),
        ([Scaled(torch.float32), Scaled(torch.float64)], "differ in 'scale'"),
    ],
)
def test_members_that_cannot_share_one_program_are_refused(modules, found):
    with pytest.raises(CompanionError, match=found):
        Ensemble(modules)


@pytest.mark.parametrize(
    "make", [lambda: defaults(1.0), lambda: Factor(1.0).times, lambda: numpy.ones(2), lambda: {1, 2}]
)
def test_equal_settings_are_no_difference(make):
    assert len(Ensemble([Scaled(make()), Scaled(make())])) == 2


def test_batch_statistics_are_welcome():
    modules = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)) for _ in range(2)]
    x = data(torch.float32)[0]
    assert torch.allclose(Ensemble(modules).call(lambda m: m(x))[1], modules[1](x), atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"seed": 0}, "needs as many seeds"),
        ({"seed": [0, 1, 2]}, "needs as many seeds"),
        ({"hyper": {"sigma": 0.1}}, "hyper 'sigma' has shape"),
        ({"hyper": {"sigma": [0.1, 0.2, 0.3]}}, "hyper 'sigma' has shape"),
        ({"optimiser": torch.optim.Adafactor}, "Adafactor may mix the members"),
        ({"batches": [Batches(*data(), batch_size=8, seed=k) for k in range(3)]}, "3 batches for 2 members"),
    ],
)
def test_settings_that_do_not_fit_the_members_are_refused(changed, found):
    settings = {"batches": Batches(*data(), batch_size=8, seed=0), "seed": [0, 1], "steps": 1, **changed}
    with pytest.raises(CompanionError, match=found):
        fit(Ensemble(members(2)), noised, settings.pop("batches"), **settings)
