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
# (ch-mfcvae)=
# # Multi-facet clustering variational autoencoders
#
# *Falck, Zhang, Willetts, Nicholson, Yau and Holmes, NeurIPS 2021* {cite}`falck2021multifacet`
#
# <!-- chips -->
#
# Data have several legitimate partitions: a coloured digit belongs with its digit and with its colour. The paper gives a VAE several latent *facets*, each with a
# mixture prior of its own, so that one model trained without labels clusters the data several times at once. It derives the optimal categorical
# factor of the variational posterior, where earlier work used another one, and orders the facets by a ladder network trained from its deepest rung up.

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
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import torch
from companion.analysis import facets
from companion.analysis import opinion_pools as pools
from companion.analysis.clustering import ari, hungarian_accuracy, nmi, nmi_interval, purity
from companion.chapters import Chapter
from companion.chapters.figures import COLOURS
from companion.data import Batches
from companion.data.coloured import PALETTE, paint
from companion.models.mfcvae import (
    BOUNDS,
    MFCVAE,
    ConvLadder,
    DenseLadder,
    DenseShared,
    FadeIn,
    negative_bound,
    start_means,
)
from companion.nn.mixture_prior import MixturePrior
from companion.seeds import generator, member_seeds, numpy_generator
from companion.train import Ensemble, fit
from IPython.display import Code, Markdown, display
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture

chapter = Chapter("05_mfcvae", profile=profile, seed=seed)

# %% [markdown]
# The settings of the three profiles differ in sizes, steps, seeds and data, never in method. Coloured digits are small enough for many seeds and variants in every
# profile; the coloured MNIST of the picture below is averaged down to 14 × 14 pixels.

# %% tags=["hide-input"]
s = chapter.settings(
    smoke=dict(
        width=48, steps=50, batch=64, lr=2e-3, seeds=2, pairs=2, phase=40, images="digits", n=1_000, image_width=32, image_steps=12, image_seeds=2, image_batch=64,
        rooms_width=4, rooms_steps=3, rooms_batch=16, rooms_seeds=2, rooms_phase=0.25, draws=20_000, curve=4_000, iwae=4, room_lr=3e-4,
    ),
    cpu=dict(
        width=128, steps=1_300, batch=64, lr=2e-3, seeds=5, pairs=3, phase=400, images="mnist", n=8_000, image_width=192, image_steps=900, image_seeds=2, image_batch=128,
        rooms_width=8, rooms_steps=150, rooms_batch=100, rooms_seeds=2, rooms_phase=0.25, draws=200_000, curve=20_000, iwae=32, room_lr=2e-3,
    ),
    gpu=dict(
        width=128, steps=2_800, batch=128, lr=1e-3, seeds=20, pairs=10, phase=800, images="mnist", n=60_000, image_width=500, image_steps=47_436, image_seeds=10, image_batch=512,
        rooms_width=64, rooms_steps=10_452, rooms_batch=150, rooms_seeds=3, rooms_phase=0.25, draws=2_000_000, curve=200_000, iwae=512, room_lr=3e-4,
    ),
)  # fmt: skip
device = chapter.device

# %% [markdown]
# ## The effect in one picture

# %% tags=["hide-input"]
DIGITS = dict(latents=(4, 2), clusters=(20, 8), sigma=0.2)  # facet 0 shallow, facet 1 deep


def one_hot(bound):
    return [float(name == bound) for name in BOUNDS]


def trained(build, x, members, *, steps, lr, batch, latents, samples=1, starts=0.3, init=2_000):
    """Train `members` (seed, bound, progressive, data index) of one architecture as one ensemble, and the untrained twins.

    `x` is a list of data sets; phases as released: facets fade in one after the other, deepest first.
    """
    seeds = [member[0] for member in members]
    untrained = []
    for member_seed, _, _, which in members:
        model = build(generator(member_seed, "weights")).to(device)
        start_means(model, x[which][:init], np.random.RandomState(member_seed % 2**31))
        untrained.append(model)
    ensemble = Ensemble(untrained).to(device)
    facet_count = len(latents)
    begin = [steps * starts * (facet_count - 1 - j) for j in range(facet_count)]
    sources = [
        FadeIn(Batches(x[which], batch_size=batch, seed=member_seed), begin, max(1, int(steps * starts / 2)))
        for member_seed, _, _, which in members
    ]  # fmt: skip
    fit(
        ensemble, negative_bound, sources, steps=steps, lr=lr, seed=seeds, record_every=steps,
        noise=lambda g, given: [torch.randn(samples, batch, k, generator=g, device=device) for k in latents],
        hyper={"bound": torch.tensor([one_hot(member[1]) for member in members]), "progressive": torch.tensor([float(member[2]) for member in members])},
    )  # fmt: skip
    return [ensemble.member(k).requires_grad_(False) for k in range(len(members))], untrained


