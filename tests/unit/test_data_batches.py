"""Batches are a pure function of seed and step and cover an epoch exactly."""

import pytest
import torch

from companion.data import Batches
from companion.errors import CompanionError


@pytest.mark.parametrize(("n", "size"), [(12, 4), (13, 4), (5, 5), (7, 1)])
def test_every_epoch_covers_each_example_at_most_once(n, size):
    batches = Batches(torch.arange(n), torch.arange(n) * 2, batch_size=size, seed=3)
    assert batches.steps_per_epoch == n // size
    for epoch in range(3):
        steps = range(epoch * (n // size), (epoch + 1) * (n // size))
        seen = [batches.batch(step) for step in steps]
        assert all(len(x) == size and torch.equal(y, 2 * x) for x, y in seen)
        rows = torch.cat([x for x, _ in seen]).tolist()
        assert len(set(rows)) == len(rows) == n - n % size


def test_pure_function_of_seed_and_step():
    x = torch.arange(100)
    forward, backward = Batches(x, batch_size=10, seed=1), Batches(x, batch_size=10, seed=1)
    ahead = [forward.batch(step)[0] for step in range(25)]
    back = [backward.batch(step)[0] for step in reversed(range(25))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(ahead, back, strict=True))
    state = torch.random.get_rng_state()
    forward.batch(99)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator is left alone"


def test_order_differs_by_seed_and_by_epoch():
    x = torch.arange(100)
    first, second = Batches(x, batch_size=50, seed=1), Batches(x, batch_size=50, seed=2)
    assert not torch.equal(first.batch(0)[0], second.batch(0)[0])
    assert not torch.equal(first.batch(0)[0], first.batch(2)[0])


def test_full_batch_and_inputs_only():
    x = torch.randn(6, 2)
    batches = Batches(x, batch_size=None, seed=0)
    assert len(batches.batch(0)) == 1 and torch.equal(batches.batch(7)[0], x)


@pytest.mark.parametrize("size", [0, -1, 7])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(CompanionError, match="batch size"):
        Batches(torch.zeros(6), batch_size=size, seed=0)
    with pytest.raises(CompanionError, match="targets"):
        Batches(torch.zeros(6), torch.zeros(5), batch_size=2, seed=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_order_does_not_depend_on_the_device():
    x = torch.arange(50)
    here, there = Batches(x, batch_size=8, seed=0), Batches(x.cuda(), batch_size=8, seed=0)
    assert there.batch(9)[0].is_cuda and torch.equal(here.batch(9)[0], there.batch(9)[0].cpu())
