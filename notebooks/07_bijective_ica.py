# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-bijective-ica)=
# # Bijective feature maps for linear ICA
#
# *Camuto, Willetts, Paige, Holmes and Roberts, AISTATS 2021* {cite}`camuto2021bijective`
#
# <!-- chips -->
#
# Linear ICA fails on images because images are not linear mixtures. The paper puts a normalising flow in front: the flow bends the data until **one fixed, random, nearly orthogonal projection** unmixes them into a few
# independent non-Gaussian sources; flow and ICA train together on one bound. This chapter proves what such a bound can and cannot know about sources, trains the model where the true sources are known, and finds that
# on images, at the budget of a CPU, what the sources carry is decided by where training starts: the bound prefers one start or the other by some nats per image. The paper's text was not available in full; what was seen is a long post by one of its authors, abstracts and figures, and the
# theory below is derived here.

# %% tags=["remove-cell"]
try:
    import companion  # noqa: F401
except ImportError as error:  # a lone notebook, for instance on Colab
    raise ImportError(
        "install the book's package first: see the Running page of the book"
    ) from error

# %% tags=["parameters"]
profile = "cpu"
seed = 0

# %% tags=["hide-input"]
import inspect
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from companion.analysis import source_models as exact
from companion.analysis import stiefel
from companion.analysis.identifiability import mcc, rotation_null
from companion.analysis.source_probe import (
    explained,
    linear_r2,
    pca_reconstruction,
    probe_accuracy,
)
from companion.analysis.total_correlation import (
    gaussian_tc,
    laplace_logs,
    normal_logs,
    ratio_tc,
    weighted_tc,
)
from companion.chapters import Chapter
from companion.chapters.figures import COLOURS
from companion.data import Batches
from companion.data.known_sources import bent_mixture, sprite_columns, sprite_positions
from companion.models.bijecta_start import started, whitening
from companion.models.bijective_ica import (
    Bijecta,
    gg_log_prob,
    gg_sample,
    gg_variance,
    laplace_moment,
    model_spectrum,
    negative_elbo,
    reconstruction,
    ridge_mixing,
    source_kl,
)
from companion.models.linear_ica import LinearICA, SourceVAE, linear_loss, vae_loss
from companion.nn.sketches import sketch
from companion.nn.spline_flows import Flow, rq_spline
from companion.seeds import generator, numpy_generator, random_state
from companion.train import Ensemble, fit
from IPython.display import Markdown, display
from scipy.stats import rankdata, spearmanr
from scipy.stats import t as student_t
from sklearn.decomposition import FastICA
from torch import nn

chapter = Chapter("07_bijective_ica", profile=profile, seed=seed)

# %% [markdown]
# The settings of the three profiles differ in sizes, steps, seeds and data, never in method.

# %% tags=["hide-input"]
s = chapter.settings(
    smoke=dict(
        images=("digits",), levels=2, flow_steps=1, hidden=16, image_steps=16, image_batch=32, image_train=1_000, image_test=400,
        pool=8, sprite_scale=5, sprite_levels=2, sprite_steps=16, sprite_batch=32, sprite_train=1_000, sprite_seeds=2, vae_steps=30, vae_hidden=32,
        world_steps=16, world_train=1_000, world_seeds=2, linear_steps=120, linear_seeds=2, linear_train=300, draws=6, points=81, critic_steps=40, lr=2e-3,
    ),
    cpu=dict(
        images=("mnist",), levels=3, flow_steps=3, hidden=32, image_steps=160, image_batch=32, image_train=12_000, image_test=2_000,
        pool=4, sprite_scale=5, sprite_levels=3, sprite_steps=160, sprite_batch=32, sprite_train=12_000, sprite_seeds=3, vae_steps=400, vae_hidden=96,
        world_steps=220, world_train=4_000, world_seeds=3, linear_steps=300, linear_seeds=3, linear_train=1_500, draws=12, points=101, critic_steps=200, lr=2e-3,
    ),
    gpu=dict(
        images=("fashion_mnist", "cifar10"), levels=3, flow_steps=5, hidden=96, image_steps=1_800, image_batch=128, image_train=50_000, image_test=5_000,
        pool=2, sprite_scale=5, sprite_levels=3, sprite_steps=3_000, sprite_batch=128, sprite_train=50_000, sprite_seeds=3, vae_steps=6_000, vae_hidden=512,
        world_steps=4_000, world_train=20_000, world_seeds=5, linear_steps=1_000, linear_seeds=5, linear_train=2_000, draws=40, points=161, critic_steps=2_000, lr=1e-3,
    ),
)  # fmt: skip
device = chapter.device
PAIRS = {"bijecta": COLOURS["noise"], "linear start": COLOURS["theory"], "flow": COLOURS["regulariser"], "vae": COLOURS["control"], "linear": COLOURS["baseline"]}  # fmt: skip


def warm_cosine(step, steps):
    """Learning rate: 30 steps of warm-up, then half a cosine to 0."""
    return min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / steps))


# %% [markdown]
# ## The effect in one picture
#
# One sprite at random positions, so the true sources are known: $x$ and $y$. Four models with two sources each. All members of the flow ensemble (seeds, starts, frozen or free mixing, and the plain flow) train as one program.

# %% tags=["hide-input"]
SPRITE_NOISE, SIGMA = 0.05, 0.1
side = 64 // s.pool
d_sprite = side * side
sprite_options = dict(pool=s.pool, scale=s.sprite_scale, noise=SPRITE_NOISE)
sprites, places = sprite_positions(
    s.sprite_train, **sprite_options, generator=generator(seed, "sprites", "train")
)
test_sprites, test_places = sprite_positions(
    1_000, **sprite_options, generator=generator(seed, "sprites", "test")
)


def image_flow(shape, levels, *purpose):
    return Flow(shape, levels=levels, steps=s.flow_steps, hidden=s.hidden, split=True, generator=generator(seed, "flow", *purpose))  # fmt: skip


ARMS = {  # start and options of one Bijecta; seeds are copies
    "sketch start": dict(start="sketch"),  # the paper's: random signs on a random flow
    "whitened, random": dict(start="random"),
    "linear start": dict(start="ica"),
    "sketch, A free": dict(start="sketch", mixing="free"),
    "plain flow": dict(start="sketch", plain=True),
}
copies = {arm: s.sprite_seeds for arm in ("sketch start", "whitened, random", "linear start")}
names = [(arm, k) for arm in ARMS for k in range(copies.get(arm, 1))]


def sprite_member(arm, k):
    flow = image_flow((side, side, 1), s.sprite_levels, "sprites", k)
    rows = sketch("rademacher", 2, d_sprite, generator=generator(seed, "sprite sketch", k))
    return started(flow, sprites[:4_000], rows, rho=10, noise=SIGMA, seed=k, **ARMS[arm])


def scores(sources, factors=test_places, **options):
    """MCC (rank) and mean R² of the factors; both sides on the CPU."""
    return mcc(sources.cpu(), factors, rank=True), float(linear_r2(sources.cpu(), factors).mean())


def sprite_sources(name, model, x):
    """Posterior means; of the plain flow its two loudest codes."""
    with torch.no_grad():
        if name[0] != "plain flow":
            return model.sources(x)
        codes = model.flow(x)[0]
        return codes[:, codes.var(0).topk(2).indices]


sprite_ensemble = Ensemble([sprite_member(*name) for name in names]).to(device)
sprites_d, test_sprites_d = sprites.to(device), test_sprites.to(device)


def sprite_record(ensemble, step):
    with torch.no_grad():
        bound = ensemble.call(lambda m: m.terms(test_sprites_d)["elbo"].mean() / d_sprite)
        sources = ensemble.call(lambda m: m.sources(test_sprites_d)).cpu()
    pairs = torch.tensor([scores(one) for one in sources])
    return {"bound": bound, "mcc": pairs[:, 0], "r2": pairs[:, 1]}