def pooled(images):
    """14 × 14 averages of 28 × 28 images; smaller ones stay."""
    return torch.nn.functional.avg_pool2d(images, 2) if images.shape[-1] == 28 else images


grey = {split: chapter.load(s.images, split, fallback="digits" if s.images != "digits" else None) for split in ("train", "test")}  # fmt: skip
if len(grey["train"]) > s.n:
    grey["train"] = grey["train"].subset(s.n, generator(seed, "subset"))
small = {split: paint(type(data)(pooled(data.x), data.y, data.card), seed=seed) for split, data in grey.items()}  # fmt: skip
painted = {split: data.x.flatten(1) for split, data in small.items()}
factors = {split: data.y.cpu() for split, data in small.items()}

seeds = member_seeds(seed, max(s.seeds, s.image_seeds))
image_seeds = seeds[: s.image_seeds]
coloured_models, coloured_untrained = trained(
    lambda g: MFCVAE(
        DenseLadder(painted["train"].shape[1], (s.image_width,) * 2, DIGITS["latents"], gate=1.0),
        DIGITS["latents"], DIGITS["clusters"], sigma=DIGITS["sigma"], generator=g,
    ),
    [painted["train"]], [(k, "marginal", True, 0) for k in image_seeds],
    steps=s.image_steps, lr=1e-3, batch=s.image_batch, latents=DIGITS["latents"],
)  # fmt: skip


# %% tags=["hide-input"]
def scores(models, x, y):
    """Assignments, NMI matrices [seeds, J, F], and best purity per factor [seeds, F] of several models."""
    found = [facets.assignments(model, x) for model in models]
    matrices = torch.stack([facets.information(clusters, y) for clusters in found])
    best = torch.tensor([[max(purity(c, factor) for c in clusters) for factor in y.unbind(1)] for clusters in found])  # fmt: skip
    return {"clusters": found, "nmi": matrices, "purity": best}


coloured = scores(coloured_models, painted["test"], factors["test"])
coloured_start = scores(coloured_untrained, painted["test"], factors["test"])


def most_confident(model, x, facet, top=10):
    """Rows of the most confident images per cluster, clusters sorted by mean confidence; indices [clusters, top]."""
    mean, _ = model.encode(x)[facet]
    confidence, cluster = model.priors[facet].responsibilities(mean).max(-1)
    rows = []
    for k in cluster.unique():
        members = (cluster == k).nonzero()[:, 0]
        if len(members) >= top:
            rows.append((float(confidence[members].mean()), members[confidence[members].topk(top).indices]))  # fmt: skip
    return [row for _, row in sorted(rows, key=lambda row: -row[0])]


def grid(axis, x, rows, shape):
    """Show images, one row per cluster."""
    channels, height, width = shape
    images = (
        torch.stack([x[row] for row in rows])
        .clamp(0, 1)
        .cpu()
        .view(len(rows), -1, channels, height, width)
    )
    canvas = torch.ones(len(rows), images.shape[1], channels, height + 1, width + 1)
    canvas[..., :height, :width] = images
    canvas = canvas.permute(0, 3, 1, 4, 2).reshape(len(rows) * (height + 1), -1, channels)
    axis.imshow(canvas.squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])


def matrix(axis, values, rows, columns, title):
    axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for (i, j), value in np.ndenumerate(np.asarray(values)):
        axis.text(
            j,
            i,
            f"{value:.2f}",
            ha="center",
            va="center",
            color="white" if value < 0.6 else "black",
        )
    axis.set(xticks=range(len(columns)), yticks=range(len(rows)), title=title)
    axis.set_xticklabels(columns)
    axis.set_yticklabels(rows)
    axis.grid(False)


with torch.no_grad():
    hero_rows = [most_confident(coloured_models[0], painted["test"], j) for j in (0, 1)]
image_shape = tuple(small["test"].x.shape[1:])
fig, axes = plt.subplots(1, 3, figsize=(11, 5), width_ratios=(1, 1, 0.75))
for axis, rows, name in zip(axes, hero_rows, ("shallow facet", "deep facet")):
    if rows:
        grid(axis, painted["test"], rows[:10], image_shape)
    axis.set(title=f"{name}: one row per cluster")
matrix(
    axes[2],
    coloured["nmi"].mean(0),
    ["shallow", "deep"],
    ["digit", "colour"],
    "NMI, mean over seeds",
)
chapter.show(
    fig,
    "mfcvae-hero",
    alt="Left: rows of small coloured digit images, each row a cluster of the shallow facet. Middle: rows of images, each row a cluster of the deep facet. Right: a "
    "two by two table of mutual information between facets and the factors digit and colour.",
    caption=f"One model, two partitions, no labels: the ten most confident test images of the clusters of each facet, {grey['train'].card.title} on five backgrounds. "
    f"NMI of the shallow facet with digit {float(coloured['nmi'][:, 0, 0].mean()):.2f} and colour {float(coloured['nmi'][:, 0, 1].mean()):.2f}; "
    f"of the deep one {float(coloured['nmi'][:, 1, 0].mean()):.2f} and {float(coloured['nmi'][:, 1, 1].mean()):.2f} ({len(coloured_models)} seeds).",
    answers="the figure of input examples per cluster",
)

