"""Chapter 2's VAEs: seeds as one ensemble, and attacks and Jacobians for many at once against one by one."""

import torch

from companion.analysis.attacks import pgd
from companion.data import Batches
from companion.models.harmonic_vae import negative_elbo, vae_noise
from companion.nn.gaussian_vae import GaussianVAE, mlp
from companion.nn.jacobians import jacobians
from companion.seeds import generator
from companion.train import Ensemble, fit

MEMBERS, SIZE, LATENT = 10, 784, 8


def vae(member, std=0.3):
    encoder = mlp((SIZE, 64, 64, LATENT), "elu", generator=generator(member, "encoder"))
    return GaussianVAE(encoder, mlp((LATENT, 64, 64, SIZE), "elu", generator=generator(member, "decoder")), std)


def train(module, members):
    seed = list(range(members)) if isinstance(module, Ensemble) else 0
    beta = torch.ones(members) if isinstance(module, Ensemble) else 1.0
    batches = Batches(torch.rand(512, SIZE, generator=generator(0, "x")), batch_size=64, seed=0)
    fit(module, negative_elbo(), batches, steps=20, noise=vae_noise(LATENT), seed=seed, hyper={"beta": beta})


def test_ten_seeds_as_one_ensemble(speed):
    # A wash on a CPU at this width; on a GPU it is the point.
    speed.compare(
        "Ensemble against a sequence",
        f"{MEMBERS} VAEs of chapter 2",
        lambda: train(Ensemble([vae(m) for m in range(MEMBERS)]), MEMBERS),
        lambda: [train(vae(m), 1) for m in range(MEMBERS)],
        least=0.5,
        rounds=3,
    )


def test_attacks_on_all_images_at_once(speed):
    model, x = vae(0).requires_grad_(False), torch.rand(40, SIZE, generator=generator(0, "x"))
    clean = model.reconstruct(x)

    def attack(rows):
        def damage(v):
            return (model.reconstruct(v) - clean[rows]).norm(dim=-1)

        return pgd(damage, x[rows], 1.0, steps=10, generator=generator(0, "attack"))

    speed.compare(
        "Vectorised against a loop",
        f"attacks on {len(x)} images",
        lambda: attack(slice(None)),
        lambda: [attack(slice(k, k + 1)) for k in range(len(x))],
        least=4,
        rounds=3,
    )


def test_jacobians_of_the_decoder(speed):
    model, z = vae(0).requires_grad_(False), torch.randn(40, LATENT, generator=generator(0, "z"))

    def loop():
        return torch.stack([torch.autograd.functional.jacobian(model.decode, point) for point in z])

    torch.testing.assert_close(jacobians(model.decode, z), loop(), rtol=1e-4, atol=1e-5)
    what = f"Jacobians of {len(z)} codes, {SIZE} outputs"
    speed.compare("Vectorised against a loop", what, lambda: jacobians(model.decode, z), loop, least=10, rounds=2)
