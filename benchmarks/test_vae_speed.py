"""Chapter 2's training step, and attacks and Jacobians for many at once against one by one."""

import time

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


def seconds(function, repeats=3):
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def train(module, members):
    seed = list(range(members)) if isinstance(module, Ensemble) else 0
    beta = torch.ones(members) if isinstance(module, Ensemble) else 1.0
    batches = Batches(torch.rand(512, SIZE, generator=generator(0, "x")), batch_size=64, seed=0)
    fit(module, negative_elbo(), batches, steps=20, noise=vae_noise(LATENT), seed=seed, hyper={"beta": beta})


def test_training_step(benchmark, capsys):
    torch.set_num_threads(1)
    together = seconds(lambda: train(Ensemble([vae(m) for m in range(MEMBERS)]), MEMBERS))
    apart = seconds(lambda: [train(vae(m), 1) for m in range(MEMBERS)])
    benchmark.pedantic(lambda: train(vae(0), 1), rounds=3)
    with capsys.disabled():
        print(f"\ntraining {MEMBERS} VAEs: one by one / as an ensemble = {apart / together:.2f}")
    assert apart / together > 0.5  # a wash on a CPU at this width; on a GPU it is the point


def test_attacks_on_all_images_at_once(benchmark, capsys):
    torch.set_num_threads(1)
    model, x = vae(0).requires_grad_(False), torch.rand(40, SIZE, generator=generator(0, "x"))
    clean = model.reconstruct(x)

    def attack(rows):
        def damage(v):
            return (model.reconstruct(v) - clean[rows]).norm(dim=-1)

        return pgd(damage, x[rows], 1.0, steps=10, generator=generator(0, "attack"))

    apart = seconds(lambda: [attack(slice(k, k + 1)) for k in range(len(x))])
    together = seconds(lambda: attack(slice(None)))
    benchmark(attack, slice(None))
    with capsys.disabled():
        print(f"\nattacks on {len(x)} images: one by one / at once = {apart / together:.0f}")
    assert apart / together > 4


def test_jacobians_of_the_decoder(benchmark, capsys):
    torch.set_num_threads(1)
    model, z = vae(0).requires_grad_(False), torch.randn(40, LATENT, generator=generator(0, "z"))

    def loop():
        return torch.stack([torch.autograd.functional.jacobian(model.decode, point) for point in z])

    torch.testing.assert_close(jacobians(model.decode, z), loop(), rtol=1e-4, atol=1e-5)
    ratio = seconds(loop, 1) / seconds(lambda: jacobians(model.decode, z))
    benchmark(jacobians, model.decode, z)
    with capsys.disabled():
        print(f"\nJacobians of {len(z)} codes, {SIZE} outputs: loop / vectorised = {ratio:.0f}")
    assert ratio > 10
