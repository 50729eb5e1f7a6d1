"""Chapter 9: band energies against a loop over squares, and an ensemble of hierarchies against one by one."""

import itertools

import torch

from companion.models.hierarchical_vae import HVAE
from companion.nn.haar import band_energies
from companion.seeds import generator
from companion.train import Ensemble


def energies_by_loop(x):
    """Squared L2 norms of the bands, square by square."""
    side, norms = x.shape[-1], []
    while side >= 1:
        block = x.shape[-1] // side
        means = torch.stack(
            [
                x[..., i * block : (i + 1) * block, k * block : (k + 1) * block].mean((-2, -1))
                for i in range(side)
                for k in range(side)
            ]
        )
        norms.append(means.square().mean(0))
        side //= 2
    norms = norms[::-1]
    return torch.stack([norms[0], *(b - a for a, b in itertools.pairwise(norms))], -1)


def test_band_energies_beat_a_loop_over_squares(speed):
    x = torch.randn(256, 32, 32, generator=generator(0, "x"))
    torch.testing.assert_close(band_energies(x), energies_by_loop(x), atol=1e-5, rtol=1e-4)
    works = (lambda: band_energies(x), lambda: energies_by_loop(x))
    speed.compare("Vectorised against a loop", "Haar band energies of 256 images of 32 × 32", *works, least=5)


def test_an_ensemble_of_hierarchies(speed):
    sizes = dict(width=16, middle=8, latents=4, patch=4)
    members = [HVAE("4r3d2,2r3d2,1r1", "1r1,2m1r3,4m2r3", **sizes, generator=generator(k, "weights")) for k in range(9)]
    x = (torch.rand(16, 1, 16, 16, generator=generator(0, "x")) > 0.5).float()
    noise = torch.randn(16, members[0].noise_size(), generator=generator(0, "noise"))
    together = Ensemble(members)

    def loss(member):
        trace = member(2 * x - 1, noise)
        misfit = torch.nn.functional.binary_cross_entropy_with_logits(trace.output, x, reduction="none")
        return misfit.sum() / len(x) + trace.kl.sum(0).mean()

    def step():
        together.zero_grad()
        together.call(loss).sum().backward()

    def one_by_one():
        for member in members:
            member.zero_grad()
            loss(member).backward()

    speed.compare(
        "Ensemble against a sequence", "gradients of 9 hierarchical VAEs of shared cells", step, one_by_one, least=1
    )