# %% [markdown]
# ## Derive
#
# ### Setting
#
# $J$ facets, $K_j$ clusters each: $c_j\sim\mathrm{Cat}(\pi_j)$, $z_j\mid c_j{=}k\sim\mathcal N(\mu_{jk},\Sigma_{jk})$, $x\mid z\sim p_\theta(x\mid z)$. Facets are independent
# a priori, so $p(c\mid z)=\prod_j p(c_j\mid z_j)$. Facet 0 is the shallowest, nearest to $x$, as in the authors' code. The variational family is
# $q(z,c\mid x)=q_\phi(z\mid x)\,q(c\mid x)$: *mean field* between $z$ and $c$. This is what makes the question non-trivial; if $q(c\mid x)$ could depend on $z$, it would be
# $p(c\mid z)$. Summing out $c$,
#
# $$L = \underbrace{\mathbb{E}_{q(z|x)}[\log p(x\mid z)+\log p(z)-\log q(z\mid x)]}_{L_{\mathrm{marg}}} - G(q(c\mid x)),\qquad
# G(r) = \mathbb{E}_{q(z|x)}\mathrm{KL}(r\,\|\,p(c\mid z)) \ge 0 .$$
#
# The body of the paper was not available: statements are derived here, and said to be the paper's only where its abstract or its code shows them.
#
# :::{prf:theorem} Optimal categorical posterior
# :label: thm-mfcvae-optimum
# Let $e_k=\mathbb{E}_{q(z|x)}\log p(c{=}k\mid z)$ be finite. The unique minimiser of $G$ is $q^*_k=e^{e_k}/Z$ with $Z=\sum_k e^{e_k}$, and $G(q^*)=-\log Z\ge0$, with
# equality only where $p(c\mid z)$ is $q$-almost surely constant.
# :::
#
# :::{prf:proof}
# $G(r)=\sum_k r_k\log r_k-\sum_k r_k e_k=\mathrm{KL}(r\,\|\,q^*)-\log Z$. The first term is zero only at $r=q^*$. By Jensen $e^{e_k}\le\mathbb{E}\,p(c{=}k\mid z)$, with equality only where
# $p(c{=}k\mid z)$ is constant; summing over $k$, $Z\le1$.
# :::
#
# It is the *logarithmic opinion pool* of the posteriors $p(c\mid z)$. Check: random mixtures with six clusters, expectations by Gauss–Hermite quadrature, and a solver that walks on the simplex without
# knowing the formula.

# %% tags=["hide-input"]
torch.set_default_dtype(torch.float64)  # theorems are checked in double precision


def random_prior(clusters, dim, *purpose, spread=1.5):
    """A mixture with unequal weights and variances, float64."""
    stream = generator(seed, "prior", *purpose)
    prior = MixturePrior(clusters, dim, spread=spread, generator=stream)
    with torch.no_grad():
        prior.logits.copy_(torch.randn(clusters, generator=stream) / 2)
        prior.raw.copy_(0.2 + torch.rand(clusters, dim, generator=stream))
    return prior.requires_grad_(False)


def posterior_of(points, dim, *purpose):
    """Means and standard deviations of `points` Gaussian posteriors."""
    stream = generator(seed, "posterior", *purpose)
    return torch.randn(points, dim, generator=stream), 0.3 + torch.rand(
        points, dim, generator=stream
    )


def integrals(prior, mean, std, nodes=60):
    """Posteriors p(c|z) at the nodes, their weights, and e = E log p(c|z), exactly."""
    z, weights = pools.gauss_hermite(mean, std, nodes)
    log_posteriors = prior.log_components(z).log_softmax(-1)  # [nodes, points, K]
    return log_posteriors.exp(), weights, torch.tensordot(weights, log_posteriors, dims=1)


# %%
errors, values, least, wrong_place, wrong_value = [], [], [], [], []
for case in range(6):
    prior = random_prior(6, 2, "C1", case)
    posteriors, weights, expected = integrals(prior, *posterior_of(1, 2, "C1", case))
    expected = expected[0]
    best, minimum = pools.log_pool(expected)
    solved = pools.minimise_on_simplex(lambda r: pools.cost(r, expected), torch.full((6,), 1 / 6))
    mean_rule = pools.linear_pool(posteriors, weights)[0]
    errors.append((best - solved).abs().max())
    values.append((pools.cost(solved, expected) - minimum).abs())
    least.append(minimum)
    wrong_place.append((mean_rule - solved).abs().max())
    wrong_value.append((pools.cost(mean_rule, expected) - minimum).abs())