sprite_history = fit(
    sprite_ensemble, negative_elbo, Batches(sprites_d, batch_size=s.sprite_batch, seed=seed), steps=s.sprite_steps, lr=1e-3, schedule=warm_cosine,
    clip=1.0, seed=[k for _, k in names], record=sprite_record, record_every=max(1, s.sprite_steps // 4), desc="sprites",
)  # fmt: skip
sprite_models = {name: sprite_ensemble.member(i) for i, name in enumerate(names)}

# %% tags=["hide-input"]
vae_rows = [("vae", k, 1.0, 1.0) for k in range(s.sprite_seeds)] + [
    ("beta", k, 4.0, 1.0) for k in range(s.sprite_seeds)
]


def train_vaes(rows, images, latent, rho, data_noise, *purpose):
    """VAEs with the source prior as one ensemble; rows are (name, copy, weight of the KL, weight of its TC part)."""
    nets = [
        SourceVAE(images.shape[1], s.vae_hidden, latent, rho=rho, generator=generator(seed, "vae", *purpose, k))
        for _, k, _, _ in rows
    ]  # fmt: skip
    ensemble = Ensemble(nets).to(device)
    draw = lambda g, batch: (
        data_noise(g, batch[0]),
        torch.randn(len(batch[0]), latent, generator=g, device=device),
    )
    fit(
        ensemble, vae_loss, Batches(images, batch_size=64, seed=seed), steps=s.vae_steps, lr=2e-3, schedule=warm_cosine, clip=1.0,
        seed=[k for _, k, _, _ in rows], noise=draw, record_every=s.vae_steps, desc=f"VAE {purpose[0]}",
        hyper={"beta": torch.tensor([r[2] for r in rows]), "tc": torch.tensor([r[3] for r in rows])},
    )  # fmt: skip
    return {(r[0], r[1]): ensemble.member(i) for i, r in enumerate(rows)}


sprite_vaes = train_vaes(
    vae_rows, sprites_d, 2, 10, lambda g, x: x.new_zeros(()).expand(x.shape), "sprites"
)
fast = [FastICA(2, whiten="unit-variance", fun="cube", max_iter=1000, tol=1e-3, random_state=random_state(seed, "sprites", "FastICA", k)).fit(sprites[:4_000].numpy())
        for k in range(s.sprite_seeds)]  # fmt: skip
fast_scores = [scores(torch.as_tensor(one.transform(test_sprites.numpy())).float()) for one in fast]
sprite_scores = {name: scores(sprite_sources(name, m, test_sprites_d)) for name, m in sprite_models.items()}  # fmt: skip
sprite_scores |= {
    name: scores(m.sources(test_sprites_d).detach()) for name, m in sprite_vaes.items()
}
last = {name: float(sprite_history.metrics["bound"][-1][i]) for i, name in enumerate(names)}

# %% tags=["hide-input"]
CELLS = 7
# The same quantiles for every model: equal steps of probability under the sources that it infers on the test images
levels_of = torch.linspace(0.04, 0.96, CELLS)


def grid(sources):
    steps = sources.cpu().quantile(levels_of, dim=0)
    return torch.cartesian_prod(steps[:, 0], steps[:, 1])


def traverse(name):
    """Decode a grid of the two sources, `[49, side, side]`, and return it with the centres of mass `[49, 2]`."""
    with torch.no_grad():
        if name[0] == "linear":
            y = torch.as_tensor(fast[0].transform(test_sprites.numpy())).float()
            decoded = torch.as_tensor(fast[0].inverse_transform(grid(y).numpy())).float()
        elif name in sprite_vaes:
            model = sprite_vaes[name]
            decoded = model.decoder(grid(model.sources(test_sprites_d)).to(device)).cpu()
        else:
            model = sprite_models[name]
            sources = grid(model.sources(test_sprites_d)).to(device)
            decoded = model.flow.inverse(sources @ model.mixing().mT).cpu()
    images = decoded.view(-1, side, side)
    mass = images.clamp_min(0) ** 2
    axis = torch.arange(side, dtype=torch.float32)
    total = mass.sum((1, 2)).clamp_min(1e-9)
    centres = torch.stack([(mass.sum(1) * axis).sum(1) / total, (mass.sum(2) * axis).sum(1) / total], 1)  # fmt: skip
    return images, centres


shown = {
    "Bijecta, sketch start": ("sketch start", 0),
    "Bijecta, linear start": ("linear start", 0),
    "VAE, same prior": ("vae", 0),
    "FastICA": ("linear", 0),
}
fig, axes = plt.subplots(2, 4, figsize=(10.4, 5.6), height_ratios=(1.15, 1))
for column, (title, name) in enumerate(shown.items()):
    images, centres = traverse(name)
    tiles = images.view(CELLS, CELLS, side, side).permute(1, 2, 0, 3).reshape(CELLS * side, -1)
    axes[0, column].imshow(tiles, cmap="gray", vmin=0, vmax=float(tiles.quantile(0.99)))
    axes[0, column].axis("off")
    value, share = fast_scores[0] if name[0] == "linear" else sprite_scores[name]
    axes[0, column].set_title(f"{title}\nMCC {value:.2f}, R² {share:.2f}", fontsize=10)
    lines = centres.view(CELLS, CELLS, 2)
    for k in range(CELLS):
        axes[1, column].plot(
            lines[k, :, 0], lines[k, :, 1], color=COLOURS["noise"], lw=1.2, marker=".", ms=3
        )
        axes[1, column].plot(lines[:, k, 0], lines[:, k, 1], color=COLOURS["regulariser"], lw=1.2)
    axes[1, column].set(xlim=(0, side - 1), ylim=(side - 1, 0), aspect="equal", xlabel="centre of mass (pixels)")  # fmt: skip
random_r2 = [sprite_scores["sketch start", k][1] for k in range(s.sprite_seeds)]
linear_r2s = [sprite_scores["linear start", k][1] for k in range(s.sprite_seeds)]
random_bound = np.mean([last["sketch start", k] for k in range(s.sprite_seeds)])
linear_bound = np.mean([last["linear start", k] for k in range(s.sprite_seeds)])
chapter.show(
    fig,
    "bijecta-hero",
    alt="Top: four panels of seven by seven decoded images of a sprite while two sources are traversed, for Bijecta from a sketch and from a linear start, a VAE and FastICA. Bottom: the "
    "centres of mass of the same images, joined along each source.",
    caption=f"Two sources of a sprite at random positions. From the paper's start (random signs on a random flow) Bijecta's sources explain {np.mean(random_r2):.0%} of the variance of the position (mean over {s.sprite_seeds} seeds), from linear ICA's directions "
    f"{np.mean(linear_r2s):.0%}, at bounds of {random_bound:.2f} and {linear_bound:.2f} nats per dimension. Grey scale stretched panel by panel.",
    answers="the traversal grids of the sprite experiment",
)

# %% [markdown]
# Two numbers stand above each panel because neither is enough. R² says how much of the position the two sources carry; a rotation leaves it alone. The MCC says whether each source is *one* coordinate, but its scale is treacherous: for two sources that
# carry everything, a **random rotation** already scores 0.90 in the mean, and sources that carry nothing score near 0.

# %%
null_mean, null_std = rotation_null(2, generator=generator(seed, "null"))
print(f"MCC of a random rotation of two sources: {null_mean:.2f} ± {null_std:.2f}")

# %% [markdown]
# ## Derive
#
# ### Model and bound
#
# Sources are generalised Gaussian, $p(s_i) \propto \exp(-|s_i|^\rho)$: Laplace at $\rho = 1$, nearly uniform at $\rho = 10$ (the minus sign stands *outside* the power; the post's formula has it inside). Then
# $z\mid s \sim \mathcal N(As, \Sigma)$ with $A$ of shape $d_x\times d_s$ and diagonal $\Sigma$, and $x = f(z)$ with a bijection $f$. The posterior is $q(s\mid x) = \prod_i\mathrm{Laplace}\big((A^+z)_i, b_i\big)$, $z = f^{-1}(x)$, with a **fixed**
# matrix $A^+$ of random signs. The bound on $\log p(x)$ is
#
# $$\mathcal L(x) = E_q[\log\mathcal N(z; As, \Sigma)] - \mathrm{KL}(q\,\|\,p(s)) + \log\left|\det\frac{\partial f^{-1}(x)}{\partial x}\right| .$$
#
# :::{prf:proposition} No sampling is needed
# :label: ica-prop-exact
# With $m = A^+z$ and columns $a_i$ of $A$, $E_q\log\mathcal N(z;As,\Sigma) = \log\mathcal N(z;Am,\Sigma) - \sum_i b_i^2\,a_i^\top\Sigma^{-1}a_i$ and
# $\mathrm{KL}_i = E|s_i|^\rho - 1 - \log 2b_i - \log\frac{\rho}{2\Gamma(1/\rho)}$, where $E|s| = |m| + be^{-|m|/b}$ for $\rho = 1$ and $E s^\rho = \sum_{j\text{ even}}\binom\rho j m^{\rho-j}b^j\,j!$ for even $\rho$.
# :::
#
# :::{prf:proof}
# The variance of a Laplace variable is $2b^2$ and its even moments are $b^jj!$; expand the square and the binomial. For $\rho = 1$ integrate $|m + \eta|$ on both sides of the kink.
# :::
#
# This matters: at $\rho = 10$ the KL is dominated by the tails of the Laplace posterior, and a Monte Carlo estimate with millions of draws still misses it.

# %%
print(inspect.getsource(laplace_moment))

# %% tags=["hide-input"]
torch.set_default_dtype(torch.float64)  # theorems are checked in double precision
means, scales = torch.meshgrid(torch.tensor([0.0, 0.4, 1.1, -2.0]), torch.tensor([0.05, 0.2, 0.7]), indexing="ij")  # fmt: skip
# Quadrature on both sides of the posterior's kink and of the origin: substitute t = |eta| / b
nodes, weights = np.polynomial.laguerre.laggauss(120)
nodes, weights = torch.as_tensor(nodes), torch.as_tensor(weights)


def quadrature_moment(mean, scale, rho):
    """E|s|^rho by Gauss-Laguerre on each side of the mean; |s| is split at 0 by hand for rho = 1."""
    if rho > 1:
        return 0.5 * sum(((mean[..., None] + side_ * scale[..., None] * nodes).abs() ** rho * weights).sum(-1) for side_ in (1, -1))  # fmt: skip
    fine = torch.linspace(0, 45, 900_001)
    side_sum = 0.0
    for side_ in (1, -1):
        values = (mean[..., None] + side_ * scale[..., None] * fine).abs() * (-fine).exp()
        side_sum = side_sum + 0.5 * torch.trapezoid(values, fine)
    return side_sum


def wrong_moment(mean, scale, rho):
    """Gaussian moments with variance b²: the mix-up that the check must catch."""
    if rho == 1:
        return mean.abs() + scale * 0
    return sum(math.comb(rho, j) * mean ** (rho - j) * scale**j * math.prod(range(1, j, 2)) for j in range(0, rho + 1, 2))  # fmt: skip


def moment_error(form):
    worst = 0.0
    for rho in (1, 2, 4, 10):
        right = quadrature_moment(means, scales, rho)
        worst = max(worst, float(((form(means, scales, rho) - right) / right).abs().max()))
    return worst


stream = generator(seed, "exact")
z0, m0 = torch.randn(5, 6, generator=stream), torch.randn(5, 2, generator=stream)
A0, b0 = torch.randn(6, 2, generator=stream), torch.tensor([0.3, 0.15])
noise0 = 0.3 + torch.rand(6, generator=stream)
eta, eta_weights = torch.cat([nodes, -nodes]), torch.cat([weights, weights]) / 2
pairs = torch.cartesian_prod(eta, eta)
mass = torch.outer(eta_weights, eta_weights).flatten()
error = ((z0[:, None] - (m0[:, None] + b0 * pairs) @ A0.T) / noise0).square().sum(-1)
by_quadrature = -0.5 * error @ mass - (noise0.log() + 0.5 * math.log(2 * math.pi)).sum()
wrong_likelihood = reconstruction(z0, m0, A0, b0 / 2**0.5, noise0)

# %% tags=["nbval-check-output"]
chapter.claim(
    "T11",
    moments=moment_error(laplace_moment),
    likelihood=float((reconstruction(z0, m0, A0, b0, noise0) - by_quadrature).abs().max()),
    control=dict(
        moments=moment_error(wrong_moment),
        likelihood=float((wrong_likelihood - by_quadrature).abs().max()),
    ),
)

# %% [markdown]
# The bound is a bound for *every* choice of $A$, $A^+$ and $b$. With one or two sources the evidence $\log p(z)$ is a Gaussian average of the prior, which quadrature gives to many digits, so slack can be seen exactly.

# %% tags=["hide-input"]


def slacks(spread=True):
    """log p(z) − ELBO at random models and points; `spread=False` forgets the posterior's width in the likelihood."""
    stream, rows = generator(seed, "bounds"), []
    for rho in (1, 4, 10):
        for _ in range(s.draws):
            A = torch.randn(5, 2, generator=stream) * 0.6
            noise = float(0.1 + 0.4 * torch.rand((), generator=stream))
            U = torch.linalg.pinv(A) + 0.05 * torch.randn(2, 5, generator=stream)
            b = noise / A.norm(dim=0) * (0.5 + torch.rand(2, generator=stream))
            z = gg_sample((8, 2), rho, generator=stream) @ A.T + noise * torch.randn(
                8, 5, generator=stream
            )
            m = z @ U.T
            wide = b if spread else torch.zeros(2)
            bound = reconstruction(z, m, A, wide, torch.full((5,), noise)) - source_kl(
                m, b.expand_as(m), rho
            ).sum(-1)
            rows.append(exact.log_evidence(z, A, noise, rho, points=s.points) - bound)
    return torch.cat(rows)


slack, wrong_slack = slacks(), slacks(spread=False)

# %% tags=["nbval-check-output"]
chapter.claim(
    "C1a",
    violations=int((slack < -1e-9).sum()),
    slack=float(slack.min()),
    control=dict(violations=int((wrong_slack < -1e-9).sum()), slack=float(wrong_slack.min())),
)

# %% [markdown]
# :::{prf:proposition} The best mixing matrix
# :label: ica-prop-ridge
# For fixed $A^+$, $b$ and any diagonal $\Sigma$ the mean bound is largest at $A^* = C_zA^{+\top}\big(A^+C_zA^{+\top} + 2\,\mathrm{diag}\,b^2\big)^{-1}$, $C_z = E zz^\top$: a ridge regression of $z$ on its own sources. Hence
# $A^+A^* = I - 2\,\mathrm{diag}(b^2)\,(A^+C_zA^{+\top} + 2\,\mathrm{diag}\,b^2)^{-1}$: near the identity, and not it.
# :::
#
# :::{prf:proof}
# Up to constants the mean bound is $-\tfrac12\mathrm{tr}\,\Sigma^{-1}[C_z - 2AA^+C_z + A(A^+C_zA^{+\top} + 2\,\mathrm{diag}\,b^2)A^\top]$, a concave quadratic in every row of $A$; $\Sigma$ scales the rows of its gradient and drops out. For the identity, add and subtract
# $2\,\mathrm{diag}\,b^2$ in $A^+C_zA^{+\top}(\cdot)^{-1}$.
# :::

# %% tags=["hide-input"]
stream = generator(seed, "ridge")
zs = torch.randn(400, 7, generator=stream) @ torch.randn(7, 7, generator=stream)
C0, U0 = zs.T @ zs / len(zs), torch.randn(2, 7, generator=stream) * 0.4
b1, noise1 = torch.tensor([0.5, 0.3]), 0.2 + torch.rand(7, generator=stream)
best_A = ridge_mixing(C0, U0, b1)
mean_bound = lambda A: reconstruction(zs, zs @ U0.T, A, b1, noise1).mean()
nudges = 0.03 * torch.randn(200, 7, 2, generator=stream)


def optimum(A):
    """Largest gradient entry of the bound at A, and the largest gain of a perturbation of A*."""
    grad = torch.func.grad(mean_bound)(A)
    return float(grad.abs().max()), float(torch.func.vmap(mean_bound)(best_A + nudges).max() - mean_bound(A))  # fmt: skip


identity = torch.eye(2) - 2 * torch.diag(b1.square()) @ torch.linalg.inv(U0 @ C0 @ U0.T + 2 * torch.diag(b1.square()))  # fmt: skip
product_error = lambda A: float((U0 @ A - identity).abs().max())

# %% tags=["nbval-check-output"]
ridge_checks, pinv_checks = optimum(best_A), optimum(torch.linalg.pinv(U0))
chapter.claim(
    "C9a",
    gradient=ridge_checks[0],
    gain=ridge_checks[1],
    identity=product_error(best_A),
    control=dict(
        gradient=pinv_checks[0],
        gain=pinv_checks[1],
        identity=product_error(torch.linalg.pinv(U0)),
    ),
)

# %% [markdown]
# ### Near the Stiefel manifold
#
# The abstract announces theory that keeps the linear ICA "close to the Stiefel manifold" $V(d_s, d_x) = \{W : WW^\top = I\}$. What follows is standard or derived here, and not to be cited as the paper's.
#
# :::{prf:theorem} Distance and defect
# :label: ica-thm-stiefel
# For full-rank $G = U\,\mathrm{diag}(\sigma)V^\top$ the nearest point of $V$ is $UV^\top$, at squared distance $\sum_i(\sigma_i-1)^2$, and
#
# $$\frac{\|GG^\top - I\|_F}{1+\sigma_{\max}} \le \mathrm{dist}_F(G, V) \le \frac{\|GG^\top-I\|_F}{1+\sigma_{\min}} .$$
# :::
#
# :::{prf:proof}
# $\|G-W\|^2 = \|G\|^2 + d_s - 2\,\mathrm{tr}\,WG^\top$, and von Neumann's inequality bounds the trace by $\sum\sigma_i$, attained at the polar factor. The wedge is $|\sigma-1| = |\sigma^2-1|/(\sigma+1)$ term by term.
# :::
#
# :::{prf:theorem} Random sketches
# :label: ica-thm-sketch
# For iid entries of mean 0, variance $1/d_x$ and kurtosis $\kappa$, $E\|GG^\top-I\|_F^2 = \dfrac{d_s(d_s-1) + d_s(\kappa-1)}{d_x}$. Random signs have $\kappa = 1$, the least possible.
# :::
#
# :::{prf:proof}
# Off the diagonal each of the $d_s(d_s-1)$ entries is a sum of $d_x$ independent terms of variance $d_x^{-2}$. On it $\sum_jG_{ij}^2 - 1$ has variance $(\kappa-1)/d_x$, and $\kappa \ge 1$ by Jensen.
# :::
#
# So a sketch is near $V$ in Frobenius norm only for $d_s \ll \sqrt{d_x}$, though its singular values stay within $1\pm\sqrt{d_s/d_x}$. And a warning: the scale that preserves *distances* of the data is $\pm1/\sqrt{d_s}$, the one with nearly orthonormal rows is $\pm1/\sqrt{d_x}$.

# %% tags=["hide-input"]
stream = generator(seed, "stiefel")
shapes = [(2, 8), (4, 32), (8, 64), (2, 64), (16, 64), (32, 784)]
clouds = {shape: torch.stack([sketch(kind, *shape, generator=stream) for kind in ("rademacher", "gaussian", "sparse") for _ in range(s.draws)])
          for shape in shapes}  # fmt: skip


def outside(cloud, mixed_up=False):
    """How many distances leave the wedge; `mixed_up` takes the lower end for an upper bound."""
    low, high = stiefel.distance_bounds(cloud)
    d = stiefel.distance(cloud)
    return int(((d > low + 1e-12) if mixed_up else (d < low - 1e-12) | (d > high + 1e-12)).sum())


def numerical_distance(G, steps=400):
    """Minimum of ‖G − W‖ over the manifold, PyTorch's orthogonal parametrisation doing the constraint."""
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(G.shape[1], G.shape[0], bias=False))
    descent = torch.optim.LBFGS(layer.parameters(), max_iter=steps, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        descent.zero_grad()
        loss = (layer.weight - G).square().sum()
        loss.backward()
        return loss

    layer.weight = stiefel.nearest(G + 0.3)  # away from the answer
    descent.step(closure)
    return float((layer.weight.detach() - G).norm())


few = [clouds[shape][0] for shape in shapes[:3]]
numeric = [numerical_distance(G) for G in few]
polar_error = max(abs(n - float(stiefel.distance(G))) for n, G in zip(numeric, few))
qr_error = max(abs(n - float((torch.linalg.qr(G.T)[0].T * torch.linalg.qr(G.T)[1].diagonal().sign()[:, None] - G).norm())) for n, G in zip(numeric, few))  # fmt: skip
wedge = min(float((low / high).min()) for low, high in map(stiefel.distance_bounds, clouds.values()))  # fmt: skip

# %% tags=["nbval-check-output"]
chapter.claim(
    "C2a",
    optimum=max(polar_error, 1e-12),  # below that, rounding that moves with the alignment of memory
    violations=sum(map(outside, clouds.values())),
    wedge=wedge,
    control=dict(
        optimum=qr_error,
        violations=sum(outside(cloud, mixed_up=True) for cloud in clouds.values()),
        wedge=wedge,
    ),
)

# %% tags=["hide-input"]
KURTOSIS = {"rademacher": 1.0, "gaussian": 3.0, "sparse": 3.0}
sizes = [(2, 64, 4_000), (8, 64, 1_500), (16, 256, 400), (64, 784, 40)]
defects = {}
for k, d, count in sizes:
    for kind in KURTOSIS:
        stream = generator(seed, "sketch", kind, k, d)
        many = sketch(kind, k * count, d, generator=stream).view(count, k, d)
        defects[kind, k, d] = float(stiefel.defect(many).square().mean())
ratios = [v / stiefel.expected_square_defect(k, d, KURTOSIS[kind]) for (kind, k, d), v in defects.items()]  # fmt: skip
swapped_kurtosis = [v / stiefel.expected_square_defect(k, d, 4 - KURTOSIS[kind]) for (kind, k, d), v in defects.items()]  # fmt: skip

# %% tags=["nbval-check-output"]
chapter.claim("C2b", ratio=ratios, control=dict(ratio=swapped_kurtosis))

# %% [markdown]
# :::{prf:theorem} When a data-independent matrix whitens
# :label: ica-thm-whiten
# If $C_z = I$, a matrix on the Stiefel manifold whitens exactly. For any $C_z$ and random signs $G$, off-diagonal entries of $GC_zG^\top$ have mean 0 and variance $\|C_z\|_F^2/d_x^2$, around a diagonal of mean $\mathrm{tr}\,C_z/d_x$.
# The typical correlation of two projected sources is $\|C_z\|_F/\mathrm{tr}\,C_z = \mathrm{PR}^{-1/2}$, PR the participation ratio.
# :::
#
# Here lies a tension that the abstract does not mention. A random projection nearly whitens data of *high* participation ratio, and Bijecta is trained to make $z$ compressive, of *low* participation ratio. The argument speaks for the initialisation; at the optimum the prior, not randomness, makes sources uncorrelated.

# %% tags=["hide-input"]
k, d = 24, 400
spectra, correlations, variances_ratio, flat, predicted_correlation = [], [], [], [], []
for power in (0.0, 0.3, 0.55, 0.8, 1.5):
    eigenvalues = torch.arange(1, d + 1).double() ** -power
    stream = generator(seed, "whiten", str(power))
    basis = torch.linalg.qr(torch.randn(d, d, generator=stream))[0]
    C = basis @ torch.diag(eigenvalues) @ basis.T
    off = ~torch.eye(k, dtype=torch.bool)
    seen_covariance, seen_correlation = [], []
    for _ in range(150):
        G = sketch("rademacher", k, d, generator=stream)
        M = G @ C @ G.T
        seen_covariance.append(M[off].square().mean())
        scale = M.diagonal().rsqrt()
        seen_correlation.append((scale[:, None] * M * scale)[off].square().mean())
    pr = stiefel.participation_ratio(C)
    spectra.append(pr)
    variances_ratio.append(float(torch.stack(seen_covariance).mean() / (C.square().sum() / d**2)))
    correlations.append(float(torch.stack(seen_correlation).mean().sqrt()))
    predicted_correlation.append(pr**-0.5)
stiefel_point = sketch("orthonormal", k, d, generator=generator(seed, "point"))
gaussian_point = sketch("gaussian", k, d, generator=generator(seed, "point"))
white = lambda G: float((G @ G.T - torch.eye(k)).abs().max())
high = [i for i, pr in enumerate(spectra) if pr >= 30]

# %% tags=["nbval-check-output"]
chapter.claim(
    "C2c",
    white=white(stiefel_point),
    variance=variances_ratio,
    correlation=[correlations[i] / predicted_correlation[i] for i in high],
    control=dict(
        white=white(gaussian_point),
        variance=variances_ratio,
        correlation=[correlations[i] * d**0.5 for i in high],
    ),
)

# %% tags=["hide-input"]
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(10.4, 3.6))
for (shape, cloud), colour in zip(clouds.items(), plt.cm.viridis(np.linspace(0, 0.9, len(clouds)))):
    left.scatter(stiefel.defect(cloud), stiefel.distance(cloud), s=12, color=colour, label=f"{shape[0]} × {shape[1]}")  # fmt: skip
