"""A training step of each chapter's model on a batch of 64 images of 28 x 28: to add a model, add a function here."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from companion.chapters import paths, scoreboard
from companion.models import certified_vae, gaussian_noise_injections, harmonic_vae, identifiable_ica, mfcvae
from companion.models import relaxed_responsibility_vq as rrvq
from companion.models import robustness_theory as robustness
from companion.models.bijective_ica import Bijecta, negative_elbo
from companion.models.hierarchical_vae import HVAE
from companion.models.keras_resnet import build
from companion.nn.gaussian_vae import GaussianVAE, mlp
from companion.nn.likelihoods import CrossEntropy
from companion.nn.pixel_likelihoods import Bernoulli
from companion.nn.sketches import sketch
from companion.nn.spline_flows import Flow
from companion.seeds import generator

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GROUP, BATCH, PIXELS = "Training step of each model", 64, 784


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(0, "noise", *shape)).to(DEVICE)


def images() -> torch.Tensor:
    return torch.rand(BATCH, PIXELS, generator=generator(0, "x")).to(DEVICE)


def weights(*purpose: str) -> torch.Generator:
    return generator(0, "weights", *purpose)


def chapter_01():
    net = gaussian_noise_injections.NoisyMLP((PIXELS, 256, 256, 10), generator=weights())
    batch = (images(), torch.arange(BATCH).to(DEVICE) % 10)
    noise = [normal(*shape) for shape in net.sites(BATCH)]
    return net, gaussian_noise_injections.noised_loss(CrossEntropy), batch, noise, {"variance": 0.1}


def chapter_02():
    encoder = mlp((PIXELS, 256, 256, 8), "elu", generator=weights("encoder"))
    vae = GaussianVAE(encoder, mlp((8, 256, 256, PIXELS), "elu", generator=weights("decoder")), 0.3)
    return vae, harmonic_vae.negative_elbo(), (images(),), (normal(BATCH, 8), None), {"beta": 1.0}


def chapter_03():
    vae = robustness.vae((PIXELS, 256, 256), 10, generator=weights())
    return vae, robustness.vae_loss(0.1), (images(),), normal(BATCH, 10), {"beta": 1.0, "tc": 1.0}


def chapter_04():
    vae = certified_vae.CertifiedVAE((PIXELS, 256, 256, 10), 5.0, generator=weights())
    warm = torch.tensor(1.0, device=DEVICE)
    return vae, certified_vae.negative_elbo, (images(), warm), normal(BATCH, 10), {"beta": 1.0}


def chapter_05():
    ladder = mfcvae.DenseLadder(PIXELS, (256, 256), (5, 5), gate=1.0)
    model = mfcvae.MFCVAE(ladder, (5, 5), (25, 25), sigma=0.4, generator=weights())
    hyper = {"bound": torch.ones(1), "progressive": 0.0}
    noise = [normal(1, BATCH, 5), normal(1, BATCH, 5)]
    return model, mfcvae.negative_bound(["marginal"]), (images(), torch.ones(2, device=DEVICE)), noise, hyper


def chapter_06():
    vae = identifiable_ica.LatentVAE("vade", PIXELS, (256, 256), 10, clusters=24, labels=10, generator=weights())
    batch = (images(), torch.arange(BATCH).to(DEVICE) % 10, torch.tensor(1.0, device=DEVICE))
    return vae, identifiable_ica.negative_elbo, batch, normal(BATCH, 10), {}


def chapter_07():
    flow = Flow((28, 28, 1), levels=2, steps=2, hidden=32, generator=weights("flow")).initialise(images().cpu())
    unmixing = sketch("orthonormal", 64, PIXELS, generator=weights("unmixing"))
    return Bijecta(flow, unmixing, rho=4), negative_elbo, (images(),), None, {}


def chapter_08():
    shape = rrvq.Shape((1, 28, 28), 7, ((1, 4), (2, 3), (4, 1)), 32, 64, 32)
    module = rrvq.Ladder(shape, Bernoulli(), levels=2, generator=weights())
    batch = (images().round(), torch.tensor(1.0, device=DEVICE), torch.tensor(0.5, device=DEVICE))
    noise = rrvq.slot_noise(shape)(torch.Generator(DEVICE).manual_seed(0), batch)
    return module, rrvq.relaxed_loss, batch, noise, {"hard": 0.0, "coolest": 0.0}


def chapter_09():
    module = HVAE("14r3d2,7r3", "7r3,14m7r3", width=32, middle=16, latents=4, patch=2, generator=weights())

    def loss(model, batch, noise, hyper):
        trace = model(2 * batch[0] - 1, noise)
        misfit = binary_cross_entropy_with_logits(trace.output, batch[0], reduction="none").flatten(1).sum(1)
        return (misfit + trace.kl.sum(0)).mean(), {}

    return module, loss, (images().round().view(BATCH, 1, 28, 28),), normal(BATCH, module.noise_size()), {}


def chapter_10():
    module = build("small", width=16, channels=1, generator=weights())
    batch = (images().view(BATCH, 1, 28, 28), torch.arange(BATCH).to(DEVICE) % 10)
    return module, lambda model, given, noise, hyper: (cross_entropy(model(given[0]), given[1]), {}), batch, None, {}


@pytest.mark.parametrize("chapter", paths.chapters())
def test_training_step(speed, chapter):
    build = globals().get(f"chapter_{chapter[:2]}")
    if build is None:
        speed.row(GROUP, scoreboard.title(chapter), note="not measured")
        return
    module, *rest = build()
    step = speed.stepper(module.to(DEVICE), *rest)
    before = [p.detach().clone() for p in module.parameters()]
    (best,) = speed.seconds(step)
    assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    assert all(p.isfinite().all() for p in module.parameters())
    count = sum(p.numel() for p in module.parameters() if p.requires_grad)
    speed.row(GROUP, scoreboard.title(chapter), ms=1e3 * best, parameters=count)


@pytest.mark.parametrize("chapter", ["01", "02", "04"])
def test_compiled_against_eager(speed, chapter):
    group = "Compiled against eager"
    if DEVICE.type != "cuda":
        speed.row(group, f"chapter {int(chapter)}'s step", note="no GPU")
        return
    eager, compiled = (globals()[f"chapter_{chapter}"]() for _ in range(2))
    steps = [
        speed.stepper(module.to(DEVICE), *rest, compiled=fast)
        for fast, (module, *rest) in ((False, eager), (True, compiled))
    ]
    speed.compare(group, f"chapter {int(chapter)}'s step", steps[1], steps[0], least=0.5)
