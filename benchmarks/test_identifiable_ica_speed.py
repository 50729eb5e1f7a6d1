"""Chapter 6's seeds as one ensemble against one run after another, and all pairs of seeds against a loop."""

import time

import torch

from companion.analysis.identifiability import agreement, all_pairs
from companion.data import Batches
from companion.models.identifiable_ica import LatentVAE, Shuffled, negative_elbo
from companion.seeds import generator
from companion.train import Ensemble, fit

SEEDS, PIXELS, LATENT, STEPS = 10, 106, 10, 30
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(function, repeats=3):
    function()
    times = []
    for _ in range(repeats):
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter() if DEVICE.type == "cuda" else time.process_time()
        function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() if DEVICE.type == "cuda" else time.process_time()) - start)
    return min(times)


def vae(member):
    return LatentVAE("vade", PIXELS, (64, 64), LATENT, clusters=24, labels=10, generator=generator(member, "benchmark"))


def train(module, seeds):
    x = torch.rand(2_000, PIXELS, generator=generator(0, "x")).to(DEVICE)
    u = torch.arange(2_000).to(DEVICE) % 10
    sources = [Shuffled(Batches(x, u, batch_size=128, seed=m), STEPS) for m in seeds]
    alone = not isinstance(module, Ensemble)
    fit(
        module.to(DEVICE),
        negative_elbo,
        sources[0] if alone else sources,
        steps=STEPS,
        seed=seeds[0] if alone else seeds,
        noise=lambda g, batch: torch.randn(len(batch[0]), LATENT, generator=g, device=DEVICE),
        record_every=STEPS,
    )


def test_ten_seeds_as_one_ensemble(benchmark, capsys):
    torch.set_num_threads(1)
    seeds = list(range(SEEDS))
    together = seconds(lambda: train(Ensemble([vae(m) for m in seeds]), seeds))
    apart = seconds(lambda: [train(vae(m), [m]) for m in seeds])
    benchmark.pedantic(lambda: train(vae(0), [0]), rounds=3)
    with capsys.disabled():
        print(f"\ntraining {SEEDS} seeds on {DEVICE.type}: one after another / as an ensemble = {apart / together:.2f}")
    assert apart / together > (5 if DEVICE.type == "cuda" else 1)


def test_scores_of_all_pairs_at_once(benchmark, capsys):
    torch.set_num_threads(1)
    runs = torch.randn(SEEDS, 2_000, LATENT, generator=generator(0, "codes"))

    def loop():
        return [[agreement(runs[i], runs[j]) for j in range(i)] for i in range(SEEDS)]

    ratio = seconds(loop) / seconds(lambda: all_pairs(runs))
    benchmark(all_pairs, runs)
    with capsys.disabled():
        print(f"\nscores of 45 pairs: loop / at once = {ratio:.1f}")
    assert ratio > 1.2