edge = torch.linspace(0, float(max(stiefel.defect(c).max() for c in clouds.values())), 20)
left.plot(edge, edge, color="black", ls=":", lw=1, label="defect")
left.plot(edge, edge / 2, color="black", ls="--", lw=1, label="defect / 2")
left.set(xlabel="defect ‖GGᵀ − I‖", ylabel="distance to the manifold", ylim=(0, None))
left.legend(fontsize=7)
ks = torch.arange(2, 65)
for kind, colour, marker in (("rademacher", COLOURS["noise"], "o"), ("gaussian", COLOURS["regulariser"], "s"), ("sparse", COLOURS["control"], "^")):  # fmt: skip
    points = [(kk, v**0.5) for (kk_kind, kk, dd), v in defects.items() if kk_kind == kind and dd == 64]  # fmt: skip
    middle.plot(*zip(*points), marker, color=colour, label=f"{kind}, measured")
for kurtosis, line in ((1, "-"), (3, "--")):
    middle.plot(ks, [stiefel.expected_square_defect(int(v), 64, kurtosis) ** 0.5 for v in ks], color="black", lw=1, ls=line, label=f"formula, kurtosis {kurtosis}")  # fmt: skip
middle.set(xlabel="sources $d_s$  ($d_x$ = 64)", ylabel="root mean squared defect", xlim=(1, 20), ylim=(0, 2.6))  # fmt: skip
middle.legend(fontsize=7)
right.plot(spectra, correlations, "o", color=COLOURS["noise"], label="measured")
grid_pr = torch.logspace(0.3, 2.7, 40)
right.plot(grid_pr, grid_pr**-0.5, color="black", lw=1, label="PR$^{-1/2}$")
right.set(xlabel="participation ratio of the data", ylabel="rms correlation of projections", xscale="log", ylim=(0, 0.75))  # fmt: skip
right.legend(fontsize=8)
chapter.show(
    fig,
    "bijecta-stiefel",
    alt="Left: distance to the Stiefel manifold against defect for six sizes of random matrices, between two dotted lines. Middle: root mean squared defect against the number of sources with the formula for two "
    "kurtoses. Right: correlation of projections against participation ratio with the inverse square root.",
    caption=f"Defect, sketch size and whitening. Signs beat Gaussian entries most where $d_s$ is small ({(defects['gaussian', 2, 64] / defects['rademacher', 2, 64]) ** 0.5:.1f} times the defect at $d_s = 2$), and random projections whiten data with many "
    "active directions only; at low participation ratio the formula is too large.",
)

# %% [markdown]
# ### What maximum likelihood minimises
#
# :::{prf:theorem} Total correlation plus marginal mismatch
# :label: ica-thm-tc
# For invertible $s = g(x)$ with push-forward $q$ of the data and source prior $\prod_ip$: $\mathrm{KL}(p_{data}\|p_{model}) = \mathrm{TC}(q) + \sum_i\mathrm{KL}(q_i\|p)$, $\mathrm{TC}(q) = \mathrm{KL}(q\|\prod_iq_i)$.
# :::
#
# :::{prf:proof}
# Change of variables cancels the Jacobian, so the left side is $\mathrm{KL}(q\|\prod p)$; add and subtract $\log\prod q_i$.
# :::
#
# ICA *minimises* total correlation (one sentence of the post has it the other way round), but only in sum with the mismatch of the marginals: a map may trade one against the other. And if the prior is Gaussian, both vanish together for every rotation:
#
# :::{prf:theorem} Gaussian sources cannot be unmixed
# :label: ica-thm-gaussian
# With $\rho = 2$ the likelihood of $Rs$ is that of $s$ for every rotation $R$. With $\rho \ne 2$ the level sets of $\|s\|_\rho$ are invariant under signed permutations only.
# :::

# %% tags=["hide-input"]
turn = lambda angle: torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])  # fmt: skip
cases = [(4, 10, 0.4), (4, 1, 0.4), (4, 4, math.pi / 4), (10, 10, 0.3)]
residuals, wrong_residuals, sizes_tc = [], [], []
for true_rho, model_rho, angle in cases:
    B = turn(angle) @ torch.diag(torch.tensor([1.0, 0.8]))
    divergence = exact.unmixing_kl(B, true_rho, model_rho, points=201)
    correlation, axis_grid, marginals = exact.total_correlation(B, true_rho, points=201)
    mismatch = exact.marginal_mismatch(axis_grid, marginals, model_rho)
    residuals.append(abs(divergence - correlation - mismatch))
    wrong_residuals.append(abs(divergence + correlation - mismatch))
    sizes_tc.append(correlation)

angles = torch.linspace(0, math.pi / 2, 19)  # every 5°
curves = {rho: torch.tensor([exact.unmixing_kl(turn(float(a)), rho, rho, points=161) for a in angles]) for rho in (1, 2, 4, 10)}  # fmt: skip
away = (angles > math.radians(14.9)) & (angles < math.radians(75.1))

# %% tags=["nbval-check-output"]
chapter.claim(
    "T5",
    residual=max(residuals),
    size=min(sizes_tc),
    control=dict(residual=max(wrong_residuals), size=min(sizes_tc)),
)
chapter.claim(
    "T6",
    gaussian=float(curves[2].abs().max()),
    others=min(float(curves[rho][away].min()) for rho in (1, 4, 10)),
    control=dict(gaussian=float(curves[4].abs().max()), others=float(curves[2][away].min().abs())),
)

# %% [markdown]
# ### Why orthogonal columns: Hadamard's gap
#
# :::{prf:theorem} The factorised bound at small noise
# :label: ica-thm-hadamard
# Let $\Sigma = \sigma^2I$ and $A^+$ a left inverse of $A$ with the exact posterior means. As $\sigma\to0$ the best scale is $b_i^2 = \sigma^2/(2\|a_i\|^2)$ and
#
# $$\log p(z) - \mathcal L \;\to\; \underbrace{\textstyle\sum_i\log\|a_i\| - \tfrac12\log\det A^\top A}_{\text{Hadamard's gap}\ \ge\ 0} \;+\; \frac{\log\pi-1}{2}\,d_s .$$
# :::
#
# :::{prf:proof}
# The prior is flat on the scale of the posterior, which is $\mathcal N(m, \Lambda^{-1})$ with $\Lambda = A^\top A/\sigma^2$. The gap is $\mathrm{KL}(q\|p(s\mid z)) = \tfrac12E_q(s-m)^\top\Lambda(s-m) - \tfrac12\log\det\Lambda + \tfrac{d_s}2\log2\pi - \sum_i(1 + \log2b_i)$; the quadratic term is $\sum_ib_i^2\Lambda_{ii}$, minimal at
# $b_i^2 = 1/(2\Lambda_{ii})$. Collect the terms. Hadamard's inequality says $\det\Lambda \le \prod\Lambda_{ii}$ with equality for orthogonal columns only.
# :::
#
# For two columns at angle $\theta$ the gap is $-\log\sin\theta$. Against it stands the loss of source likelihood by a wrong unmixing, some tenths of a nat at most ({numref}`bijecta-gaps`, left). So a *linear* model with non-orthogonal columns may prefer a wrong, orthogonal answer; a flow can
# deliver codes whose best $A$ is orthogonal, and then the factorised bound is as tight as it can be. This is the mechanism that we would offer for "close to the Stiefel manifold".

# %% tags=["hide-input"]
tiny = 0.003
cosines = (0.0, 0.3, 0.6, 0.9)
gap_rows, wrong_rows, scale_rows = {}, {}, []
factors = torch.linspace(0.7, 1.4, 141)
for rho in (1, 4, 10):
    for cosine_ in cosines:
        A = torch.tensor([[1.0, cosine_], [0, (1 - cosine_**2) ** 0.5], [0, 0]]) * torch.tensor([1.3, 0.8])  # fmt: skip
        stream = generator(seed, "gap", rho)
        z = 0.9 * gg_sample((60, 2), rho, generator=stream) @ A.T + tiny * torch.randn(60, 3, generator=stream)  # fmt: skip
        m = z @ torch.linalg.pinv(A).T
        evidence = exact.log_evidence(z, A, tiny, rho, points=s.points).mean()

        def bound_at(b):
            return (reconstruction(z, m, A, b, torch.full((3,), tiny)) - source_kl(m, b.expand_as(m), rho).sum(-1)).mean()  # fmt: skip

        b = tiny / (2**0.5 * A.norm(dim=0))
        predicted_gap = exact.hadamard_gap(A) + 2 * exact.LAPLACE_GAP
        gap_rows[rho, cosine_] = (float(evidence - bound_at(b)), predicted_gap)
        wrong_rows[rho, cosine_] = (float(evidence - bound_at(2**0.5 * b)), predicted_gap)
        if rho == 4:
            scale_rows.append(float(factors[torch.stack([bound_at(f * b) for f in factors]).argmax()]))  # fmt: skip
gap_error = lambda rows: max(abs(a - p) for a, p in rows.values())

# %% tags=["nbval-check-output"]
rise = gap_rows[4, 0.9][1] - gap_rows[4, 0.0][1]
chapter.claim(
    "T7",
    error=gap_error(gap_rows),
    scale=scale_rows,
    spread=rise,
    control=dict(error=gap_error(wrong_rows), scale=[f / 2**0.5 for f in scale_rows], spread=rise),
)

# %% [markdown]
# ### Two limits of identifiability
#
# :::{prf:proposition} A twist that no likelihood sees
# :label: ica-prop-twist
# Let $u = \Phi^{-1}(F(s))$ coordinate by coordinate, $F$ the sources' distribution function, and turn the Gaussian $u$ by an angle $c\|u\|$. The turn preserves volume and norm, hence the Gaussian density; going back gives a smooth bijection of $s$ that preserves $\prod p(s_i)$ and mixes the coordinates.
# :::
#
# Composed with the flow it gives another model with exactly the same likelihood ({cite}`hyvarinen1999nonlinear` for the general statement). What remains is that flows of limited capacity make some answers easier than others. How little that is at the start of training follows from second moments alone:
#
# :::{prf:proposition} To second order every direction may be loud
# :label: ica-prop-rotation
# Let data have covariance $C$ and let $M_Q = T^{1/2}QC^{-1/2}$ with $T = \mathrm{Var}(s)AA^\top + \sigma^2I$ and any orthogonal $Q$. The mean of $\log\mathcal N(M_Qx; 0, T) + \log|\det M_Q|$ does not depend on $Q$.
# :::
#
# :::{prf:proof}
# $M_QCM_Q^\top = T$, so the quadratic term is $d_x/2$, and $|\det M_Q| = (\det T/\det C)^{1/2}$.
# :::
#
# A frozen $A$ forces *some* directions to be loud. Nothing of second order says that they should be those in which the data vary.

# %% tags=["hide-input"]
laplace_sources = gg_sample((4_000, 2), 1, generator=generator(seed, "twist"))


def raw_twist(x, strength=2.0):
    angle = strength * x.norm(dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], -1)


def change(form):
    """Largest change of log p(s) + log|det| at 300 points, autograd Jacobian."""
    x = laplace_sources[:300]
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: form(v[None])[0]))(x)
    after = gg_log_prob(form(x), 1).sum(-1) + torch.linalg.slogdet(jacobian)[1]
    return float((after - gg_log_prob(x, 1).sum(-1)).abs().max())


twisted = exact.copula_rotation(laplace_sources, 2.0)
stream = generator(seed, "rotations")
factors_true = torch.randn(3_000, 2, generator=stream)
data_low = torch.cat([3 * factors_true, 0.3 * torch.randn(3_000, 18, generator=stream)], 1) @ torch.linalg.qr(torch.randn(20, 20, generator=stream))[0]  # fmt: skip
C_low, low_white = data_low.T.cov(), whitening(data_low)
target = torch.full((20,), 0.01)
target[:2] += gg_variance(10)


def gaussian_fit(Q):
    """Mean of log N(Mx; 0, T) + log det M, and R² of the leading components on the two loud codes."""
    M = torch.diag(target.sqrt()) @ Q @ low_white
    fit_ = -0.5 * ((M @ C_low @ M.T).diagonal() / target + target.log()).sum()
    r2 = linear_r2(data_low @ M[:2].T, factors_true).mean()
    return float(fit_ + torch.linalg.slogdet(M)[1]), float(r2)


rotations = [torch.linalg.qr(torch.randn(20, 20, generator=stream))[0] for _ in range(200)]
fits = [gaussian_fit(Q) for Q in rotations]
straight_fit = gaussian_fit(torch.eye(20))  # the leading components on the rows of A⁺: R² = 1
wrong_fits = [
    gaussian_fit(Q + 0.05 * torch.randn(20, 20, generator=stream)) for Q in rotations
]  # no rotation

# %% tags=["nbval-check-output"]
spread_of = lambda rows: max(r[0] for r in rows) - min(r[0] for r in rows)
chapter.claim(
    "T8a",
    likelihood=change(lambda v: exact.copula_rotation(v, 2.0)),
    mcc=mcc(twisted, laplace_sources),
    control=dict(likelihood=change(raw_twist), mcc=mcc(raw_twist(laplace_sources), laplace_sources)),
)  # fmt: skip
chapter.claim(
    "T8b",
    likelihood=spread_of([*fits, straight_fit]),
    r2=np.mean([r[1] for r in fits]),
    best=straight_fit[1],
    control=dict(
        likelihood=spread_of(wrong_fits),
        r2=np.mean([r[1] for r in wrong_fits]),
        best=straight_fit[1],
    ),
)

# %% [markdown]
# ### Collapse, and what the base forces
#
# :::{prf:theorem} The price of silence
# :label: ica-thm-collapse
# With $A = 0$ the best bound is $\log\mathcal N(z;0,\Sigma) - d_s\min_b\mathrm{KL}(\mathrm{Laplace}(0,b)\|\mathrm{GG}_\rho)$, and for $\rho = 1$ the last term is 0: the flow alone explains the data, the sources say nothing, and nothing is lost. With a unit column frozen, a direction that stays at the noise level $\sigma$ costs
# $\mathrm{KL}(\mathcal N(0,\sigma^2)\|p_{s+\sigma\varepsilon}) \to -\tfrac12\log(2\pi e\sigma^2) - \log p_s(0)$ nats.
# :::
#
# :::{prf:theorem} The spectrum of the codes
# :label: ica-thm-spectrum
# If the codes follow the model, their leading $d_s$ eigenvalues hold the share $S/(S + (d_x-d_s)\sigma^2)$, $S = \mathrm{Var}(s)\,\mathrm{tr}\,AA^\top + d_s\sigma^2$. A Laplace base gives $k/d_x$.
# :::
#
# Freezing $A$ thus excludes silence at a price of a few nats per *image*, which for hundreds of dimensions is little; it does not say *which* directions speak. And an elbow in the spectrum of $z$ is a property of the base, not a finding about the data.