# %% tags=["nbval-check-output"]
chapter.claim(
    "C1",
    minimiser=float(max(errors)), value=float(max(values)), least=float(min(least)),
    control=dict(minimiser=float(max(wrong_place)), value=float(max(wrong_value)), least=float(min(least))),
)  # fmt: skip

# %% [markdown]
# With three clusters the simplex can be drawn. The expected KL is a convex bowl; the three rules found in the literature lie at different places on its floor.

# %% tags=["hide-input"]
prior = random_prior(3, 2, "simplex", spread=1.2)
mean, std = torch.tensor([[0.2, 0.1]]), torch.tensor([[1.0, 0.9]])
posteriors, weights, expected = integrals(prior, mean, std)
best, minimum = pools.log_pool(expected[0])
linear = pools.linear_pool(posteriors, weights)[0]
point = prior.responsibilities(mean)[0]
corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]])
steps = torch.linspace(0.002, 0.996, 160)
a, b = torch.meshgrid(steps, steps, indexing="ij")
inside = a + b < 0.998
r = torch.stack([a, b, 1 - a - b], -1)[inside]
xy = r @ corners
fig, axis = plt.subplots(figsize=(7.2, 5.4))
filled = axis.tricontourf(*xy.T, pools.cost(r, expected[0]) - minimum, levels=np.linspace(0, 3, 25), cmap="viridis_r", extend="max")  # fmt: skip
fig.colorbar(filled, label="expected KL above its minimum (nats)")
for place, name, colour, marker in (
    (best, "optimum q* (log pool)", "white", "*"),
    (point, "p(c | m)", COLOURS["regulariser"], "s"),
    (linear, "mean of p(c | z) (VaDE)", COLOURS["highlight"], "o"),
):
    axis.scatter(*(place @ corners), color=colour, edgecolor="black", s=170 if marker == "*" else 80, marker=marker, label=name, zorder=3)  # fmt: skip
for corner, name, shift in zip(corners, ("c = 1", "c = 2", "c = 3"), ((-0.08, -0.05), (0.02, -0.05), (-0.02, 0.03))):  # fmt: skip
    axis.text(*(corner + torch.tensor(shift)), name)
axis.set(xticks=[], yticks=[], aspect="equal", ylim=(-0.1, 1.0))
axis.grid(False)
for spine in axis.spines.values():
    spine.set_visible(False)
axis.legend(loc="upper right", bbox_to_anchor=(1.02, 1.05), labelcolor="black")
chapter.show(
    fig,
    "mfcvae-simplex",
    alt="Triangle of all distributions over three clusters, shaded by the expected KL divergence above its minimum, with a star for the optimum, a square for the posterior at the mean and a circle for "
    "the mean of the posteriors.",
    caption=f"What q(c|x) costs the bound, over all distributions of three clusters: {float(minimum):.2f} nats at the optimum, "
    f"{float(pools.cost(point, expected[0]) - minimum):.3f} more for p(c|m), {float(pools.cost(linear, expected[0]) - minimum):.3f} more for the mean of p(c|z).",
)

# %% [markdown]
# ### Several facets
#
# :::{prf:theorem} Optimal categorical posterior, several facets
# :label: thm-mfcvae-facets
# Over **all** joint tables $q(c_1,\dots,c_J\mid x)$ and for **any** $q(z_1,\dots,z_J\mid x)$, correlated or not, the minimiser of $G$ is $\prod_j q^*_j(c_j\mid x)$ with $q^*_j$ from {prf:ref}`thm-mfcvae-optimum`, and the
# minimum is $-\sum_j\log Z_j$.
# :::
#
# :::{prf:proof}
# By {prf:ref}`thm-mfcvae-optimum` for the joint variable, the minimiser is the normalised $\exp\mathbb{E}\log p(c_1,\dots,c_J\mid z)=\exp\sum_j\mathbb{E}\log p(c_j\mid z_j)$, and each expectation reads only the marginal
# $q(z_j\mid x)$. It is a product, and so is its normaliser.
# :::
#
# Not so the mean of $p(c\mid z)$: a correlated $q(z_1,z_2\mid x)$ gives it a table that is no product.


# %%
def joint_case(correlation, *purpose):
    """e of the joint table [3, 4], the mean of p(c1, c2 | z), and e of each facet, under a correlated q(z1, z2 | x)."""
    first, second = random_prior(3, 1, *purpose, "one"), random_prior(4, 1, *purpose, "two")
    noise, weights = pools.gauss_hermite(torch.zeros(1, 2), torch.ones(1, 2), 80)
    z1 = 0.3 + 0.9 * noise[..., :1]
    z2 = -0.2 + 0.8 * (
        correlation * noise[..., :1] + math.sqrt(1 - correlation**2) * noise[..., 1:]
    )
    log_1 = first.log_components(z1).log_softmax(-1)[:, 0]  # [nodes, 3]
    log_2 = second.log_components(z2).log_softmax(-1)[:, 0]
    joint = log_1[:, :, None] + log_2[:, None, :]  # [nodes, 3, 4]
    table = torch.tensordot(weights, joint, dims=1)
    return table, torch.tensordot(weights, joint.exp(), dims=1), (weights @ log_1, weights @ log_2)


