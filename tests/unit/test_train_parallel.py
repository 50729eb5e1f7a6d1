"""Processes that share the batches make the step of one: gradients in one process first, then two real processes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from companion.data import Batches
from companion.errors import CompanionError
from companion.models.gaussian_noise_injections import NoisyMLP, noised_loss, site_noise
from companion.nn.likelihoods import CrossEntropy
from companion.seeds import generator
from companion.train.parallel import Shard

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scaling.py"


def gradient(source, noise, step=3):
    net = NoisyMLP((6, 8, 3), generator=generator(0, "init")).double()
    batch = source.batch(step)
    draws = [one.double() for one in noise(net)(generator(0, "noise"), batch)]
    value, _ = noised_loss(CrossEntropy)(net, batch, draws, {"variance": torch.tensor(0.1)})
    value.backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def batches(size=12):
    x = torch.randn(40, 6, generator=generator(0, "x"), dtype=torch.float64)
    return Batches(x, torch.arange(40) % 3, batch_size=size, seed=1)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_parts_are_the_batch_and_their_mean_gradient_is_its_gradient(world):
    whole = batches()
    parts = [Shard(whole, rank, world) for rank in range(world)]
    dealt = torch.cat([part.batch(3)[0] for part in parts])
    assert sorted(dealt.tolist()) == sorted(whole.batch(3)[0].tolist())
    wanted = gradient(whole, site_noise)
    found = [gradient(part, lambda net, part=part: part.noise(site_noise(net))) for part in parts]
    torch.testing.assert_close(torch.stack(found).mean(0), wanted, rtol=1e-12, atol=1e-12)
    if world > 1:  # with noise that each process draws for itself it is another step
        wrong = torch.stack([gradient(part, site_noise) for part in parts]).mean(0)
        assert (wrong - wanted).abs().max() > 1e-3


def test_a_batch_that_cannot_be_dealt_out_is_refused():
    with pytest.raises(CompanionError, match="5 processes cannot share a batch of 12 evenly"):
        Shard(batches(), 0, 5).batch(0)


def test_noise_may_hold_what_is_no_tensor():
    noise = Shard(batches(), 1, 2).noise(lambda _stream, batch: (batch[0], None))
    part, nothing = noise(generator(0, "noise"), (torch.arange(6.0),))
    assert len(part) == 6 and nothing is None


def test_two_processes_of_torchrun_train_the_network_of_one(tmp_path):
    spec = importlib.util.spec_from_file_location("scaling_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    threads = torch.get_num_threads()
    script.train(tmp_path / "one.json", 20)
    torch.set_num_threads(threads)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(SCRIPT), "--train", str(tmp_path / "two.json"), "--steps", "20"]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    assert json.loads((tmp_path / "two.json").read_text())["world"] == 2
    untrained = script.network(0).state_dict()
    for name, weight in one.items():
        assert (two[name] - weight).norm() < 1e-4 * weight.norm()
        assert (two[name] - untrained[name]).norm() > 1e-2 * weight.norm()