# %% tags=["hide-input"]
z_free = torch.randn(50, 6, generator=generator(seed, "free")) * 0.3
zero_A, cost_1, cost_10 = (
    torch.zeros(6, 2),
    exact.prior_posterior_kl(1),
    exact.prior_posterior_kl(10),
)
collapse_errors = []
for rho, (cost, b_best) in ((1, cost_1), (10, cost_10)):
    m = torch.zeros(50, 2)
    bound = reconstruction(z_free, m, zero_A, torch.full((2,), b_best), torch.full((6,), 0.3)) - source_kl(m, torch.full((50, 2), b_best), rho).sum(-1)  # fmt: skip
    base = torch.distributions.Normal(0.0, 0.3).log_prob(z_free).sum(-1)
    collapse_errors.append(float((bound - (base - 2 * cost)).abs().max()))
frozen_costs = [(exact.collapse_cost(0.01, rho), exact.predicted_collapse_cost(0.01, rho)) for rho in (1, 4, 10)]  # fmt: skip
A_any = torch.randn(30, 4, generator=generator(seed, "spectrum"))
share_error, share_wrong, variance_error = 0.0, 0.0, 0.0
for rho in (1, 4, 10):
    for noise in (0.03, 0.1):
        eigen = torch.linalg.eigvalsh(gg_variance(rho) * A_any @ A_any.T + noise**2 * torch.eye(30)).flip(0)  # fmt: skip
        S = gg_variance(rho) * A_any.square().sum() + 4 * noise**2
        share_error = max(share_error, float((eigen[:4].sum() / eigen.sum() - S / (S + 26 * noise**2)).abs()))  # fmt: skip
        S1 = A_any.square().sum() + 4 * noise**2
        share_wrong = max(share_wrong, float((eigen[:4].sum() / eigen.sum() - S1 / (S1 + 26 * noise**2)).abs()))  # fmt: skip
    line_nodes, line_weights = exact.line(45.0 if rho == 1 else 6.0, 400_001)
    second = float((line_weights * gg_log_prob(line_nodes, rho).exp() * line_nodes.square()).sum())  # fmt: skip
    variance_error = max(variance_error, abs(gg_variance(rho) / second - 1))

# %% tags=["nbval-check-output"]
chapter.claim(
    "T9",
    free=cost_1[0],
    bound=max(collapse_errors),
    frozen=[a / p for a, p in frozen_costs],
    control=dict(
        free=cost_10[0],
        bound=max(collapse_errors),
        frozen=[a / (p - math.log(0.01)) for a, p in frozen_costs],
    ),
)
chapter.claim(
    "T10",
    share=share_error,
    variance=variance_error,
    control=dict(share=share_wrong, variance=abs(1 / gg_variance(10) - 1)),
)

# %% tags=["hide-input"]
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(10.4, 3.6))
for (rho, curve), colour in zip(curves.items(), (COLOURS["regulariser"], "black", COLOURS["theory"], COLOURS["noise"])):  # fmt: skip
    left.plot(angles * 180 / math.pi, curve, color=colour, label=f"ρ = {rho}")
left.set(xlabel="rotation of the unmixing (degrees)", ylabel="loss of log-likelihood (nats)")
left.legend(fontsize=8)
theta = torch.linspace(0, 0.97, 100)
middle.plot(theta, -0.5 * (1 - theta**2).log() + 2 * exact.LAPLACE_GAP, color="black", label="formula")  # fmt: skip
for rho, marker, colour in ((1, "o", COLOURS["regulariser"]), (4, "s", COLOURS["theory"]), (10, "^", COLOURS["noise"])):  # fmt: skip
    middle.plot(cosines, [gap_rows[rho, c][0] for c in cosines], marker, color=colour, label=f"quadrature, ρ = {rho}")  # fmt: skip
middle.set(xlabel="cosine of the two mixing columns", ylabel="log p(z) − bound (nats)")
middle.legend(fontsize=8)
noises = torch.logspace(-2, -0.5, 12)
for rho, colour in ((1, COLOURS["regulariser"]), (10, COLOURS["noise"])):
    right.plot(noises, [exact.collapse_cost(float(v), rho) for v in noises], "o", color=colour, ms=4, label=f"A frozen, ρ = {rho}")  # fmt: skip
    right.plot(noises, [exact.predicted_collapse_cost(float(v), rho) for v in noises], color=colour, lw=1)  # fmt: skip
    right.axhline(exact.prior_posterior_kl(rho)[0], color=colour, ls=":", label=f"A free, ρ = {rho}")  # fmt: skip
right.set(xlabel="noise σ", ylabel="cost of a silent source (nats)", xscale="log")
right.legend(fontsize=7)
chapter.show(
    fig,
    "bijecta-gaps",
    alt="Left: loss of log-likelihood against the rotation of the unmixing for four source shapes, zero throughout for the Gaussian. Middle: gap of the bound against the cosine of the mixing columns, markers on the formula's curve. "
    "Right: cost of a silent source against the noise on a log axis, points on lines for a frozen A and dotted levels for a free one.",
    caption=f"A wrong rotation costs at most {float(max(curves[1].max(), curves[10].max())):.2f} nats, non-orthogonal columns up to {gap_rows[4, 0.9][1] - gap_rows[4, 0.0][1]:.2f} at cosine 0.9: the bias of T7. A silent source costs a few nats when A is frozen and "
    f"{cost_1[0]:.0f} or {cost_10[0]:.2f} when it is free.",
)
torch.set_default_dtype(torch.float32)

# %% [markdown]
# ## Train
#
# ### The flow
#
# The map is a stack of [ActNorm, invertible 1 × 1 mixing, rational-quadratic spline coupling] {cite}`durkan2019neural` at several scales: each level trades space for channels, works on them, and lets half of the channels leave. One full matrix ends it. Every layer returns its log-determinant; each is
# checked against its inverse and against autograd. Convolutions are matrix products of 3 × 3 patches, so that `vmap` batches them over the members of an ensemble. Couplings, scales and ICA layer are ours, and so is the short spline:

# %%
print(inspect.getsource(Bijecta.terms))

# %% tags=["hide-input", "nbval-check-output"]
torch.set_default_dtype(torch.float64)
stream = generator(seed, "layers")
probe_flow = Flow((8, 8, 1), levels=3, steps=2, hidden=8, split=True, generator=stream)
points = torch.rand(6, 64, generator=stream)
probe_flow.initialise(torch.rand(200, 64, generator=stream))
with torch.no_grad():
    for parameter in probe_flow.parameters():
        parameter.add_(0.03 * torch.randn(parameter.shape, generator=stream))
    codes, logdet = probe_flow(points)
    back = probe_flow.inverse(codes)
jacobian = torch.func.vmap(torch.func.jacrev(lambda v: probe_flow(v[None])[0][0]))(points)
raw = torch.randn(11, 500, generator=stream)
x_line = 4 * torch.randn(500, generator=stream)
y_line, slope = rq_spline(x_line, raw, 3.0)
x_back, slope_back = rq_spline(y_line, raw, 3.0, inverse=True)
jacobian, logdet = jacobian.detach(), logdet.detach()
print(f"flow: inverse to {'1e-5' if float((back - points).abs().max()) < 1e-5 else 'no'}, log-determinant to "
      f"{'1e-8' if float((torch.linalg.slogdet(jacobian)[1] - logdet).abs().max()) < 1e-8 else 'no'} of autograd")  # fmt: skip
print(f"spline: inverse to {'1e-5' if float((x_back - x_line).abs().max()) < 1e-5 else 'no'}, log-slopes cancel to {'1e-8' if float((slope + slope_back).abs().max()) < 1e-8 else 'no'}")  # fmt: skip
torch.set_default_dtype(torch.float32)

# %% [markdown]
# ### Linear ICA by its bound
#
# First without a flow. Images that mix a heart and a square; $A^+ = \Phi RW$ with a diagonal $\Phi$, a Cayley rotation $R$, and for $W$ either an SVD whitening, a fixed random sketch ("JL-Cayley", the label of the paper's figure; what exactly stands behind it is inference), or nothing at all: every
# entry free. $A$ is eliminated at every step by {prf:ref}`ica-prop-ridge`. Posteriors are Gaussian here, as in the post, with closed moments.


# %% tags=["hide-input"]
class Fixed:
    """The same tensors at every step."""

    def __init__(self, *tensors):
        self.tensors = tensors

    def batch(self, step):
        return self.tensors


LINEAR_NOISE = 0.05


def mixture(columns, rho, *purpose):
    """Noisy mixtures `[n, d]` of two GG sources, and their second moment."""
    stream = generator(seed, "mixture", *purpose)
    sources = gg_sample((s.linear_train, 2), rho, generator=stream)
    z = sources @ columns.T + LINEAR_NOISE * torch.randn(s.linear_train, len(columns), generator=stream)  # fmt: skip
    return z, z.T @ z / len(z)


def linear_model(kind, z, rho, *purpose):
    """One arm; W is scaled so that its projections have variance 1."""
    stream = generator(seed, "linear", *purpose)
    if kind.startswith("svd"):
        rows = whitening(z)[:2].float()
    else:
        rows = sketch("rademacher", 2, z.shape[1], generator=stream)
        rows = rows / (z @ rows.T).std(0)[:, None]
    return LinearICA(rows, rho=rho, noise=LINEAR_NOISE, free="free" in kind, full=kind.endswith("full"), scale=gg_variance(rho) ** 0.5,
                     turn=0.5 * torch.randn(2, 2, generator=stream))  # fmt: skip


def train_linear(rows, rho, *purpose):
    """`rows` are (arm, columns, copy); returns per row Amari before and after, the trained member, and its data."""
    sets = [mixture(columns, rho, *purpose, copy) for _, columns, copy in rows]
    nets = [linear_model(kind, z, rho, *purpose, kind, copy) for (kind, _, copy), (z, _) in zip(rows, sets)]  # fmt: skip
    index = lambda net, columns: stiefel.amari(net.unmixing().detach() @ columns)
    before = [index(net, columns) for net, (_, columns, _) in zip(nets, rows)]
    ensemble = Ensemble(nets)
    fit(ensemble, linear_loss, [Fixed(z, c) for z, c in sets], steps=s.linear_steps, lr=2e-2, schedule=warm_cosine, seed=[0] * len(rows),
        record_every=s.linear_steps, desc="linear ICA")  # fmt: skip
    trained = [ensemble.member(i) for i in range(len(rows))]
    after = [index(net, columns) for net, (_, columns, _) in zip(trained, rows)]
    return before, after, trained, sets


def fast_amari(z, columns, copy):
    model = FastICA(2, whiten="unit-variance", fun="cube", max_iter=1000, tol=1e-4, random_state=random_state(seed, "pictures", "FastICA", copy)).fit(z.numpy())  # fmt: skip
    unmix = torch.as_tensor(model.components_).float()
    return stiefel.amari(unmix @ columns), torch.as_tensor(model.mixing_).float()


COLUMN_POOL = 4
apart, overlapping = (sprite_columns(shift, pool=COLUMN_POOL) for shift in (31, 5))
picture_rows = [(kind, columns, copy) for columns in (apart, overlapping) for kind in ("jl", "svd", "free") for copy in range(s.linear_seeds)]  # fmt: skip
before, after, linear_nets, linear_sets = train_linear(picture_rows, 10, "pictures")
half = len(picture_rows) // 2
amari_of = lambda kind, values, which: [v for (k_, c_, _), v in zip(picture_rows, values) if k_ == kind and c_ is which]  # fmt: skip
fast_rows = {which: [fast_amari(*[(z, c, k) for (kind, c, k), (z, _) in zip(picture_rows, linear_sets) if kind == "jl" and c is columns][i]) for i in range(s.linear_seeds)]
             for which, columns in (("apart", apart), ("overlapping", overlapping))}  # fmt: skip

# %% tags=["nbval-check-output"]
chapter.claim(
    "C3",
    jl=amari_of("jl", after, apart),
    svd=amari_of("svd", after, apart),
    fastica=[v for v, _ in fast_rows["apart"]],
    control=dict(jl=amari_of("jl", before, apart), svd=amari_of("svd", before, apart)),
)

# %% [markdown]
# With $d_s = 2$ a fixed sketch leaves one rotation angle, and $\Phi RWA$ can be diagonal only if $WA$ happens to have orthogonal columns: a sketch preserves angles to $O(1/\sqrt{d_s})$, which for two sources means not at all. That is a statement about *linear* ICA on a fixed sketch; in Bijecta the flow comes first and can make the columns what
# the sketch needs. Where the shapes overlap, the mixing columns are not orthogonal, and Hadamard's gap bites.

# %% tags=["hide-input"]
pixel_side = 64 // COLUMN_POOL
fig, axes = plt.subplots(2, 4, figsize=(10.2, 3.6))
for row, (label, columns) in enumerate((("apart", apart), ("overlapping", overlapping))):
    panels = [("FastICA", fast_rows[label][0][1], fast_rows[label][0][0])]
    for kind, title in (("svd", "SVD + Cayley"), ("free", "all entries free"), ("jl", "JL + Cayley")):  # fmt: skip
        i = next(i for i, r in enumerate(picture_rows) if r[0] == kind and r[1] is columns)
        panels.append((title, linear_nets[i].mixing(linear_sets[i][1]).detach(), after[i]))
    for axis, (title, A, value) in zip(axes[row], panels):
        A = A / A.abs().amax(0)
        A = A * A.sum(0).sign()
        both = torch.cat([A[:, j].view(pixel_side, pixel_side) for j in range(2)], 1)
        axis.imshow(both, cmap="RdBu_r", vmin=-1, vmax=1)
        axis.axvline(pixel_side - 0.5, color="black", lw=0.8)
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"{title}\nAmari {value:.3f}", fontsize=9)
    axes[row, 0].set_ylabel(f"{label}\ncos {float(columns[:, 0] @ columns[:, 1]):.2f}", fontsize=9)
chapter.show(
    fig,
    "bijecta-linear-ica",
    alt="Two rows of four panels, for shapes apart and overlapping. Each panel has the two learnt mixing columns as images, for FastICA, SVD with Cayley rotation, free entries, and a random sketch with Cayley rotation, with its Amari index.",
    caption=f"Mixing columns by the bound, uniform sources. Apart: SVD + Cayley reaches an Amari index of {np.mean(amari_of('svd', after, apart)):.3f}, FastICA {np.mean([v for v, _ in fast_rows['apart']]):.3f}, a fixed sketch {np.mean(amari_of('jl', after, apart)):.2f} (means over seeds). Overlapping, "
    f"all entries free: {np.mean(amari_of('free', after, overlapping)):.2f}.",
    answers="the linear ICA experiment on two sprites",
)

# %% [markdown]
# ### Known sources through a known bijection
#
# Two nearly uniform sources enter eight dimensions orthonormally with a little noise and pass through a known bijection, two rotated folds by sines, whose strength was set so that linear ICA fails (R² below 0.8), before any flow was trained on it. All starts but one are whitened random directions; arms differ in $A^+$, in whether $A$ or the noise is learnt, and in the noise level. All arms and seeds train as **one** ensemble; every arm of a seed sees the same batches.