def mutual_information(table):
    independent = table.sum(1, keepdim=True) * table.sum(0, keepdim=True)
    return float((torch.xlogy(table, table) - torch.xlogy(table, independent)).sum())


cells, shared, gaps, wrong_cells, wrong_shared, wrong_gaps = [], [], [], [], [], []
for case in range(4):
    table, mean_table, parts = joint_case(0.9 * (case % 2), "C2", case)
    solved = pools.minimise_on_simplex(lambda r: pools.cost(r, table.flatten()), torch.full((12,), 1 / 12)).view(3, 4)  # fmt: skip
    (best_1, cost_1), (best_2, cost_2) = map(pools.log_pool, parts)
    product = best_1[:, None] * best_2[None, :]
    cells.append(float((solved - product).abs().max()))
    shared.append(mutual_information(solved))
    gaps.append(float((pools.cost(solved.flatten(), table.flatten()) - cost_1 - cost_2).abs()))
    wrong_cells.append(float((mean_table - product).abs().max()))
    wrong_shared.append(mutual_information(mean_table))
    wrong_gaps.append(float((pools.cost(mean_table.flatten(), table.flatten()) - cost_1 - cost_2).abs()))  # fmt: skip

# %% tags=["nbval-check-output"]
chapter.claim(
    "C2",
    cells=max(cells), information=max(shared), value=max(gaps),
    control=dict(cells=max(wrong_cells), information=max(wrong_shared), value=max(wrong_gaps)),
)  # fmt: skip

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.1))
for axis, shown, title in zip(
    axes,
    (solved, product, mean_table),
    ("solver, joint table", "product of the facets' optima", "mean of p(c₁, c₂ | z)"),
):
    matrix(axis, shown, ["1", "2", "3"], ["1", "2", "3", "4"], title)
    axis.set(xlabel="c₂", ylabel="c₁")
chapter.show(
    fig,
    "mfcvae-tables",
    alt="Three tables with three rows and four columns of probabilities: the solver's joint optimum, the product of the two facets' optima, and the mean of the joint posteriors.",
    caption=f"With z₁ and z₂ correlated at 0.9 the optimum still is a product: largest cell difference {float((solved - product).abs().max()):.1e}. The mean of p(c₁, c₂|z) is not: mutual information "
    f"{mutual_information(mean_table):.3f} nats.",
)

# %% [markdown]
# ### A closed form for Gaussian posteriors, and an order of bounds
#
# :::{prf:proposition} No sample is needed for c
# :label: prop-mfcvae-closed
# For $q(z_j\mid x)=\mathcal N(m_j,\mathrm{diag}\,s_j^2)$, $q^*(c_j{=}k\mid x)=\mathrm{softmax}_k\big(\log\pi_{jk}-\mathrm{KL}(q(z_j\mid x)\|\mathcal N(\mu_{jk},\Sigma_{jk}))\big)$, and
# $L^*=\mathbb{E}\log p(x\mid z)+\sum_j\mathrm{logsumexp}_k(\log\pi_{jk}-\mathrm{KL}_{jk})$.
# :::
#
# :::{prf:proof}
# $\mathbb{E}\log p(c{=}k\mid z)=\log\pi_k+\mathbb{E}\log\mathcal N(z;\mu_k,\Sigma_k)-\mathbb{E}\log p(z)$; the last term is the same for all $k$ and so is the entropy of $q$, which turns the second into $-\mathrm{KL}_k$. Put
# $q^*$ into the five-term bound.
# :::
#
# The expectation differs from the value at the mean by the trace term $-\tfrac12\sum_i s_i^2/\sigma_{ki}^2$, one matrix product in code:

# %% tags=["hide-input"]
display(Code(inspect.getsource(MixturePrior.log_components), language="python"))

# %%
prior = random_prior(6, 2, "C3")
mean, std = posterior_of(40, 2, "C3")
posteriors, weights, expected = integrals(prior, mean, std, nodes=90)
z_nodes, _ = pools.gauss_hermite(mean, std, 90)
closed, by_point = prior.responsibilities(mean, std), prior.responsibilities(mean)

