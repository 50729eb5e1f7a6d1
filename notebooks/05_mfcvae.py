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
from companion.analysis.clustering import (
    ari,
    contingency,
    hungarian_accuracy,
    nmi,
    nmi_interval,
    purity,
)
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
        rooms_width=4, rooms_steps=3, rooms_batch=16, rooms_seeds=1, mnist_widths=(32, 48), mnist_steps=12, mnist_lr=1e-3, mnist_batch=64, mnist_learned=False, draws=20_000, curve=4_000, iwae=4, room_lr=3e-4,
    ),
    cpu=dict(
        width=128, steps=1_200, batch=64, lr=2e-3, seeds=5, pairs=3, phase=400, images="mnist", n=8_000, image_width=192, image_steps=1_250, image_seeds=2, image_batch=64,
        rooms_width=8, rooms_steps=70, rooms_batch=100, rooms_seeds=1, mnist_widths=(192, 384), mnist_steps=1_400, mnist_lr=2e-3, mnist_batch=64, mnist_learned=False, draws=200_000, curve=20_000, iwae=32, room_lr=2e-3,
    ),
    gpu=dict(
        width=128, steps=2_800, batch=128, lr=1e-3, seeds=20, pairs=10, phase=800, images="mnist", n=60_000, image_width=500, image_steps=47_436, image_seeds=10, image_batch=512,
        rooms_width=64, rooms_steps=10_452, rooms_batch=150, rooms_seeds=3, mnist_widths=(500, 2_000), mnist_steps=47_436, mnist_lr=5e-4, mnist_batch=512, mnist_learned=True, draws=2_000_000, curve=200_000, iwae=512, room_lr=3e-4,
    ),
)  # fmt: skip
device = chapter.device

# %% [markdown]
# ## The effect in one picture

# %% tags=["hide-input"]
DIGITS = dict(latents=(4, 2), clusters=(20, 8), sigma=0.2)  # facet 0 shallow, facet 1 deep
STRENGTH = 0.6  # of the colours: see the reason of claim C6a
PIXELS = 192  # of a coloured digit; more pixels get a larger sigma, so that an image weighs as much against the prior


def raw_seed(root, *purpose):
    """A seed for scikit-learn, from a stream of its own."""
    return int(numpy_generator(root, *purpose).integers(2**31))


def trained(
    build, x, members, *, steps, lr, batch, latents, samples=1, starts=0.3, fade=0.15, init=2_000
):
    """Train `members` (seed, bound, progressive, data index) of one architecture as one ensemble, and the untrained twins.

    `x` is a list of data sets; phases as released: facets fade in one after the other, deepest first.
    """
    seeds = [member[0] for member in members]
    untrained = []
    for member_seed, _, _, which in members:
        model = build(generator(member_seed, "weights")).to(device)
        start_means(model, x[which][:init], np.random.RandomState(raw_seed(member_seed, "start")))
        untrained.append(model)
    ensemble = Ensemble(untrained).to(device)
    facet_count = len(latents)
    begin = [steps * starts * (facet_count - 1 - j) for j in range(facet_count)]
    sources = [
        FadeIn(Batches(x[which], batch_size=batch, seed=member_seed), begin, max(1, int(steps * fade)))
        for member_seed, _, _, which in members
    ]  # fmt: skip
    names = [name for name in BOUNDS if name in {member[1] for member in members}]
    picked = torch.tensor([[float(name == member[1]) for name in names] for member in members])
    fit(
        ensemble, negative_bound(names), sources, steps=steps, lr=lr, seed=seeds, record_every=steps,
        noise=lambda g, given: [torch.randn(samples, batch, k, generator=g, device=device) for k in latents],
        hyper={"bound": picked, "progressive": torch.tensor([float(member[2]) for member in members])},
    )  # fmt: skip
    return [ensemble.member(k).requires_grad_(False) for k in range(len(members))], untrained


def pooled(images):
    """14 × 14 averages of 28 × 28 images; smaller ones stay."""
    return torch.nn.functional.avg_pool2d(images, 2) if images.shape[-1] == 28 else images


grey = {split: chapter.load(s.images, split, fallback="digits" if s.images != "digits" else None) for split in ("train", "test")}  # fmt: skip
if len(grey["train"]) > s.n:
    grey["train"] = grey["train"].subset(s.n, generator(seed, "subset"))
small = {split: paint(type(data)(pooled(data.x), data.y, data.card), strength=STRENGTH, seed=seed) for split, data in grey.items()}  # fmt: skip
painted = {split: data.x.flatten(1) for split, data in small.items()}
factors = {split: data.y.cpu() for split, data in small.items()}