# %% tags=["hide-input"]
WORLD, STRENGTH = (
    8,
    0.5,
)  # set by FastICA alone, before any flow was trained on it: its R² is below 0.8
world_sources = {split: gg_sample((n, 2), 10, generator=generator(seed, "world", split)) for split, n in (("train", s.world_train), ("test", min(1_000, s.world_train // 2)))}  # fmt: skip
world = {split: bent_mixture(v, WORLD, noise=SIGMA, strength=STRENGTH, seed=seed, draw=split) for split, v in world_sources.items()}  # fmt: skip
KINDS = ("rademacher", "sparse", "orthonormal", "hadamard", "dct", "coherent")
MAP = [(mixing, noise, learn) for mixing in ("frozen", "unit", "free") for noise in (0.03, 0.1, 0.3) for learn in (False, True)]  # fmt: skip
world_arms = {kind: dict(kind=kind) for kind in KINDS}
world_arms["trained"] = dict(kind="rademacher", learn_unmixing=True)
world_arms["ica start"] = dict(kind="orthonormal", start="ica")
for mixing, noise, learn in MAP:
    world_arms[mixing, noise, learn] = dict(kind="orthonormal", mixing=mixing, noise=noise, learn_noise=learn)  # fmt: skip
world_names = [(arm, k) for k in range(s.world_seeds) for arm in world_arms]


def sparse_rows(kind, k):
    """A sketch of rank two: of sparse ones in eight dimensions some draws have none."""
    for attempt in range(100):
        rows = sketch(kind, 2, WORLD, generator=generator(seed, "world sketch", kind, k, attempt))
        if float(torch.linalg.svdvals(rows)[-1]) > 0.3:
            return rows


def world_member(arm, k):
    options = dict(world_arms[arm])
    rows = sparse_rows(options.pop("kind"), k)
    flow = Flow((1, 1, WORLD), steps=3, hidden=32, generator=generator(seed, "world flow", k))
    return started(flow, world["train"], rows, rho=10, seed=k, **({"noise": SIGMA, "start": "random"} | options))  # fmt: skip


world_ensemble = Ensemble([world_member(*name) for name in world_names]).to(device)
world_test, world_truth = world["test"].to(device), world_sources["test"]


def world_record(ensemble, step):
    with torch.no_grad():
        bound = ensemble.call(lambda m: m.terms(world_test)["elbo"].mean() / WORLD)
        sources = ensemble.call(lambda m: m.sources(world_test)).cpu()
    pairs = torch.tensor([scores(one, world_truth) for one in sources])
    length = ensemble.call(lambda m: m.mixing().norm(dim=0).mean()).detach()
    return {"bound": bound, "mcc": pairs[:, 0], "r2": pairs[:, 1], "length": length}


world_batches = [Batches(world["train"].to(device), batch_size=128, seed=k) for k in range(s.world_seeds)]  # fmt: skip
world_history = fit(
    world_ensemble, negative_elbo, [world_batches[k] for _, k in world_names], steps=s.world_steps, lr=3e-3, schedule=warm_cosine, clip=1.0,
    seed=[k for _, k in world_names], record=world_record, record_every=max(1, s.world_steps // 8), desc="known sources",
)  # fmt: skip


def world_curve(arm, key):
    """Records `[records, seeds]` of one arm."""
    return torch.stack([world_history.metrics[key][:, world_names.index((arm, k))] for k in range(s.world_seeds)], 1)  # fmt: skip


def world_final(arm, key):
    return world_curve(arm, key)[-1].tolist()


linear_world = FastICA(2, whiten="unit-variance", fun="cube", max_iter=1000, tol=1e-4, random_state=random_state(seed, "world", "FastICA")).fit(world["train"].numpy())  # fmt: skip
linear_world_scores = scores(torch.as_tensor(linear_world.transform(world["test"].numpy())).float(), world_truth)  # fmt: skip

# %% tags=["nbval-check-output"]
difference = lambda one, two, key: [a - b for a, b in zip(world_final(one, key), world_final(two, key))]  # fmt: skip
coherent_end = world_curve("coherent", "bound")[-1]
reached = (world_curve("orthonormal", "bound") >= coherent_end).float().argmax(0)
steps_of = torch.tensor(world_history.steps)
chapter.claim(
    "C7",
    bound=difference("orthonormal", "coherent", "bound"),
    mcc=difference("orthonormal", "coherent", "mcc"),
    fixed=difference("rademacher", "trained", "bound"),
    speed=(steps_of[reached] / s.world_steps).tolist(),
    control=dict(
        bound=difference("dct", "orthonormal", "bound"),
        mcc=difference("dct", "orthonormal", "mcc"),
        fixed=difference("rademacher", "trained", "bound"),
        speed=(steps_of[(world_curve("orthonormal", "bound") >= world_curve("dct", "bound")[-1] - 0.01).float().argmax(0)] / s.world_steps).tolist(),
    ),
)  # fmt: skip
chapter.claim(
    "C4c",
    r2=world_final("orthonormal", "r2"),
    mcc=world_final("orthonormal", "mcc"),
    linear=linear_world_scores[1],
    null=null_mean,
    control=dict(
        r2=world_curve("orthonormal", "r2")[0].tolist(),
        mcc=world_curve("orthonormal", "mcc")[0].tolist(),
        linear=linear_world_scores[1],
        null=null_mean,
    ),
)

# %% tags=["hide-input"]
fig, (left, right, third) = plt.subplots(1, 3, figsize=(10.4, 3.7))
for arm, colour in (("ica start", COLOURS["baseline"]), ("orthonormal", COLOURS["theory"]), ("rademacher", COLOURS["noise"]), ("trained", COLOURS["regulariser"]), ("coherent", COLOURS["highlight"])):  # fmt: skip
    for axis, key in ((left, "bound"), (right, "mcc"), (third, "r2")):
        values = world_curve(arm, key)
        axis.plot(world_history.steps, values.mean(1), color=colour, label=arm)
        axis.fill_between(world_history.steps, values.amin(1), values.amax(1), color=colour, alpha=0.15, lw=0)  # fmt: skip
left.set(xlabel="step", ylabel="test bound (nats per dimension)", ylim=(float(world_curve("coherent", "bound")[1:].min()) - 0.2, None))  # fmt: skip
right.axhspan(null_mean - null_std, null_mean + null_std, color=COLOURS["light"], alpha=0.25, lw=0, label="random rotation")  # fmt: skip
right.axhline(linear_world_scores[0], color="black", ls=":", label="FastICA")
third.axhline(linear_world_scores[1], color="black", ls=":")
right.set(xlabel="step", ylabel="MCC with the true sources", ylim=(0, 1))
third.set(xlabel="step", ylabel="R² of the true sources", ylim=(0, 1))
left.legend(fontsize=8)
right.legend(fontsize=7, loc="lower right")
chapter.show(
    fig,
    "bijecta-known",
    alt="Bound, MCC and R squared against training step for four kinds of unmixing matrix and a start at linear ICA, with bands over seeds; a dotted line for FastICA and a grey band for the MCC of a random rotation.",
    caption=f"Known sources. At the end: MCC {np.mean(world_final('orthonormal', 'mcc')):.2f} with orthonormal rows, {np.mean(world_final('rademacher', 'mcc')):.2f} with fixed signs, {np.mean(world_final('trained', 'mcc')):.2f} with a trained unmixing, {np.mean(world_final('coherent', 'mcc')):.2f} with rows of cosine 0.9; "
    f"from linear ICA's start {np.mean(world_final('ica start', 'mcc')):.2f}; linear ICA alone {linear_world_scores[0]:.2f}; a random rotation {null_mean:.2f}. Bands: all seeds. The bound of orthonormal rows is {np.mean(difference('orthonormal', 'coherent', 'bound')) * WORLD:.1f} nats above that of rows of cosine 0.9; Hadamard's gap accounts for {exact.hadamard_gap(torch.tensor([[1.0, 0.9], [0.0, 0.19**0.5]])):.2f}.",
)

# %% [markdown]
# What the flow does to the data is best seen along the two rows of $A^+$: the cloud of the codes, coloured by one of the true sources, before and after training, and the histograms of the sources against their prior.

# %% tags=["hide-input"]
best_arm = ("orthonormal", 0)
after_model = world_ensemble.member(world_names.index(best_arm))
stages = {"start": world_member(*best_arm).to(device), "trained": after_model}
fig, axes = plt.subplots(1, 4, figsize=(10.6, 2.9))
axes[0].scatter(*(world["test"] @ torch.linalg.qr(torch.randn(WORLD, 2, generator=generator(seed, "view")))[0]).T, c=world_truth[:, 0], s=4, cmap="viridis")  # fmt: skip
axes[0].set(xlabel="a random projection of x", title="data")
for axis, (stage, model) in zip(axes[1:], stages.items()):
    with torch.no_grad():
        inferred = model.sources(world_test).cpu()
    value, share = scores(inferred, world_truth)
    axis.scatter(*inferred.T, c=world_truth[:, 0], s=4, cmap="viridis")
    axis.set(xlabel="source 1", ylabel="source 2", title=f"{stage}: MCC {value:.2f}, R² {share:.2f}", xlim=(-2, 2), ylim=(-2, 2))  # fmt: skip
    axis.title.set_fontsize(9)
edges = torch.linspace(-2, 2, 60)
axes[3].hist(inferred[:, 0], bins=40, density=True, color=COLOURS["noise"], alpha=0.6, label="source 1")  # fmt: skip
axes[3].hist(inferred[:, 1], bins=40, density=True, color=COLOURS["regulariser"], alpha=0.5, label="source 2")  # fmt: skip
axes[3].plot(edges, gg_log_prob(edges, 10).exp(), color="black", label="prior, ρ = 10")
axes[3].set(xlabel="inferred source", ylabel="density", title="sources and prior")
axes[3].legend(fontsize=7)
chapter.show(
    fig,
    "bijecta-clouds",
    alt="Scatter of the data, of the two inferred sources at the start and after training, coloured by a true source, and histograms of the inferred sources with the prior's density on top.",
    caption="The map turns the cloud into the square that the prior asks for (first seed, orthonormal rows). Colour: the first true source; a square with slanted colour is a rotation, which the marginals hardly notice.",
    answers="the paper's pictures of the feature map",
)

# %% [markdown]
# ## Visualise
#
# ### Sprites: what was found, and by whom

# %% tags=["hide-input"]
pick = lambda arm, place: [sprite_scores[n][place] for n in sprite_scores if n[0] == arm]
lines = ["| model | MCC (rank) | R² of the position | bound, nats per dimension | share of two loudest codes | mean length of a column of A |", "|:---|---:|---:|---:|---:|---:|"]  # fmt: skip
for arm in [*ARMS, "vae", "beta", "FastICA"]:
    values = [v for v in fast_scores] if arm == "FastICA" else [sprite_scores[n] for n in sprite_scores if n[0] == arm]  # fmt: skip
    cells = [" ".join(f"{v[i]:.2f}" for v in values) for i in range(2)]
    if arm in ARMS:
        cells.append(" ".join(f"{last[n]:.2f}" for n in names if n[0] == arm))
        codes = [sprite_models[n].flow(test_sprites_d)[0].detach() for n in names if n[0] == arm]
        eigen = [torch.linalg.eigvalsh(c.double().T.cov()).flip(0) for c in codes]
        cells.append(" ".join(f"{float(e[:2].sum() / e.sum()):.2f}" for e in eigen))
        lengths = [float(sprite_models[n].mixing().norm(dim=0).mean().detach()) for n in names if n[0] == arm]  # fmt: skip
        cells.append("–" if arm == "plain flow" else " ".join(f"{v:.2f}" for v in lengths))
    elif arm == "FastICA":
        cells += ["–", "–", "–"]
    else:
        with torch.no_grad():
            noise = torch.randn(1_000, 2, generator=generator(seed, "vae score")).to(device)
            cells.append(" ".join(f"{float(m.terms(test_sprites_d, noise)['elbo'].mean()) / d_sprite:.2f}" for n, m in sprite_vaes.items() if n[0] == arm))  # fmt: skip
        cells += ["–", "–"]
    lines.append(f"| {arm} | " + " | ".join(cells) + " |")
display(Markdown("\n".join(lines)))

# %% [markdown]
# One value per seed. "Sketch start" is the paper's, as far as seen: random signs on a randomly initialised flow, the data seen by ActNorm only. The other two starts are ours: they whiten all dimensions through the last matrix, and put random directions or those of linear ICA where $A^+$ reads. A free $A$ is the paper's "learnt A"; frozen is $A = \mathrm{pinv}(A^+)$.

# %% tags=["nbval-check-output"]
shuffled_places = test_places[torch.randperm(1_000, generator=generator(seed, "shuffle"))]
shuffled_scores = [scores(sprite_sources(("sketch start", k), sprite_models["sketch start", k], test_sprites_d), shuffled_places) for k in range(s.sprite_seeds)]  # fmt: skip
random_gain = [float(sprite_history.metrics["bound"][-1][names.index(("sketch start", k))] - sprite_history.metrics["bound"][0][names.index(("sketch start", k))]) for k in range(s.sprite_seeds)]  # fmt: skip
chapter.claim(
    "C4a",
    bijecta=pick("sketch start", 0),
    r2=pick("sketch start", 1),
    vae=pick("vae", 0),
    linear=[v for v, _ in fast_scores],
    control=dict(
        bijecta=[v for v, _ in shuffled_scores],
        r2=[v for _, v in shuffled_scores],
        vae=pick("vae", 0),
        linear=[v for v, _ in fast_scores],
    ),
)
chapter.claim(
    "C4b",
    mcc=pick("sketch start", 0),
    r2=pick("sketch start", 1),
    gain=random_gain,
    control=dict(mcc=[v for v, _ in shuffled_scores], r2=[v for _, v in shuffled_scores]),
)
rivals = {"flow": np.mean(pick("plain flow", 0)), "vae": np.mean(pick("vae", 0)), "beta": np.mean(pick("beta", 0)), "linear": np.mean([v for v, _ in fast_scores])}  # fmt: skip
rival_r2 = max(np.mean(pick("plain flow", 1)), np.mean(pick("vae", 1)), np.mean(pick("beta", 1)), np.mean([v for _, v in fast_scores]))  # fmt: skip
chapter.claim(
    "C8",
    bijecta=np.mean(pick("sketch start", 0)),
    r2=np.mean(pick("sketch start", 1)),
    rival_r2=rival_r2,
    **rivals,
    control=dict(
        bijecta=np.mean([v for v, _ in shuffled_scores]),
        r2=np.mean([v for _, v in shuffled_scores]),
        rival_r2=rival_r2,
        **rivals,
    ),
)
start_bounds = [last["linear start", k] - last["whitened, random", k] for k in range(s.sprite_seeds)]  # fmt: skip

# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.7))
styles = {"sketch start": ("noise", "-"), "whitened, random": ("highlight", "-"), "linear start": ("theory", "-"), "sketch, A free": ("regulariser", "--")}  # fmt: skip
for arm, (role, line) in styles.items():
    where = [i for i, n in enumerate(names) if n[0] == arm]
    for axis, key in ((left, "bound"), (right, "r2")):
        values = sprite_history.metrics[key][:, where]
        axis.plot(sprite_history.steps, values.mean(1), color=COLOURS[role], ls=line, marker="o", ms=3, label=arm)  # fmt: skip
        axis.fill_between(sprite_history.steps, values.amin(1), values.amax(1), color=COLOURS[role], alpha=0.15, lw=0)  # fmt: skip
right.axhline(np.mean([v for _, v in fast_scores]), color="black", ls=":", label="FastICA")
right.axhline(np.mean(pick("vae", 1)), color=COLOURS["control"], ls=":", label="VAE, same prior")
ceiling = max(last[n] for n in names if n[0] != "plain flow")
left.set(
    xlabel="step", ylabel="test bound (nats per dimension)", ylim=(ceiling - 1.0, ceiling + 0.1)
)
right.set(xlabel="step", ylabel="R² of the position on two sources", ylim=(-0.02, 1))
left.legend(fontsize=8, loc="lower right")
right.legend(fontsize=7, loc=(0.02, 0.5))
chapter.show(
    fig,
    "bijecta-start",
    alt="Left: bound against step for four arms: sketch, whitened random and linear start, and a sketch start with free mixing. Right: R squared of the sprite's position on the two sources for the same arms, with dotted levels of FastICA and the VAE.",
    caption=f"After {s.sprite_steps} steps R² is {np.mean(pick('linear start', 1)):.2f} from linear ICA's directions, {np.mean(pick('whitened, random', 1)):.2f} from whitened random ones and {np.mean(pick('sketch start', 1)):.2f} from the paper's start. The bound of the first exceeds that of the second by {np.mean(start_bounds) * d_sprite:.1f} nats per image, that of the third by {np.mean([last['linear start', k] - last['sketch start', k] for k in range(s.sprite_seeds)]) * d_sprite:.1f}.",
)

# %% [markdown]
# ### Images
#
# The same flow on real images, with Laplace sources ($\rho = 1$), a plain flow of the same size, and VAEs with a Laplace prior. Pixels are quantised to 32 grey levels (17 for the digits) and dequantised by uniform noise; bits per dimension are those of the quantised image. MNIST and Fashion-MNIST are padded to 32 × 32, and at the `cpu` profile averaged to
# 16 × 16. Six Bijectas differ in the start, in the number of sources, and in whether $A$ is learnt.

# %% tags=["hide-input"]
IMAGE_SIGMA, DS = 0.05, (2, 8, 32)
IMAGE_ARMS = {
    "plain flow": dict(start="sketch", plain=True, active=8),
    ("sketch", 8): dict(start="sketch", active=8),
    ("random", 8): dict(start="random", active=8),
    ("linear", 8): dict(start="pca", active=8),
    ("linear, A free", 8): dict(start="pca", active=8, mixing="free"),
    ("linear", 2): dict(start="pca", active=2),
    ("linear", 32): dict(start="pca", active=32),
}


def prepare(data):
    """Images as `[n, h, w, c]` whose sides are powers of two, with their number of grey levels."""
    x = data.x
    levels = 17 if data.card.name == "digits" else 32
    if x.shape[-1] == 28:
        x = torch.nn.functional.pad(x, (2, 2, 2, 2))
        if s.pool == 4:
            x = torch.nn.functional.avg_pool2d(x, 2)
    grey = (x * (levels - 1)).round() if levels == 17 else (x * levels).floor().clamp(max=levels - 1)  # fmt: skip
    return grey.permute(0, 2, 3, 1).contiguous(), levels


def dequantised(grey, levels, *purpose):
    noise = torch.rand(grey.shape, generator=generator(seed, "dequantise", *purpose)).to(grey)
    return ((grey + noise) / levels).flatten(1)


def image_run(name):
    """Train all arms and VAEs on one data set; everything that the figures need."""
    sets = {split: chapter.load(name, split, fallback="digits") for split in ("train", "test")}
    (grey, levels), (grey_test, _) = prepare(sets["train"]), prepare(sets["test"])
    grey, grey_test = grey[: s.image_train], grey_test[: s.image_test]
    labels, truth = sets["train"].y[: s.image_train], sets["test"].y[: s.image_test]
    shape, d = tuple(grey.shape[1:]), grey[0].numel()
    x0, x_test = dequantised(grey[:5_000], levels, "start").cpu(), dequantised(grey_test, levels, "test")  # fmt: skip
    rows = sketch("rademacher", max(DS), d, generator=generator(seed, "image sketch"))

    def member(arm):
        flow = image_flow(shape, s.levels, "images", name)
        return started(flow, x0, rows, rho=1, noise=IMAGE_SIGMA, seed=seed, log_scale=-3.0, **IMAGE_ARMS[arm])  # fmt: skip

    ensemble = Ensemble([member(arm) for arm in IMAGE_ARMS]).to(device)
    untrained = {arm: ensemble.member(i) for i, arm in enumerate(IMAGE_ARMS)}
    some = x_test[:400]

    def record(both, step):
        with torch.no_grad():
            return {"bound": both.call(lambda m: m.terms(some)["elbo"].mean() / d)}

    flat = (grey / levels).flatten(1)
    uniform = lambda g, shape_: torch.rand(shape_, generator=g, device=device) / levels
    history = fit(
        ensemble, negative_elbo, Batches(flat, batch_size=s.image_batch, seed=seed), steps=s.image_steps, lr=1e-3, schedule=warm_cosine, clip=1.0,
        seed=[seed] * len(IMAGE_ARMS), noise=lambda g, batch: uniform(g, batch[0].shape), record=record, record_every=max(1, s.image_steps // 5), desc=name,
    )  # fmt: skip
    vaes = train_vaes([("vae", 0, 1.0, 1.0), ("tc", 0, 1.0, 15.0), ("beta", 0, 4.0, 1.0)], flat, 8, 1, lambda g, x: uniform(g, x.shape), "images", name)  # fmt: skip
    return dict(
        name=sets["train"].card.name, shape=shape, d=d, levels=levels, train=dequantised(grey, levels, "probe"), labels=labels, test=x_test, truth=truth,
        models={arm: ensemble.member(i) for i, arm in enumerate(IMAGE_ARMS)}, untrained=untrained, history=history, vaes={n[0]: m for n, m in vaes.items()},
    )  # fmt: skip


runs = [image_run(name) for name in s.images]
run = runs[0]
arms = list(IMAGE_ARMS)


def image_sources(model, x, arm=None):
    """Posterior means of the active sources `[n, k]`."""
    with torch.no_grad():
        codes = model.sources(x)
    return codes if arm is None else codes[:, : IMAGE_ARMS[arm]["active"]]


def probe(model, arm=None, run_=run):
    return probe_accuracy(image_sources(model, run_["train"][:4_000], arm), run_["labels"][:4_000], image_sources(model, run_["test"], arm), run_["truth"])  # fmt: skip


def bits(run_):
    """Test bounds in bits per dimension of the quantised images, by model."""
    with torch.no_grad():
        found = {arm: float(m.terms(run_["test"])["elbo"].mean()) for arm, m in run_["models"].items()}  # fmt: skip
        noise = torch.randn(len(run_["test"]), 8, generator=generator(seed, "bits")).to(device)
        found |= {name: float(m.terms(run_["test"], noise)["elbo"].mean()) for name, m in run_["vaes"].items()}  # fmt: skip
    return {n: -v / (run_["d"] * math.log(2)) + math.log2(run_["levels"]) for n, v in found.items()}


image_bits = bits(run)
image_probe = {arm: probe(m, arm) for arm, m in run["models"].items() if arm != "plain flow"}
image_probe |= {name: probe(m) for name, m in run["vaes"].items()}
image_probe["random, untrained"] = probe(run["untrained"]["random", 8], ("random", 8))
pca_codes = lambda k: (run["train"][:4_000] @ whitening(run["train"][:4_000])[:k].T.to(run["train"]), run["test"] @ whitening(run["train"][:4_000])[:k].T.to(run["train"]))  # fmt: skip
pca_probe = {k: probe_accuracy(pca_codes(k)[0], run["labels"][:4_000], pca_codes(k)[1], run["truth"]) for k in DS}  # fmt: skip

# %% [markdown]
# With two sources the evidence of a test image is a two-dimensional integral, so the bound can be held against the exact log-likelihood of a trained model.

# %% tags=["nbval-check-output"]
two = ("linear", 2)


def gap_of(model):
    """Exact log p(x) minus the bound at 100 test images (nats), and the predicted gap."""
    model = model.double()
    x = run["test"][:100].double()
    with torch.no_grad():
        z, logdet = model.flow(x)
        A = model.mixing()[:, :2]
        exact_value = (
            exact.log_evidence(z.cpu(), A.cpu(), IMAGE_SIGMA, 1, points=161) + logdet.cpu()
        )
        gap = exact_value - model.terms(x)["elbo"].cpu()
        predicted = exact.hadamard_gap(A.cpu()) + 2 * exact.LAPLACE_GAP
        # and at the b that it has: KL(Laplace(0, b) || N(0, v)) per source, v the variance of the posterior
        b = model.log_scale.exp()[:2].cpu()
        v = (IMAGE_SIGMA / A.norm(dim=0).cpu()) ** 2
        given = float((b**2 / v - 1 - (2 * b).log() + 0.5 * (2 * math.pi * v).log()).sum())
    model.float()
    return gap, predicted, exact.hadamard_gap(A.cpu()) + given


gap_trained, gap_predicted, gap_given = gap_of(run["models"][two])
gap_start, _, _ = gap_of(run["untrained"][two])
gains = run["history"].metrics["bound"][-1] - run["history"].metrics["bound"][0]
with torch.no_grad():  # the untrained twin: only the difference of two sets of test images
    same = run["untrained"][two].terms(run["test"][:400])["elbo"] / run["d"]
untrained_gain = same[200:].mean() - same[:200].mean()
chapter.claim(
    "C1b",
    gain=float(gains[arms.index(two)]),
    violations=int((gap_trained < -1e-6).sum()),
    ratio=float(gap_trained.mean()) / gap_given,
    best=float(gap_trained.mean()) / gap_predicted,
    control=dict(
        gain=float(untrained_gain),
        violations=int((gap_start < -1e-6).sum()),
        ratio=float(gap_start.mean()) / gap_predicted,
    ),
)

# %% tags=["nbval-check-output"]
free_arm = ("linear, A free", 8)
free_model = run["models"][free_arm]
with torch.no_grad():
    z_train = free_model.flow(run["train"][:8_000])[0].double()
    U = free_model.unmixing()[:8].double()
    A_free = free_model.mixing()[:, :8].double()
    b_free = free_model.log_scale.exp()[:8].double()
    second_moment = z_train.T @ z_train / len(z_train)
    product, formula = U @ A_free, U @ ridge_mixing(second_moment, U, b_free)
eye8 = torch.eye(8).to(product)
to_ridge = float((product - formula).norm() / formula.norm())
to_identity = float((product - eye8).norm() / eye8.norm())
departure = float((product - formula).norm() / (eye8 - formula).norm())
half = U @ ridge_mixing(second_moment, U, b_free / 2**0.5)  # the variance of a Laplace taken as b²
wrong_departure = float((product - half).norm() / (eye8 - half).norm())
best_mixing = ridge_mixing(second_moment, U, b_free)
whole = float((A_free - best_mixing).norm() / (torch.linalg.pinv(U) - best_mixing).norm())
chapter.claim("C9b", departure=departure, whole=whole, control=dict(departure=wrong_departure))

# %% tags=["hide-input"]
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(10.4, 3.5), width_ratios=(1.2, 1, 1))
for arm, colour in (("plain flow", COLOURS["regulariser"]), (("sketch", 8), COLOURS["noise"]), (("random", 8), COLOURS["baseline"]), (("linear", 8), COLOURS["theory"]), (free_arm, COLOURS["highlight"])):  # fmt: skip
    curve = -run["history"].metrics["bound"][:, arms.index(arm)] / math.log(2) + math.log2(
        run["levels"]
    )
    left.plot(run["history"].steps, curve, color=colour, marker="o", ms=3, label=arm if isinstance(arm, str) else f"{arm[0]} start, 8 sources".replace(", A free start", " start, A free"))  # fmt: skip
ends = [
    -float(v) / math.log(2) + math.log2(run["levels"]) for v in run["history"].metrics["bound"][1]
]
left.set(xlabel="step", ylabel="bits per dimension (test)", ylim=(min(image_bits.values()) - 0.3, max(ends) + 0.3))  # fmt: skip
left.legend(fontsize=7)
reach = (min(gap_predicted, float(gap_trained.min())), max(gap_given, float(gap_trained.max())))
pad_ = 0.15 * (reach[1] - reach[0])
middle.hist(gap_trained, bins=np.linspace(reach[0] - pad_, reach[1] + pad_, 40), color=COLOURS["theory"], alpha=0.7, label="100 test images")  # fmt: skip
middle.axvline(gap_predicted, color="black", ls="--", label="predicted, best b")
middle.axvline(gap_given, color="black", ls=":", label="predicted, learnt b")
middle.set(xlabel="log p(x) − bound (nats), 2 sources", ylabel="test images")
middle.legend(fontsize=8)
limit = float(product.abs().max())
image = right.imshow(torch.cat([product, formula], 1).cpu(), cmap="RdBu_r", vmin=-limit, vmax=limit)
right.axvline(7.5, color="black", lw=1)
right.set(xticks=[3.5, 11.5], xticklabels=["A⁺A, learnt", "ridge formula"], yticks=[])
right.grid(False)
fig.colorbar(image, ax=right, fraction=0.025)
chapter.show(
    fig,
    "bijecta-training",
    alt="Left: bits per dimension of five models against training step. Middle: histogram of the gap between log-likelihood and bound over 100 test images with the predicted value. Right: heat maps of A plus times A, learnt and by the ridge formula.",
    caption=f"Flow and ICA train end to end on {run['name']}; the mean gap of the bound is {float(gap_trained.mean()):.3f} nats; at the learnt b the theory says {gap_given:.3f}, at the best b {gap_predicted:.3f}. For a free A, A⁺A lies {to_ridge:.2%} from the ridge formula and {to_identity:.2%} from the identity.",
)

# %% [markdown]
# ### Total correlation
#
# The paper's headline is a total correlation on CelebA; which estimator gave it was not seen, and the scale depends on that. Three are used here: all on posterior samples (means would count sources that the posterior ignores): the Gaussian formula, the minibatch-weighted estimator {cite}`chen2018isolating` (it saturates near $(d_s-1)\log n$ for sharp posteriors, and so depends on $b$),
# and a classifier of joint against shuffled coordinates after each coordinate is made normal by its ranks. Beside them stands a probe: sources that carry nothing have no total correlation either.

# %% tags=["hide-input"]
TC_MODELS = {"VAE": "vae", "β-TCVAE (15)": "tc", "β-VAE (4)": "beta", "Bijecta, sketch start": ("sketch", 8), "Bijecta, linear start": ("linear", 8)}  # fmt: skip


def tc_table():
    """Per model (Gaussian, minibatch-weighted, density ratio) in nats on posterior samples, its active sources and spread."""
    drawn, weighted, active = [], [], []
    few = min(500, len(run["test"]))
    for key in TC_MODELS.values():
        stream = generator(seed, "tc", str(key))
        if isinstance(key, tuple):
            model = run["models"][key]
            codes_ = image_sources(model, run["test"], key).cpu()
            scale = model.log_scale.exp()[:8].detach().cpu()
            uniform_ = torch.rand(codes_.shape, generator=stream) - 0.5
            samples = codes_ - scale * uniform_.sign() * torch.log1p(-2 * uniform_.abs())
            weighted.append(weighted_tc(laplace_logs(samples[:few], codes_[:few], scale)))
        else:
            with torch.no_grad():
                codes_, variance = (v.cpu() for v in run["vaes"][key].encode(run["test"]))
            samples = codes_ + variance.sqrt() * torch.randn(codes_.shape, generator=stream)
            weighted.append(weighted_tc(normal_logs(samples[:few], codes_[:few], variance[:few])))
        drawn.append(samples)
        active.append(int((codes_.var(0) > 0.01).sum()))
    silent = gg_sample((len(drawn[0]), 8), 1, generator=generator(seed, "silent"))
    ratio = ratio_tc(torch.stack([*drawn, silent]), seed=seed, steps=s.critic_steps)
    rows_ = {name: (gaussian_tc(c), w, r) for name, c, w, r in zip(TC_MODELS, drawn, weighted, ratio)}  # fmt: skip
    silent_weighted = weighted_tc(laplace_logs(silent[:few], torch.zeros(few, 8), torch.ones(8)))
    return rows_, (gaussian_tc(silent), silent_weighted, ratio[-1]), dict(zip(TC_MODELS, active))


tc_rows, silent_tc, tc_active = tc_table()
lower = lambda mine, rival: sum(mine[i] < tc_rows[rival][i] for i in range(3))
ours = tc_rows["Bijecta, sketch start"]
for name, count in tc_active.items():
    print(f"{name}: {count} of 8 sources with a posterior mean that varies")

# %% tags=["nbval-check-output"]
chance = float(torch.bincount(run["truth"]).max()) / len(run["truth"])
chapter.claim(
    "C5",
    below_vae=lower(ours, "VAE"),
    below_tc=lower(ours, "β-TCVAE (15)"),
    probe=image_probe["sketch", 8] / image_probe["vae"],
    control=dict(
        below_vae=lower(silent_tc, "VAE"),
        below_tc=lower(silent_tc, "β-TCVAE (15)"),
        probe=chance / image_probe["vae"],
    ),
)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 4, figsize=(10.6, 3.6), sharey=True)
labels_tc = list(TC_MODELS)
probes = [image_probe[key] for key in TC_MODELS.values()]
panels = [("Gaussian", 0), ("minibatch-weighted", 1), ("density ratio", 2)]
bar_colours = [COLOURS["control"], COLOURS["regulariser"], COLOURS["highlight"], COLOURS["noise"], COLOURS["theory"]]  # fmt: skip
for axis, (title, i) in zip(axes, panels):
    axis.barh(labels_tc, [tc_rows[name][i] for name in labels_tc], color=bar_colours)
    axis.set(xlabel="total correlation (nats)", title=title)
axes[1].axvline(7 * math.log(min(500, len(run["test"]))), color="black", ls=":", lw=1)
axes[3].barh(labels_tc, probes, color=bar_colours)
axes[3].axvline(chance, color="black", ls=":", lw=1)
axes[3].set(xlabel="accuracy", title="linear probe", xlim=(0, 1))
axes[0].invert_yaxis()
for axis in axes:
    axis.title.set_fontsize(10)
chapter.show(
    fig,
    "bijecta-tc",
    alt="Bars for a VAE, a beta-TCVAE, a beta-VAE and Bijecta from two starts: total correlation under three estimators, and the accuracy of a linear probe of the class with chance as a dotted line.",
    caption=f"Total correlation of 8 Laplace sources on {run['name']}. Bijecta from the paper's start has {ours[0]:.2f}, {ours[1]:.1f} and {ours[2]:.2f} nats under the three estimators and a probe of {image_probe['sketch', 8]:.0%}; the VAE {tc_rows['VAE'][0]:.2f}, {tc_rows['VAE'][1]:.1f}, {tc_rows['VAE'][2]:.2f} and {image_probe['vae']:.0%}. "
    "Dotted: largest value of the weighted estimator, and chance.",
    answers="the table of total correlations",
)

# %% [markdown]
# ### Spectra
#
# The paper shows that the codes of Bijecta are compressive: nearly all variance in the leading $d_s$ directions, where an equal flow with a Laplace base has a nearly straight line. {prf:ref}`ica-thm-spectrum` says what these curves must look like if the codes follow their base. The dashed curves use $A$, $\sigma$ and $\rho$ only.

# %% tags=["hide-input"]


def spectrum(model):
    with torch.no_grad():
        return torch.linalg.eigvalsh(model.flow(run["test"])[0].double().T.cov().cpu()).flip(0).clamp_min(0)  # fmt: skip


def outside_share(eigen, k):
    return float(1 - eigen[:k].sum() / eigen.sum())


spectra_of = {arm: spectrum(m) for arm, m in run["models"].items()}
start_spectra = {
    arm: spectrum(run["untrained"][arm]) for arm in (("random", 8), ("sketch", 8), "plain flow")
}
pixel_spectrum = torch.linalg.eigvalsh(run["test"].double().T.cov().cpu()).flip(0)
predicted_spectra = {k: model_spectrum(run["models"]["linear", k].mixing()[:, :k].detach().double().cpu(), IMAGE_SIGMA, 1) for k in DS}  # fmt: skip
flow_share = lambda eigen: (1 - outside_share(eigen, 8)) / (2 * 8 / run["d"] + 0.1)

# %% tags=["nbval-check-output"]
sketch_arm, random_arm = ("sketch", 8), ("random", 8)
chapter.claim(
    "C6a",
    bijecta=1 - outside_share(spectra_of[sketch_arm], 8),
    flow=flow_share(spectra_of["plain flow"]),
    learnt=outside_share(spectra_of[sketch_arm], 8) / outside_share(start_spectra[sketch_arm], 8),
    control=dict(bijecta=1 - outside_share(start_spectra[sketch_arm], 8), flow=flow_share(start_spectra["plain flow"]), learnt=1.0),
)  # fmt: skip
ratio_arms = [*[("linear", k) for k in DS], random_arm, sketch_arm]
chapter.claim(
    "C6b",
    ratio=[outside_share(spectra_of[a], a[1]) / outside_share(predicted_spectra[a[1]], a[1]) for a in ratio_arms],
    control=dict(ratio=[outside_share(spectra_of["plain flow"], a[1]) / outside_share(predicted_spectra[a[1]], a[1]) for a in ratio_arms]),
)  # fmt: skip
untrained_probe = image_probe["random, untrained"] / pca_probe[8]
chapter.claim(
    "B6",
    share=1 - outside_share(start_spectra[random_arm], 8),
    probe=untrained_probe,
    control=dict(share=1 - outside_share(start_spectra["plain flow"], 8), probe=1.0),
)
per_image = math.log(2) * run["d"]  # nats an image for one bit per dimension
images_bound = -(image_bits["linear", 8] - image_bits["random", 8]) * per_image
starts = dict(linear=pick("linear start", 1), random=pick("whitened, random", 1))
chapter.claim(
    "B4",
    **starts,
    sketch=pick("sketch start", 1),
    sprites=[d_sprite * v for v in start_bounds],
    images=images_bound,
    control=dict(linear=starts["random"], random=starts["linear"], sprites=[-d_sprite * v for v in start_bounds], images=-images_bound),
)  # fmt: skip

# %% tags=["hide-input"]
fig, axis = plt.subplots(figsize=(8, 4.2))
places_ = torch.arange(1, run["d"] + 1)
cumulative = lambda eigen: eigen.cumsum(0) / eigen.sum()
for k, colour in zip(DS, (COLOURS["control"], COLOURS["noise"], COLOURS["theory"])):
    axis.plot(places_, cumulative(spectra_of["linear", k]), color=colour, label=f"Bijecta, {k} sources, linear start")  # fmt: skip
    axis.plot(places_, cumulative(predicted_spectra[k]), color=colour, ls="--", lw=1)
axis.plot(places_, cumulative(spectra_of["plain flow"]), color=COLOURS["regulariser"], label="flow, Laplace base")  # fmt: skip
axis.plot(places_, places_ / run["d"], color=COLOURS["regulariser"], ls="--", lw=1)
axis.plot(places_, cumulative(spectra_of["sketch", 8]), color="black", ls="-.", label="Bijecta, 8 sources, sketch start")  # fmt: skip
axis.plot(places_, cumulative(start_spectra["random", 8]), color=COLOURS["highlight"], ls=":", lw=2, label="untrained, 8 random directions")  # fmt: skip
axis.plot(places_, cumulative(pixel_spectrum), color="black", lw=1, label="pixels")
axis.set(xlabel="number of leading directions", ylabel="share of the variance of the codes", xscale="log", ylim=(0, 1.02))  # fmt: skip
axis.legend(fontsize=8)
chapter.show(
    fig,
    "bijecta-spectra",
    alt="Cumulative share of variance against the number of leading directions on a log axis: Bijecta with 2, 8 and 32 sources from linear starts with dashed predictions, with 8 from a sketch, the flow with a Laplace base, an untrained map, and the pixels.",
    caption=f"Solid: measured on test codes ({run['name']}); dashed: forced by the base. An untrained linear map with eight random directions (dotted) holds {1 - outside_share(start_spectra['random', 8], 8):.0%} in its leading eight.",
    answers="the figure of spectra on Fashion-MNIST and CIFAR-10",
)

# %% [markdown]
# ### Traversals and reconstructions

# %% tags=["hide-input"]
height, width, channels = run["shape"]


def walks(arm_or_vae, steps=7):
    """Decode each of 8 sources from its 2nd to its 98th percentile, the others at the test median: `[8 h, steps w]`."""
    levels_ = torch.linspace(0.02, 0.98, steps)
    is_flow = isinstance(arm_or_vae, tuple)
    model = run["models" if is_flow else "vaes"][arm_or_vae]
    with torch.no_grad():
        codes_ = model.sources(run["test"])
        base = codes_.median(0).values.repeat(8, steps, 1)
        for i in range(8):
            base[i, :, i] = codes_[:, i].quantile(levels_.to(codes_))
        base = base.flatten(0, 1)
        decoded = model.flow.inverse(base @ model.mixing().mT) if is_flow else model.decoder(base)
    images = decoded.view(8, steps, height, width, channels).mean(-1).cpu()
    return images.permute(0, 2, 1, 3).reshape(8 * height, steps * width)


fig, axes = plt.subplots(1, 4, figsize=(10.6, 3.5))
for axis, (title, key) in zip(axes, (("Bijecta, linear start", ("linear", 8)), ("Bijecta, sketch start", ("sketch", 8)), ("VAE", "vae"), ("β-TCVAE (15)", "tc"))):  # fmt: skip
    axis.imshow(walks(key), cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[(i + 0.5) * height for i in range(8)], yticklabels=[f"{i + 1}" for i in range(8)], title=title)  # fmt: skip
    axis.title.set_fontsize(10)
    axis.grid(False)
axes[0].set_ylabel("source")
chapter.show(
    fig,
    "bijecta-traversals",
    alt="Four grids of images, one row per source and seven steps along it, for Bijecta from a linear and from a sketch start, a VAE and a beta-TCVAE.",
    caption=f"One source at a time from its 2nd to its 98th percentile, the others at their medians ({run['name']}). Probe accuracies of the four sets of sources: {image_probe['linear', 8]:.0%}, {image_probe['sketch', 8]:.0%}, {image_probe['vae']:.0%}, {image_probe['tc']:.0%}.",
    answers="the latent traversals",
)

# %% [markdown]
# ## Beyond the paper
#
# ### What the number of sources buys
#
# A flow keeps every dimension, so the bound of the whole model need not suffer from few sources. What they *carry* can be seen by setting the noise of $z$ to zero, $x \mapsto f(AA^+f^{-1}(x))$, and by a probe.

# %%
by_k = {k: run["models"]["linear", k] for k in DS}
with torch.no_grad():
    rebuilt = {k: m.reconstruct(run["test"][:500]) for k, m in by_k.items()}
    rebuilt_random = run["models"]["sketch", 8].reconstruct(run["test"][:500])
    rebuilt_vae = run["vaes"]["vae"].reconstruct(run["test"][:500])
shares = {k: explained(run["test"][:500], v) for k, v in rebuilt.items()}
pca_shares = {k: explained(run["test"][:500], pca_reconstruction(run["train"], run["test"][:500], k)) for k in DS}  # fmt: skip
k_probe = {k: image_probe["linear", k] for k in DS}
k_bits = [image_bits["linear", k] for k in DS]

# %% tags=["nbval-check-output"]
untrained_probes = image_probe["random, untrained"]
chapter.claim(
    "B2",
    few=k_probe[2],
    some=k_probe[8],
    many=k_probe[32],
    explained=shares[32] - shares[2],
    cost=(k_bits[2] - k_bits[0]) * run["d"],
    control=dict(few=k_probe[2], some=untrained_probes, many=untrained_probes, explained=explained(run["test"][:500], rebuilt_random) - shares[2],
                 cost=(k_bits[0] - k_bits[2]) * run["d"]),
)  # fmt: skip

# %% tags=["hide-input"]
fig = plt.figure(figsize=(10.4, 3.7))
parts = fig.add_gridspec(1, 3, width_ratios=(1.5, 1, 1))
board, left, right = (fig.add_subplot(parts[i]) for i in range(3))
columns_shown = [("image", run["test"][:10]), *[(f"{k}", rebuilt[k][:10]) for k in DS], ("PCA, 8", pca_reconstruction(run["train"], run["test"][:10], 8)),
                 ("sketch, 8", rebuilt_random[:10]), ("VAE, 8", rebuilt_vae[:10])]  # fmt: skip
mosaic = torch.cat([torch.cat(list(v.view(-1, height, width, channels).mean(-1).cpu()), 1) for _, v in columns_shown], 0)  # fmt: skip
board.imshow(mosaic, cmap="gray", vmin=0, vmax=1)
board.set(xticks=[], yticks=[(i + 0.5) * height for i in range(len(columns_shown))], yticklabels=[n for n, _ in columns_shown])  # fmt: skip
board.grid(False)
left.plot(
    DS, [shares[k] for k in DS], color=COLOURS["theory"], marker="o", label="Bijecta, linear start"
)
left.plot(DS, [pca_shares[k] for k in DS], color="black", marker="s", ls=":", label="PCA")
left.plot(8, explained(run["test"][:500], rebuilt_vae), "D", color=COLOURS["control"], label="VAE")
random_share = explained(run["test"][:500], rebuilt_random)
left.set(xlabel="sources", ylabel="share of pixel variance explained", xscale="log", xticks=DS, xticklabels=DS, ylim=(min(0.0, *shares.values()) - 0.05, 1))  # fmt: skip
left.minorticks_off()
left.legend(fontsize=7)
right.plot(
    DS, [k_probe[k] for k in DS], color=COLOURS["theory"], marker="o", label="Bijecta, linear start"
)
right.plot(DS, [pca_probe[k] for k in DS], color="black", marker="s", ls=":", label="PCA")
right.plot(8, image_probe["sketch", 8], "^", color=COLOURS["noise"], label="Bijecta, sketch start")
right.plot(8, image_probe["vae"], "D", color=COLOURS["control"], label="VAE")
right.axhline(chance, color=COLOURS["light"], ls="--", lw=1)
right.set(xlabel="sources", ylabel="probe accuracy", xscale="log", xticks=DS, xticklabels=DS, ylim=(0, 1))  # fmt: skip
right.minorticks_off()
right.legend(fontsize=7)
chapter.show(
    fig,
    "bijecta-number",
    alt="Left: test images and reconstructions from 2, 8 and 32 sources, from eight principal components, from a sketch start and from a VAE. Middle: explained share of pixel variance against the number of sources. Right: probe accuracy.",
    caption=f"From 2 to 32 sources the explained variance goes from {shares[2]:.0%} to {shares[32]:.0%} (PCA: {pca_shares[2]:.0%} to {pca_shares[32]:.0%}) and the probe from {k_probe[2]:.0%} to {k_probe[32]:.0%}, at bounds of {', '.join(f'{b:.2f}' for b in k_bits)} bits per dimension. "
    f"From the sketch start eight sources explain {random_share:.0%} (a negative share is worse than the mean image).",
)

# %% [markdown]
# ### Hadamard's gap in linear ICA
#
# Back to linear ICA to see {prf:ref}`ica-thm-hadamard` at work, with and without its cause: a posterior of full covariance has no such gap. Every entry of $A^+$ is free, and training starts at the whitening of the data: from a random sketch the optimiser hardly gets anywhere, which would be another story.

# %% tags=["hide-input"]
B1_COSINES, B1_SIZE = (0.0, 0.3, 0.6, 0.75, 0.9), 32


def tilted(cosine_):
    basis = torch.linalg.qr(torch.randn(B1_SIZE, 2, generator=generator(seed, "tilted")))[0]
    return basis @ torch.tensor([[1.0, cosine_], [0.0, (1 - cosine_**2) ** 0.5]])


tilt_rows = [(kind, tilted(c), copy) for c in B1_COSINES for kind in ("svd free", "svd free full") for copy in range(s.linear_seeds)]  # fmt: skip
tilt = {}
for rho in (1, 10):
    _, amari_values, nets, sets = train_linear(tilt_rows, rho, "tilted", rho)
    tilt[rho] = (torch.tensor(amari_values).view(len(B1_COSINES), 2, s.linear_seeds), nets, sets)


def bias(copy):
    """Bound of the factorised model at its own solution minus the best at the true unmixing, nats; ρ = 10, cosine 0.9."""
    _, nets, sets = tilt[10]
    index = (len(B1_COSINES) - 1) * 2 * s.linear_seeds + copy
    net, (z, c) = nets[index], sets[index]
    own = float(net.elbo(z, c).detach())
    true, best_true = torch.linalg.pinv(tilted(0.9)), -math.inf
    with torch.no_grad():
        for gain in torch.linspace(0.85, 1.03, 10):
            twin = LinearICA(float(gain) * true, rho=10, noise=LINEAR_NOISE, scale=1.0, turn=torch.zeros(2, 2))  # fmt: skip
            for factors_ in torch.cartesian_prod(torch.linspace(0.7, 1.15, 10), torch.linspace(0.7, 1.15, 10)):  # fmt: skip
                twin.log_std.copy_((LINEAR_NOISE * factors_).log())
                best_true = max(best_true, float(twin.elbo(z, c)))
    return own - best_true


b1_values = tilt[10][0][-1]

# %% tags=["nbval-check-output"]
b1_bias = [bias(copy) for copy in range(s.linear_seeds)]
chapter.claim(
    "B1",
    factorised=b1_values[0].tolist(),
    full=b1_values[1].tolist(),
    gain=b1_bias,
    control=dict(factorised=b1_values[1].tolist(), full=b1_values[0].tolist(), gain=b1_bias),
)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True)
for axis, rho in zip(axes, (1, 10)):
    for i, (label, colour) in enumerate((("factorised posterior", COLOURS["highlight"]), ("full covariance", COLOURS["theory"]))):  # fmt: skip
        values = tilt[rho][0][:, i]
        axis.plot(B1_COSINES, values.mean(1), color=colour, marker="o", label=label)
        axis.fill_between(B1_COSINES, values.amin(1), values.amax(1), color=colour, alpha=0.2, lw=0)
    axis.set(xlabel="cosine of the mixing columns", title=f"ρ = {rho}")
axes[0].set_ylabel("Amari index (0: unmixed)")
axes[0].legend(fontsize=8)
chapter.show(
    fig,
    "bijecta-phase",
    alt="Amari index against the cosine of the two mixing columns for Laplace and for nearly uniform sources, with a factorised posterior and with a full covariance; bands over seeds.",
    caption=f"Uniform sources at cosine 0.9: Amari {float(b1_values[0].mean()):.2f} with the factorised posterior, {float(b1_values[1].mean()):.2f} with a full covariance; the factorised bound at its own answer minus that at the true unmixing is {np.mean(b1_bias):.2f} nats.",
)

# %% [markdown]
# ### The collapse map, and how random is random enough
#
# Eighteen ways to treat $A$ and the noise, on the known sources: $A$ frozen, with columns of fixed length, or free; three noise levels; noise fixed or learnt. Every score stands beside the bound.

# %%
map_scores = {key: torch.stack([torch.tensor(world_final(arm, key)) for arm in MAP]) for key in ("bound", "r2", "length")}  # fmt: skip
by_bound = int(map_scores["bound"].mean(1).argmax())
by_r2 = int(map_scores["r2"].mean(1).argmax())
FAMILY = ("rademacher", "sparse", "orthonormal", "hadamard", "dct")
family = {kind: np.mean(world_final(kind, "bound")) for kind in KINDS}
family_spread = max(family[k_] for k_ in FAMILY) - min(family[k_] for k_ in FAMILY)
family_distance = min(family[k_] for k_ in FAMILY) - family["coherent"]


# %% tags=["nbval-check-output"]
def rank_of(bound, r2):
    return float(spearmanr(bound, r2).statistic)


# Within one noise level and seed, over the six treatments; then the mean over levels
levels_in_map = [[i for i, arm in enumerate(MAP) if arm[1] == noise] for noise in (0.03, 0.1, 0.3)]
ranks = [np.mean([rank_of(map_scores["bound"][rows_, k], map_scores["r2"][rows_, k]) for rows_ in levels_in_map]) for k in range(s.world_seeds)]  # fmt: skip
run_ranks = [rank_of(world_curve("orthonormal", "bound")[:, k], world_curve("orthonormal", "r2")[:, k]) for k in range(s.world_seeds)]  # fmt: skip


def centred_ranks(values, groups):
    """Ranks within each group of rows, of mean 0 and length 1 for every seed `[groups, rows, seeds]`."""
    table = np.stack([rankdata(np.asarray(values)[rows_], axis=0) for rows_ in groups])
    table = table - table.mean(1, keepdims=True)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def ranking(bound, r2, groups):
    """Chance of so high a mean rank correlation under permutations within groups, and its upper end over seeds."""
    first, second = centred_ranks(bound, groups), centred_ranks(r2, groups)
    rng = numpy_generator(seed, "B3", "permutations")
    orders = rng.permuted(
        np.tile(np.arange(first.shape[1]), (5_000, len(first), 1)), axis=2
    )  # [draws, groups, rows]
    moved = second[np.arange(len(first))[:, None], orders]  # [draws, groups, rows, seeds]
    null, found = (first * moved).sum(2).mean((1, 2)), (first * second).sum(1).mean(0)
    chance = (1 + np.sum(null >= found.mean() - 1e-12)) / (1 + len(null))
    return dict(chance=float(chance), high=float(found.mean() + student_t.ppf(0.95, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5))  # fmt: skip


curves = [world_curve("orthonormal", key) for key in ("bound", "r2")]
chapter.claim(
    "B3",
    rank=ranks, **ranking(map_scores["bound"], map_scores["r2"], levels_in_map),
    control=dict(rank=run_ranks, **ranking(*curves, [list(range(len(curves[0])))])),
)  # fmt: skip
small = {m: MAP.index((m, 0.03, False)) for m in ("frozen", "free")}
chapter.claim(
    "B7",
    frozen=map_scores["r2"][small["frozen"]].tolist(),
    free=map_scores["r2"][small["free"]].tolist(),
    bound=(map_scores["bound"][small["free"]] - map_scores["bound"][small["frozen"]]).tolist(),
    length=map_scores["length"][small["free"]].tolist(),
    control=dict(
        frozen=map_scores["r2"][small["free"]].tolist(),
        free=map_scores["r2"][small["frozen"]].tolist(),
        bound=(map_scores["bound"][small["frozen"]] - map_scores["bound"][small["free"]]).tolist(),
        length=map_scores["length"][small["frozen"]].tolist(),
    ),
)
others = [family[k_] for k_ in FAMILY if k_ != "hadamard"]
chapter.claim(
    "B5",
    spread=family_spread,
    coherent=family_distance,
    control=dict(spread=max(others) - min(others), coherent=min(others) - family["hadamard"]),
)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 4, figsize=(10.8, 3.7), width_ratios=(1, 1, 1, 1.25))
for axis, key, title in ((axes[0], "r2", "R² of the sources"), (axes[1], "bound", "bound, nats / dim."), (axes[2], "length", "length of A's columns")):  # fmt: skip
    table = map_scores[key].mean(1).view(3, 3, 2).permute(0, 2, 1).reshape(6, 3)
    axis.imshow(table, cmap="viridis", aspect="auto")
    for i in range(6):
        for j in range(3):
            middle_ = float(table.min() + table.max()) / 2
            axis.text(j, i, f"{float(table[i, j]):.2f}", ha="center", va="center", fontsize=9, color="black" if float(table[i, j]) > middle_ else "white")  # fmt: skip
    axis.set(xticks=range(3), xticklabels=["0.03", "0.1", "0.3"], xlabel="noise σ (at the start)", title=title, yticks=range(6))  # fmt: skip
    axis.set_yticklabels([f"A {m}, σ {w}" for m in ("frozen", "unit", "free") for w in ("fixed", "learnt")] if axis is axes[0] else [], fontsize=8)  # fmt: skip
    axis.title.set_fontsize(10)
    axis.grid(False)
for kind, colour in zip(KINDS, ("noise", "regulariser", "theory", "control", "baseline", "highlight")):  # fmt: skip
    axes[3].scatter(world_final(kind, "bound"), world_final(kind, "mcc"), color=COLOURS[colour], s=36, label=kind)  # fmt: skip
axes[3].set(
    xlabel="bound (nats per dimension)", ylabel="MCC", title="kinds of A⁺, one dot per seed"
)
axes[3].title.set_fontsize(10)
axes[3].legend(fontsize=7)
chapter.show(
    fig,
    "bijecta-collapse",
    alt="Three heat maps over noise level and treatment of mixing and noise: R squared of the true sources, the bound, and the length of the columns of A. Right: MCC against the bound for six kinds of unmixing matrix, one dot per seed.",
    caption=f"Means over {s.world_seeds} seeds. Within a noise level bound and R² have a mean rank correlation of {np.mean(ranks):.2f}; the best bound has R² {float(map_scores['r2'][by_bound].mean()):.2f}, the best R² is {float(map_scores['r2'][by_r2].mean()):.2f}. Right: five nearly orthogonal kinds span {family_spread:.2f} nats per dimension, rows of cosine 0.9 are {family_distance:.2f} below the worst of them.",
)

# %% tags=["hide-input"]
chapter.keep(
    sprite_r2_random=pick("sketch start", 1),
    sprite_r2_linear=pick("linear start", 1),
    sprite_mcc_vae=pick("vae", 0),
    sprite_mcc_fast=[v for v, _ in fast_scores],
    sprite_mcc_random=pick("sketch start", 0),
    spectrum_bijecta=cumulative(spectra_of["sketch", 8])[:64].tolist(),
    spectrum_flow=cumulative(spectra_of["plain flow"])[:64].tolist(),
    tc=[list(row) for row in tc_rows.values()],
    image_bits=[list(image_bits.values()), *[list(bits(r).values()) for r in runs[1:]]],
)

# %% [markdown]
# ## Ledger

# %%
chapter.ledger()

# %% [markdown]
# ## At paper scale

# %% tags=["hide-input"]
paper_scale = chapter.paper_scale(
    "sprites at 32 × 32, Fashion-MNIST and CIFAR-10 at 32 × 32, five steps a level with 96 hidden units"
)
if paper_scale:
    kept = paper_scale["series"]
    fig, axis = plt.subplots()
    axis.plot(range(1, 65), kept["spectrum_bijecta"], color=COLOURS["noise"], label="Bijecta")
    axis.plot(range(1, 65), kept["spectrum_flow"], color=COLOURS["regulariser"], label="flow")
    axis.set(xlabel="number of leading directions", ylabel="share of the variance of the codes")
    axis.legend()
    chapter.show(
        fig,
        "bijecta-paper-scale",
        alt="Cumulative share of variance of the codes against the number of leading directions, for Bijecta and for a flow with a Laplace base.",
        caption="Spectra of the codes at the larger sizes, redrawn from the recorded run.",
        answers="the figure of spectra",
    )

# %% [markdown]
# ## Where it breaks
#
# What is said here of a measurement was found in the recorded `cpu` run; the ledger has the numbers of the run on this page.
#
# - **The headline does not reproduce at this budget.** From the paper's start, as far as it was seen, Bijecta's two sources of a sprite carry a part of its position after some hundred steps on a CPU, very different from seed to seed; a small VAE with the same prior and linear ICA carry nearly all of it (C4b, C8). R² was
#   rising along training. This is a statement about *our* flow and budget: a trial before this chapter was written trained a larger flow two to eight times as long on an easier disc and reached an MCC of 0.95, where linear ICA had 0.95 too. C4a, at 32 × 32, waits for a GPU.
# - **Two of the three starts are ours.** "Whitened, random" whitens all dimensions and turns them at random through a dense last matrix that the paper, as far as seen, does not have: {prf:ref}`ica-prop-rotation` applies to it by construction, locality is gone, and its sources stay empty. A first version of this chapter judged the paper by it,
#   wrongly. The linear start hands linear ICA's answer over; training keeps most of it, and loses a little.
# - **The bound has preferences of nats per image** (B4), and T9 says that two sources are worth no more than that. They need not favour what carries information: the sketch start has the highest bound of the three and less of the position than the linear one. More sources cost bits (B2).
# - **A learnt $A$ collapses, a frozen one chooses.** At the smallest noise of {numref}`bijecta-collapse`, a third of the noise in the data, a free $A$ ends with shrunken columns and sources that carry nothing, at a *higher* bound than the frozen one, whose sources carry part of the truth. The lengths and R² missed the margins of B7 narrowly in
#   the recorded run, so its status is what the ledger says. At the true noise neither collapses, and on sprites at this budget a free $A$ did no worse than a frozen one.
# - **Known sources** (C4c). Training from random directions raises R² above its start and stays below linear ICA, on a world chosen so that linear ICA fails; started from linear ICA's directions the flow does not improve on them either. Near-orthogonal rows win in the bound, by far more than Hadamard's gap, and not in the MCC (C7).
# - **VAEs** see more images here (64 a step, more steps), at a fraction of the flow's computing time; neither images nor seconds can be equal at once. On MNIST everything is one seed.
# - **Spectra** (C6) are a property of the base, if the codes follow it. After some hundred steps they do not: from the paper's start there is no elbow yet (C6a), from linear starts trained codes have *more* variance outside the leading directions than the base prescribes (C6b). An untrained, whitened map has the elbow, and empty sources (B6).
# - **Total correlation** (C5) falls when sources carry less. Compare models at equal probes or not at all, and never across estimators: the weighted one follows $b$ and saturates.
# - **MCC for two sources** has a treacherous null of 0.90 (a random rotation), and the paper allows "a rotation". R² stands beside it in the tables and in C4 and C8.
# - **JL-Cayley** (C3) is our reading of a figure label. With two sources and a fixed sketch it cannot work in general; with an SVD in place of the sketch the same bound unmixes as FastICA does.
# - **Well-trained?** No flow here is converged; bits per dimension fall until the last step. Comparisons between arms of one ensemble are at equal steps, batches and flow seeds; the VAEs are fully connected and train for more, cheaper steps.
# - **The text.** Theorem statements, most tables and appendices of the paper were not available. Everything under *Derive* is derived here or standard.

# %% [markdown]
# ## Exercises
#
# ```{exercise} How small must the noise be?
# :label: ica-ex-noise
# Sixty-four sources with unit columns and Laplace priors should hold 95% of the variance of 784 codes. How large may $\sigma$ be?
# ```
#
# ````{solution-start} ica-ex-noise
# :class: dropdown
# ````
# From {prf:ref}`ica-thm-spectrum`: $\sigma^2 \le 64\cdot2\cdot0.05/(0.95\cdot720)$, up to the small $d_s\sigma^2$ in $S$.

# %%
noise = (64 * gg_variance(1) * 0.05 / (0.95 * 720)) ** 0.5
columns = torch.linalg.qr(torch.randn(784, 64, generator=generator(seed, "exercise")))[0]
eigen = model_spectrum(columns, noise, 1)
print(f"sigma <= {noise:.4f}: share {float(eigen[:64].sum() / eigen.sum()):.3f}")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} Which sketch for how many sources?
# :label: ica-ex-sketch
# At $d_x = 3072$, up to how many sources is a sketch of random signs within distance 0.3 of the Stiefel manifold? And of Gaussian entries?
# ```
#
# ````{solution-start} ica-ex-sketch
# :class: dropdown
# ````
# The distance is about half the defect, so {prf:ref}`ica-thm-sketch` asks for $d_s(d_s - 1 + \kappa - 1) \le 0.36\,d_x$. For so few rows the two kinds differ by one source.

# %%
for kurtosis, kind in ((1, "rademacher"), (3, "gaussian")):
    most = max(
        k for k in range(1, 200) if stiefel.expected_square_defect(k, 3072, kurtosis) <= 0.36
    )
    found = stiefel.distance(sketch(kind, most, 3072, generator=generator(seed, "exercise", kind)))
    print(f"{kind}: {most} sources, measured distance {float(found):.2f}")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} A rotation that costs nothing
# :label: ica-ex-rotation
# Rotate the two sources of the linear start of {numref}`bijecta-hero` by 45 degrees, which the paper would still call "position or a rotation thereof". What happens to R², to the MCC, and to the bound?
# ```
#
# ````{solution-start} ica-ex-rotation
# :class: dropdown
# ````
# R² cannot change. The MCC falls to about that of two equal mixtures. The KL changes by the loss of {numref}`bijecta-gaps` (left) at most, tenths of a nat per image: next to nothing per dimension.

# %%
with torch.no_grad():
    straight = sprite_models["linear start", 0].sources(test_sprites_d).cpu()
half_turn = math.cos(math.pi / 4) * torch.tensor([[1.0, -1.0], [1.0, 1.0]])
for label, sources in (("straight", straight), ("turned", straight @ half_turn.T)):
    value, share = scores(sources)
    cost = float((sources.abs() ** 10).clamp(max=1e3).sum(1).mean())
    print(f"{label}: MCC {value:.2f}, R² {share:.2f}, mean of sum |s|^10 (clipped) {cost:.2f} nats")

# %% [markdown]
# ````{solution-end}
# ````

# %%
chapter.finish()