noise = torch.randn(s.draws, 1, 2, generator=generator(seed, "C3", "noise"))
at = prior.log_components(mean[:1] + std[:1] * noise).log_softmax(-1)[:, 0]  # [draws, K]
sampled_optimum = at.mean(0).softmax(-1)
# Delta method: d q*_k = q*_k (d e_k - Σ q* d e), with the sampling errors of e
spread = (sampled_optimum * (at - (at * sampled_optimum).sum(-1, keepdim=True))).std(
    0
) / s.draws**0.5
entropy_q = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
marginal_rest = (
    torch.tensordot(weights, prior.log_prob(z_nodes), dims=1) + entropy_q
)  # E log p(z) - log q(z|x)
closed_rest = prior.log_components(mean, std).logsumexp(-1) + entropy_q
traceless = prior.log_components(mean).logsumexp(-1) + entropy_q
minus_log_z = pools.log_pool(expected)[1]

# %% tags=["nbval-check-output"]
chapter.claim(
    "C3a",
    posterior=float(((closed[0] - sampled_optimum) / spread).abs().max()), gap=float((marginal_rest - closed_rest - minus_log_z).abs().max()),
    control=dict(posterior=float(((by_point[0] - sampled_optimum) / spread).abs().max()), gap=float((marginal_rest - traceless - minus_log_z).abs().max())),
)  # fmt: skip

# %% [markdown]
# VaDE {cite}`jiang2017vade` draws one $\tilde z$, sets $q(c\mid x):=p(c\mid\tilde z)$, and evaluates the Gaussian cross terms analytically under $q(z\mid x)$: some $q(c\mid x)$ at an independent
# evaluation of $z$, hence $L_{\mathrm{VaDE}}\le L^*\le L_{\mathrm{marg}}\le\log p(x)$ for every data point.

# %%
cost_vade = pools.single_sample_cost(posteriors, weights, expected)
cost_linear = pools.cost(pools.linear_pool(posteriors, weights), expected)
cost_point = pools.cost(by_point, expected)
rivals = torch.stack([cost_vade, cost_linear, cost_point])

# %% tags=["nbval-check-output"]
chapter.claim(
    "C3b",
    below_optimum=float((rivals.min(0).values - minus_log_z).min()), above_optimum=float((marginal_rest - closed_rest).min()),
    control=dict(below_optimum=float((rivals.min(0).values - minus_log_z).min()), above_optimum=float((marginal_rest - traceless).min())),
)  # fmt: skip

# %% [markdown]
# ### The cancellation
#
# :::{prf:proposition} One sample everywhere
# :label: prop-mfcvae-cancel
# If $\gamma_k=p(c{=}k\mid z)$ at the sample $z$ that enters the other terms, then $\sum_k\gamma_k[\log p(z\mid k)+\log\pi_k-\log\gamma_k]=\log p(z)$.
# :::
#
# :::{prf:proof}
# Bayes: $\log p(z\mid k)+\log\pi_k-\log\gamma_k=\log p(z)$ for every $k$.
# :::
#
# The released code uses exactly this $q(c\mid x)$ with one sample. Its five-term loss is therefore, sample by sample, the loss of a VAE with the marginal mixture as its prior: the categorical terms cancel, and what is
# trained is $L_{\mathrm{marg}}$, as chapter 6's paper writes it openly. A reported "ELBO with $q(c\mid x)$" from this loss overstates $L^*$ by $-\sum_j\log Z_j$.

# %%
z = mean + std * torch.randn(mean.shape, generator=generator(seed, "cancel"))
other = mean + std * torch.randn(mean.shape, generator=generator(seed, "cancel", "again"))


def five_terms(sample, for_clusters):
    """Σ_k γ_k [log p(z|k) + log π_k − log γ_k] − log q(z|x) with γ = p(c | `for_clusters`)."""
    log_gamma = prior.log_components(for_clusters).log_softmax(-1)
    joint = prior.log_components(sample)  # log π_k + log p(z|k)
    log_q = -(0.5 * ((sample - mean) / std).square() + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)  # fmt: skip
    return (log_gamma.exp() * (joint - log_gamma)).sum(-1) - log_q


