"""What the training layer costs and gains, and how a step's cost grows with seeds and parameters."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from companion.data.batches import Batches
from companion.models.gaussian_noise_injections import NoisyMLP, noised_loss, regularised_loss, site_noise
from companion.nn.likelihoods import CrossEntropy
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


@pytest.mark.parametrize("build", [MLP, Conv])
def test_an_ensemble_against_its_members_one_after_the_other(speed, build):
    sources = shared_data(MEMBERS)

    def together():
        ensemble = Ensemble([build(seed) for seed in range(MEMBERS)])
        fit(ensemble, loss, sources, steps=STEPS, noise=noise, seed=range(MEMBERS))

    def in_sequence():
        for seed in range(MEMBERS):
            fit(build(seed), loss, sources[seed], steps=STEPS, noise=noise, seed=seed)

    # Convolutions become grouped ones, which may gain nothing on a CPU.
    least = 1.2 if build is MLP else 0.5
    what = f"{MEMBERS} small {'networks' if build is MLP else 'convolutional networks'}, {STEPS} steps"
    speed.compare("Ensemble against a sequence", what, together, in_sequence, least=least, rounds=2)


def test_the_loop_costs_little_more_than_its_parts(speed):
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

    what = f"fit, {STEPS} steps, against a bare loop"
    speed.compare("Against another implementation", what, ours, bare, least=1 / 1.5, rounds=15)


def test_cost_against_seeds(speed):
    counts = [1, 2, 4, 8, 16, 32]
    x, y = (tensor[:64] for tensor in batches(0).tensors)
    draws = torch.randn(4, 64, 64, generator=generator(0, "noise"))
    alone = [speed.stepper(MLP(seed), loss, (x, y), list(draws)) for seed in range(max(counts))]
    together = [
        speed.stepper(
            Ensemble([MLP(seed) for seed in range(n)]), loss, (x, y), [site.expand(n, -1, -1) for site in draws]
        )
        for n in counts
    ]
    sequence = [lambda n=n: [one() for one in alone[:n]] for n in counts]
    speed.curve("seeds", "a step of a small network", counts, one_by_one=sequence, as_one_program=together)
    slow, fast = (ms[-1] for ms in speed.curves[-1]["series"].values())
    assert slow > fast


def test_cost_against_parameters(speed):
    nets = [NoisyMLP((64, width, width, 10), generator=generator(0, "init")) for width in (32, 64, 128, 256, 512, 1024)]
    batch = tuple(tensor[:64] for tensor in batches(0).tensors)
    hyper, probe = {"variance": 0.1}, torch.ones(64, 10)
    draws = [site_noise(net)(generator(0, "noise"), batch) for net in nets]
    speed.curve(
        "parameters",
        "chapter 1's step",
        [sum(p.numel() for p in net.parameters()) for net in nets],
        noise_injections=[
            speed.stepper(net, noised_loss(CrossEntropy), batch, noise, hyper)
            for net, noise in zip(nets, draws, strict=True)
        ],
        explicit_regulariser=[speed.stepper(net, regularised_loss(CrossEntropy), batch, probe, hyper) for net in nets],
    )
    for ms in speed.curves[-1]["series"].values():
        assert ms[-1] > ms[0]
