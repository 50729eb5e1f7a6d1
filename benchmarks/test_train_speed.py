"""What the training layer costs and gains: run with `pytest benchmarks/test_train_speed.py -s`.

Processor time of one thread, best of several: wall time would measure the neighbours too.
"""

import time
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import nn

from companion.data.batches import Batches
from companion.seeds import generator
from companion.train import Ensemble, fit

STEPS, MEMBERS = 100, 10


class MLP(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        draw, sizes = generator(seed, "init"), (64, 64, 64, 64, 10)
        self.weights = nn.ParameterList(torch.randn(o, i, generator=draw) * i**-0.5 for i, o in pairwise(sizes))

    def forward(self, x, eps):
        for k, weight in enumerate(self.weights):
            x = (nn.functional.elu(x) if k else x) + eps[k]
            x = x @ weight.T
        return x


class Conv(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 4, stride=2, padding=1),
            nn.ELU(),
            nn.Conv2d(8, 16, 4, stride=2, padding=1),
            nn.ELU(),
        )
        self.last = nn.Linear(64, 10)

    def forward(self, x, eps):
        return self.last(self.layers((x + eps[0]).unflatten(1, (1, 8, 8))).flatten(1))


def loss(module, batch, noise, hyper):
    return nn.functional.cross_entropy(module(batch[0], noise), batch[1]), {}


def noise(draw, batch):
    return list(0.3 * torch.randn(4, *batch[0].shape, generator=draw))


def batches(seed: int) -> Batches:
    draw = generator(0, "benchmark data")
    x, y = torch.rand(2000, 64, generator=draw), torch.randint(10, (2000,), generator=draw)
    return Batches(x, y, batch_size=64, seed=seed)


def shared_data(count: int) -> list[Batches]:
    x, y = batches(0).tensors
    return [Batches(x, y, batch_size=64, seed=seed) for seed in range(count)]


def seconds(*works: Callable[[], object], rounds: int) -> list[float]:
    """Return the best time of each, measured in turns so that a busy spell hits all of them."""
    best = [float("inf")] * len(works)
    for _ in range(rounds):
        for k, work in enumerate(works):
            began = time.process_time()
            work()
            best[k] = min(best[k], time.process_time() - began)
    return best


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("build", [MLP, Conv])
def test_an_ensemble_against_its_members_one_after_the_other(benchmark, capsys, build):
    sources = shared_data(MEMBERS)

    def together():
        ensemble = Ensemble([build(seed) for seed in range(MEMBERS)])
        fit(ensemble, loss, sources, steps=STEPS, noise=noise, seed=range(MEMBERS))

    def in_sequence():
        for seed in range(MEMBERS):
            fit(build(seed), loss, sources[seed], steps=STEPS, noise=noise, seed=seed)

    benchmark.pedantic(together, rounds=1)
    sequence, ensemble = seconds(in_sequence, together, rounds=3)
    ratio = sequence / ensemble
    with capsys.disabled():
        print(f"\n{build.__name__}: {MEMBERS} members, {ratio:.2f} times as fast as in sequence")
    if build is MLP:  # convolutions become grouped ones, which gain nothing on a CPU
        assert ratio > 1.2


def test_the_loop_costs_little_more_than_its_parts(benchmark, capsys):
    """Against a bare loop of the same batches, noise, forward, backward and update."""
    source = batches(0)

    def bare():
        module, draw = MLP(0), generator(0, "noise")
        descent = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
        for step in range(STEPS):
            batch = source.batch(step)
            value, _ = loss(module, batch, noise(draw, batch), {})
            descent.zero_grad()
            value.backward()
            descent.step()

    def ours():
        fit(MLP(0), loss, source, steps=STEPS, noise=noise)

    benchmark.pedantic(ours, rounds=1)
    plain, full = seconds(bare, ours, rounds=15)
    with capsys.disabled():
        extra = (full - plain) / STEPS * 1e6
        print(f"\nfit: {full / plain:.2f} times the bare loop, {extra:.0f} µs more a step")
    assert full < 1.5 * plain