log_q = -(0.5 * ((z - mean) / std).square() + std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
marginal = prior.log_prob(z) - log_q

# %% tags=["nbval-check-output"]
chapter.claim(
    "C3c",
    difference=float((five_terms(z, z) - marginal).abs().max()),
    control=dict(difference=float((five_terms(z, other) - marginal).abs().max())),
)

# %% [markdown]
# ### L samples
#
# With $z^1,\dots,z^L$ in all terms and the geometric mean of the $p(c\mid z^l)$ as $q(c\mid x)$, the estimate is
# $e_L=\tfrac1L\sum_l[\log p(x\mid z^l)+\log p(z^l)-\log q(z^l\mid x)]+\sum_j\mathrm{logsumexp}_k\big(\tfrac1L\sum_l\log p(c_j{=}k\mid z_j^l)\big)$. Its expectation falls from $L_{\mathrm{marg}}$ to $L^*$: logsumexp is convex, and the mean over $L+1$
# samples is a mean of means over $L$ of them. Used at *independent* samples the geometric mean reaches $-\log Z$; the arithmetic mean goes to a larger cost.

# %%
LENGTHS = (1, 2, 4, 8, 16, 64, 256)
curve_prior = random_prior(6, 3, "curve")
c_mean, c_std = posterior_of(1, 3, "curve")
stream = generator(seed, "curve", "noise")
pooled_gap, geometric, arithmetic = {}, {}, {}
exact_at = curve_prior.log_components(c_mean + c_std * torch.randn(20 * s.draws, 3, generator=stream)).log_softmax(-1)  # fmt: skip
exact_e = exact_at.mean(0)
target = float(pools.log_pool(exact_e)[1])
arithmetic_limit = float(pools.cost(exact_at.exp().mean(0), exact_e))
log_p = curve_prior.log_components(c_mean + c_std * torch.randn(max(s.curve // 16, 256), 256, 3, generator=stream)).log_softmax(-1)  # fmt: skip
for length in LENGTHS:
    groups = log_p.unflatten(1, (256 // length, length))  # [repeats, groups, L, K]
    mean_log = groups.mean(2)
    pooled_gap[length] = (
        mean_log.logsumexp(-1).mean(1) + target
    )  # e_L - L*, up to noise shared by all L
    geometric[length] = pools.cost(mean_log.softmax(-1), exact_e).mean()
    arithmetic[length] = pools.cost(groups.exp().mean(2), exact_e).mean()
falls = {b: pooled_gap[a] - pooled_gap[b] for a, b in pairwise(LENGTHS)}
slopes = [float(f.mean() / (f.std() / len(f) ** 0.5)) for f in falls.values()]


def curve_measures(final):
    return dict(
        slope=min(slopes), start=float(pooled_gap[1].mean()) / target, end=float(pooled_gap[256].mean()) / target,
        geometric=float(final[256]) / target, arithmetic=float(arithmetic[256]) / target,
    )  # fmt: skip


# %% tags=["nbval-check-output"]
chapter.claim("C3d", **curve_measures(geometric), control=curve_measures(arithmetic))

# %% tags=["hide-input"]
separations = torch.linspace(0.2, 6, 40)
line = MixturePrior(2, 1, generator=generator(seed, "separation"))
gap_by_separation, cost_by_separation = [], []
for separation in separations:
    with torch.no_grad():
        line.means.copy_(torch.tensor([[-0.5], [0.5]]) * separation)
        line.raw.fill_(1.0)
        posteriors_1, weights_1, expected_1 = integrals(line, torch.tensor([[0.3]]), torch.tensor([[0.8]]), 200)  # fmt: skip
    gap_by_separation.append(float(pools.log_pool(expected_1)[1]))
    cost_by_separation.append(float(pools.cost(pools.linear_pool(posteriors_1, weights_1), expected_1)))  # fmt: skip
fig, (left, right) = plt.subplots(1, 2, figsize=(10.2, 3.9))
left.plot(LENGTHS, [float(geometric[k]) for k in LENGTHS], marker="o", color=COLOURS["theory"], label="geometric mean")  # fmt: skip
left.plot(LENGTHS, [float(arithmetic[k]) for k in LENGTHS], marker="s", color=COLOURS["highlight"], label="arithmetic mean")  # fmt: skip
left.plot(LENGTHS, [target + float(pooled_gap[k].mean()) * -1 for k in LENGTHS], marker="^", color=COLOURS["noise"], label="same samples in all terms")  # fmt: skip
left.axhline(target, color="black", ls="--", lw=1.2, label="−log Z")
left.axhline(arithmetic_limit, color=COLOURS["highlight"], ls=":", lw=1.2)
left.set(xscale="log", xticks=LENGTHS, xlabel="samples L", ylabel="cost below the marginal bound (nats)", ylim=(0, None))  # fmt: skip
left.set_xticklabels(LENGTHS)
left.minorticks_off()
left.legend(fontsize=9, loc="upper right")
right.plot(separations, gap_by_separation, color="black", ls="--", label="optimum, −log Z")
right.plot(separations, cost_by_separation, color=COLOURS["highlight"], label="mean of p(c | z)")
right.set(xlabel="distance of two unit clusters (standard deviations)", ylabel="cost (nats)", title="posterior with s = 0.8, m = 0.3")  # fmt: skip
right.legend(fontsize=9)
chapter.show(
    fig,
    "mfcvae-samples",
    alt="Left: cost in nats against the number of samples on a log axis: three curves, for geometric means, arithmetic means and the same-sample estimate, with a dashed line. Right: cost against the distance of two clusters, "
    "a dashed curve for the optimum and a solid one for the arithmetic mean.",
    caption=f"Left: geometric means of posteriors reach −log Z = {target:.2f} nats, arithmetic means stop at {arithmetic_limit:.2f}; with the same samples in all terms one sample costs nothing (it is the marginal bound) and the cost rises to −log Z. "
    "Right: both costs grow with the distance between clusters as long as the posterior straddles them.",
)

# %% [markdown]
# ### What VaDE's argument gets wrong
#
# VaDE notes that $q(c\mid x)$ enters the bound only through $G$, and concludes that it should be $p(c\mid z)$, "so that the KL is zero". But $q(c\mid x)$ may not depend on $z$; by {prf:ref}`thm-mfcvae-optimum` the minimum is $-\log Z>0$.
# Its substitute, $\mathbb{E}_{q(z|x)}p(c\mid z)$, solves another problem.
#
# :::{prf:proposition} The other projection
# :label: prop-mfcvae-other
# $\arg\min_r\mathbb{E}_{q(z|x)}\mathrm{KL}(p(c\mid z)\,\|\,r)=\mathbb{E}_{q(z|x)}\,p(c\mid z)$.
# :::
#
# :::{prf:proof}
# Up to a constant the objective is $-\sum_k\mathbb{E}\,p(c{=}k\mid z)\log r_k$, a cross entropy, smallest where $r$ is its first argument.
# :::
#
# :::{admonition} The mean is still the right answer to another question
# :class: note
# $p(c\mid x)=\mathbb{E}_{p(z|x)}p(c\mid z)$: for *predicting* the class with a good posterior, the arithmetic mean is right. It does not maximise the ELBO.
# :::

# %%
line = MixturePrior(2, 1, generator=generator(seed, "line")).requires_grad_(False)
line.means.copy_(torch.tensor([[-1.5], [1.5]]))
line.raw.fill_(math.log(math.expm1(10.0)) / 10)  # unit variances
m_grid, s_grid = torch.linspace(-4, 4, 80), torch.linspace(0.01, 3, 60)  # no m = 0 among them
mm, ss = torch.meshgrid(m_grid, s_grid, indexing="ij")
posteriors, weights, expected = integrals(line, mm.reshape(-1, 1), ss.reshape(-1, 1), 200)
best, minimum = pools.log_pool(expected)
linear = pools.linear_pool(posteriors, weights)
deficit = (pools.cost(linear, expected) - minimum).view(80, 60)
reverse_errors, reverse_wrong = [], []
for index in range(5, 80 * 60, 977):
    column = posteriors[:, index]
    solved = pools.minimise_on_simplex(lambda r: -(weights @ (column * r.log())).sum(), torch.tensor([0.5, 0.5]))  # fmt: skip
    reverse_errors.append(float((solved - linear[index]).abs().max()))
    reverse_wrong.append(float((solved - best[index]).abs().max()))

# %% tags=["nbval-check-output"]
chapter.claim(
    "C4a",
    deficit=float(deficit.min() / deficit.max()), unattained=float(minimum.min()), vanishing=float(deficit[:, 0].max()),
    control=dict(deficit=float((-deficit).min() / deficit.max()), unattained=float(minimum.min()), vanishing=float(deficit[:, 0].max())),
)  # fmt: skip
chapter.claim("C4b", minimiser=max(reverse_errors), control=dict(minimiser=max(reverse_wrong)))

# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(10.2, 4), width_ratios=(1.1, 1))
at_s = int((s_grid - 1.5).abs().argmin())
for rule, name, colour, style in (
    (best, "optimum q*", "black", "-"),
    (linear, "mean of p(c | z)", COLOURS["highlight"], "-"),
    (line.responsibilities(mm.reshape(-1, 1)), "p(c | m)", COLOURS["noise"], "--"),
):
    left.plot(m_grid, rule[:, 1].view(80, 60)[:, at_s], color=colour, ls=style, label=name)
left.set(xlabel="posterior mean m", ylabel="probability of the right cluster", title=f"clusters at ±1.5, s = {float(s_grid[at_s]):.2f}")  # fmt: skip
left.legend()
image = right.pcolormesh(m_grid, s_grid, deficit.T, cmap="viridis", shading="auto")
fig.colorbar(image, label="ELBO lost by the mean (nats)")
right.set(xlabel="posterior mean m", ylabel="posterior standard deviation s")
right.grid(False)
chapter.show(
    fig,
    "mfcvae-vade",
    alt="Left: probability of the right cluster against the posterior mean under three rules, three rising curves. Right: heat map over posterior mean and standard deviation of the ELBO lost by using the arithmetic mean.",
    caption=f"Left: with a wide posterior the optimum stays near the point rule, the mean is pulled towards one half. Right: what the mean costs, at most {float(deficit.max()):.3f} nats here, nothing as s → 0: "
    "this is why both rules work with the narrow posteriors of trained models.",
)
torch.set_default_dtype(torch.float32)
