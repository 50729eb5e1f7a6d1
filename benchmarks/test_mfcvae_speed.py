"""Chapter 5's training step against one that builds torch.distributions objects at every step."""

import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from companion.models.mfcvae import MFCVAE, DenseLadder, negative_bound
from companion.seeds import generator
from companion.train import Ensemble

LATENTS, CLUSTERS, BATCH, SIZE, SEEDS = (4, 2), (20, 8), 64, 192, 5


def a_model(seed=0):
    network = DenseLadder(SIZE, (128, 128), LATENTS, gate=1.0)
    return MFCVAE(network, LATENTS, CLUSTERS, sigma=0.2, generator=generator(seed, "weights"))


def straightforward(model, x, eps):
    """The released five-term loss in objects: one covariance matrix a cluster, q(c|x) = p(c|z) at the sample."""
    posteriors = [Normal(mean, std) for mean, std in model.encode(x)]
    z = [q.loc + q.scale * noise[0] for q, noise in zip(posteriors, eps, strict=True)]
    image = Independent(Normal(model.network.decode(z, torch.ones(2)), 0.2), 1)
    total = image.log_prob(x)
    for q, sample, prior in zip(posteriors, z, model.priors, strict=True):
        weights = Categorical(logits=prior.logits)
        components = MultivariateNormal(prior.means, covariance_matrix=prior.variances().diag_embed())
        mixture = MixtureSameFamily(weights, components)
        log_joint = components.log_prob(sample[:, None]) + weights.logits
        gamma = Categorical(logits=log_joint - mixture.log_prob(sample)[:, None])
        total = total + (gamma.probs * components.log_prob(sample[:, None])).sum(-1)
        total = total - kl_divergence(gamma, Categorical(logits=weights.logits.expand_as(gamma.logits)))
        total = total - Independent(q, 1).log_prob(sample)
    return -total.mean()


def ours(model, x, eps):
    hyper = {"bound": torch.ones(1), "progressive": torch.tensor(0.0)}
    return negative_bound(["marginal"])(model, (x, torch.ones(2)), eps, hyper)[0]


def a_step(parameters, losses):
    """Backward and Adam, the same for all."""
    descent = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def step():
        descent.zero_grad()
        losses().backward()
        descent.step()

    return step


def test_training_step(speed):
    x = torch.rand(BATCH, SIZE, generator=generator(0, "x"))
    eps = [torch.randn(1, BATCH, d, generator=generator(0, "eps", d)) for d in LATENTS]
    one, other = a_model(), a_model()
    torch.testing.assert_close(ours(one, x, eps), straightforward(one, x, eps))
    ensemble = Ensemble([a_model(seed) for seed in range(SEEDS)])
    stacked = [noise.expand(SEEDS, *noise.shape) for noise in eps]
    objects = a_step(other.parameters(), lambda: straightforward(other, x, eps))
    alone = a_step(one.parameters(), lambda: ours(one, x, eps))
    together = a_step(ensemble.parameters(), lambda: ensemble.call(lambda model, e: ours(model, x, e), stacked).sum())
    group, what = "Against another implementation", "chapter 5's step against torch.distributions objects"
    speed.compare(group, what, alone, objects, least=1.5)
    what = f"{SEEDS} seeds of chapter 5 against torch.distributions objects"
    speed.compare(group, what, together, lambda: [objects() for _ in range(SEEDS)], least=2)
