"""Chapter 6's seeds as one ensemble against one run after another, and all pairs of seeds against a loop."""

import torch

from companion.analysis.identifiability import agreement, all_pairs
from companion.data import Batches
from companion.models.identifiable_ica import LatentVAE, negative_elbo
from companion.seeds import generator
from companion.train import Ensemble, WarmUp, fit

SEEDS, PIXELS, LATENT, STEPS = 10, 106, 10, 30


def vae(member):
    return LatentVAE("vade", PIXELS, (64, 64), LATENT, clusters=24, labels=10, generator=generator(member, "benchmark"))


def train(module, seeds, device):
    x = torch.rand(2_000, PIXELS, generator=generator(0, "x")).to(device)
    u = torch.arange(2_000).to(device) % 10
    sources = [WarmUp(Batches(x, u, batch_size=128, seed=m), STEPS) for m in seeds]
    alone = not isinstance(module, Ensemble)
    fit(
        module.to(device),
        negative_elbo,
        sources[0] if alone else sources,
        steps=STEPS,
        seed=seeds[0] if alone else seeds,
        noise=lambda g, batch: torch.randn(len(batch[0]), LATENT, generator=g, device=device),
        record_every=STEPS,
    )


def test_ten_seeds_as_one_ensemble(speed):
    seeds, device = list(range(SEEDS)), speed.device
    speed.compare(
        "Ensemble against a sequence",
        f"{SEEDS} VAEs of chapter 6",
        lambda: train(Ensemble([vae(m) for m in seeds]), seeds, device),
        lambda: [train(vae(m), [m], device) for m in seeds],
        least=5 if device.type == "cuda" else 1,
        rounds=3,
    )


def test_scores_of_all_pairs_at_once(speed):
    runs = torch.randn(SEEDS, 2_000, LATENT, generator=generator(0, "codes"))

    def loop():
        return [[agreement(runs[i], runs[j]) for j in range(i)] for i in range(SEEDS)]

    group = "Vectorised against a loop"
    speed.compare(group, "scores of 45 pairs of seeds", lambda: all_pairs(runs), loop, least=1.2, rounds=3)