seeds = member_seeds(seed, 2 * max(s.seeds, s.image_seeds))[
    max(s.seeds, s.image_seeds) :
]  # settings were chosen on the first half
image_seeds = seeds[: s.image_seeds]
coloured_models, coloured_untrained = trained(
    lambda g: MFCVAE(
        DenseLadder(painted["train"].shape[1], (s.image_width,) * 2, DIGITS["latents"], gate=1.0),
        DIGITS["latents"], DIGITS["clusters"], sigma=DIGITS["sigma"] * (painted["train"].shape[1] / PIXELS) ** 0.5, learn_weights=False, generator=g,
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
    axis.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="equal")
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
    q = posterior_of(1, 2, "C1", case)
    posteriors, weights, expected = integrals(prior, *q)
    expected = expected[0]
    log_table = prior.log_components(pools.gauss_hermite(*q)[0])[:, 0].log_softmax(-1)  # [nodes, 6]
    best, minimum = pools.log_pool(expected)
    solved = pools.minimise_on_simplex(
        lambda r: (weights[:, None] * (torch.xlogy(r, r) - r * log_table)).sum(),
        torch.full((6,), 1 / 6),
    )  # E KL(r || p(c|z)) as it stands
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
axis.legend(loc="upper left", bbox_to_anchor=(-0.1, 1.0), labelcolor="black", fontsize=9)
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
    """log p(c1, c2 | z) [nodes, 12] and weights under a correlated q(z1, z2 | x); from its marginals alone, e of each facet."""
    first, second = random_prior(3, 1, *purpose, "one"), random_prior(4, 1, *purpose, "two")
    noise, weights = pools.gauss_hermite(torch.zeros(1, 2), torch.ones(1, 2), 80)
    z1 = 0.3 + 0.9 * noise[..., :1]
    z2 = -0.2 + 0.8 * (
        correlation * noise[..., :1] + math.sqrt(1 - correlation**2) * noise[..., 1:]
    )
    log_1 = first.log_components(z1).log_softmax(-1)[:, 0]  # [nodes, 3]
    log_2 = second.log_components(z2).log_softmax(-1)[:, 0]
    joint = (log_1[:, :, None] + log_2[:, None, :]).flatten(1)
    marginals = ((first, 0.3, 0.9), (second, -0.2, 0.8))  # N(0.3, 0.9²) and N(-0.2, 0.8²)
    parts = [
        integrals(p, torch.tensor([[m]]), torch.tensor([[sd]]), 200)[2][0] for p, m, sd in marginals
    ]
    return joint, weights, parts


def mutual_information(table):
    independent = table.sum(1, keepdim=True) * table.sum(0, keepdim=True)
    return float((torch.xlogy(table, table) - torch.xlogy(table, independent)).sum())


cells, shared, gaps, wrong_cells, wrong_shared, wrong_gaps = [], [], [], [], [], []
for case in range(4):
    log_joint, weights, parts = joint_case(0.9 * (case % 2), "C2", case)
    table, mean_table = weights @ log_joint, (weights @ log_joint.exp()).view(3, 4)
    solved = pools.minimise_on_simplex(
        lambda r: (weights[:, None] * (torch.xlogy(r, r) - r * log_joint)).sum(),
        torch.full((12,), 1 / 12),
    ).view(3, 4)  # E KL(r || p(c1, c2 | z)) as it stands
    (best_1, cost_1), (best_2, cost_2) = map(pools.log_pool, parts)
    product = best_1[:, None] * best_2[None, :]
    cells.append(float((solved - product).abs().max()))
    shared.append(mutual_information(solved))
    gaps.append(float((pools.cost(solved.flatten(), table) - cost_1 - cost_2).abs()))
    wrong_cells.append(float((mean_table - product).abs().max()))
    wrong_shared.append(mutual_information(mean_table))
    wrong_gaps.append(float((pools.cost(mean_table.flatten(), table) - cost_1 - cost_2).abs()))  # fmt: skip

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
# The proposition as it stands; `responsibilities(mean, std)` is the same softmax without the KL's shared terms
closed = (prior.log_weights() - prior.kl(mean, std)).softmax(-1)
by_point = prior.responsibilities(mean)

full = MixturePrior(4, 2, covariance="full", generator=generator(seed, "C3", "full"))
with torch.no_grad():
    full.raw.add_(0.4)
    full.lower.add_(torch.randn(4, 2, 2, generator=generator(seed, "C3", "lower")))
full.requires_grad_(False)


def standard_errors(mixture, rule, *purpose):
    """Largest distance of `rule` from q* by sampling, in standard errors, over ten posteriors and all clusters above 1e-6."""
    noise = torch.randn(s.draws // 5, 10, 2, generator=generator(seed, "C3", *purpose))
    at = mixture.log_components(mean[:10] + std[:10] * noise).log_softmax(-1)  # [draws, 10, K]
    sampled_optimum = at.mean(0).softmax(-1)
    # Delta method: d q*_k = q*_k (d e_k - Σ q* d e), with the sampling errors of e
    spread = (sampled_optimum * (at - (at * sampled_optimum).sum(-1, keepdim=True))).std(0)
    errors_ = ((rule - sampled_optimum) / spread)[sampled_optimum > 1e-6]
    return float(errors_.abs().max()) * (s.draws // 5) ** 0.5


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
    posterior=[standard_errors(prior, closed[:10], "noise"), standard_errors(full, full.responsibilities(mean[:10], std[:10]), "full")],
    gap=float((marginal_rest - closed_rest - minus_log_z).abs().max()),
    control=dict(
        posterior=[standard_errors(prior, by_point[:10], "noise"), standard_errors(full, full.responsibilities(mean[:10]), "full")],
        gap=float((marginal_rest - traceless - minus_log_z).abs().max()),
    ),
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
# trained is $L_{\mathrm{marg}}$, as the paper of {doc}`chapter 6 </notebooks/06_identifiable_ica>` writes it openly. A reported "ELBO with $q(c\mid x)$" from this loss overstates $L^*$ by $-\sum_j\log Z_j$.

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
LENGTHS = (1, 2, 4, 8, 16, 64, 256, 1024)
curve_prior = random_prior(6, 3, "curve")
c_mean, c_std = posterior_of(1, 3, "curve")
stream = generator(seed, "curve", "noise")
same_sample, geometric, arithmetic = {}, {}, {}
z_exact, w_exact = pools.gauss_hermite(c_mean, c_std, 40)
log_exact = curve_prior.log_components(z_exact)[:, 0]  # [nodes, K]
exact_e = w_exact @ log_exact.log_softmax(-1)
target = float(pools.log_pool(exact_e)[1])
arithmetic_limit = float(pools.cost(w_exact @ log_exact.softmax(-1), exact_e))
c_entropy = (c_std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum()
optimum = float(
    curve_prior.log_components(c_mean, c_std).logsumexp(-1) + c_entropy
)  # L* without log p(x|z)
eps = torch.randn(s.curve // 20, LENGTHS[-1], 3, generator=stream)
log_joint = curve_prior.log_components(c_mean + c_std * eps)  # [repeats, longest, K]
log_q = -(0.5 * eps.square() + c_std.log() + 0.5 * math.log(2 * math.pi)).sum(-1)
log_p = log_joint.log_softmax(-1)
for length in LENGTHS:
    groups = log_p.unflatten(1, (LENGTHS[-1] // length, length))  # [repeats, groups, L, K]
    mean_log = groups.mean(2)
    rest = (log_joint.logsumexp(-1) - log_q).unflatten(1, (LENGTHS[-1] // length, length)).mean(2)
    same_sample[length] = (rest + mean_log.logsumexp(-1)).mean(1)  # e_L, [repeats]
    geometric[length] = pools.cost(mean_log.softmax(-1), exact_e).mean()
    arithmetic[length] = pools.cost(groups.exp().mean(2), exact_e).mean()
falls = {b: same_sample[a] - same_sample[b] for a, b in pairwise(LENGTHS)}
slopes = [float(f.mean() / (f.std() / len(f) ** 0.5)) for f in falls.values()]


def curve_measures(final):
    return dict(
        slope=min(slopes), start=(float(same_sample[1].mean()) - optimum) / target, end=(float(same_sample[LENGTHS[-1]].mean()) - optimum) / target,
        geometric=float(final[LENGTHS[-1]]) / target, arithmetic=float(arithmetic[LENGTHS[-1]]) / target,
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
left.plot(LENGTHS, [optimum + target - float(same_sample[k].mean()) for k in LENGTHS], marker="^", color=COLOURS["noise"], label="same samples in all terms")  # fmt: skip
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
left.set(xlabel="posterior mean m", ylabel="probability of the cluster at +1.5", title=f"clusters at ±1.5, s = {float(s_grid[at_s]):.2f}")  # fmt: skip
left.legend()
image = right.pcolormesh(m_grid, s_grid, deficit.T, cmap="viridis", shading="auto")
fig.colorbar(image, label="ELBO lost by the mean (nats)")
right.set(xlabel="posterior mean m", ylabel="posterior standard deviation s")
right.grid(False)
chapter.show(
    fig,
    "mfcvae-vade",
    alt="Left: probability of the cluster at plus 1.5 against the posterior mean under three rules, three rising curves. Right: heat map over posterior mean and standard deviation of the ELBO lost by using the arithmetic mean.",
    caption=f"Left: for clusters of equal covariance the log odds are linear in z, so the optimum is exactly p(c|m); the mean is pulled towards one half. Right: what the mean costs, at most {float(deficit.max()):.3f} nats here, nothing as s → 0, "
    "so the rules agree where posteriors are narrow compared with clusters; C5b says how far that holds after training.",
)
torch.set_default_dtype(torch.float32)

# %% [markdown]
# ## Train
#
# ### The model and its objectives
#
# The encoder is a ladder {cite}`zhao2017learning`: facet $j$ leaves it at depth $j$. The decoder is the ladder upside down: deep facets enter first, and a shallower one is added through a gate. All objectives are selectable in the same code; the closed form needs no
# sample of $c$, and "marginal" is the released loss after the cancellation of {prf:ref}`prop-mfcvae-cancel`.

# %% tags=["hide-input"]
display(Code(inspect.getsource(MFCVAE.facet_terms), language="python"))

# %% [markdown]
# Training is *progressive* {cite}`li2020progressive`: the deepest facet learns alone; then the next one fades in, its decoder rung and its KL weight rising together from 0 to 1. Means of the clusters start where a Gaussian mixture finds
# them in the codes of the untrained encoder, variances at 0.01.
#
# ### Coloured digits: four variants, many seeds
#
# Ladder or shared networks (all facets leave the last encoder layer), progressive or joint training, and three more objectives, on the same seeds. The gate is 1 here; the released MNIST model has 0.1, so that a shallow facet enters softly, and joint
# training is tried with both. "Four samples" has four in the prior and cluster terms and one in the reconstruction. Settings were chosen with labels, on the same images and on other seeds than those of this page.

# %% tags=["hide-input"]
digit_sets = {split: chapter.load("digits", split) for split in ("train", "test")}
RHOS = (0.0, 0.5, 0.9)


def coloured_digits(split, **options):
    return paint(digit_sets[split], seed=seed, **{"strength": STRENGTH, **options})


by_rho = [
    {split: coloured_digits(split, correlation=rho) for split in ("train", "test")} for rho in RHOS
]
x_train = [sets["train"].x.flatten(1) for sets in by_rho]
x_test = by_rho[0]["test"].x.flatten(1)
# All images are scored, training and test ones (no label was used): see the reason of C6a
x_all = [torch.cat([sets[split].x.flatten(1) for split in ("train", "test")]) for sets in by_rho]
y_all = [torch.cat([sets[split].y for split in ("train", "test")]).cpu() for sets in by_rho]
y_test = by_rho[0]["test"].y.cpu()
inputs = x_test.shape[1]
run = dict(steps=s.steps, lr=s.lr, batch=s.batch, latents=DIGITS["latents"])
seeds = seeds[: s.seeds]


def digit_model(network):
    return lambda g: MFCVAE(
        network(),
        DIGITS["latents"],
        DIGITS["clusters"],
        sigma=DIGITS["sigma"],
        learn_weights=False,
        generator=g,
    )


ladder = digit_model(lambda: DenseLadder(inputs, (s.width,) * 2, DIGITS["latents"], gate=1.0))
shared_network = digit_model(lambda: DenseShared(inputs, (s.width,) * 2, DIGITS["latents"]))
plan = {
    ("ladder", "progressive"): [(k, "marginal", True, 0) for k in seeds],
    ("ladder", "joint"): [(k, "marginal", False, 0) for k in seeds],
    ("closed",): [(k, "closed", True, 0) for k in seeds[: s.pairs]],
    ("vade",): [(k, "vade", True, 0) for k in seeds[: s.pairs]],
    ("rho", 1): [(k, "marginal", True, 1) for k in seeds[:2]],
    ("rho", 2): [(k, "marginal", True, 2) for k in seeds[:2]],
}


def train_all(build, plan_):
    """Train every member of a plan as one ensemble; models and untrained twins by name."""
    flat = [member for group in plan_.values() for member in group]
    done, before = trained(build, x_train, flat, **run)
    models_, untrained_, place = {}, {}, 0
    for name, group in plan_.items():
        models_[name], untrained_[name] = done[place : place + len(group)], before[place : place + len(group)]  # fmt: skip
        place += len(group)
    return models_, untrained_


models, untrained = train_all(ladder, plan)
more, _ = train_all(
    shared_network,
    {("shared", how): [(k, "marginal", how == "progressive", 0) for k in seeds] for how in ("progressive", "joint")},
)  # fmt: skip
models |= more
softly = digit_model(lambda: DenseLadder(inputs, (s.width,) * 2, DIGITS["latents"], gate=0.1))
models["ladder, gate 0.1", "joint"], _ = trained(
    softly, x_train, [(k, "marginal", False, 0) for k in seeds], **run
)
models["samples",], _ = trained(
    ladder, x_train, [(k, "samples", True, 0) for k in seeds[: s.pairs]], samples=4, **run
)

VARIANTS = [("ladder", "progressive"), ("ladder", "joint"), ("ladder, gate 0.1", "joint"), ("shared", "progressive"), ("shared", "joint")]  # fmt: skip
result = {
    name: scores(group, x_all[name[1] if name[0] == "rho" else 0], y_all[name[1] if name[0] == "rho" else 0])
    for name, group in models.items()
}  # fmt: skip
main = ("ladder", "progressive")
start = scores(untrained[main], x_all[0], y_all[0])
shuffled_y = y_all[0][torch.randperm(len(y_all[0]), generator=generator(seed, "shuffle"))]
null_test = np.mean([nmi(c[0][: len(x_test)], shuffled_y[: len(x_test), 1]) for c in result[main]["clusters"]])  # fmt: skip
null_all = np.mean([nmi(c[0], shuffled_y[:, 1]) for c in result[main]["clusters"]])
print(f"NMI of the shallow facet with shuffled colours: {null_test:.3f} on {len(x_test)} images, {null_all:.3f} on {len(x_all[0])}")  # fmt: skip


def off_diagonal(matrices):
    """Larger of the two NMI outside each seed's assignment of factors to facets."""
    straight = torch.maximum(matrices[:, 0, 1], matrices[:, 1, 0])  # digit shallow, colour deep
    crossed = torch.maximum(matrices[:, 0, 0], matrices[:, 1, 1])
    return torch.minimum(straight, crossed)


def separated(found):
    """Measures of C6a, with a facet per factor: a diagonal needs both factors found, hence the purities."""
    return dict(
        diagonal=float((off_diagonal(found["nmi"]) <= 0.05).double().mean()),
        colour=found["purity"][:, 1], digit=found["purity"][:, 0],
    )  # fmt: skip


# %% tags=["nbval-check-output"]
chapter.claim("C6a", **separated(result[main]), control=separated(start))

# %% [markdown]
# ### Which of ladder and progressive training does it

# %%
consistency = {name: facets.role_consistency(result[name]["nmi"]) for name in VARIANTS}
digit_purity = {name: found["purity"][:, 0] for name, found in result.items()}
# The better of the two gates stands for a ladder trained jointly
joint = max(
    (("ladder", "joint"), ("ladder, gate 0.1", "joint")),
    key=lambda name: float(digit_purity[name].mean()),
)

# %% tags=["nbval-check-output"]
joints = [name for name in VARIANTS if name[1] == "joint"]
best_joint = max(consistency[name] for name in joints)
mixing = {name: off_diagonal(result[name]["nmi"]) for name in VARIANTS}
least_mixed = min((mixing[name] for name in joints), key=torch.mean)
chapter.claim(
    "C7a",
    both=consistency[main], best_joint=best_joint, best_other=max(consistency[name] for name in VARIANTS[1:]),
    leak=mixing[main], leak_joint=least_mixed,
    control=dict(both=consistency[joint], best_joint=best_joint, best_other=consistency[main], leak=mixing[joint], leak_joint=least_mixed),
)  # fmt: skip


def variants(first):
    return dict(
        both=digit_purity[first], ladder_joint=digit_purity[joint],
        shared_progressive=digit_purity["shared", "progressive"], shared_joint=digit_purity["shared", "joint"],
    )  # fmt: skip


chapter.claim("C7b", **variants(main), control=variants(joint))

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(10.8, 3.9), sharey=False)
labels = ["ladder\nprogr.", "ladder\njoint", "gate 0.1\njoint", "shared\nprogr.", "shared\njoint"]
for axis, factor, name in zip(axes, (0, 1), ("digit", "colour")):
    for place, variant in enumerate(VARIANTS):
        found = result[variant]
        jitter = np.linspace(-0.18, 0.18, len(found["nmi"]))
        shallow = found["nmi"][:, 0, factor] >= found["nmi"][:, 1, factor]
        for facet, colour, words in (
            (True, "noise", "shallow facet"),
            (False, "highlight", "deep facet"),
        ):
            chosen = (shallow == facet).numpy()
            axis.scatter(place + jitter[chosen], found["purity"][:, factor][chosen], color=COLOURS[colour], s=36,
                         label=words if place == 0 else None)  # fmt: skip
    axis.set(xticks=range(5), title=f"{name}: purity of its best facet", ylim=(0, 1.03))
    axis.set_xticklabels(labels, fontsize=8)
axes[0].scatter([], [], color=COLOURS["highlight"], s=36)
axes[1].legend(handles=[axes[1].scatter([], [], color=COLOURS[c], label=w) for c, w in (("noise", "shallow facet"), ("highlight", "deep facet"))], loc="lower left", fontsize=9)  # fmt: skip
for place, variant in enumerate(VARIANTS):
    values = mixing[variant]
    axes[2].scatter(place + np.linspace(-0.18, 0.18, len(values)), values, color=COLOURS["baseline"], s=36)  # fmt: skip
axes[2].axhline(0.05, color="black", ls="--", lw=1)
axes[2].set(xticks=range(5), title="larger NMI off the diagonal", ylim=(0, None))
axes[2].set_xticklabels(labels, fontsize=8)
spreads = {name: float(digit_purity[name].std()) for name in VARIANTS}
chapter.show(
    fig,
    "mfcvae-stability",
    alt="Three strip plots over five variants of network and training, one dot per seed. First and second: purity of the best facet for digit and for colour, dots coloured by which facet it is. Third: the largest mutual "
    "information off the diagonal, with a line at 0.05.",
    caption="Same seeds, same budget. Share of seeds in which each factor lives in the same facet of its own: "
    + ", ".join(f"{consistency[name]:.2f} ({name[0]}, {name[1]})" for name in VARIANTS)
    + f". Digit purity of the full recipe {float(digit_purity[main].mean()):.2f} ± {spreads[main]:.2f}.",
    answers="the stability comparison of the paper (existence remembered)",
)

# %% [markdown]
# ### Does the estimator of the bound matter?
#
# Purities are compared seed by seed, and called equal where the 95% interval of the difference lies within 0.05. For scale: trained beside other members of an ensemble, which is the same mathematics with other rounding, a seed moved by up to that much in trials.


# %%
def over_one_sample(name):
    """Digit purity of a variant minus that of the full recipe, seed by seed."""
    return digit_purity[name][: s.pairs] - digit_purity[main][: s.pairs]


rules = [facets.cluster_rules(m, x_test, draws=1_000, generator=generator(seed, "rules")) for m in models[main]]  # fmt: skip
rules_wide = [facets.cluster_rules(m, x_test, draws=1_000, widen=2.0, generator=generator(seed, "rules")) for m in models[main]]  # fmt: skip


def agreement(per_model, rule):
    """Share of images to which `rule` gives the optimum's cluster, worse facet, per model."""
    return [min(float((f["closed"].argmax(-1) == f[rule].argmax(-1)).double().mean()) for f in one) for one in per_model]  # fmt: skip


def same_label(per_model, rule, facet):
    """Share of test images whose cluster under `rule` votes for the same label as under the optimum; facet's own factor."""
    shares = []
    for one in per_model:
        closed_, other = (one[facet][name].argmax(-1).cpu() for name in ("closed", rule))
        own = y_test[:, facet]  # digit in the shallow facet, colour in the deep one
        votes = contingency(torch.cat([closed_, other]), torch.cat([own, own])).argmax(1)
        shares.append(float((votes[closed_] == votes[other]).double().mean()))
    return np.mean(shares)


for facet, name in enumerate(("shallow", "deep")):
    agree = [np.mean([float((one[facet]["closed"].argmax(-1) == one[facet][rule].argmax(-1)).double().mean()) for one in rules]) for rule in ("point", "linear")]  # fmt: skip
    voted = [same_label(rules, rule, facet) for rule in ("point", "linear")]
    print(
        f"{name} facet: same cluster as the optimum {agree[0]:.3f} (point), {agree[1]:.3f} (mean); same label {voted[0]:.3f}, {voted[1]:.3f}"
    )

# %% tags=["nbval-check-output"]
chapter.claim(
    "C5a",
    four_by=over_one_sample(("samples",)), closed_by=over_one_sample(("closed",)),
    control=dict(four_by=over_one_sample(joint), closed_by=over_one_sample(joint)),
)  # fmt: skip
chapter.claim(
    "C5b", point=agreement(rules, "point"), linear=agreement(rules, "linear"),
    control=dict(point=agreement(rules_wide, "point"), linear=agreement(rules_wide, "linear")),
)  # fmt: skip

# %% [markdown]
# ### Same number of clusters, other methods
#
# Purity lets many clusters share a label, so it grows with $K$; it may only be compared at equal $K$. Hungarian accuracy (one cluster per label), NMI and ARI stand beside it. The reference for "found the digit
# although colour dominates" is k-means on the *grey* digits, where colour was removed by hand. The rival that matters is the obvious one: k-means, subtract each image's centre, k-means on what is left {cite}`cui2007multiview`. Progressive training is the same idea,
# one factor after the other.

# %%
flat_grey = torch.cat([digit_sets[split].x.flatten(1) for split in ("train", "test")]).cpu()


def k_means(x, k, random, held=None):
    fitted = KMeans(k, n_init=3, random_state=raw_seed(random, "k-means")).fit(x.numpy())
    return torch.from_numpy(fitted.labels_ if held is None else fitted.predict(held.numpy())).long()


def residual_k_means(x, random, held=None):
    """Orthogonal clustering (Cui, Fern and Dy 2007): cluster, subtract the centres, cluster the rest; the second partition."""
    given, rest = x, x if held is None else held
    for k in DIGITS["clusters"][::-1]:  # deep facet first
        fitted = KMeans(k, n_init=3, random_state=raw_seed(random, "twice", k)).fit(given.numpy())
        names = torch.from_numpy(fitted.predict(rest.numpy())).long()
        centres = torch.from_numpy(fitted.cluster_centers_).to(x)
        given, rest = (
            given - centres[torch.from_numpy(fitted.labels_).long()],
            rest - centres[names],
        )
    return names


def mixture(x, k, random, held):
    """A diagonal Gaussian mixture on 20 principal components."""
    axes_ = PCA(min(20, x.shape[1]), random_state=raw_seed(random, "axes")).fit(x.numpy())
    fitted = GaussianMixture(k, covariance_type="diag", init_params="k-means++", max_iter=60, reg_covar=1e-3, random_state=raw_seed(random, "mixture"))  # fmt: skip
    fitted.fit(axes_.transform(x.numpy()))
    return torch.from_numpy(fitted.predict(axes_.transform(held.numpy()))).long()


digits_k = DIGITS["clusters"][0]
digit_labels = y_all[0][:, 0]
rivals = {
    "k-means, coloured": [k_means(x_all[0].cpu(), digits_k, k) for k in seeds],
    "k-means twice, coloured": [residual_k_means(x_all[0].cpu(), k) for k in seeds],
    "k-means, grey": [k_means(flat_grey, digits_k, k) for k in seeds],
}
rival_purity = {name: torch.tensor([purity(c, digit_labels) for c in found]) for name, found in rivals.items()}  # fmt: skip


def against_k_means(ours):
    low, high = (rival_purity[name] for name in ("k-means, coloured", "k-means, grey"))
    return dict(ours=ours, kmeans=low, grey=(ours - low) / (high - low))


image_twice = torch.tensor(
    [purity(residual_k_means(painted["train"].cpu(), k, painted["test"].cpu()), factors["test"][:, 0]) for k in image_seeds]
)  # fmt: skip


def against_twice(digits, images):
    return dict(ours=digits, twice=rival_purity["k-means twice, coloured"], image_ours=images, image_twice=image_twice)  # fmt: skip


# %% tags=["nbval-check-output"]
chapter.claim(
    "C8d",
    **against_twice(digit_purity[main], coloured["purity"][:, 0]),
    control=against_twice(start["purity"][:, 0], coloured_start["purity"][:, 0]),
)
chapter.claim("C8c", **against_k_means(digit_purity[main]), control=against_k_means(start["purity"][:, 0]))  # fmt: skip


# %% tags=["hide-input"]
def table(rows, labels, clusters_of):
    """Markdown table of purity, Hungarian accuracy, NMI and ARI, mean ± standard deviation over seeds."""
    lines = [
        "| | purity | Hungarian | NMI | ARI | clusters used |",
        "|:---|---:|---:|---:|---:|---:|",
    ]
    for name in rows:
        columns = [[score(c, labels) for c in clusters_of[name]] for score in (purity, hungarian_accuracy, nmi, ari)]  # fmt: skip
        used = np.mean([len(c.unique()) for c in clusters_of[name]])
        lines.append(f"| {name} | " + " | ".join(f"{np.mean(c):.3f} ± {np.std(c, ddof=1):.3f}" for c in columns) + f" | {used:.1f} |")  # fmt: skip
    return Markdown("\n".join(lines))


best_facet = [max(c, key=lambda one: purity(one, digit_labels)) for c in result[main]["clusters"]]
display(table(["best facet", *rivals], digit_labels, rivals | {"best facet": best_facet}))

# %% [markdown]
# ### Coloured MNIST

# %%
image_k = DIGITS["clusters"][0]
image_kmeans = torch.tensor(
    [purity(k_means(painted["train"].cpu(), image_k, k, painted["test"].cpu()), factors["test"][:, 0]) for k in image_seeds]
)  # fmt: skip


def image_measures(found):
    return dict(
        leak=off_diagonal(found["nmi"]),
        colour=found["purity"][:, 1],
        ratio=found["purity"][:, 0] / image_kmeans,
    )


# %% tags=["nbval-check-output"]
chapter.claim("C6b", **image_measures(coloured), control=image_measures(coloured_start))

# %% [markdown]
# ### MNIST: digit and style
#
# Plain MNIST has one label. Style is measured from the pixels: slant (shear of the ink's second moments) and thickness (area over outline), cut into fifths. Layers, latents, clusters and schedule are the released configuration's, widths and
# steps those of the profile. The likelihood is Bernoulli on grey values, as released: its nats are no log-likelihood.

# %%
MNIST = dict(latents=(5, 5), clusters=(25, 25))
mnist_x = {split: data.x.flatten(1) for split, data in grey.items()}
mnist_y = grey["test"].y.cpu()
styles = facets.stroke_factors(grey["test"].x.cpu())
mnist_factors = torch.cat([mnist_y[:, None], styles], 1)
mnist_models, mnist_untrained = trained(
    lambda g: MFCVAE(
        DenseLadder(mnist_x["train"].shape[1], s.mnist_widths, MNIST["latents"]), MNIST["latents"], MNIST["clusters"], learn_weights=s.mnist_learned, generator=g
    ),
    [mnist_x["train"]], [(k, "marginal", True, 0) for k in image_seeds],
    steps=s.mnist_steps, lr=s.mnist_lr, batch=s.mnist_batch, latents=MNIST["latents"], starts=0.5, fade=0.32,
)  # fmt: skip
mnist = scores(mnist_models, mnist_x["test"], mnist_factors)
mnist_start = scores(mnist_untrained, mnist_x["test"], mnist_factors)
mnist_k = MNIST["clusters"][0]
mnist_rivals = {
    "k-means": [k_means(mnist_x["train"].cpu(), mnist_k, k, mnist_x["test"].cpu()) for k in image_seeds],
    "diagonal mixture": [mixture(mnist_x["train"].cpu(), mnist_k, k, mnist_x["test"].cpu()) for k in image_seeds],
}  # fmt: skip
rival_mnist = {name: torch.tensor([purity(c, mnist_y) for c in found]) for name, found in mnist_rivals.items()}  # fmt: skip


def parts(matrices):
    """How much more the deep facet knows of the digit, and the shallow one of style."""
    style = matrices[:, :, 1:].mean(-1)  # slant and thickness
    return dict(digit=matrices[:, 1, 0] - matrices[:, 0, 0], style=style[:, 0] - style[:, 1])


def same_k(found):
    return dict(ours=found["purity"][:, 0], kmeans=rival_mnist["k-means"], gmm=rival_mnist["diagonal mixture"])  # fmt: skip


# %% tags=["nbval-check-output"]
chapter.claim("C6c", **parts(mnist["nmi"]), control=parts(mnist_start["nmi"]))
chapter.claim("C8a", purity=mnist["purity"][:, 0], control=dict(purity=mnist_start["purity"][:, 0]))
chapter.claim("C8b", **same_k(mnist), control=same_k(mnist_start))

# %% tags=["hide-input"]
mnist_best = [max(c, key=lambda one: purity(one, mnist_y)) for c in mnist["clusters"]]
display(table(["best facet", *mnist_rivals], mnist_y, mnist_rivals | {"best facet": mnist_best}))
with torch.no_grad():
    mnist_rows = [most_confident(mnist_models[0], mnist_x["test"], j) for j in (0, 1)]
fig, axes = plt.subplots(1, 3, figsize=(11, 4.8), width_ratios=(1, 1, 0.95))
for axis, rows, name in zip(axes, mnist_rows, ("shallow facet", "deep facet")):
    if rows:
        grid(axis, mnist_x["test"], rows[:10], tuple(grey["test"].x.shape[1:]))
    axis.set(title=f"{name}: one row per cluster")
matrix(axes[2], mnist["nmi"].mean(0), ["shallow", "deep"], ["digit", "slant", "thickness"], "NMI, mean over seeds")  # fmt: skip
chapter.show(
    fig,
    "mfcvae-mnist",
    alt="Left and middle: rows of ten handwritten digits each, the most confident images of the clusters of the shallow and of the deep facet. Right: table of mutual information between the two facets and digit, slant and thickness.",
    caption=f"Digit and stroke style, {grey['train'].card.title}, {len(mnist_models)} seeds, {s.mnist_steps * s.mnist_batch / len(grey['train']):.0f} passes over {len(grey['train'])} images. Rows are the ten most confident test images of a cluster. Test purity of the better facet {float(mnist['purity'][:, 0].mean()):.3f}, of k-means with as many clusters {float(rival_mnist['k-means'].mean()):.3f}, "
    f"of a diagonal mixture {float(rival_mnist['diagonal mixture'].mean()):.3f}.",
    answers="the figure of input examples on MNIST",
)

# %% [markdown]
# ### Rooms: the 3DShapes configurations
#
# Rooms with a floor, a wall and an object, drawn anew after 3D Shapes, 4,800 of them: shape, scale, orientation and one hue vary. Convolutional ladder, full covariances, $d=(20,2)$, $K=(60,20)$, fixed weights, $\sigma=0.6$, as released.

# %%
ROOMS = dict(latents=(20, 2), clusters=(60, 20))
room_sets = {hue: {split: chapter.load("rooms", split, varying=hue) for split in ("train", "test")} for hue in ("floor", "wall")}  # fmt: skip
room_seeds = member_seeds(seed, s.rooms_seeds)
room_models, room_untrained = trained(
    lambda g: MFCVAE(
        ConvLadder(3, ROOMS["latents"], width=s.rooms_width), ROOMS["latents"], ROOMS["clusters"],
        sigma=0.6, covariance="full", learn_weights=False, generator=g,
    ),
    [room_sets[hue]["train"].x.flatten(1) for hue in ("floor", "wall")],
    [(k, "marginal", True, which) for which in (0, 1) for k in room_seeds],
    steps=s.rooms_steps, lr=s.room_lr, batch=s.rooms_batch, latents=ROOMS["latents"], starts=0.25, fade=0.19, init=500,
)  # fmt: skip


def room_scores(group):
    """Best purities of hue and shape on test rooms, per configuration and seed."""
    found = {}
    for which, (hue, column) in enumerate((("floor", 3), ("wall", 4))):
        test = room_sets[hue]["test"]
        own = group[which * s.rooms_seeds : (which + 1) * s.rooms_seeds]
        best = scores(own, test.x.flatten(1), test.y.cpu()[:, [0, column]])
        found |= {f"{hue}_shape": best["purity"][:, 0], f"{hue}_hue": best["purity"][:, 1]}
        found[f"{hue}_nmi"] = best["nmi"]
    return found


rooms, rooms_start = room_scores(room_models), room_scores(room_untrained)
room_test_y = room_sets["floor"]["test"].y.cpu()
room_null = purity(torch.randint(ROOMS["clusters"][0], (len(room_test_y),), generator=generator(seed, "rooms", "null")), room_test_y[:, 0])  # fmt: skip
ROOM_MEASURES = ("floor_hue", "floor_shape", "wall_hue", "wall_shape")

# %% tags=["nbval-check-output"]
chapter.claim(
    "C6d",
    **{k: rooms[k] for k in ROOM_MEASURES},
    control={k: rooms_start[k] for k in ROOM_MEASURES},
)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(11, 4.2), width_ratios=(1.25, 1, 1))
room_test = room_sets["floor"]["test"].x.flatten(1)
with torch.no_grad():
    rebuilt = room_models[0].decode([mean for mean, _ in room_models[0].encode(room_test[:24])])
grid(axes[0], torch.cat([room_test[:24], rebuilt]), list(torch.arange(48).view(2, 2, 12).permute(1, 0, 2).reshape(4, 12)), (3, 32, 32))  # fmt: skip
axes[0].set(title="rooms, and below them their reconstructions")
for axis, hue in zip(axes[1:], ("floor", "wall")):
    matrix(axis, rooms[f"{hue}_nmi"].mean(0), ["shallow", "deep"], ["shape", f"{hue} hue"], f"{hue} varies: NMI")  # fmt: skip
chapter.show(
    fig,
    "mfcvae-rooms",
    alt="Left: two rows of small rendered rooms with an object, each row followed by its reconstructions. Middle and right: tables of mutual information between two facets and the factors shape and hue, for rooms with varying floor and varying wall.",
    caption=f"{s.rooms_steps} steps at width {s.rooms_width} (released: about 10,500 at 64). Best purity: hue {float(rooms['floor_hue'].mean()):.2f} and shape {float(rooms['floor_shape'].mean()):.2f} where the floor varies, "
    f"{float(rooms['wall_hue'].mean()):.2f} and {float(rooms['wall_shape'].mean()):.2f} where the wall does; a random partition into 60 cells has a shape purity of {room_null:.2f}.",
    answers="the 3DShapes rows of the results table",
)

# %% [markdown]
# ## Visualise
#
# ### What each facet knows

# %% tags=["hide-input"]
intervals = [
    [nmi_interval(result[main]["clusters"][0][j], y_all[0][:, f], generator=numpy_generator(seed, "bootstrap", j, f), draws=60) for f in (0, 1)]
    for j in (0, 1)
]  # fmt: skip
fig, axes = plt.subplots(1, 2, figsize=(10.2, 3.9), width_ratios=(1.5, 1))
place = np.arange(4)
names = ["digit in shallow", "colour in shallow", "digit in deep", "colour in deep"]
flat = result[main]["nmi"].flatten(1)
for k in range(len(flat)):
    axes[0].scatter(place + np.linspace(-0.2, 0.2, len(flat))[k], flat[k], color=COLOURS["noise"], s=30, label="trained, one dot per seed" if k == 0 else None)  # fmt: skip
for index, (low, high) in enumerate([pair for row in intervals for pair in row]):
    axes[0].errorbar(index - 0.3, (low + high) / 2, yerr=(high - low) / 2, color="black", capsize=3, label="bootstrap over images, first seed" if index == 0 else None)  # fmt: skip
axes[0].scatter(place + 0.3, start["nmi"].flatten(1).mean(0), marker="x", color=COLOURS["baseline"], label="before training")  # fmt: skip
axes[0].axhline(0.05, color="black", ls=":", lw=1)
axes[0].set(xticks=place, ylabel="NMI", ylim=(-0.02, 1.05))
axes[0].set_xticklabels(names, fontsize=9)
axes[0].legend(fontsize=9, loc="upper center")
matrix(
    axes[1],
    result[main]["nmi"].mean(0),
    ["shallow", "deep"],
    ["digit", "colour"],
    "coloured digits, mean",
)
chapter.show(
    fig,
    "mfcvae-information",
    alt="Left: mutual information of each facet with each factor, dots for trained seeds, error bars from a bootstrap, crosses for untrained networks, with a line at 0.05. Right: the two by two table of means.",
    caption=f"Coloured digits, {len(flat)} seeds: the table is diagonal, {float(flat[:, 0].mean()):.2f} and {float(flat[:, 3].mean()):.2f} on it, {float(flat[:, 1].mean()):.3f} and {float(flat[:, 2].mean()):.3f} off it. "
    f"Unrelated partitions of the same sizes have {null_all:.3f} on these images and {null_test:.3f} on the test images alone.",
)

# %% [markdown]
# ### Swapping facets
#
# If facets are what they seem, a digit may be decoded with the colour facet of another image. The model's own encoder says whether it finds the donor's cluster; since it could agree with its decoder on a private code, classifiers of digit and
# colour trained on *real* images judge as well.

# %%
donors = torch.randperm(len(x_test), generator=generator(seed, "donors"))
swaps = [[facets.swap_consistency(m, x_test, x_test[donors], j) for j in (0, 1)] for m in models[main]]  # fmt: skip


def above_chance(value, chance):
    """0 at chance, 1 for always; a facet with one cluster, where chance is 1, shows nothing: 0."""
    return (value - chance) / (1 - chance) if chance < 1 else 0.0


def swap_measures(taken):
    """Worse facet of each seed, above chance: 0 for a donor's or an own cluster met by chance, 1 for always."""
    rows = [
        [
            (
                above_chance(one[taken], one["taken_chance"]),
                above_chance(one["kept"], one["kept_chance"]),
                one["taken_plain"] - one[taken],
                one["kept_plain"] - one["kept"],
            )
            for one in both
        ]
        for both in swaps
    ]  # fmt: skip
    columns = [list(zip(*row)) for row in rows]  # [seeds][measure][facet]
    return dict(
        taken=[min(c[0]) for c in columns], kept=[min(c[1]) for c in columns],
        taken_loss=[max(c[2]) for c in columns], kept_loss=[max(c[3]) for c in columns],
    )  # fmt: skip


judges = [
    LogisticRegression(max_iter=300, C=0.1).fit(x_train[0].cpu().numpy(), by_rho[0]["train"].y[:, f].cpu().numpy())
    for f in (0, 1)
]  # fmt: skip


def judged(images, factor):
    return torch.from_numpy(judges[factor].predict(images.cpu().numpy()))


judge_accuracy = [float((judged(x_test, f) == y_test[:, f]).double().mean()) for f in (0, 1)]
judge_rows = {"right": [], "wrong": []}
for model, matrices in zip(models[main], result[main]["nmi"]):
    plain = facets.swap(model, x_test, x_test, 0)
    read = float((judged(plain, 0) == y_test[:, 0]).double().mean())
    scale = (max(read, 1e-9), 1.0)  # digits are compared with what can be read from reconstructions
    for kind, rows in judge_rows.items():
        row = {"read": read}
        for f, name in enumerate(("digit", "colour")):
            facet = int(matrices[:, f].argmax())
            moved = facets.swap(
                model, x_test, x_test[donors], facet if kind == "right" else 1 - facet
            )
            other, other_name = 1 - f, ("digit", "colour")[1 - f]
            row[f"{name}_taken"] = (
                float((judged(moved, f) == y_test[donors, f]).double().mean()) / scale[f]
            )
            row[f"{other_name}_kept"] = float((judged(moved, other) == y_test[:, other]).double().mean()) / scale[other]  # fmt: skip
        rows.append(row)


def judged_as(kind):
    return {name: [row[name] for row in judge_rows[kind]] for name in judge_rows[kind][0]}


read_right = judged_as("right")

# %% tags=["nbval-check-output"]
chapter.claim("C9a", **swap_measures("taken"), control=swap_measures("taken_chance"))
chapter.claim("C9b", **read_right, control=judged_as("wrong"))

# %% tags=["hide-input"]
shown_model, colour_facet = models[main][0], int(result[main]["nmi"][0, :, 1].argmax())
shapes = torch.stack([x_test[(y_test[:, 0] == digit).nonzero()[3, 0]] for digit in range(10)])
colours = torch.stack([x_test[(y_test[:, 1] == colour).nonzero()[5, 0]] for colour in range(len(PALETTE))])  # fmt: skip
crossed = [
    facets.swap(shown_model, shapes, donor.expand_as(shapes), colour_facet) for donor in colours
]
blank = torch.ones(1, inputs)
canvas = torch.cat([blank, shapes.cpu(), *[torch.cat([donor[None].cpu(), row.cpu()]) for donor, row in zip(colours, crossed)]])  # fmt: skip
fig, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.2), width_ratios=(1.3, 1))
grid(left, canvas, list(torch.arange(len(canvas)).view(-1, 11)), (3, 8, 8))
left.set(title="digit of the column, colour facet of the row")
left.axvline(8.5, color="black", lw=1)
left.axhline(8.5, color="black", lw=1)
kinds = ["taken", "taken_plain", "taken_chance", "kept", "kept_plain"]
for j, (colour, name) in enumerate(
    (("noise", "shallow facet swapped"), ("highlight", "deep facet swapped"))
):
    values = np.array([[both[j][kind] for kind in kinds] for both in swaps])
    right.errorbar(np.arange(5) + 0.16 * (j - 0.5), values.mean(0), yerr=values.std(0, ddof=1), fmt="o", capsize=3, color=COLOURS[colour], label=name)  # fmt: skip
right.set(xticks=range(5), ylim=(0, 1.05), ylabel="share of test images")
right.set_xticklabels(
    [
        "donor's\ncluster",
        "… of a\nreconstr.",
        "… by\nchance",
        "own other\ncluster",
        "… of a\nreconstr.",
    ],
    fontsize=9,
)
right.legend(fontsize=9, loc="lower right")
chapter.show(
    fig,
    "mfcvae-swap",
    alt="Left: a table of decoded digits; the top row and the left column are real images, every other cell has the digit of its column and the background colour of its row. Right: shares of test images that keep or take clusters after a swap, "
    "with error bars over seeds, for both facets.",
    caption=f"Left: ten digits with the colour facet of five donors. Right: mean ± standard deviation over {len(swaps)} seeds, not corrected for chance. Judges trained on real images (accuracy {judge_accuracy[0]:.2f} digit, {judge_accuracy[1]:.2f} colour) read the digit from {100 * np.mean(read_right['read']):.0f}% of reconstructions; "
    f"after a swap the donor's colour from {100 * np.mean(read_right['colour_taken']):.0f}% and the donor's digit {100 * np.mean(read_right['digit_taken']):.0f}% as often as from reconstructions.",
    answers="the figure of swapped facets",
)

# %% [markdown]
# ### Sampling one cluster
#
# A cluster of one facet is fixed, the rest is drawn from the prior. *Temperature* scales the variance here; the released code multiplies the **variance** by it and uses the product as a standard deviation, which makes samples far too concentrated
# when variances are small.

# %%
TEMPERATURES = (0.1, 0.25, 0.5, 1.0, 2.0)


def generation(model, clusters, temperature):
    """Agreement with the intended cluster and with a wrong one, diversity of the rest within a cluster, and its control."""
    rows = []
    for j in (0, 1):
        live = (torch.bincount(clusters[j]) >= 10).nonzero()[
            :, 0
        ]  # dead clusters have nothing to agree on
        wanted = live.repeat_interleave(100)
        images, drawn = facets.generate(model, j, wanted, temperature=temperature, generator=generator(seed, "generate", j))  # fmt: skip
        found = facets.assignments(model, images)
        other, count = 1 - j, len(model.priors[1 - j].means)

        def spread(names, wanted=wanted, drawn=drawn[other], count=count, live=live):
            """Entropy of the other facet within each intended cluster, over that of what was drawn there."""
            return np.mean([facets.entropy(names[wanted == k], count) / facets.entropy(drawn[wanted == k], count) for k in live])  # fmt: skip

        rows.append(
            (
                float((found[j] == wanted).double().mean()),
                float((found[j] == wanted.roll(100)).double().mean()),
                spread(found[other]),
                spread(wanted % count),  # a rest that is fixed by the cluster
            )
        )
    return np.array(rows)


generated = np.array(
    [
        [generation(m, c, t) for t in TEMPERATURES]
        for m, c in zip(models[main], result[main]["clusters"])
    ]
)  # [seeds, temperatures, facets, 4]
half = generated[:, TEMPERATURES.index(0.5)]

# %% tags=["nbval-check-output"]
chapter.claim(
    "C10", agreement=half[:, :, 0].min(1), diversity=half[:, :, 2].min(1),
    control=dict(agreement=half[:, :, 1].min(1), diversity=half[:, :, 3].min(1)),
)  # fmt: skip

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(11, 4.2), width_ratios=(1, 1, 0.95))
for j, axis in zip((0, 1), axes):
    counts = torch.bincount(result[main]["clusters"][0][j])
    live = counts.argsort(descending=True)[: min(8, int((counts > 0).sum()))]
    images, _ = facets.generate(shown_model, j, live.repeat_interleave(10), temperature=0.5, generator=generator(seed, "shown", j))  # fmt: skip
    grid(axis, images, list(torch.arange(len(images)).view(-1, 10)), (3, 8, 8))
    axis.set(title=f"{('shallow', 'deep')[j]} facet: one cluster a row")
for j, (colour, name) in enumerate((("noise", "shallow"), ("highlight", "deep"))):
    values = generated[:, :, j, 0]
    axes[2].errorbar(TEMPERATURES, values.mean(0), yerr=values.std(0, ddof=1), color=COLOURS[colour], marker="o", capsize=3, label=f"{name}: agreement")  # fmt: skip
    axes[2].plot(TEMPERATURES, generated[:, :, j, 2].mean(0), color=COLOURS[colour], ls=":", label=f"{name}: diversity of the rest")  # fmt: skip
axes[2].set(
    xscale="log", xticks=TEMPERATURES, xlabel="temperature (factor of the variance)", ylim=(0, 1.1)
)
axes[2].set_xticklabels(TEMPERATURES)
axes[2].minorticks_off()
axes[2].legend(fontsize=8, loc="lower left")
chapter.show(
    fig,
    "mfcvae-generation",
    alt="Left and middle: rows of generated coloured digits, one row per cluster of the shallow and of the deep facet. Right: agreement with the intended cluster and entropy ratio of the other facet against temperature on a log axis.",
    caption=f"Samples at temperature 0.5 and what becomes of their clusters: agreement {half[:, 0, 0].mean():.2f} (shallow) and {half[:, 1, 0].mean():.2f} (deep), entropy of the other facet within a cluster "
    f"{half[:, 0, 2].mean():.2f} and {half[:, 1, 2].mean():.2f} of what was drawn, mean over {len(half)} seeds.",
    answers="the figure of generated samples per cluster",
)

# %% [markdown]
# ### When factors are correlated
#
# A product prior penalises dependence between facets, but does not say which facet holds what. If the colour is partly given by the digit, even perfect partitions share information: what counts as a *leak* is what a facet knows of the other
# factor beyond its own, $\mathrm{NMI}(c_j; \text{other}\mid\text{own})$, above its value for shuffled images.

# %%
RHO_NAMES = (main, ("rho", 1), ("rho", 2))


def leak(clusters, other, own, *purpose):
    """NMI(clusters; other | own) above its permutation null, averaged over the values of `own`."""
    stream, total = generator(seed, "leak", *purpose), 0.0
    for value in own.unique():
        rows = own == value
        a, b = clusters[rows], other[rows]
        null = np.mean([nmi(a, b[torch.randperm(len(b), generator=stream)]) for _ in range(10)])
        total += float(rows.double().mean()) * (nmi(a, b) - null)
    return total


def leaks(clusters, y):
    """Of the colour into the shallow facet, and of the digit into the deep one."""
    return leak(clusters[0], y[:, 1], y[:, 0], 0), leak(clusters[1], y[:, 0], y[:, 1], 1)


leaked = np.array(
    [
        [leaks(c, y_all[rho]) for c in result[name]["clusters"][:2]]
        for rho, name in enumerate(RHO_NAMES)
    ]
)  # [rho, seeds, facets]
# Models trained where the factors are independent, on the images of ρ = 0.9: what the measure alone makes of the correlation
unmoved = np.array([leaks(facets.assignments(m, x_all[2]), y_all[2]) for m in models[main][:2]])
shared_by = [[nmi(*c) for c in result[name]["clusters"][:2]] for name in RHO_NAMES]
given = [nmi(y[:, 0], y[:, 1]) for y in y_all]

# %% tags=["nbval-check-output"]
chapter.claim(
    "C11", shallow=leaked[2, :, 0] - leaked[0, :, 0], deep=leaked[2, :, 1] - leaked[0, :, 1],
    control=dict(shallow=unmoved[:, 0] - leaked[0, :, 0], deep=unmoved[:, 1] - leaked[0, :, 1]),
)  # fmt: skip

# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9))
for k in range(2):
    left.plot(RHOS, [row[k] for row in shared_by], color=COLOURS["noise"], marker="o", lw=1, label="the two partitions, one line per seed" if k == 0 else None)  # fmt: skip
    for j, colour, words in (
        (0, "regulariser", "colour in the shallow facet"),
        (1, "highlight", "digit in the deep facet"),
    ):
        right.plot(RHOS, leaked[:, k, j], color=COLOURS[colour], marker="os"[j], lw=1, label=words if k == 0 else None)  # fmt: skip
left.plot(RHOS, given, color="black", ls=":", label="digit and colour themselves")
right.axhline(0, color="black", lw=0.8)
left.set(xticks=RHOS, xlabel="chance that the digit gives the colour", ylabel="NMI", ylim=(0, None))
right.set(xticks=RHOS, xlabel="chance that the digit gives the colour", ylabel="NMI given the facet's own factor", title="leak, above shuffled images")  # fmt: skip
left.legend(fontsize=9)
right.legend(fontsize=9)
chapter.show(
    fig,
    "mfcvae-correlation",
    alt="Left: mutual information against the correlation of colour and digit at 0, 0.5 and 0.9, one line per seed for the two learned partitions and a dotted line for the factors. Right: the leak of the other factor into each facet, "
    "one line per seed and facet.",
    caption=f"Left: NMI of the two partitions {np.mean(shared_by[0]):.3f}, {np.mean(shared_by[1]):.3f} and {np.mean(shared_by[2]):.3f}, of the factors themselves {given[0]:.3f}, {given[1]:.3f} and {given[2]:.3f}. "
    f"Right: what a facet knows of the other factor beyond its own, at 0.9: {leaked[2, :, 0].mean():.3f} (shallow) and {leaked[2, :, 1].mean():.3f} (deep); "
    f"models trained at 0 and shown the images of 0.9 know {unmoved[:, 0].mean():.3f} and {unmoved[:, 1].mean():.3f}.",
)

# %% [markdown]
# ## Beyond the paper
#
# ### The bounds compared in training
#
# Same seeds, same budget, three objectives: the marginal bound (the released loss), the exact $L^*$, and VaDE's. All are then judged by the same importance-weighted bound on held-out images.

# %%
OBJECTIVES = {
    "marginal": models[main][: s.pairs],
    "closed": models["closed",],
    "vade": models["vade",],
}
quality, crisp, used, overlap, width = {}, {}, {}, {}, {}
for name, group in OBJECTIVES.items():
    found = [
        facets.bounds(m, x_test, draws=s.iwae, generator=generator(seed, "bounds")) for m in group
    ]
    quality[name] = {key: torch.tensor([float(f[key].mean()) for f in found]) for key in found[0]}
    per_rule = [facets.cluster_rules(m, x_all[0], draws=1, generator=generator(seed, "crisp")) for m in group]  # fmt: skip
    crisp[name] = np.array(
        [[float(f["closed"].max(-1).values.mean()) for f in one] for one in per_rule]
    )  # [seeds, facets]
    overlap[name], width[name] = [], []
    for m in group:
        stream = generator(seed, "overlap")
        per_facet = []
        for (mean_, std_), prior_, names in zip(
            m.encode(x_all[0]), m.priors, facets.assignments(m, x_all[0])
        ):
            drawn = torch.multinomial(
                prior_.log_weights().exp().cpu(), 4_000, replacement=True, generator=stream
            )
            largest = (
                prior_.responsibilities(prior_.sample(drawn.to(device), generator=stream))
                .max(-1)
                .values
            )
            own_width = std_ / prior_.variances()[names.to(device)].sqrt()
            per_facet.append((1 - float(largest.mean()), float(own_width.mean())))
        overlap[name].append([o for o, _ in per_facet])
        width[name].append([w for _, w in per_facet])
    used[name] = [len(c.unique()) for m in group for c in facets.assignments(m, x_all[0])[:1]]


def crispness(trained_on):
    """Measures of B1: the mean over facets decides, the facets stand beside it."""
    found = {"closed": crisp[trained_on], "marginal": crisp["marginal"]}
    return {name: values.mean(1) for name, values in found.items()} | {
        f"{name}_{facet}": values[:, j] for name, values in found.items() for j, facet in enumerate(("shallow", "deep"))
    }  # fmt: skip


# %% tags=["nbval-check-output"]
chapter.claim("B1", **crispness("closed"), control=crispness("vade"))

# %% tags=["hide-input"]
four = {
    "marginal": ("ladder", "progressive"),
    "4 samples": ("samples",),
    "L*": ("closed",),
    "VaDE": ("vade",),
}
fig, axes = plt.subplots(2, 3, figsize=(11, 6.6))
panels = (
    ([{k: c[:, j] for k, c in crisp.items()} for j in (0, 1)], "mean largest entry of q*(c | x)"),
    ([{k: q["marginal"] - q["closed"] for k, q in quality.items()}], "L_marg − L*, mean (nats)"),
    ([{k: q["iwae"] for k, q in quality.items()}], f"IWAE-{s.iwae}, test images (nats)"),
    (
        [{k: [o[j] for o in v] for k, v in overlap.items()} for j in (0, 1)],
        "overlap of the clusters",
    ),
    (
        [{k: [w[j] for w in v] for k, v in width.items()} for j in (0, 1)],
        "posterior over cluster width",
    ),
)
for axis, (values, title) in zip(axes.flat, panels):
    for j, facet_values in enumerate(values):
        for k in range(s.pairs):
            label = ("shallow facet", "deep facet")[j] if k == 0 and len(values) > 1 else None
            axis.plot(range(3), [float(facet_values[name][k]) for name in OBJECTIVES], marker="os"[j], lw=0.8, color=COLOURS[("noise", "highlight")[j]], label=label)  # fmt: skip
    axis.set(xticks=range(3), title=title)
    axis.set_xticklabels(["marginal", "L*", "VaDE"])
for k in range(s.pairs):
    axes[1, 2].plot(range(4), [float(digit_purity[name][k]) for name in four.values()], marker="o", color=COLOURS["noise"], lw=0.8)  # fmt: skip
axes[1, 2].set(xticks=range(4), title="digit purity of the best facet")
axes[1, 2].set_xticklabels(list(four))
axes[1, 0].legend(fontsize=9)
for axis in axes.flat:
    axis.margins(x=0.2, y=0.15)
    axis.title.set_fontsize(11)
purities = {
    name: float(digit_purity[key][: s.pairs].mean())
    for name, key in (("marginal", main), ("closed", ("closed",)), ("vade", ("vade",)))
}
iwae = {name: float(q["iwae"].mean()) for name, q in quality.items()}
chapter.show(
    fig,
    "mfcvae-bounds",
    alt="Six panels, one line per seed, over the training objectives: crispness of the clusters for both facets, gap between marginal bound and optimum, importance weighted bound on test images, overlap of clusters and relative width of posteriors for both facets, and digit purity, the last with four samples as well.",
    caption=f"Trained on three bounds, one line per seed. Mean largest entry of q*: {np.mean(crisp['marginal']):.3f} (marginal), {np.mean(crisp['closed']):.3f} (L*), {np.mean(crisp['vade']):.3f} (VaDE); "
    f"held-out IWAE {iwae['marginal']:.1f}, {iwae['closed']:.1f} and {iwae['vade']:.1f} nats; digit purity {purities['marginal']:.2f}, {purities['closed']:.2f} and {purities['vade']:.2f}; clusters used by the shallow facet "
    f"{np.mean(used['marginal']):.1f}, {np.mean(used['closed']):.1f} and {np.mean(used['vade']):.1f}.",
)

# %% [markdown]
# ### Choosing a model without labels
#
# Users of deep clustering ask for a selection rule that does not peek at labels. A candidate is the bound itself, on held-out images, over seeds and variants.

# %%
ranked = [m for name in VARIANTS for m in models[name]]
marginal_bound = torch.tensor(
    [float(facets.bounds(m, x_test, draws=min(s.iwae, 8), generator=generator(seed, "select"))["marginal"].mean()) for m in ranked]
)  # fmt: skip
label_score = torch.cat([digit_purity[name] for name in VARIANTS])
within = {name: float(spearmanr(marginal_bound[k * s.seeds : (k + 1) * s.seeds], digit_purity[name]).statistic) for k, name in enumerate(VARIANTS)}  # fmt: skip


def chosen_by(bound):
    """Regret of the model with the best `bound`, and the chance that a model picked at random is as good."""
    score = label_score[bound.argmax()]
    return dict(
        regret=float(label_score.max() - score),
        chance=float((label_score >= score).double().mean()),
    )


choice = chosen_by(marginal_bound)
mixed_up = marginal_bound[torch.randperm(len(ranked), generator=generator(seed, "mixed"))]
mixed_within = [float(spearmanr(mixed_up[k * s.seeds : (k + 1) * s.seeds], digit_purity[name]).statistic) for k, name in enumerate(VARIANTS)]  # fmt: skip

# %% tags=["nbval-check-output"]
chapter.claim(
    "B2",
    within=list(within.values()),
    **choice,
    control=dict(within=mixed_within, **chosen_by(mixed_up)),
)

# %% tags=["hide-input"]
fig, axis = plt.subplots(figsize=(7.4, 4))
for k, (name, colour, marker) in enumerate(
    zip(VARIANTS, ("noise", "highlight", "regulariser", "theory", "control"), "osvD^")
):
    part = slice(k * s.seeds, (k + 1) * s.seeds)
    axis.scatter(marginal_bound[part], label_score[part], color=COLOURS[colour], marker=marker, s=45, label=", ".join(name))  # fmt: skip
axis.set(xlabel="marginal bound on test images (nats)", ylabel="digit purity of the best facet")
axis.legend(fontsize=9)
chapter.show(
    fig,
    "mfcvae-selection",
    alt="Scatter of digit purity against the marginal bound on test images, one dot per model, five markers for the variants of network and training.",
    caption=f"The model with the best bound loses {choice['regret']:.3f} of digit purity against the best one; a model picked at random does as well or better with probability {choice['chance']:.2f}. Rank correlation within a variant ({s.seeds} seeds each): "
    + ", ".join(f"{value:.2f}" for value in within.values())
    + f"; over all {len(ranked)} models, which differ mostly by variant, {float(spearmanr(marginal_bound, label_score).statistic):.2f}.",
)

# %% [markdown]
# ### Who learns what
#
# In phase 0 the deep facet trains alone. Which factor does it take? The colours are dimmed, so that they hold less of the pixel variance, and the facet is given one to eight dimensions.

# %%
STRENGTHS, DEEP = (1.0, 0.4, 0.1), (1, 2, 8)
dimmed = [coloured_digits("train", strength=strength) for strength in STRENGTHS]
dimmed_x = [sets.x.flatten(1) for sets in dimmed]
dimmed_y = dimmed[0].y.cpu()


def share(x, labels):
    """Share of pixel variance that lies between the classes of `labels`."""
    means = torch.stack([x[labels == c].mean(0) for c in range(int(labels.max()) + 1)])[labels]
    return float((means - x.mean(0)).square().sum() / (x - x.mean(0)).square().sum())


shares = [[share(x.cpu(), dimmed_y[:, f]) for f in (0, 1)] for x in dimmed_x]  # digit, colour
phase_seeds = seeds[:2]
known, before = {}, {}
for deep in DEEP:
    groups = trained(
        lambda g: MFCVAE(DenseShared(inputs, (s.width,) * 2, (deep,)), (deep,), (8,), sigma=DIGITS["sigma"], learn_weights=False, generator=g),
        dimmed_x, [(k, "marginal", False, which) for which in range(len(STRENGTHS)) for k in phase_seeds],
        steps=s.phase, lr=s.lr, batch=s.batch, latents=(deep,),
    )  # fmt: skip
    for which in range(len(STRENGTHS)):
        for store, group in zip((known, before), groups):
            store[deep, which] = torch.cat(
                [
                    facets.information(facets.assignments(m, dimmed_x[which])[:1], dimmed_y)
                    for m in group[which * 2 : which * 2 + 2]
                ]
            )  # [seeds, factors]


def advantage(found):
    """NMI with colour minus with digit, per seed."""
    return found[:, 1] - found[:, 0]


def who(nets):
    """Measures of B3, of facets with two dimensions."""
    moves = {
        name: advantage(nets[2, which]) for which, name in enumerate(("strong", "middle", "weak"))
    }
    return moves | dict(digit_share=shares[1][0], colour_share=shares[1][1])


learned = who(known)
on_pixels = [advantage(torch.cat([facets.information([k_means(x.cpu(), 8, k)], dimmed_y) for k in phase_seeds])) for x in dimmed_x]  # fmt: skip

# %% tags=["nbval-check-output"]
chapter.claim("B3", **learned, control=who(before))

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.6))
ticks = [f"{strength:g}\n({100 * colour_:.0f}% / {100 * digit_:.0f}%)" for strength, (digit_, colour_) in zip(STRENGTHS, shares)]  # fmt: skip
for axis, factor, name in zip(axes, (0, 1), ("digit", "colour")):
    values = np.array([[float(known[deep, which][:, factor].mean()) for which in range(len(STRENGTHS))] for deep in DEEP])  # fmt: skip
    matrix(axis, values, [str(deep) for deep in DEEP], ticks, f"NMI with {name}")
    axis.set(
        xlabel="strength of the colours (share of variance: colour / digit)",
        ylabel="dimensions of the deep facet",
    )
chapter.show(
    fig,
    "mfcvae-who",
    alt="Two tables over dimensions of the deep facet and strength of the colours: mutual information of the facet's clusters with the digit, and with the colour.",
    caption=f"The deep facet trained alone, eight clusters, {s.phase} steps, mean of {len(phase_seeds)} seeds. With two dimensions it knows colour better than digit by {float(learned['strong'].mean()):.2f}, {float(learned['middle'].mean()):.2f} and "
    f"{float(learned['weak'].mean()):.2f} at the three strengths (k-means with eight clusters on the pixels: {', '.join(f'{float(a.mean()):.2f}' for a in on_pixels)}), where colour has {100 * shares[0][1]:.0f}, {100 * shares[1][1]:.0f} and {100 * shares[2][1]:.0f}% of the variance and the digit {100 * shares[0][0]:.0f}, {100 * shares[1][0]:.0f} and {100 * shares[2][0]:.0f}%.",
)
chapter.keep(
    nmi=result[main]["nmi"].mean(0),
    digit_purity=torch.stack([digit_purity[name] for name in VARIANTS]),
    mnist_purity=mnist["purity"][:, 0],
    rooms=torch.stack([rooms[k] for k in ROOM_MEASURES]),
)

# %% [markdown]
# ## Ledger

# %%
chapter.ledger()

# %% [markdown]
# ## At paper scale

# %% tags=["hide-input"]
paper_scale = chapter.paper_scale(
    "the released MNIST configuration with ten seeds, rooms with the 3DShapes configuration, twenty seeds of each variant on coloured digits"
)
if paper_scale:
    kept = paper_scale["series"]
    paper_rows = ((0.9202, 0.0302, kept["mnist_purity"], "MNIST digit"), *zip((0.9946, 0.8847, 1.0, 0.9005), (0.011, 0.0182, 0.0, 0.0265), kept["rooms"], ("floor hue", "shape (floor)", "wall hue", "shape (wall)")))  # fmt: skip
    fig, axis = plt.subplots()
    for place, (mean_, deviation, values, name) in enumerate(paper_rows):
        axis.errorbar(place - 0.12, mean_, yerr=deviation, fmt="s", color=COLOURS["baseline"], capsize=4, label="paper" if place == 0 else None)  # fmt: skip
        axis.scatter([place + 0.12] * len(values), values, color=COLOURS["noise"], s=25, label="ours" if place == 0 else None)  # fmt: skip
    axis.set(xticks=range(5), ylabel="purity", ylim=(0, 1.05))
    axis.set_xticklabels([row[3] for row in paper_rows])
    axis.legend()
    chapter.show(
        fig,
        "mfcvae-paper-scale",
        alt="Purity on MNIST and on rooms at the released configurations: the paper's means with standard deviations and our values beside them.",
        caption="The released configurations, redrawn from the recorded run; our rooms are not the paper's images.",
        answers="the results table",
    )

# %% [markdown]
# ## Where it breaks
#
# What is said here of a measurement was found in the recorded `cpu` run; the ledger has the numbers of the run on this page.
#
# - **The obvious rival wins** (C8d). k-means for the colour, the centres subtracted, k-means again on the rest: it finds the digit better than the model on both coloured sets, in a second. What the model adds is a decoder (swaps, samples), not the better partition,
#   at these sizes and budgets.
# - **The exact bound did not cluster better** (three seeds). The optimum of $q(c\mid x)$ answers the question the theorem asks. As a training objective $L^*$ charges $-\log Z$ for every posterior that straddles clusters, and the model saves the charge not with
#   crisper posteriors in the shallow facet, as our plan predicted before any run (B1), but with clusters that *overlap* there, in every seed ({numref}`mfcvae-bounds`): $-\log Z=0$ also where $p(c\mid z)$ does not depend on $z$. In the deep facet the overlap rises in every seed too, by less, and crispness falls or rises with the seed.
#   The released single-sample loss, which by {prf:ref}`prop-mfcvae-cancel` contains no $q(c\mid x)$ at all, finds the crisper shallow partition.
# - **Rules for $q(c\mid x)$ do not always name the same cluster after training** (C5b): the deep facet has eight clusters for five colours, and the rules choose differently among those of one colour. The labels they vote for are the same for nearly all images.
# - **Which factor a facet takes** follows pixel variance only roughly (B3): dimmed to 0.4 the colour has the smaller share, and the facet still takes it, where k-means on the pixels takes the digit ({numref}`mfcvae-who`). So "shallow" does not mean "style": on coloured digits the *shallow* facet holds the digit, because the deep one was trained first and took the colour; on MNIST it is the deep one.
# - **Stroke style only in part** (C6c). On MNIST the shallow facet takes thickness; slant stays with the digit in the deep facet at this budget.
# - **MNIST at a fraction of the budget** (C8b; passes over the data are printed beside {numref}`mfcvae-mnist`). Below k-means at the same number of clusters; the paper's 92 % took 402 passes over 60,000 images. In trial runs that are not recorded, learned weights starved
#   clusters at this budget, so the `cpu` profile keeps them uniform.
# - **Colours are easy to lose.** In trial runs that are not recorded, brighter colours or a smaller $\sigma$ let the likelihood outweigh the prior: a cluster covers two colours early and never lets go, and more clusters do not help. The headline's regime
#   had to be found, with labels, on other seeds but on the same images.
# - **Samples at temperature ½** keep their cluster less often than asked (C10). A first run, on other seeds and with diversity pooled over clusters, had passed.
# - **Correlated factors leak** (C11), into the deep facet more than into the shallow one; but the two partitions share *less* than the factors do, as a product prior asks.
# - **Purity is generous.** It counts many clusters per label; the table beside C8c has Hungarian accuracy, NMI and ARI. NMI on a few hundred images is biased upwards by more than the differences at stake: see {ref}`ex-mfcvae-nmi`.
# - **Not the paper's data.** Coloured digits, coloured MNIST and our rooms stand where the paper has SVHN and 3DShapes; group norms stand where it has batch norms, whose codes depend on the other images of a batch.
# - **A control that shows little** (C7a): the jointly trained ladder in the place of the whole recipe is compared, in the condition on leakage, with the jointly trained variant that leaks least. Where that is the ladder itself, a strict inequality with itself fails by arithmetic.
# - **Bernoulli on grey values** is not a normalised density, so MNIST's nats are never compared across models here.
#
# And with the numbers of the run on this page:

# %% tags=["hide-input"]
merged = int((result[main]["purity"][:, 1] < 0.9).sum())
display(Markdown(
    f"- **What separates the facets is mostly the order of training**, and the ladder helps. Joint training entangles them with either gate: larger NMI off the diagonal {float(least_mixed.mean()):.2f} at best. Shared networks trained progressively have {float(mixing['shared', 'progressive'].mean()):.3f}, the ladder {float(mixing[main].mean()):.3f}, "
    f"less in {int((mixing[main] < mixing['shared', 'progressive']).sum())} of {s.seeds} seeds; shared ones merge colours in {int((result['shared', 'progressive']['purity'][:, 1] < 0.9).sum())} of {s.seeds}. Whether they differ in digit purity is decided in C7b. Whether the recipe also fixes *which* facet is which these seeds do not show: "
    f"{round(consistency[main] * s.seeds)} of {s.seeds} seeds keep the roles, against {round(best_joint * s.seeds)} of {s.seeds} for the best joint variant (C7a).\n"
    f"- **The headline is close to its thresholds** (C6a). The smallest purity of a seed is {float(result[main]['purity'][:, 0].min()):.2f} for the digit and {float(result[main]['purity'][:, 1].min()):.2f} for the colour; {merged} of {s.seeds} seeds merge two colours, and one of five did in an earlier run with other starts of the means.\n"
    f"- **Rounding moves a seed, too.** In trials, the same seed trained beside other members of an ensemble differed in digit purity by anything from 0.001 to 0.05. "
    f"The mean differences that C5a judges are {float(over_one_sample(('samples',)).mean()):+.3f} (four samples) and {float(over_one_sample(('closed',)).mean()):+.3f} (closed form); chapter 10 is about such differences."
))  # fmt: skip

# %% [markdown]
# ## Exercises
#
# ```{exercise} When do the rules disagree?
# :label: ex-mfcvae-rules
# All rules name the same cluster when posteriors are narrow compared with the clusters. For two clusters with unequal *variances*, find a posterior $\mathcal N(m, s^2)$ for which the optimum and $p(c\mid m)$ name different clusters. Which term does it?
# ```
#
# ````{solution-start} ex-mfcvae-rules
# :class: dropdown
# ````
# The trace term $-s^2/(2\sigma_k^2)$: it is large for the narrow cluster, so a wide posterior centred on a narrow cluster belongs to the wide one.

# %%
pair = MixturePrior(2, 1, generator=generator(seed, "exercise")).requires_grad_(False)
pair.means.copy_(torch.tensor([[0.0], [1.0]]))
pair.raw.copy_(torch.tensor([[0.1], [2.0]]))
for s_wide in (0.1, 0.5, 1.0):
    m_, s_ = torch.tensor([[0.0]]), torch.tensor([[s_wide]])
    print(f"s = {s_wide}: optimum {pair.responsibilities(m_, s_)[0].tolist()}, p(c|m) {pair.responsibilities(m_)[0].tolist()}")  # fmt: skip

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} How biased is NMI?
# :label: ex-mfcvae-nmi
# The claim C6a asks for an NMI of at most 0.05. What NMI do *independent* partitions with 20 and 5 cells have on 100, 355 and 1,797 images? Derive the first-order value and compare.
# ```
#
# ````{solution-start} ex-mfcvae-nmi
# :class: dropdown
# ````
# The plug-in mutual information of independent partitions is about $\chi^2_{(K-1)(C-1)}/2n$, in the mean $(K-1)(C-1)/2n$, over the mean entropy $\tfrac12(\log 20+\log5)$.

# %%
for count in (100, 355, 1_797):
    stream = generator(seed, "bias", count)
    draws_ = [nmi(torch.randint(20, (count,), generator=stream), torch.randint(5, (count,), generator=stream)) for _ in range(50)]  # fmt: skip
    print(f"n = {count:5d}: measured {np.mean(draws_):.3f}, first order {19 * 4 / (2 * count) / (0.5 * math.log(100)):.3f}")  # fmt: skip

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} VaDE's weight to the power of D
# :label: ex-mfcvae-power
# VaDE's released code adds $\log\pi_c$ inside the sum over the $D$ latent dimensions, so it uses $\pi_c^D$. At which weights does a point half-way between two equal clusters change sides?
# ```
#
# ````{solution-start} ex-mfcvae-power
# :class: dropdown
# ````
# Half-way between equal clusters only the weights decide: odds of $\pi_1/\pi_2$ become $(\pi_1/\pi_2)^D$. No side changes, but confidence does: at $\pi=(0.55,0.45)$ and $D=10$ it is 0.88 instead of 0.55.

# %%
odds = 0.55 / 0.45
for dimensions in (1, 10):
    print(f"D = {dimensions:2d}: {odds**dimensions / (1 + odds**dimensions):.2f}")

# %% [markdown]
# ````{solution-end}
# ````

# %%
chapter.finish()
