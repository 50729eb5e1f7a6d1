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
# (ch-robustness-theory)=
# # Towards a theoretical understanding of the robustness of VAEs
#
# *Camuto, Willetts, Roberts, Holmes and Rainforth, AISTATS 2021* {cite}`camuto2021robustness`
#
# <!-- chips -->
#
# What should "robust" mean for a model whose output is continuous *and* random? The paper's answer: a perturbation is harmless if the reconstruction is more likely than not to
# stay within $r$ of where it was. From the encoder's own noise it derives a lower bound on the size of a harmful perturbation, which grows with the posterior scale and falls
# with the encoder's Jacobian, and from that an account of why $\beta$-VAEs are harder to attack. We derive the bound, find where it is tight, attack trained networks, and tell the whole
# trade-off.

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
from types import SimpleNamespace

import matplotlib.pyplot as plt
import torch
from companion.analysis.attacks import pgd, project
from companion.analysis.latent_attacks import penalised_attack
from companion.analysis.latent_margins import (
    certified_margin,
    clean_probability,
    encoder_slopes,
    first_order_margins,
    judge,
    maximum_damage,
    member_deviation,
    one_step,
    pullback_directions,
    refined,
    shift_jacobian,
    strongest,
)
from companion.analysis.lipschitz import product_bound
from companion.analysis.margin_profile import two_draws
from companion.analysis.quadratic_forms import linear_margin, quadratic_cdf
from companion.analysis.robustness import clopper_pearson
from companion.chapters import Chapter
from companion.chapters.figures import COLOURS
from companion.data import Batches
from companion.models.robustness_theory import (
    SeatbeltVAE,
    deviation,
    fixed_scale,
    linear_beta_elbo,
    linear_beta_vae,
    log_likelihood,
    normal_kl,
    normal_w2,
    optimal_std,
    output_objective,
    seatbelt_loss,
    stretched,
    total_correlation,
    unit_noise,
    vae,
    vae_loss,
)
from companion.nn.gaussian_vae import gaussian_kl, mlp
from companion.nn.jacobians import jacobians
from companion.seeds import generator, member_seeds
from companion.train import Ensemble, fit
from companion.train.loop import cosine
from IPython.display import Markdown, display
from scipy.stats import binom, page_trend_test, pearsonr, spearmanr
from scipy.stats import t as student
from torch.special import ndtr, ndtri

chapter = Chapter("03_robustness_theory", profile=profile, seed=seed)

# %% [markdown]
# The settings of the three profiles differ in sizes, steps, seeds and data, never in method. All radii are Euclidean, in units of pixel intensity between 0 and 1. The paper's
# architectures, $\beta$ grid and $r$ were not available to us; ours are these.

# %% tags=["hide-input"]
s = chapter.settings(
    smoke=dict(
        images=("digits",), hidden=(64, 64), latents=5, variance=0.01, betas=(0.5, 1, 2, 4, 8), penalties=(4, 8), seeds=1, steps=350, other_steps=0,
        batch=64, lr=4e-3, levels=(0.4, 0.75, 1.1, 1.5, 2.2), main=3, radii=(0.15, 1.8, 12), test=8, p0_draws=2_000, test_draws=200,
        attack_draws=8, attack_steps=12, restarts=1, damage=(0.2, 0.4, 0.8, 1.6), scales=8, pairs=4, strengths=5, latent_steps=30,
        instances=20, draws=3_000, rays=300, linear=8, rows=4_000,
    ),
    cpu=dict(
        images=("mnist", "fashion_mnist"), hidden=(128, 128), latents=8, variance=0.05, betas=(0.5, 1, 2, 4, 8, 16), penalties=(4, 8), seeds=2, steps=1_000, other_steps=800,
        batch=64, lr=2e-3, levels=(1.0, 2.0, 3.0, 4.0, 6.0), main=3, radii=(0.35, 4.2, 12), test=10, p0_draws=4_000, test_draws=200,
        attack_draws=8, attack_steps=16, restarts=1, damage=(0.5, 1.0, 2.0, 4.0), scales=12, pairs=8, strengths=7, latent_steps=60,
        instances=30, draws=8_000, rays=800, linear=16, rows=4_000,
    ),
    gpu=dict(
        images=("mnist", "fashion_mnist"), hidden=(512, 512), latents=10, variance=0.05, betas=(0.5, 1, 2, 3, 4, 6, 8, 16), penalties=(2, 4, 8), seeds=2, steps=12_000, other_steps=12_000,
        batch=128, lr=1e-3, levels=(1.0, 2.0, 3.0, 4.0, 6.0), main=3, radii=(0.2, 5.0, 25), test=100, p0_draws=100_000, test_draws=1_000,
        attack_draws=16, attack_steps=50, restarts=2, damage=(0.5, 1.0, 2.0, 4.0), scales=16, pairs=20, strengths=21, latent_steps=200,
        instances=100, draws=50_000, rays=4_000, linear=64, rows=40_000,
    ),
)  # fmt: skip
device = chapter.device
levels, radii = torch.tensor(s.levels), torch.linspace(*s.radii[:2], s.radii[2])
r_main = s.levels[s.main]

# %% [markdown]
# ## The effect in one picture
#
# A sweep of VAEs over $\beta$ and seeds, trained as one batched program; total-correlation VAEs ride along for later. For every test image: the paper's bound, and the norm of the smallest
# attack that we found to break $r$-robustness.

# %% tags=["hide-input"]
seeds = member_seeds(seed, s.seeds)
FULL = [("beta", b) for b in s.betas] + [("tc", b) for b in s.penalties]
BETAS = FULL[: len(s.betas)]


def hyper_of(members):
    """The weights of KL and TC of each member: (beta, 0) for a beta-VAE, (1, beta − 1) for a beta-TCVAE."""
    return {
        "beta": torch.tensor([float(b) if kind == "beta" else 1.0 for (kind, b), _ in members]),
        "tc": torch.tensor([0.0 if kind == "beta" else float(b) - 1 for (kind, b), _ in members]),
    }


def networks(data, arms, of_seeds):
    """Members (arm, seed) with the same initial weights for one seed, as an ensemble."""
    members = [(arm, m) for arm in arms for m in of_seeds]
    sizes = (data.x[0].numel(), *s.hidden)
    return members, Ensemble(
        [vae(sizes, s.latents, generator=generator(m, "vae")) for _, m in members]
    ).to(device)


def feeds(data, members):
    flat = data.x.flatten(1)
    return [Batches(flat, batch_size=s.batch, seed=m) for _, m in members]


def train(data, arms, steps, name, of_seeds):
    """The trained ensemble of all arms and seeds, and its members."""
    members, ensemble = networks(data, arms, of_seeds)
    fit(
        ensemble, vae_loss(s.variance), feeds(data, members), seed=[m for _, m in members], steps=steps, lr=s.lr,
        schedule=cosine, noise=unit_noise(s.latents), hyper=hyper_of(members), record_every=steps, desc=name,
    )  # fmt: skip
    return members, ensemble.requires_grad_(False)


def measure(ensemble, x, purpose, build=deviation, latents=s.latents):
    """Clean probabilities, attacks and attacked margins of every member and image: each step is one batched call."""
    shape = (len(ensemble), len(x))
    wide, stream = (
        x.repeat(len(ensemble), 1),
        lambda what: generator(seed, purpose, what, device=device),
    )
    dev = member_deviation(ensemble, build, len(x), rows=s.rows)
    limits = levels.to(x)
    p0, low = clean_probability(
        dev, wide, limits, latents=latents, draws=s.p0_draws, level=0.999, generator=stream("p0")
    )
    ascent = maximum_damage(
        dev,
        wide,
        radii,
        latents=latents,
        draws=s.attack_draws,
        steps=s.attack_steps,
        restarts=s.restarts,
        generator=stream("attack"),
    )
    along = ensemble.call(lambda m: pullback_directions(m, x)[:, 0]).flatten(0, 1)
    both = torch.cat(
        [ascent[None], one_step(wide, along, radii)]
    )  # what ascent misses, one step may find
    delta = strongest(
        dev, wide, both, latents=latents, draws=2 * s.attack_draws, generator=stream("choice")
    )
    seen = judge(
        dev, wide, delta, limits, latents=latents, draws=s.test_draws, generator=stream("judge")
    )
    fine = refined(
        dev,
        wide,
        delta,
        seen.radius[s.main],
        r_main,
        latents=latents,
        draws=s.test_draws,
        generator=stream("fine"),
    )
    per = lambda t: t.unflatten(-1, shape)
    return SimpleNamespace(
        p0=per(p0), low=per(low), ascent=ascent, delta=delta.unflatten(1, shape), coarse=per(seen.radius), share=per(seen.share),
        median=per(seen.median), margin=per(fine).clamp_max(float(radii[-1])), unclipped=per(fine),
    )  # fmt: skip  # margins beyond the grid count as its end


def read_bounds(ensemble, x, low):
    """Posterior scale, encoder Jacobian and the three first-order bounds, [levels, members, images]."""
    mean, std = ensemble.call(lambda m: m.encode(x))
    jacobian = ensemble.call(lambda m: shift_jacobian(m, x))
    bounds = first_order_margins(low, std.double().cpu(), jacobian.double().cpu())
    return SimpleNamespace(mean=mean, std=std.cpu(), jacobian=jacobian.cpu(), **bounds)


sets, runs = {}, {}
for name in s.images:
    sets[name] = {
        split: chapter.load(name, split, fallback="digits") for split in ("train", "test")
    }
    arms, steps, used = (BETAS, s.other_steps, seeds[:1]) if runs else (FULL, s.steps, seeds)
    members, ensemble = train(sets[name]["train"], arms, steps, name, used)
    x = sets[name]["test"].x.flatten(1)[: s.test]
    run = SimpleNamespace(members=members, ensemble=ensemble, x=x, arms=arms)
    run.seen = measure(ensemble, x, name)
    run.read = read_bounds(ensemble, x, run.seen.low)
    run.beta_rows = [i for i, ((kind, _), _) in enumerate(members) if kind == "beta"]
    runs[name] = run
main = runs[s.images[0]]
NAMES = {"digits": "digits", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
title = NAMES[s.images[0]]


def rows_of(run, kind=None, weight=None, member=None):
    """Indices of the members of a run with this kind, weight and seed."""
    return [i for i, ((k, b), m) in enumerate(run.members)
            if kind in (None, k) and weight in (None, b) and member in (None, m)]  # fmt: skip


# %% tags=["hide-input"]
def weight_colours(values):
    shades = plt.get_cmap("viridis")(torch.linspace(0, 0.9, len(values)).numpy())
    return dict(zip(values, shades))


SHADES = weight_colours(s.betas)


def scatter(axis, run, form="frobenius"):
    """Attacked margin against a bound, one colour per beta, with y = x and the least-squares line."""
    bound, margin = getattr(run.read, form)[s.main], run.seen.margin
    for b in s.betas:
        at = rows_of(run, "beta", b)
        axis.scatter(
            bound[at].flatten(),
            margin[at].flatten(),
            s=16,
            color=SHADES[b],
            alpha=0.8,
            label=f"β = {b:g}",
        )
    flat_b, flat_m = bound[run.beta_rows].flatten(), margin[run.beta_rows].flatten()
    line = torch.linspace(0, float(flat_b.max()) * 1.05, 2)
    axis.plot(line, line, color="black", ls="--", lw=1.2, label="y = x")
    centred = flat_b - flat_b.mean()
    gradient = float((centred * flat_m).sum() / centred.square().sum())
    axis.plot(
        line,
        flat_m.mean() + gradient * (line - flat_b.mean()),
        color=COLOURS["highlight"],
        lw=1.2,
        label="least squares",
    )
    axis.set(
        xlabel=f"{form} bound (l2 norm)",
        ylabel="attacked margin (l2 norm)",
        ylim=(0, None),
        xlim=(0, None),
    )
    return gradient


def quality(run, data, count=1_000):
    """Likelihood, reconstruction error, KL and TC of every member on test images, [members] each."""
    x = data.x.flatten(1)[:count]
    eps = torch.randn(len(x), s.latents, generator=generator(seed, "quality")).to(device)

    def one(model):
        mean, std = model.encode(x)
        z = mean + std * eps
        error = -log_likelihood(x, model.decode(z), s.variance).mean()
        return torch.stack([
            -error, (model.reconstruct(x) - x).norm(dim=-1).mean(), gaussian_kl(mean, std).mean(), total_correlation(z, mean, std),
        ])  # fmt: skip

    likelihood, error, kl, tc = run.ensemble.call(one).T.cpu()
    return SimpleNamespace(likelihood=likelihood, error=error, kl=kl, tc=tc)


for name, run in runs.items():
    run.quality = quality(run, sets[name]["test"])
mean_image = sets[s.images[0]]["train"].x.flatten(1).mean(0)
test_flat = sets[s.images[0]]["test"].x.flatten(1)
constant_error = float((test_flat - mean_image).norm(dim=-1).mean())
constant_errors = {
    name: float((two["test"].x.flatten(1) - two["train"].x.flatten(1).mean(0)).norm(dim=-1).mean())
    for name, two in sets.items()
}

fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8))
hero_slope = scatter(left, main)
left.set_title(f"{title}, r = {r_main:g}")
fig.legend(*left.get_legend_handles_labels(), fontsize=8, ncols=8, loc="outside lower center")
for kind, role, label in (("beta", "noise", "β-VAE"), ("tc", "regulariser", "β-TCVAE")):
    weights = s.betas if kind == "beta" else s.penalties
    error = [main.quality.error[rows_of(main, kind, b)].mean() for b in weights]
    # The same images under every seed: averaged over seeds first, so that an interval counts images.
    margin = torch.stack([main.seen.margin[rows_of(main, kind, b)].mean(0) for b in weights])
    images = margin.shape[1]
    right.errorbar(
        error,
        margin.mean(1),
        student.ppf(0.975, images - 1) * margin.std(1) / images**0.5,
        marker="o",
        capsize=3,
        color=COLOURS[role],
        label=label,
    )
    for b, e, m in zip(weights, error, margin.mean(1)):
        right.annotate(
            f"{b:g}",
            (e, m),
            textcoords="offset points",
            xytext=(5, 5 if kind == "beta" else -13),
            fontsize=9,
        )
right.set(
    xlabel="reconstruction error (l2 norm)",
    ylabel="mean attacked margin (l2 norm)",
    title="What it costs (labels: β)",
)
right.legend()
pooled = pearsonr(
    main.read.frobenius[s.main][main.beta_rows].flatten(),
    main.seen.margin[main.beta_rows].flatten(),
)[0]
above = float((main.read.frobenius[s.main] > main.seen.unclipped).double().mean())
censored = main.seen.unclipped[rows_of(main, "beta", s.betas[-1])].isinf().double().mean()
draws_note = f"N = {s.p0_draws:,} draws for p₀, so that Φ⁻¹ is at most {float(ndtri(clopper_pearson(torch.tensor([s.p0_draws]), s.p0_draws, 0.999)[0])):.2f}"
chapter.show(
    fig,
    "robustness-hero",
    alt="Left: attacked margin against the bound for images under VAEs of different beta, all points far above the dashed diagonal. Right: mean attacked margin against "
    "reconstruction error, labelled by beta, for beta-VAEs and beta-TCVAEs, with error bars.",
    caption=f"The bound is above the attacked margin for {100 * above:.0f}% of images; the two correlate at {pooled:.2f}, over a margin that is {float((main.seen.margin / main.read.frobenius[s.main].clamp_min(1e-9)).median()):.0f} "
    f"times larger (median). What a margin costs in reconstruction is on the right. Bars: 95% intervals over images (margins averaged over seeds; at the largest β {100 * censored:.0f}% are censored: not broken within the grid, they count as its end). {draws_note}.",
    answers="scatter of numerical margin against bound",
)

# %% [markdown]
# ## Derive
#
# ### What is robust?
#
# The encoder gives $q(z\mid x)=\mathcal{N}(\mu(x),\mathrm{diag}\,\sigma(x)^2)$, the decoder a mean $g(z)$. The stochastic reconstruction is $f(x)=g(\mu(x)+\sigma(x)\odot\eta)$ with $\eta\sim\mathcal{N}(0,I)$.
# The paper compares it with the *deterministic* reconstruction $g(\mu(x))$:
#
# $$D(x,\delta)=\|g(\mu(x+\delta)+\sigma(x+\delta)\odot\eta)-g(\mu(x))\|,\qquad p_0(x,r)=P(D(x,0)\le r).$$
#
# :::{prf:definition} r-robustness and its margin
# :label: def-r-robust
# The reconstruction of $x$ is $r$-robust to $\delta$ if $P(D\le r)>P(D>r)$. The margin $R^r(x)$ is the largest $R$ such that it is $r$-robust to every $\|\delta\|<R$; it is 0 if $p_0\le\tfrac12$.
# :::
#
# Chapter 4's paper {cite}`barrett2022certifiably` defines the same words differently ({prf:ref}`def-two-draw-robustness`). Side by side:
#
# | | this chapter | chapter 4 |
# |---|---|---|
# | reference | $g(\mu(x))$, deterministic | $g(z)$, $z\sim q(\cdot\mid x)$: a second, independent draw |
# | probability | over one draw, $P_1$ | over two draws, $P_2$ |
# | held fixed in the theory | $p_0$ and $\sigma$ | Lipschitz constants of $\mu$, $\sigma$, $g$ |
# | effect of $\sigma$ on the bound | rises with $\min_i\sigma_i$ (noise blurs the shift) | falls with $\|\sigma\|_2$ (noise uses up $r$) |
# | status of the bound | first order: an estimate | a certificate |
#
# The signs in the fourth row do not contradict each other: $p_0$ depends on $\sigma$ too. {numref}`sigma-paradox` shows both on one network, and chapter 4 refers to it.
#
# :::{prf:lemma} A median, and a bridge between the two definitions
# :label: lem-median
# $x$ is $r$-robust to $\delta$ exactly if $P(D\le r)>\tfrac12$; for continuous $D$ with a unique median, if that median is below $r$. And $P_2(r;\delta)\ge P_1(r/2;\delta)\,p_0(x,r/2)$, so
# $P_2(r)\ge P_1(r/2)^2$ without a perturbation.
# :::
#
# :::{prf:proof}
# The two probabilities of the definition add up to one. For the bridge, two independent draws, one of each posterior, each within $r/2$ of $g(\mu(x))$, are within $r$ of each other.
# :::
#
# So robustness to *one* perturbation can be certified from samples by an exact binomial (Clopper-Pearson) interval; the normal approximation cannot do that, as its control below shows. Everything in this section
# runs in double precision on random, strongly curved decoders.

# %% tags=["hide-input"]
torch.set_default_dtype(torch.float64)  # theorems are checked in double precision


def slope(x, y):
    """Least-squares slope of log y against log x."""
    x, y = torch.log(torch.as_tensor(x)), torch.log(torch.as_tensor(y))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def normals(*shape, purpose):
    return torch.randn(*shape, generator=generator(seed, "theory", *purpose))


cases = s.instances
decoders = Ensemble(
    [mlp((4, 24, 10), "tanh", generator=generator(m, "decoder")) for m in member_seeds(seed, cases)]
).requires_grad_(False)
for name, weight in decoders.named_parameters():
    weight.mul_(3 if name.endswith("weight") else 1)  # strongly nonlinear
codes = normals(cases, 1, 4, purpose=("codes",))
stds = 10 ** (
    torch.rand(cases, 1, 4, generator=generator(seed, "theory", "stds")) - 1
)  # from 0.1 to 1
decode = lambda z: decoders.call(lambda net, v: net(v), z)
references = decode(codes)
spread = lambda eps: (decode(codes + stds * eps) - references).norm(dim=-1)  # [cases, draws]

# %%
draws = 2 * (s.draws // 2) + 1  # odd, so that the sample's median is one of the draws
one = spread(normals(cases, draws, 4, purpose=("one",)))
other = (
    decode(codes + stds * normals(cases, draws, 4, purpose=("two", 0)))
    - decode(codes + stds * normals(cases, draws, 4, purpose=("two", 1)))
).norm(dim=-1)
quantiles = torch.linspace(0.05, 0.95, 19)
limits = one.quantile(quantiles, dim=1)[..., None]  # [r, cases, 1]
robust = (one <= limits).double().mean(-1) > (one > limits).double().mean(-1)
by_median, by_mean = (one.median(1).values <= limits[..., 0]), (one.mean(1) <= limits[..., 0])


def coverage(low, trials, level):
    """Largest exact probability, over p, that the lower bound `low[k]` of k successes exceeds p, over 1 − level."""
    p = torch.linspace(0.001, 0.999, 999)
    mass = torch.as_tensor(binom.pmf(torch.arange(trials + 1)[:, None].numpy(), trials, p.numpy()))
    return float((mass * (low[:, None] > p)).sum(0).max() / (1 - level))


trials, level = 400, 0.999
counts = torch.arange(trials + 1)
wald = (
    counts / trials
    - ndtri(torch.tensor(level)) * (counts / trials * (1 - counts / trials) / trials).sqrt()
)


def certain_violations(smaller, larger, power):
    """How often P(smaller <= r)^power exceeds P(larger <= r') beyond both exact confidence bounds, over (smaller, r) pairs."""
    error = 1e-3 / (2 * smaller.numel())  # one violation in a thousand such runs by chance
    low = clopper_pearson(smaller, draws, 1 - error)[0]
    return int((clopper_pearson(larger, draws, 1 - error)[1] < low**power).sum())


count = lambda d, r: (d <= r).sum(-1)

# %% tags=["nbval-check-output"]
chapter.claim(
    "C1",
    disagree=float((robust != by_median).double().mean()),
    miss=coverage(clopper_pearson(counts, trials, level)[0], trials, level),
    violations=certain_violations(count(one, limits / 2), count(other, limits), 2),
    control=dict(
        disagree=float((robust != by_mean).double().mean()),
        miss=coverage(wald, trials, level),
        violations=certain_violations(count(one, limits), count(other, limits), 2),
    ),
)

# %% tags=["hide-input"]
net_cloud = main.ensemble.member(rows_of(main, "beta", 1, seeds[0])[0]).double()
cloud_margin = main.seen.margin[rows_of(main, "beta", 1, seeds[0])[0]]
pick = int(cloud_margin.argmin())
size = int((radii - cloud_margin[pick]).abs().argmin())
clean_x = main.x[pick : pick + 1].double()
moved = clean_x + 1.5 * main.seen.delta[size, rows_of(main, "beta", 1, seeds[0])[0], pick].double()
moved = moved.clamp(0, 1)
eps = normals(400, 1, s.latents, purpose=("cloud",)).to(device)
with torch.no_grad():
    (m0, s0), (m1, s1) = net_cloud.encode(clean_x), net_cloud.encode(moved)
    centre = net_cloud.decode(m0)
    clouds = [
        (net_cloud.decode(m + sd * eps) - centre)[:, 0].cpu() for m, sd in ((m0, s0), (m1, s1))
    ]
axes_2d = torch.linalg.svd(torch.cat(clouds) - torch.cat(clouds).mean(0), full_matrices=False)[2][
    :2
]
fig, axis = plt.subplots(figsize=(6.2, 4.2))
for cloud, role, label in zip(
    clouds, ("noise", "highlight"), ("without attack", "attacked beyond its margin")
):
    axis.scatter(*(cloud @ axes_2d.T).T, s=8, alpha=0.5, color=COLOURS[role], label=label)
angle = torch.linspace(0, 2 * math.pi, 200)
axis.plot(
    r_main * angle.cos(),
    r_main * angle.sin(),
    color="black",
    lw=1.2,
    label=f"r = {r_main:g} around g(μ(x))",
)
axis.plot(0, 0, "+", color="black", ms=10)
axis.set(
    xlabel="first principal axis (l2 norm)",
    ylabel="second principal axis (l2 norm)",
    aspect="equal",
)
axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
shares = [float((cloud.norm(dim=-1) <= r_main).double().mean()) for cloud in clouds]
chapter.show(
    fig,
    "cloud",
    alt="Two clouds of points, random reconstructions of one image before and after an attack, projected on two axes, and a circle of radius r around the deterministic reconstruction; one cloud lies inside, the other "
    "mostly outside.",
    caption=f"What $r$-robust means, on a trained network: {100 * shares[0]:.0f}% of the reconstructions are within $r$ before the attack and {100 * shares[1]:.0f}% after it (distances in the full image space, drawn "
    "in two dimensions).",
    answers="schematic of the r-ball",
)

# %% [markdown]
# ### The clean probability
#
# :::{prf:proposition} Clean probability
# :label: prop-clean
# Let $g$ be three times continuously differentiable (a ReLU network is so inside a linear piece; across kinks the order is lost) and $\lambda_i$ the eigenvalues of $\mathrm{diag}(\sigma)J_g^\top J_g\,\mathrm{diag}(\sigma)$ at $\mu(x)$. To first order in $\sigma$, $D^2\sim\sum_i\lambda_i\chi^2_1$, a generalised chi-square, and replacing $D$ by this form
# changes $p_0$ by $O(\sigma^2)$ at fixed $r/\sigma$. For it $p_0\ge1-\sum_i\lambda_i/r^2$, and $p_0>\tfrac12$ whenever $\sum_i\lambda_i<r^2$.
# :::
#
# :::{prf:proof}
# $g(\mu+\sigma\odot\eta)-g(\mu)=J_g\,\mathrm{diag}(\sigma)\,\eta+O(\sigma^2)$, and a quadratic form in normals is diagonal in the eigenbasis. With $\sigma\to t\sigma$, $r\to tr$, the correction of order $t$ to $D^2/t^2$ is odd in
# $\eta$, so the mass it moves across the boundary at $\eta$ it moves back at $-\eta$: the change of $p_0$ starts at $t^2$. The first bound is Markov's. For the second, the median of a convex function of a Gaussian is at most
# its mean {cite}`kwapien1994remark`: by Ehrhard's inequality $\Phi^{-1}(P(F\le t))$ is concave in $t$, so $F=\psi(\xi)$ with $\psi$ convex and increasing and $\xi$ standard normal, whose mean is at least $\psi(0)$, the median. Hence median
# $D^2\le\sum_i\lambda_i$, strictly unless $\psi$ is affine.
# :::
#
# The distribution is computed by inverting its characteristic function {cite}`davies1973numerical`. To see a remainder of second order without sampling error, we integrate along rays: on each ray the radius at which $D$ passes $r$ is found by bisection, and the mass of the ray is
# a chi-square probability. The same rays, with both signs, serve the linear form.

# %%
chi = lambda weights, r: quadratic_cdf(torch.as_tensor(r) ** 2, weights)
pairs = torch.tensor([1.0, 0.3])
pair_radii = torch.linspace(0.3, 4, 12)
a, b = 2 * pairs  # two pairs of equal weights: a sum of two exponentials
exact_pairs = 1 - (a * torch.exp(-(pair_radii**2) / a) - b * torch.exp(-(pair_radii**2) / b)) / (
    a - b
)
form_error = float(
    (chi(pairs.repeat_interleave(2).expand(12, 4), pair_radii) - exact_pairs).abs().max()
)

shrink = torch.tensor([0.05, 0.1, 0.2, 0.4])
rays = torch.nn.functional.normalize(normals(cases, s.rays, 4, purpose=("rays",)), dim=-1)
slopes_g = decoders.call(lambda net, z: jacobians(net, z), codes)[
    :, 0
]  # J_g at the codes, [cases, 10, 4]
spectrum = torch.linalg.eigvalsh((slopes_g * stds).mT @ (slopes_g * stds))
target = (spectrum.sum(-1) * 0.9).sqrt()  # r at unit scale; both sides shrink with σ


def crossing(scale, sign):
    """Radius along each ray (times `sign`) at which the deviation at posterior scale · σ passes scale · target."""
    low, high = torch.zeros(cases, s.rays), torch.full((cases, s.rays), 12.0)
    for _ in range(40):
        middle = (low + high) / 2
        inside = spread(sign * scale * middle[..., None] * rays) <= scale * target[:, None]
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return low


chi_four = lambda radius: torch.special.gammainc(
    torch.tensor(2.0), radius.square() / 2
)  # P(χ²_4 <= radius²)


def linear_radius(image):
    """The same crossing for a linear decoder with matrix `image`, [cases, 10, 4]."""
    return target[:, None] / torch.einsum("cij,crj->cri", image, rays).norm(dim=-1)


def expansion_slope(image):
    """Log-log slope, against the scale, of p0 minus the generalised chi-square: mean over decoders of the absolute gaps."""
    linear = chi_four(linear_radius(image))  # the same rays: no sampling error between the two
    gap = [
        ((chi_four(crossing(v, 1)) + chi_four(crossing(v, -1))) / 2 - linear).mean(1).abs()
        for v in shrink
    ]
    return slope(shrink, torch.stack(gap).mean(1)), torch.stack(gap)


chi_slope, chi_gap = expansion_slope(slopes_g * stds)
random_weights = torch.rand(s.rays, 8, generator=generator(seed, "theory", "weights")) ** 4
random_weights = torch.cat([random_weights, torch.ones(1, 8)])  # equal weights: the hardest case
total = random_weights.sum(-1)
markov_r2 = total * (1 + 3 * torch.rand(len(total), generator=generator(seed, "theory", "r")))
markov = float((1 - total / markov_r2 - quadratic_cdf(markov_r2, random_weights, terms=800)).max())

# %% tags=["nbval-check-output"]
chapter.claim(
    "C2",
    form=form_error,
    slope=chi_slope,
    at_trace=float(quadratic_cdf(total, random_weights, terms=800).min()),
    markov=markov,
    control=dict(
        form=float(
            (chi(pairs.sqrt().repeat_interleave(2).expand(12, 4), pair_radii) - exact_pairs)
            .abs()
            .max()
        ),
        slope=expansion_slope(slopes_g * stds.square())[0],
        at_trace=float(quadratic_cdf(0.9 * total, random_weights, terms=800).min()),
        markov=markov,
    ),
)

# %% [markdown]
# ### The latent margin
#
# :::{prf:theorem} Latent margin
# :label: thm-latent
# Let a perturbation move the posterior mean by $\Delta z$ and leave $\sigma$. With $m=\|\mathrm{diag}(\sigma)^{-1}\Delta z\|$,
#
# $$P(D\le r)\ge\Phi(\Phi^{-1}(p_0)-m),$$
#
# with equality for a half-space. So $r$-robustness survives every shift with $m<\Phi^{-1}(p_0)$, in particular every $\|\Delta z\|<\min_i\sigma_i\,\Phi^{-1}(p_0)$.
# :::
#
# :::{prf:proof}
# The decoder enters only through the set $A=\{z:\|g(z)-g(\mu)\|\le r\}$, which has mass $p_0$ under $\mathcal{N}(\mu,S)$, $S=\mathrm{diag}(\sigma^2)$. Of all sets with that mass, the one with least mass under $\mathcal{N}(\mu+\Delta z,S)$ is, by the lemma of
# Neyman and Pearson, a sublevel set of the likelihood ratio, the half-space $\{\Delta z^\top S^{-1}(z-\mu)\le k\}$. Before the shift $\Delta z^\top S^{-1}(z-\mu)\sim\mathcal{N}(0,m^2)$, so $k=m\Phi^{-1}(p_0)$; after it, $\mathcal{N}(m^2,m^2)$, so the mass is
# $\Phi((k-m^2)/m)$. Finally $m\le\|\Delta z\|/\min_i\sigma_i$.
# :::
#
# This is the argument of randomised smoothing {cite}`cohen2019certified` with the *encoder's own* noise in the place of added noise. A half-space is no abstraction: one rectified unit, $g(z)=\max(0,a^\top(z-\mu))$, has one. Below, random
# decoders meet random shifts and shifts sought by ascent.

# %%
quantile_levels = torch.tensor([0.6, 0.75, 0.9, 0.97, 0.995])[torch.arange(cases) % 5]
limit = torch.stack([row.quantile(q) for row, q in zip(one, quantile_levels)])[:, None]
p0_low, _ = clopper_pearson(
    count(spread(normals(cases, draws, 4, purpose=("p0",))), limit), draws, 1 - 1e-6
)
share = torch.tensor([0.25, 0.5, 0.75, 1.0])  # of the guaranteed whitened shift
whitened_shift = share * ndtri(p0_low).clamp_min(0)[:, None]  # m, [cases, shares]

fixed = normals(cases, 64, 4, purpose=("fixed",))
attack = pgd(
    lambda v: (decode(codes + stds * (v.movedim(0, 1)[:, :, None] + fixed[:, None]).flatten(1, 2)) - references)
    .norm(dim=-1).unflatten(1, (len(share), -1)).mean(-1).T,
    torch.zeros(len(share), cases, 4), whitened_shift.T, steps=40, restarts=3, generator=generator(seed, "theory", "shift"),
).delta.movedim(0, 1)  # fmt: skip
random_shift = torch.nn.functional.normalize(
    normals(cases, len(share), 4, purpose=("random",)), dim=-1
)
shifts = torch.cat(
    [attack, whitened_shift[..., None] * random_shift], 1
)  # worst-case and random, [cases, 8, 4]
sizes = shifts.norm(dim=-1)
fresh = normals(cases, draws, 4, purpose=("fresh",))
success = torch.stack(
    [count(spread(fresh + shift[:, None]), limit) for shift in shifts.movedim(1, 0)], 1
)
upper = clopper_pearson(success, draws, 1 - 1e-3 / success.numel())[1]
promised = lambda factor: ndtr(ndtri(p0_low)[:, None] - factor * sizes)

# A half-space decoder: one rectified unit, g(z) = max(0, a · (z − μ)), within r exactly where a · (z − μ) <= r.
normal = normals(cases, 4, purpose=("normal",))
half_sd = (normal * stds[:, 0]).norm(dim=-1)
half_r = half_sd * ndtri(quantile_levels)
worst = (
    normal * stds[:, 0].square() / half_sd[:, None]
)  # the shift of whitened size 1 that loses most
half_shift = share * ndtri(quantile_levels)[:, None]  # [cases, shares]
half = torch.stack([
    count((normal[:, None] * (m[:, None, None] * worst[:, None] + stds * fresh)).sum(-1).relu(), half_r[:, None])
    for m in half_shift.T
], 1)  # fmt: skip
half_error = 1 - 5e-4 / half.numel()
half_low, half_high = clopper_pearson(half, draws, half_error)
half_promise = lambda factor: ndtr(ndtri(quantile_levels)[:, None] - factor * half_shift)
missed = lambda factor: float(
    ((half_promise(factor) < half_low) | (half_promise(factor) > half_high)).double().mean()
)

# %% tags=["nbval-check-output"]
chapter.claim(
    "C3",
    violations=int((upper < promised(1)).sum()),
    missed=missed(1),
    control=dict(violations=int((upper < promised(0.5)).sum()), missed=missed(0.5)),
)

# %% tags=["hide-input"]
fig, (left_axis, right_axis) = plt.subplots(1, 2, figsize=(9.6, 3.6))
grid_r = torch.linspace(0.2, 2.2, 12)
for scale, shade in zip((0.25, 0.5, 1.0), plt.get_cmap("viridis")((0.15, 0.5, 0.85))):
    # r in units of the root of the trace, first decoder
    r_here = grid_r * spectrum[0].sum().sqrt() * scale
    sampled = (decode(codes + scale * stds * fresh)[0] - references[0]).norm(dim=-1)
    left_axis.plot(
        grid_r,
        [(sampled <= v).double().mean() for v in r_here],
        "o",
        color=shade,
        ms=4,
        label=f"sampled, σ × {scale:g}",
    )
left_axis.plot(
    grid_r,
    quadratic_cdf(grid_r.square() * spectrum[0].sum(), spectrum[0].expand(12, 4)),
    color=COLOURS["baseline"],
    label="generalised χ²",
)
left_axis.plot(
    grid_r, (1 - 1 / grid_r.square()).clamp_min(0), color=COLOURS["control"], ls=":", label="Markov"
)
left_axis.axvline(1, color="black", lw=0.8)
left_axis.axhline(0.5, color="black", lw=0.8)
left_axis.set(xlabel="r / (Σλ)^½", ylabel="clean probability p₀")
left_axis.legend(fontsize=8)
m_grid = torch.linspace(0, 2.2, 40)
right_axis.plot(
    m_grid,
    ndtr(ndtri(torch.tensor(0.9)) - m_grid),
    color=COLOURS["baseline"],
    label="bound = half-space",
)
ball = torch.ones(2, dtype=torch.float64)
ball_r2 = torch.tensor(-2 * math.log(0.1))  # P(χ²_2 <= r²) = 0.9
right_axis.plot(
    m_grid,
    quadratic_cdf(
        ball_r2.expand(40),
        ball.expand(40, 2),
        m_grid[:, None] * torch.tensor([1.0, 0.0]),
        terms=4_000,
    ),
    color=COLOURS["theory"],
    label="ball in two dimensions",
)
nine = [i for i in range(cases) if quantile_levels[i] == 0.9]
right_axis.scatter(
    sizes[nine][:, : len(share)],
    (success[nine] / draws)[:, : len(share)],
    s=12,
    color=COLOURS["highlight"],
    label="random decoders, worst shift found",
)
right_axis.scatter(
    sizes[nine][:, len(share) :],
    (success[nine] / draws)[:, len(share) :],
    s=12,
    color=COLOURS["noise"],
    label="random decoders, random shift",
)
right_axis.axhline(0.5, color="black", lw=0.8)
right_axis.set(xlabel="whitened shift m", ylabel="P(D ≤ r), clean p₀ = 0.9")
right_axis.legend(fontsize=8)
chapter.show(
    fig,
    "latent-margin",
    alt="Left: clean probability against r for three noise scales, sampled points approaching the generalised chi-square curve, Markov's bound far below. Right: probability of success against the whitened shift; the half-space is the lower "
    "envelope of a ball and of random decoders.",
    caption=f"Left: the smaller the noise, the closer $p_0$ is to the generalised $\\chi^2$; it passes one half before $r^2=\\sum\\lambda_i$. Right: no decoder falls below the half-space; the worst shifts come within "
    f"{float((success / draws - promised(1)).min()):.3f} of it.",
)

# %% [markdown]
# ### The input margin
#
# :::{prf:theorem} Input margin, first order
# :label: thm-input
# With $J^\mu$ the Jacobian of $\mu$ at $x$ and $\sigma$ unchanged by the perturbation,
#
# $$R^r(x)\;\ge\;\frac{\Phi^{-1}(p_0)}{\|\mathrm{diag}(\sigma)^{-1}J^\mu\|_2}\;\ge\;\frac{\min_i\sigma_i\,\Phi^{-1}(p_0)}{\|J^\mu\|_2}\;\ge\;\frac{\min_i\sigma_i\,\Phi^{-1}(p_0)}{\|J^\mu\|_F}$$
#
# up to a remainder in the first relation, of second order in the shift where $\mu$ is twice continuously differentiable; the last form is the paper's. For affine $\mu$ there is none.
# :::
#
# :::{prf:proof}
# $\mu(x+\delta)-\mu(x)=J^\mu\delta+O(\|\delta\|^2)$. Insert it into {prf:ref}`thm-latent` and bound $\|\mathrm{diag}(\sigma)^{-1}J^\mu\delta\|$ by operator norms, $\|\mathrm{diag}(\sigma)^{-1}J\|_2\le\|J\|_2/\min_i\sigma_i\le\|J\|_F/\min_i\sigma_i$.
# :::
#
# *Local, first order, fixed* $\sigma$: this is an estimate. The paper writes the remainder as $O(\varepsilon)$; in terms of the norm of the perturbation it is of second order in the shift, hence relative first order in the margin. How the bound can fail, and a certificate that
# cannot, follow in {ref}`sec-certificate`.
#
# The checks: exact margins of random linear VAEs (a non-central generalised chi-square, which by Anderson's inequality falls along every ray, minimised over directions); the worst decoder; the slab $|z|\le k$, the one linear case where the bound
# is nearly tight; and the size of the remainder. One correction on the way: the worst direction of a linear VAE is not exactly the top singular vector of $J_gJ^\mu$ where the noise is anisotropic, so the margin is minimised numerically.

# %%
linear_cases = s.linear
stream = generator(seed, "theory", "linear")
maps = torch.randn(linear_cases, 20, 5, generator=stream) / 20**0.5
encoders = torch.randn(linear_cases, 5, 20, generator=stream)
linear_std = 10 ** (torch.rand(linear_cases, 5, generator=stream) * 0.8 - 0.8)
noise_size = (maps * linear_std[:, None]).square().sum((1, 2)).sqrt()
linear_r = noise_size * (0.9 + torch.rand(linear_cases, generator=stream))
linear_p0 = quadratic_cdf(
    linear_r.square(), torch.linalg.svdvals(maps * linear_std[:, None]).square()
)
bounds = first_order_margins(linear_p0, linear_std, encoders)
exact = linear_margin(maps, encoders, linear_std, linear_r, generator=stream)
valid = linear_p0 > 0.5

# The worst decoder for a given encoder: a half-space whose whitened normal is the direction that δ moves most.
left, stretch, right = torch.linalg.svd(encoders / linear_std[..., None], full_matrices=False)
half_bound = first_order_margins(torch.tensor(0.9).expand(linear_cases), linear_std, encoders)[
    "whitened"
]


def half_margin(angle_normal):
    """Exact margin of g(z) = max(0, a · z) with whitened normal `angle_normal`: a linear function and a normal quantile."""
    push = (angle_normal[:, None] @ (encoders / linear_std[..., None]))[:, 0].norm(
        dim=-1
    )  # the best δ is along this row
    return ndtri(torch.tensor(0.9)) / push


k = torch.tensor(
    [0.8, 1.5, 3.0, 5.0]
)  # a slab |z| <= k: the linear decoder of a one-dimensional code
slab_p0 = 2 * ndtr(k) - 1
low, high = torch.zeros(len(k)), k + 1
for _ in range(60):
    middle = (low + high) / 2
    inside = ndtr(k - middle) - ndtr(-k - middle) > 0.5
    low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
slab = low


def lowest(quantile):
    """Smallest exact margin over whitened bound, with `quantile(p0)` for Φ⁻¹(p0)."""
    factor = quantile(linear_p0[valid]) / ndtri(linear_p0[valid])
    random = exact[valid] / (factor * bounds["whitened"][valid])
    return min(float(random.min()), float((slab / quantile(slab_p0)).min()))


tight = lambda quantile: float(
    (
        half_margin(left[..., 0])
        / half_bound
        * ndtri(torch.tensor(0.9))
        / quantile(torch.tensor(0.9))
        - 1
    )
    .abs()
    .max()
)
two_sided = lambda p: ndtri((1 + p) / 2)

# The remainder: how far a curved encoder can shift a code, beyond its linear part.
curved = Ensemble(
    [mlp((6, 20, 4), "tanh", generator=generator(m, "curved")) for m in member_seeds(seed, cases)]
).requires_grad_(False)
places = normals(cases, 1, 6, purpose=("places",))
curved_j = (
    curved.call(lambda net, x: jacobians(net, x), places)[:, 0] / stds[:, 0, :, None]
)  # whitened, [cases, 4, 6]
steps_r = torch.tensor([0.02, 0.04, 0.08, 0.16])


def farthest(radius):
    """sup over ||δ|| = R of the whitened shift, by ascent from both ends of the top singular vector, [cases]."""
    top = torch.linalg.svd(curved_j)[2][:, 0]
    delta = radius * torch.stack([top, -top], 1)  # [cases, 2, 6]
    clean = curved.call(lambda net, x: net(x), places)
    for _ in range(60):
        delta.requires_grad_(True)
        size = ((curved.call(lambda net, x: net(x), places + delta) - clean) / stds).norm(dim=-1)
        (gradient,) = torch.autograd.grad(size.sum(), delta)
        # The maximiser on a sphere is a fixed point of this map.
        delta = radius * torch.nn.functional.normalize(gradient, dim=-1)
    return size.detach().amax(1)


top_norm = torch.linalg.matrix_norm(curved_j, 2)
far = torch.stack([farthest(float(v)) for v in steps_r])
remainder = lambda factor: (far - factor * steps_r[:, None] * top_norm).abs()

# %% tags=["nbval-check-output"]
ordered = torch.stack(
    [bounds["spectral"] / bounds["frobenius"], bounds["whitened"] / bounds["spectral"]]
)[:, valid]
chapter.claim(
    "C4",
    lowest=lowest(ndtri),
    order=float(ordered.min()),
    tight=tight(ndtri),
    slope=slope(steps_r, remainder(1).mean(1)),
    control=dict(
        lowest=lowest(two_sided),
        order=float(ordered.min()),
        tight=tight(two_sided),
        slope=slope(steps_r, remainder(0.5).mean(1)),
    ),
)

# %% [markdown]
# ### What beta does
#
# Expand the likelihood around the mean code, $\mathbb{E}_q\log p(x\mid z)\approx\log p(x\mid\mu)-\tfrac12\sum_i\sigma_i^2h_i$ with $h_i=\|J_{g,i}\|^2/s^2$ for Gaussian noise of variance $s^2$. Then $-\tfrac12h_i\sigma_i^2-\tfrac\beta2(\sigma_i^2-1-\log\sigma_i^2)$ is largest at
#
# $$\sigma_i^2=\frac{1}{1+h_i/\beta},$$
#
# which rises with $\beta$ and saturates at the prior's 1 (after Kumar and Poole {cite}`kumar2020implicit`).
#
# :::{prf:proposition} One linear latent
# :label: prop-linear-beta
# For data of variance $\lambda$, decoder $wz$ with noise $s^2$, encoder mean $vx$ and variance $q$, the optimum of the $\beta$-ELBO is $w^2=\lambda-\beta s^2$, $v=w/\lambda$, $q=\beta s^2/\lambda$ for $\beta<\lambda/s^2$, and collapsed ($w=v=0$, $q=1$) from there on.
# Hence $\sigma=s\sqrt{\beta/\lambda}$ rises, $|v|$ falls, and $\sigma/|v|=s\sqrt{\beta\lambda/(\lambda-\beta s^2)}$ rises without bound.
# :::
#
# :::{prf:proof}
# Up to constants the objective is $-\frac{1}{2s^2}[\lambda(1-wv)^2+w^2q]-\frac\beta2[\lambda v^2+q-\log q]$. Its derivative in $q$ vanishes at $1/q=1+w^2/(\beta s^2)$; in $v$ at $w(1-wv)=\beta s^2v$, so $v=w/(w^2+\beta s^2)$; in $w$ at $\lambda v(1-wv)=wq$. With
# $1-wv=\beta s^2/(w^2+\beta s^2)=q$ the last reads $\lambda v=w$ (or $w=0$), so $w^2+\beta s^2=\lambda$. Of the two stationary points the first has the larger objective, by $\frac\beta2(1/q-1+\log q)>0$ for $q=\beta s^2/\lambda<1$; for $\beta\ge\lambda/s^2$ only the collapsed one is
# left.
# :::

# %%
data_variance, pixel_variance = 4.0, 0.5
betas_1d = torch.tensor([1.0, 2.0, 4.0, 6.0, 7.5, 12.0])
closed = torch.stack(linear_beta_vae(data_variance, pixel_variance, betas_1d))  # w, v, q


def optimised(beta):
    """The stationary point of the beta-ELBO by L-BFGS, from a generic start."""
    free = torch.tensor([1.0, 0.3, -1.0], requires_grad=True)
    solver = torch.optim.LBFGS(
        [free],
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def close():
        solver.zero_grad()
        loss = -linear_beta_elbo(
            free[0], free[1], free[2].exp(), data_variance, pixel_variance, beta
        )
        loss.backward()
        return loss

    solver.step(close)
    w, v, log_q = free.detach()
    return torch.stack([w.abs(), v.abs(), log_q.exp()])


found = torch.stack([optimised(float(b)) for b in betas_1d], 1)
alive = betas_1d < data_variance / pixel_variance


def margins_1d(r, w, v, q):
    """p0, bound and exact margin of the one-dimensional model; infinite once collapsed."""
    noise = w * q.sqrt()
    p0 = torch.where(noise > 0, 2 * ndtr(r / noise) - 1, 1.0)
    bound = q.sqrt() / v * ndtri(p0.clamp_min(0.5))
    low, high = (
        torch.zeros_like(w),
        torch.full_like(w, 2 * r + 10),
    )  # the shift w v δ at which the median passes r
    for _ in range(80):
        middle = (low + high) / 2
        inside = ndtr((r - middle) / noise) - ndtr((-r - middle) / noise) > 0.5
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return p0, bound, torch.where(p0 > 0.5, low / (w * v), 0.0)


h = 10 ** torch.linspace(-1, 3, 9)
beta_grid = torch.tensor([0.5, 1.0, 4.0, 16.0])[:, None]


def scale_gradient(std):
    """d/dσ of −½ h σ² − beta ½ (σ² − 1 − 2 log σ), relative to its first part."""
    std = std.detach().requires_grad_(True)
    objective = -0.5 * h * std.square() - beta_grid * 0.5 * (std.square() - 1 - 2 * std.log())
    return float((torch.autograd.grad(objective.sum(), std)[0] / (h * std.detach())).abs().max())


# %% tags=["nbval-check-output"]
forgotten = torch.stack(linear_beta_vae(data_variance, pixel_variance, 1.0))[:, None]
_, bound_1d, exact_1d = margins_1d(1.5, *closed[:, alive])
chapter.claim(
    "C5a",
    error=float((found - closed).abs().max()),
    std_rises=float(closed[2][alive].sqrt().diff().min()),
    slope_falls=float(-closed[1][alive].diff().max()),
    stationary=scale_gradient(optimal_std(h, beta_grid)),
    lowest=float((exact_1d / bound_1d).min()),
    control=dict(
        error=float((found - forgotten).abs().max()),
        std_rises=0.0,
        slope_falls=0.0,
        stationary=scale_gradient(optimal_std(h * beta_grid, 1.0)),
        lowest=float((exact_1d / bound_1d).min()),
    ),
)
for b, bound, value in zip(betas_1d[alive], bound_1d, exact_1d):
    print(f"beta {b:4.1f}: bound {bound:7.3f}  exact margin {value:7.3f}  (r = 1.5)")

# %% [markdown]
# Beta has a second effect, which the usual reading of the bound leaves out: the noise *decoded*, $w^2q=(\lambda-\beta s^2)\beta s^2/\lambda$, grows with $\beta$ up to half the collapse point, so $p_0$ falls. For small $r$ it falls below one half, and a model that was robust
# at $\beta=1$ has margin zero.

# %%
small = {r: margins_1d(r, *closed[:, alive]) for r in (0.5, 1.5)}

# %% tags=["nbval-check-output"]
chapter.claim(
    "B8",
    before=float(small[0.5][2][0]),
    after=float(small[0.5][2][2]),
    control=dict(before=float(small[1.5][2][0]), after=float(small[1.5][2][2])),
)

# %% tags=["hide-input"]
fine_beta = torch.linspace(0.3, 7.8, 150)
parts = torch.stack(linear_beta_vae(data_variance, pixel_variance, fine_beta))
fig, axes = plt.subplots(1, 3, figsize=(10.2, 3.3))
axes[0].plot(fine_beta, parts[2].sqrt(), color=COLOURS["noise"], label="σ")
axes[0].plot(fine_beta, parts[1], color=COLOURS["regulariser"], label="|v|")
axes[0].plot(betas_1d, found[2].sqrt(), "o", color=COLOURS["noise"], ms=5)
axes[0].plot(betas_1d, found[1], "o", color=COLOURS["regulariser"], ms=5)
for r, ls in ((0.5, ":"), (1.5, "-")):
    p0, bound, value = margins_1d(r, *parts)
    axes[1].plot(fine_beta, p0, color=COLOURS["theory"], ls=ls, label=f"r = {r:g}")
    axes[2].plot(fine_beta, bound, color=COLOURS["noise"], ls=ls, label=f"bound, r = {r:g}")
    axes[2].plot(fine_beta, value, color=COLOURS["highlight"], ls=ls, label=f"exact, r = {r:g}")
axes[0].axvline(data_variance / pixel_variance, color="black", lw=0.8)
axes[1].axhline(0.5, color="black", lw=0.8)
axes[0].set(xlabel="β", ylabel="σ and |v|", title="dots: optimised")
axes[1].set(xlabel="β", ylabel="clean probability p₀")
axes[2].set(xlabel="β", ylabel="margin", ylim=(0, 8))
for axis in axes:
    axis.legend(fontsize=8)
gone, back = (float(fine_beta[i]) for i in (margins_1d(0.5, *parts)[2] == 0).nonzero()[[0, -1], 0])
chapter.show(
    fig,
    "linear-beta",
    alt="Three panels against beta for the linear VAE: sigma rising and the encoder slope falling to zero at beta eight; p0 with a dip, deeper for small r; bound and exact margin rising for r = 1.5 and dropping to zero for r = 0.5.",
    caption=f"One linear latent: $\\sigma$ rises, $|v|$ falls, and the bound follows the exact margin for $r=1.5$. For $r=0.5$ the decoded noise outgrows $r$ and the margin is zero from $\\beta={gone:.1f}$ to {back:.1f}.",
)

# %% [markdown]
# ## Train
#
# Everything trained is a Gaussian VAE with fully connected ReLU networks, likelihood variance $s^2$ and Adam with a cosine schedule; only the weights of the KL and of the total correlation {cite}`chen2018isolating` differ. One loss serves all members of the sweep:

# %%
torch.set_default_dtype(torch.float32)
print(inspect.getsource(vae_loss))

# %% [markdown]
# No margin without its price. For every member: log-likelihood of a sampled code, reconstruction error of the mean code, KL, total correlation (estimated on the same images; biased upwards, for comparison only), the noise that reaches the reconstruction, the ingredients of the
# bound, the bound, and the attacked margin. The last row is a constant output. Bounds with different numbers $N$ of draws for $p_0$ are not comparable, so $N$ stands under the table.

# %% tags=["hide-input"]
read, seen = main.read, main.seen
std_norm, std_min = read.std.norm(dim=-1), read.std.amin(-1)
j_norm = torch.linalg.matrix_norm(read.jacobian)
noise_out = seen.median[0]  # median clean deviation, [members, images]


def summary(kind, b):
    at = rows_of(main, kind, b)
    q = main.quality
    return [
        f"{'β-VAE' if kind == 'beta' else 'β-TCVAE'} {b:g}", *(f"{v[at].mean():.1f}" for v in (q.likelihood, q.error, q.kl, q.tc)),
        *(f"{v[at].mean():.2f}" for v in (noise_out, std_norm, std_min, j_norm, read.frobenius[s.main], read.whitened[s.main], seen.margin)),
    ]  # fmt: skip


header = [
    "model",
    "log p(x given z)",
    "error",
    "KL",
    "TC",
    "noise out",
    "‖σ‖",
    "min σ",
    "‖J‖_F",
    "bound F",
    "whitened",
    "attacked",
]
lines = [header, [":---"] + ["---:"] * (len(header) - 1), *(summary(*arm) for arm in main.arms)]
flat_likelihood = float(log_likelihood(test_flat[:1_000], mean_image, s.variance).mean())
lines.append(
    [
        "constant output",
        f"{flat_likelihood:.1f}",
        f"{constant_error:.1f}",
        "0",
        "0",
        "0",
        "–",
        "–",
        "0",
        "∞",
        "∞",
        "∞",
    ]
)
display(
    Markdown("\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{draws_note}.")
)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 4, figsize=(11, 3.2))
for kind, role, label in (("beta", "noise", "β-VAE"), ("tc", "regulariser", "β-TCVAE")):
    weights = list(s.betas if kind == "beta" else s.penalties)
    for axis, values in zip(
        axes, (main.quality.likelihood, main.quality.error, main.quality.kl, seen.margin.mean(1))
    ):
        by = torch.stack([values[rows_of(main, kind, b)] for b in weights])
        axis.errorbar(
            weights,
            by.mean(1),
            torch.stack([by.mean(1) - by.amin(1), by.amax(1) - by.mean(1)]),
            color=COLOURS[role],
            marker="o",
            capsize=3,
            label=label,
        )
axes[1].axhline(constant_error, color=COLOURS["control"], ls="--", label="constant output")
for axis, label in zip(
    axes,
    (
        "log p(x | z) (nats)",
        "reconstruction error (l2)",
        "KL (nats)",
        f"attacked margin, r = {r_main:g}",
    ),
):
    axis.set(xscale="log", xlabel="weight β", title=label)
    axis.set_xticks(s.betas, [f"{b:g}" for b in s.betas])
    axis.minorticks_off()
axes[1].legend(fontsize=8)
change = lambda values: [
    float(values[rows_of(main, "beta", b)].mean()) for b in (s.betas[0], s.betas[-1])
]
chapter.show(
    fig,
    "robustness-trade-off",
    alt="Four panels against the weight beta for beta-VAEs and beta-TCVAEs: log-likelihood falling, reconstruction error rising towards the constant output's, KL falling, attacked margin.",
    caption="From β = {:g} to {:g} the mean attacked margin goes from {:.2f} to {:.2f}, the reconstruction error from {:.2f} to {:.2f} (constant output: {:.2f}). Bars: range over seeds.".format(
        s.betas[0],
        s.betas[-1],
        *change(seen.margin.mean(1)),
        *change(main.quality.error),
        constant_error,
    ),
)

# %% [markdown]
# ### Is the posterior scale what the expansion says?
#
# {prf:ref}`prop-linear-beta`'s nonlinear counterpart, $\sigma_i^2=1/(1+h_i/\beta)$, can be read off trained networks: $h_i$ from the decoder's Jacobian at the code, $\sigma_i$ from the encoder. Latents whose prediction is below one half count as active.

# %%
one_beta = rows_of(main, "beta")
beta_of = torch.tensor([float(b) for (_, b), _ in main.members])
decoder_j = main.ensemble.call(
    lambda m, z: jacobians(m.decode, z), read.mean
).cpu()  # [members, images, d, n]
curvature = decoder_j.square().sum(-2) / s.variance
predicted = optimal_std(curvature, beta_of[:, None, None])[one_beta].square()
without_beta = optimal_std(curvature, 1.0)[one_beta].square()
learnt = read.std[one_beta].square()


def agreement(prediction):
    """Median ratio over active latents per member, and log-correlation over all latents per seed."""
    ratio = [
        float((value / p)[p < 0.5].median()) if (p < 0.5).any() else 0.0
        for value, p in zip(learnt, prediction)
    ]
    by_seed = [[j for j, i in enumerate(one_beta) if main.members[i][1] == m] for m in seeds]
    logs = [
        float(pearsonr(learnt[at].log().flatten(), prediction[at].log().flatten())[0])
        for at in by_seed
    ]
    return dict(ratio=ratio, correlation=logs)


# %% tags=["nbval-check-output"]
chapter.claim("C5b", **agreement(predicted), control=agreement(without_beta))

# %% [markdown]
# ## Visualise
#
# ### Bound against attack
#
# The paper's headline: bound and numerically estimated margin, pooled over images and models. An attacked margin is an *upper* bound on the true one, so points above the diagonal support the bound and cannot prove it. We attack all images, radii, members and seeds in one batch by projected gradient ascent on
# the mean deviation over fixed draws, with the exact projection onto ball and box; $r$-robustness counts as broken only where an exact binomial test on fresh draws says so; then the successful perturbation is shortened and tested again. The paper's code scans a grid downwards, which assumes that
# robustness is monotone in the radius.
#
# The control pairs each network's bounds with the margins of a network of another $\beta$, and inflates them tenfold: the share above an attacked margin notices only a bound that is too large by the factor in the caption, because attacked margins are upper bounds.


# %% tags=["hide-input"]
def correlation(test, a, b):
    """A correlation that is 0 where one side is constant (all margins beyond the grid)."""
    a, b = torch.as_tensor(a).double().flatten(), torch.as_tensor(b).double().flatten()
    return 0.0 if a.std() < 1e-12 or b.std() < 1e-12 else float(test(a, b)[0])


def within(run, values, other):
    """Mean over members of the rank correlation among the images of one network."""
    return sum(correlation(spearmanr, values[i], other[i]) for i in run.beta_rows) / len(
        run.beta_rows
    )


def against(run, form="frobenius", leave_out=None):
    rows = [i for i in run.beta_rows if run.members[i][0][1] != leave_out]
    bound, margin = getattr(run.read, form)[s.main][rows], run.seen.margin[rows]
    above = bound > run.seen.unclipped[rows]
    return dict(
        correlation=correlation(pearsonr, bound, margin), violations=float(above.double().mean())
    )


# %% tags=["hide-input"]
def unnoticed(run):
    """The factor by which bounds may be too large before more than 2% are above an attacked margin."""
    headroom = run.seen.unclipped[run.beta_rows] / run.read.frobenius[s.main][run.beta_rows]
    return float(
        headroom.nan_to_num(math.inf, math.inf).flatten().quantile(0.02, interpolation="lower")
    )


fig, axes = plt.subplots(1, len(runs) + 1, figsize=(4.2 * (len(runs) + 1), 3.6))
gradients = {name: scatter(axis, run) for axis, (name, run) in zip(axes, runs.items())}
for axis, (name, run) in zip(axes, runs.items()):
    axis.set_title(f"{NAMES[name]}: ρ = {against(run)['correlation']:.2f}")
scatter(axes[-1], main, "whitened")
axes[-1].set_title(f"{title}, whitened: ρ = {against(main, 'whitened')['correlation']:.2f}")
fig.legend(*axes[0].get_legend_handles_labels(), fontsize=8, ncols=8, loc="outside lower center")
chapter.show(
    fig,
    "bound-against-attack",
    alt="Scatter plots of attacked margin against first-order bound, coloured by beta, with the diagonal and a least-squares line; all points lie far above the diagonal. The last panel has the whitened bound.",
    caption="Pooled correlation of bound and attacked margin: "
    + ", ".join(
        f"{NAMES[n]} {against(r)['correlation']:.2f} (within one network {within(r, r.read.frobenius[s.main], r.seen.margin):.2f}, slope {gradients[n]:.1f})"
        for n, r in runs.items()
    )
    + f". Share of bounds above the attacked margin: {max(against(r)['violations'] for r in runs.values()):.3f}; it would be noticed from bounds "
    + " and ".join(f"{unnoticed(r):.1f}" for r in runs.values())
    + f" times as large. {draws_note}.",
    answers="scatter of numerical margin against bound (MNIST, Fashion-MNIST)",
)


# %%
def mispaired(run):
    """The bounds of each network beside the margins of a network with another beta; and ten times the bound."""
    bound, margin = run.read.frobenius[s.main][run.beta_rows], run.seen.margin[run.beta_rows]
    inflated = 10 * bound > run.seen.unclipped[run.beta_rows]
    turned = bound.roll(len(bound) // 2, 0)
    return dict(
        correlation=correlation(pearsonr, turned, margin),
        violations=float(inflated.double().mean()),
    )


# %% tags=["nbval-check-output"]
columns = lambda rows: {key: [row[key] for row in rows] for key in rows[0]}
chapter.claim(
    "C6",
    **columns([against(run) for run in runs.values()]),
    within=[within(run, run.read.frobenius[s.main], run.seen.margin) for run in runs.values()],
    without_top=[against(run, leave_out=s.betas[-1])["correlation"] for run in runs.values()],
    slope=list(gradients.values()),
    control=columns([mispaired(run) for run in runs.values()]),
)

# %% [markdown]
# ### Beta and the margin
#
# Four trends, over all images and members of one seed, on every data set: $\min_i\sigma_i$ up, $\|J\|_F$ down, bound up, and the one that matters, the attacked margin. For that one also Page's test of an increasing order, with the images as blocks, and
# the correlation without the largest $\beta$. Only MNIST has several seeds: Fashion-MNIST, here and in what follows, has one. The control gives the same networks the labels of others, half the grid away.


# %%
def trends(run, seed_of, name=s.images[0], rolled=0):
    """The trends over beta of one seed's networks; `rolled` gives each the label of another."""
    at = [i for i in run.beta_rows if run.members[i][1] == seed_of]
    label = torch.tensor([float(run.members[i][0][1]) for i in at]).roll(rolled)
    b = label[:, None].expand(-1, len(run.x))
    margin = run.seen.margin[at]
    tested = {
        "std": run.read.std.amin(-1), "jacobian": torch.linalg.matrix_norm(run.read.jacobian),
        "bound": run.read.frobenius[s.main], "margin": run.seen.margin,
    }  # fmt: skip
    found = {name: correlation(spearmanr, b, values[at]) for name, values in tested.items()}
    lower = label < label.max()
    return found | {
        "page": float(
            page_trend_test(margin[label.argsort()].T.numpy(), method="asymptotic").pvalue
        ),
        "without_top": correlation(spearmanr, b[lower], margin[lower]),
        "informative": float(run.quality.error[at].max()) / constant_errors[name],
    }


# %% tags=["nbval-check-output"]
chapter.claim(
    "C7",
    **columns(
        [trends(main, m) for m in seeds]
        + [trends(runs[name], seeds[0], name) for name in s.images[1:]]
    ),
    control=trends(main, seeds[0], rolled=len(s.betas) // 2),
)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 4, figsize=(11, 3.2))
panels = {
    "min σ": std_min,
    "‖J‖_F": j_norm,
    "bound": read.frobenius[s.main],
    "attacked margin": seen.margin,
}
for axis, (label, values) in zip(axes, panels.items()):
    by = torch.stack([values[rows_of(main, "beta", b)].flatten() for b in s.betas])
    axis.fill_between(
        s.betas, by.quantile(0.1, dim=1), by.quantile(0.9, dim=1), color=COLOURS["noise"], alpha=0.2
    )
    axis.plot(s.betas, by.mean(1), color=COLOURS["noise"], marker="o")
    axis.set(xscale="log", xlabel="β", title=label, ylim=(0, None))
    axis.set_xticks(s.betas, [f"{b:g}" for b in s.betas])
    axis.minorticks_off()
growth = {
    label: float(
        v[rows_of(main, "beta", s.betas[-1])].mean() / v[rows_of(main, "beta", s.betas[0])].mean()
    )
    for label, v in panels.items()
}
chapter.show(
    fig,
    "beta-trends",
    alt="Four panels against beta: min sigma rising, Jacobian norm falling, bound rising, attacked margin with a smaller change; bands over images.",
    caption="From the smallest to the largest β: "
    + ", ".join(f"{label} × {v:.2f}" for label, v in growth.items())
    + ". Bands: 10% to 90% of images.",
    answers="β's effect on σ, J and R (values not seen)",
)

# %% [markdown]
# ### Mean or variance?
#
# The theory lets the perturbation act through $\mu$ alone. So we attack what the attacker may see: both outputs of the encoder, the mean, or the standard deviation. Damage is judged with both free to move, and for the standard deviation also with the mean held where it was: an attack that follows only the gradient
# of $\sigma$ still moves the mean on the way, because the two share the encoder. The damage is the median deviation less that of the clean noise, which any attack would have for nothing; untrained networks, attacked in the same way, are the control.

# %%
plain = Ensemble([main.ensemble.member(i) for i in rows_of(main, "beta", 1)]).requires_grad_(False)
blank = networks(sets[s.images[0]]["train"], [("beta", 1)], seeds)[1].requires_grad_(False)
plain_x = main.x.repeat(len(plain), 1)
sizes_c8 = torch.tensor(s.damage)


def parts_attack(part, group=plain):
    """Median deviation per radius and image after an attack on one part of the encoder's output, [1 + radii, members × images]."""
    if part == "random":
        unit = torch.randn(len(sizes_c8), *plain_x.shape, generator=generator(seed, "random")).to(
            device
        )
        unit = 1e3 * unit  # far outside: the projection puts it on the sphere, inside the box
        delta = project(
            unit, sizes_c8[:, None].to(device).expand(-1, len(plain_x)), -plain_x, 1 - plain_x
        )
    else:
        dev = member_deviation(
            group, lambda m: deviation(m, part.split()[0]), len(main.x), rows=s.rows
        )
        delta = maximum_damage(dev, plain_x, sizes_c8, latents=s.latents, draws=s.attack_draws, steps=s.attack_steps, restarts=s.restarts,
                               generator=generator(seed, "parts", device=device))  # fmt: skip
    alone = part == "std alone"  # the mean stays where it was, as the theory would have σ stay
    judged_by = member_deviation(
        group, lambda m: deviation(m, "std" if alone else "both"), len(main.x), rows=s.rows
    )
    return judge(judged_by, plain_x, delta, levels[:1].to(plain_x), latents=s.latents, draws=s.test_draws,
                 generator=generator(seed, "parts", "judge", device=device)).median  # fmt: skip


damage = {part: parts_attack(part) for part in ("both", "mean", "std", "std alone", "random")}
untrained = {part: parts_attack(part, blank) for part in ("both", "mean")}


def share_of(part, found=damage):
    """Median over images and seeds of the damage of one attack over that of both, beyond the clean noise."""
    clean = found["both"][0]
    return ((found[part][1:] - clean) / (found["both"][1:] - clean)).median(1).values.tolist()


# %% tags=["nbval-check-output"]
chapter.claim(
    "C8",
    mean_share=share_of("mean"),
    std_share=share_of("std alone"),
    std_free=share_of("std"),
    random_share=share_of("random"),
    control=dict(
        mean_share=[max(two) for two in zip(share_of("std alone"), share_of("mean", untrained))]
    ),
)

# %% tags=["hide-input"]
fig, axis = plt.subplots(figsize=(6.4, 3.6))
for part, role, ls in (
    ("both", "baseline", "-"),
    ("mean", "noise", "--"),
    ("std alone", "regulariser", "-"),
    ("std", "regulariser", ":"),
    ("random", "light", "-"),
):
    middle = damage[part].median(1).values
    axis.plot(
        [0, *s.damage],
        middle,
        color=COLOURS[role],
        ls=ls,
        marker="o",
        label={
            "both": "mean and std",
            "mean": "mean only",
            "std alone": "std only, mean held",
            "std": "std only, mean free when judged",
            "random": "random direction",
        }[part],
    )
    axis.fill_between(
        [0, *s.damage],
        damage[part].quantile(0.1, dim=1),
        damage[part].quantile(0.9, dim=1),
        color=COLOURS[role],
        alpha=0.12,
    )
axis.set(xlabel="norm of the perturbation (l2)", ylabel="median deviation (l2)")
axis.legend(fontsize=9)
chapter.show(
    fig,
    "mean-or-std",
    alt="Median deviation against the norm of the perturbation for attacks on both encoder outputs, the mean, the standard deviation, and a random direction; the first two curves coincide far above the others.",
    caption=f"An attack on the mean alone does {math.floor(100 * min(share_of('mean')))}% or more of the damage, one on the standard deviation with the mean held at most {100 * max(share_of('std alone')):.0f}%, but up to {100 * max(share_of('std')):.0f}% where the mean is free to come along; a random direction at most {100 * max(share_of('random')):.0f}%. All beyond the clean noise.",
    answers="the paper's justification of its standing assumption",
)

# %% [markdown]
# ### What an attack costs in likelihood
#
# One attack norm for all images and models, so that the size of the attack does not hide in the horizontal axis. The post's formula has an absolute value and its plots are negative; we use $(\log p^*-\log p)/|\log p|$ with $\log p=-\|x-g(z)\|^2/2s^2$ averaged over draws. With the Gaussian's constant the sign of $\log p$, and so
# the ratio, would be arbitrary.

# %%
fixed_size = int((radii - 0.6 * float(radii[-1])).abs().argmin())


def degradation(run):
    """Relative change of the expected log-likelihood of the clean image under the attacked posterior, [members, images]."""
    eps = torch.randn(64, len(run.x), s.latents, generator=generator(seed, "degradation")).to(
        device
    )

    def one(model, delta):
        scores = []
        for v in (run.x, run.x + delta):
            mean, std = model.encode(v)
            scores.append(-(model.decode(mean + std * eps) - run.x).square().sum(-1).mean(0))
        clean, attacked = scores
        return (attacked - clean) / clean.abs()

    return run.ensemble.call(one, run.seen.delta[fixed_size]).cpu()


for run in runs.values():
    run.loss = degradation(run)
b_rows = lambda run, t: t[run.beta_rows]

# %% tags=["nbval-check-output"]
chapter.claim(
    "C9",
    correlation=[
        correlation(spearmanr, b_rows(r, r.seen.margin), b_rows(r, r.loss)) for r in runs.values()
    ],
    within=[within(r, r.seen.margin, r.loss) for r in runs.values()],
    control=dict(
        correlation=correlation(
            spearmanr,
            b_rows(main, main.seen.margin),
            b_rows(main, main.loss).roll((len(seeds), 1), (0, 1)),
        )
    ),
)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, len(runs), figsize=(4.8 * len(runs), 3.5), squeeze=False)
for axis, (name, run) in zip(axes[0], runs.items()):
    for b in s.betas:
        at = rows_of(run, "beta", b)
        axis.scatter(run.seen.margin[at], run.loss[at], s=16, color=SHADES[b], label=f"β = {b:g}")
    axis.set(
        xlabel=f"attacked margin, r = {r_main:g} (l2)",
        ylabel="relative degradation",
        title=NAMES[name],
    )
axes[0, 0].legend(fontsize=8)
chapter.show(
    fig,
    "degradation",
    alt="Relative degradation of the log-likelihood under an attack of fixed norm against the attacked margin, one point per image and network, coloured by beta.",
    caption=f"Attacks of norm {float(radii[fixed_size]):.2f}: rank correlation of margin and degradation "
    + ", ".join(
        f"{correlation(spearmanr, b_rows(r, r.seen.margin), b_rows(r, r.loss)):.2f} ({NAMES[n]})"
        for n, r in runs.items()
    )
    + ". A network with a large error to begin with has little left to lose, which alone moves points up.",
    answers="likelihood degradation against R",
)

# %% [markdown]
# ### A robust and a fragile image

# %%
first = rows_of(main, "beta", 1, seeds[0])[0]
solo = main.ensemble.member(first).requires_grad_(False)
order = seen.margin[first].argsort()
fragile, robust = int(order[0]), int(order[-1])
between = float((seen.margin[first, fragile] + seen.margin[first, robust]) / 2)
duo = main.x[[robust, fragile]]
stream = generator(seed, "duo", device=device)
duo_delta = maximum_damage(
    deviation(solo),
    duo,
    torch.tensor([between]),
    latents=s.latents,
    draws=s.attack_draws,
    steps=2 * s.attack_steps,
    generator=stream,
)
unit = 1e3 * torch.randn(1, *duo.shape, generator=stream, device=device)
duo_random = project(unit, between, -duo, 1 - duo)


def held(delta):
    return judge(
        deviation(solo),
        duo,
        delta,
        levels[s.main : s.main + 1].to(duo),
        latents=s.latents,
        draws=s.test_draws,
        generator=generator(seed, "duo", "judge", device=device),
    ).share[0, 0]


held_attack, held_random = held(duo_delta), held(duo_random)

# %% tags=["nbval-check-output"]
chapter.claim(
    "C10",
    robust=float(held_attack[0]),
    fragile=float(held_attack[1]),
    control=dict(robust=float(held_random[0]), fragile=float(held_random[1])),
)

# %% tags=["hide-input"]
side = int(math.sqrt(duo.shape[1]))
fig, axes = plt.subplots(2, 4, figsize=(7.6, 4.1))
for row, (label, p) in enumerate((("robust", 0), ("fragile", 1))):
    with torch.no_grad():
        pictures = (
            duo[p],
            solo.reconstruct(duo[p : p + 1])[0],
            duo[p] + duo_delta[0, p],
            solo.reconstruct(duo[p : p + 1] + duo_delta[0, p])[0],
        )
    for axis, picture, name in zip(
        axes[row],
        pictures,
        ("input", "reconstruction", "attacked input", "attacked reconstruction"),
    ):
        axis.imshow(picture.view(side, side).cpu(), cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        if row == 0:
            axis.set_title(name, fontsize=10)
    axes[row, 0].set_ylabel(
        f"{label}: R = {float(seen.margin[first, (robust, fragile)[p]]):.2f}", fontsize=10
    )
chapter.show(
    fig,
    "robust-and-fragile",
    alt="Two rows of four small images, robust above and fragile below: input, reconstruction, attacked input, attacked reconstruction.",
    caption=f"The same attack norm, {between:.2f}, for the images with the largest and the smallest attacked margin under the VAE: {100 * held_attack[0]:.0f}% and {100 * held_attack[1]:.0f}% of reconstructions stay within r = {r_main:g}.",
    answers="robust and non-robust examples",
)

# %% [markdown]
# ### Coordinates
#
# Stretch one latent by $k$ (its mean and scale in the encoder) and let the decoder divide by $k$: the same model, the same reconstructions, the same margins. $\min_i\sigma_i/\|J\|_F$ is not invariant under this, $\|\mathrm{diag}(\sigma)^{-1}J\|_2$ is. What fixes the coordinates of a trained VAE is the KL; that is why the paper's form is informative
# there.

# %%
torch.set_default_dtype(torch.float64)
original = main.ensemble.member(first).double().cpu().requires_grad_(False)
x64 = main.x.double().cpu()
widest = int(read.std[first].mean(0).argmin())  # the most informative latent has the smallest σ
factors = (1.0, 2.0, 5.0, 10.0, 30.0)
eps64 = torch.randn(50, len(x64), s.latents, generator=generator(seed, "stretch"))
low64 = seen.low[s.main, first]


def coordinates(factor):
    """Three bounds and the deviations under a fixed attack, in stretched coordinates."""
    model = stretched(original, widest, factor)
    with torch.no_grad():
        moved = deviation(model)(x64 + seen.delta[fixed_size, first].double().cpu(), x64, eps64)
    return first_order_margins(low64, model.encode(x64)[1], shift_jacobian(model, x64)), moved


views = {factor: coordinates(factor) for factor in factors}
far_view, near_view = views[10.0], views[1.0]
relative = lambda form: float(
    (far_view[0][form] / near_view[0][form] - 1).abs().nan_to_num(0).max()
)

# %% tags=["nbval-check-output"]
moved_by = float((far_view[1] / near_view[1] - 1).abs().max())
fall = float((far_view[0]["frobenius"] / near_view[0]["frobenius"]).nanmedian())
chapter.claim(
    "C11",
    deviation=moved_by,
    whitened=relative("whitened"),
    fall=fall,
    control=dict(deviation=moved_by, whitened=relative("frobenius"), fall=fall),
)
torch.set_default_dtype(torch.float32)

# %% tags=["hide-input"]
fig, axis = plt.subplots(figsize=(6.2, 3.2))
for form, role in (("frobenius", "noise"), ("spectral", "regulariser"), ("whitened", "theory")):
    axis.plot(
        factors,
        [float(view[0][form].mean()) for view in views.values()],
        marker="o",
        color=COLOURS[role],
        label=form,
    )
axis.set(
    xscale="log", xlabel="stretch k of one latent", ylabel="mean bound (l2 norm)", ylim=(0, None)
)
axis.set_xticks(factors, [f"{f:g}" for f in factors])
axis.minorticks_off()
axis.legend(fontsize=9)
chapter.show(
    fig,
    "coordinates",
    alt="Mean of three bounds against the stretch factor of one latent: the whitened one is a horizontal line, the other two fall.",
    caption=f"The model is the same at every k. At k = 10 the Frobenius bound is {fall:.2f} of what it was; the whitened one has changed by a relative {relative('whitened'):.0e}.",
)

# %% [markdown]
# ### The companion paper: does disentangling defend?
#
# Willetts, Camuto and co-authors {cite}`willetts2021improving` attack the latent space: move the posterior of $x+\delta$ to that of a target, at a price $\lambda\|\delta\|$, for $\lambda$ in $\{0\}\cup\{2^c\}$, $c\in[-20,20]$. We use KL and 2-Wasserstein; and the output attack, which *maximises* the target's ELBO (the texts we saw print the maximand and say
# "minimise"). Their hierarchical defence, the Seatbelt-VAE, is here in a mini-version with two layers: the total correlation of the *top* layer is penalised and the likelihood sees both. All pairs, penalties, members and seeds are one batch.

# %%
top = s.penalties[-1]
labels = sets[s.images[0]]["test"].y
x_in = main.x[: s.pairs]
order_t = [
    next(j for j in range(i + 1, len(labels)) if labels[j] != labels[i]) for i in range(s.pairs)
]
x_target = test_flat[order_t]
strengths = torch.cat([torch.zeros(1), 2.0 ** torch.linspace(-20, 20, s.strengths - 1)])
rows = len(strengths) * s.pairs
wide_in, wide_target = x_in.repeat(len(strengths), 1), x_target.repeat(len(strengths), 1)
price = strengths.repeat_interleave(s.pairs).to(device)


cheap = (
    price <= 1
)  # at a higher price the attack stays at δ = 0, and the objective is that of clean posteriors


def attack_members(ensemble, distance):
    """Penalised attacks on all members: mean reached objective (λ ≤ 1), and the perturbations [members, rows, d]."""
    start = wide_in.expand(len(ensemble), -1, -1)
    found = penalised_attack(
        lambda v: ensemble.call(distance, v),
        start,
        price.expand(len(ensemble), -1),
        steps=s.latent_steps,
        lr=0.03,
        box=(0.0, 1.0),
    )
    return found.objective[:, cheap].mean(1).cpu(), found.delta


out_eps = torch.randn(4, rows, s.latents, generator=generator(seed, "output")).to(device)
constant = (
    0.5 * x_in.shape[1] * math.log(2 * math.pi * s.variance)
)  # of the Gaussian: without it, all objectives are positive
latent_kl = lambda m, v: normal_kl(m.encode(v), m.encode(wide_target))
latent_w2 = lambda m, v: normal_w2(m.encode(v), m.encode(wide_target))
output = lambda m, v: -output_objective(m, wide_target, s.variance, out_eps)(v) - constant


def likelihood_of_target(m, v):
    mean, std = m.encode(v)
    return (-log_likelihood(wide_target, m.decode(mean + std * out_eps), s.variance) - constant)[
        ..., cheap
    ].mean()


chosen = [("beta", 1), ("beta", top), ("tc", top)]
attacked = {
    arm: Ensemble([main.ensemble.member(i) for i in rows_of(main, *arm)]).requires_grad_(False)
    for arm in chosen
}
reached = {arm: {} for arm in chosen}
for arm, group in attacked.items():
    for name, distance in (("latent", latent_kl), ("wasserstein", latent_w2), ("output", output)):
        reached[arm][name], delta = attack_members(group, distance)
        if name == "latent":
            with torch.no_grad():
                reached[arm]["target"] = group.call(likelihood_of_target, wide_in + delta).cpu()
                reached[arm]["target_untouched"] = group.call(
                    lambda m: likelihood_of_target(m, wide_in)
                ).cpu()
ratio = lambda name, over=("tc", top): (reached[over][name] / reached["beta", 1][name]).tolist()
# The most that a change of seed alone makes of the VAE: what a defence has to beat.
between_seeds = lambda values: float((values.roll(1, 0) / values).max())

# %% tags=["nbval-check-output"]
chapter.claim(
    "C12a",
    **{
        name: ratio(name)
        for name in ("latent", "output", "wasserstein", "target", "target_untouched")
    },
    seeds=between_seeds(reached["beta", 1]["latent"]),
    control=dict(
        latent=between_seeds(reached["beta", 1]["latent"]),
        output=between_seeds(reached["beta", 1]["output"]),
        seeds=between_seeds(reached["beta", 1]["latent"]),
    ),
)

# %%
belt_members = [(b, m) for b in (1, top) for m in seeds]
belts = Ensemble(
    [
        SeatbeltVAE(
            (main.x.shape[1], *s.hidden),
            s.latents,
            s.hidden[-1],
            generator=generator(m, "seatbelt"),
        )
        for _, m in belt_members
    ]
).to(device)
flat_train = sets[s.images[0]]["train"].x.flatten(1)
fit(
    belts, seatbelt_loss(s.variance), [Batches(flat_train, batch_size=s.batch, seed=m) for _, m in belt_members], seed=[m for _, m in belt_members],
    steps=s.steps, lr=s.lr, schedule=cosine, noise=unit_noise(2 * s.latents), hyper={"tc": torch.tensor([float(b) - 1 for b, _ in belt_members])},
    record_every=s.steps, desc="Seatbelt",
)  # fmt: skip
belts.requires_grad_(False)


def test_elbo(ensemble, loss, latents, hyper):
    """The ELBO of every member on test images, under the same draws."""
    x = test_flat[:1_000]
    eps = torch.randn(len(x), latents, generator=generator(seed, "elbo")).to(device)
    hyper = {name: value.to(device) for name, value in hyper.items()}
    return ensemble.call(lambda m, h: loss(m, (x,), eps, h)[1]["elbo"], hyper).cpu()


belt_elbo = test_elbo(
    belts, seatbelt_loss(s.variance), 2 * s.latents, {"tc": torch.zeros(len(belts))}
).view(2, -1)
flat_elbo = {
    arm: test_elbo(
        group,
        vae_loss(s.variance),
        s.latents,
        {"beta": torch.ones(len(group)), "tc": torch.zeros(len(group))},
    )
    for arm, group in attacked.items()
}
still = torch.zeros(rows, s.latents, device=device)


def top_layer(m):
    """KL in nats of the top posterior, whose total correlation is penalised, from the prior: mean over test images."""
    x = test_flat[:1_000]
    _, (mean, std) = m.encode(x, torch.zeros(len(x), s.latents, device=device))
    return gaussian_kl(mean, std).mean()


with torch.no_grad():
    top_nats = belts.call(top_layer).view(2, -1).cpu()
print(
    "nats in the Seatbelt's top layer, mean over seeds: {:.2f} at β = 1, {:.2f} at β = {:g}".format(
        *top_nats.mean(1), top
    )
)


def both_layers(m, v):
    return sum(normal_kl(p, q) for p, q in zip(m.encode(v, still), m.encode(wide_target, still)))


belt_reached = attack_members(belts, both_layers)[0].view(2, -1)
fall_tc = flat_elbo["beta", 1] - flat_elbo["tc", top]
fall_belt = belt_elbo[0] - belt_elbo[1]
belt_ratio = belt_reached[1] / reached["beta", 1]["latent"]

# %% tags=["nbval-check-output"]
chapter.claim(
    "C12b",
    seatbelt=(fall_belt / fall_tc).tolist(),
    top=top_nats[1].tolist(),
    latent=belt_ratio.tolist(),
    control=dict(
        seatbelt=float((fall_tc.roll(1) / fall_tc).min()),
        top=main.quality.kl[rows_of(main, "tc", top)].tolist(),
    ),
)
low, high, seeds_apart = (
    float(belt_ratio.min()),
    float(belt_ratio.max()),
    between_seeds(reached["beta", 1]["latent"]),
)
unsettled = ", so nothing can be read off" if low < 1 < high else ""
display(
    Markdown(
        f"A latent attack on the Seatbelt-VAE reaches between {low:.2f} and {high:.2f} times the VAE's objective, seed by seed, and two seeds of the VAE alone differ by a factor of {seeds_apart:.1f}{unsettled} (C12b). "
        f"Its top layer, the only one penalised, carries {' and '.join(f'{float(v):.2f}' for v in top_nats[1])} nats."
    )
)


# %% tags=["nbval-check-output"]
def weight_norm(ensemble, part):
    squares = [
        w.square().flatten(1).sum(1)
        for name, w in ensemble.named_parameters()
        if f".{part}." in name and name.endswith("weight")
    ]
    return torch.stack(squares).sum(0).sqrt().cpu()


moved = {
    part: (weight_norm(attacked["tc", top], part) / weight_norm(attacked["beta", 1], part) - 1)
    for part in ("encoder", "decoder")
}
spread_of = {part: weight_norm(attacked["beta", 1], part) for part in ("encoder", "decoder")}
seed_change = {f"{part}_seeds": between_seeds(v) - 1 for part, v in spread_of.items()}
chapter.claim(
    "C12c", **{part: value.tolist() for part, value in moved.items()}, **seed_change,
    control=dict(encoder=seed_change["encoder_seeds"], decoder=-seed_change["decoder_seeds"], **seed_change),
)  # fmt: skip

# %% tags=["nbval-check-output"]
tc_rows, beta_rows = rows_of(main, "tc", top), rows_of(main, "beta", top)
larger = (std_norm[tc_rows].mean(1), std_norm[beta_rows].mean(1))
errors = (main.quality.error[tc_rows], main.quality.error[beta_rows])
seed_ratio = dict(std_seeds=between_seeds(larger[1]), error_seeds=1 / between_seeds(errors[1]))
chapter.claim(
    "C12d", std=(larger[0] / larger[1]).tolist(), error=(errors[0] / errors[1]).tolist(), **seed_ratio,
    control=dict(std=seed_ratio["std_seeds"], error=seed_ratio["error_seeds"], **seed_ratio),
)  # fmt: skip

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 3, figsize=(10.6, 3.4))
bars = {
    "VAE": reached["beta", 1],
    f"β-VAE {top:g}": reached["beta", top],
    f"β-TCVAE {top:g}": reached["tc", top],
}
for axis, name, label in zip(axes, ("latent", "output"), ("latent KL attack", "output attack")):
    values = [v[name] for v in bars.values()]
    names = list(bars)
    if name == "latent":
        values, names = (
            [*values, belt_reached[0], belt_reached[1]],
            [*names, "Seatbelt 1", f"Seatbelt {top:g}"],
        )
    axis.bar(names, [float(v.mean()) for v in values], color=COLOURS["noise"], alpha=0.6)
    for i, v in enumerate(values):
        axis.plot([i] * len(v), v, "o", color="black", ms=4)
    axis.set(ylabel="reached objective (nats)", title=label)
    axis.tick_params(axis="x", rotation=40)
for label, values, role in (
    ("β-TCVAE", (flat_elbo["beta", 1], flat_elbo["tc", top]), "regulariser"),
    ("Seatbelt, L = 2", belt_elbo, "theory"),
):
    axes[2].plot(
        [1, top], [float(v.mean()) for v in values], marker="o", color=COLOURS[role], label=label
    )
axes[2].set(xlabel="weight β", ylabel="test ELBO (nats)", title="price")
axes[2].set_xticks([1, top])
axes[2].legend(fontsize=9)
chapter.show(
    fig,
    "latent-attacks",
    alt="Bars of the objective reached by latent KL attacks and output attacks for VAE, beta-VAE, beta-TCVAE and Seatbelt-VAEs, dots per seed; and the test ELBO against beta for beta-TCVAE and Seatbelt.",
    caption="On the β-TCVAE a latent KL attack ends at {} times the VAE's objective, seed by seed (output attack: {} times); another seed of the VAE alone at up to {:.1f} times. Dots: seeds.".format(
        *(" and ".join(f"{v:.2f}" for v in ratio(name)) for name in ("latent", "output")),
        between_seeds(reached["beta", 1]["latent"]),
    ),
    answers="attack objectives of the companion paper",
)

# %% [markdown]
# ## Beyond the paper
#
# ### A sharper bound from the same numbers
#
# $\Phi^{-1}(p_0)/\|\mathrm{diag}(\sigma)^{-1}J^\mu\|_2$ needs the same Jacobian. It keeps the direction in which each latent moves together with that latent's own noise; the Frobenius form combines the *smallest* noise with *all* of the motion.


# %%
def sharper(run, power=1):
    """Gain of the whitened bound over the Frobenius one, and its violations; `power` 2 whitens with variances."""
    at, margin = run.beta_rows, run.seen.margin[run.beta_rows]
    frobenius = run.read.frobenius[s.main][at]
    whitened = first_order_margins(
        run.seen.low[s.main], run.read.std.double() ** power, run.read.jacobian.double()
    )["whitened"][at]
    alive = frobenius > 0
    return {
        "gain": float((whitened / frobenius)[alive].median()), "violations": float((whitened > run.seen.unclipped[at]).double().mean()),
        "closed": float(((whitened / frobenius).log() / (margin / frobenius).log())[alive & (margin > frobenius)].median()),
    }  # fmt: skip


# %% tags=["nbval-check-output"]
chapter.claim(
    "B1",
    **columns([sharper(run) for run in runs.values()]),
    control=columns(
        [sharper(run, 2) | {"violations": mispaired(run)["violations"]} for run in runs.values()]
    ),
)

# %% [markdown]
# (sec-certificate)=
# ### From an estimate to a certificate
#
# The first-order bound can be *above* the true margin: where $J^\mu$ vanishes it is infinite. An encoder that is flat at $x$ and steep nearby deceives it, and one unit suffices: $\mu(x)=4\tanh(4x-4)$ at $x=0$ with a half-space decoder. A second one has $\log\sigma(x)=x$ and hardly moves its mean:
# there a certificate that forgot the movement of $\sigma$ would promise too much.
#
# :::{prf:proposition} A certificate for any VAE
# :label: prop-certificate
# Let $\mu/\sigma(x)$, with $\sigma(x)$ frozen, be $w$-Lipschitz and $\log\sigma$ be $c$-Lipschitz (in $\|\cdot\|_2$). For $\|\delta\|\le R$,
#
# $$P(D\le r)\;\ge\;\Phi(\Phi^{-1}(p_0)-wR)-\sqrt{\mathrm{KL}/2},\qquad \mathrm{KL}\le\tfrac12\left(e^{2cR}-1-2cR\right),$$
#
# so the largest $R$ at which the right side exceeds one half, with a lower confidence bound in the place of $p_0$, is a certified margin.
# :::
#
# :::{prf:proof}
# {prf:ref}`thm-latent` with $m\le wR$ covers the shift of the mean at the old scale. Changing the scale to $\sigma'$ changes any probability by at most the total variation, which is at most $\sqrt{\mathrm{KL}/2}$ (Pinsker), with $\mathrm{KL}=\sum_if(u_i)$, $f(u)=\tfrac12(e^{2u}-1-2u)$ and
# $u_i=\log(\sigma_i'/\sigma_i)$, $\sum_iu_i^2\le c^2R^2$. As $f(u)/u^2$ increases in $u$, $\sum_if(u_i)\le c^2R^2\max_if(u_i)/u_i^2\le f(cR)$.
# :::
#
# The Lipschitz constants here are products of spectral norms, the crudest that hold ({doc}`chapter 4 </notebooks/04_certified_vae>` has better ones). The certificate is global in the encoder and assumes nothing about the decoder; its confidence is that of $p_0$, 99.9% per image.

# %%
torch.set_default_dtype(torch.float64)
certificates = []
for i in main.beta_rows:
    mean_slope, log_slope = encoder_slopes(main.ensemble.member(i).cpu().encoder, read.std[i])
    certificates.append(certified_margin(seen.low[s.main, i], mean_slope, log_slope))
certificates = torch.stack(certificates)
beta_margin = seen.margin[main.beta_rows]

flat = mlp((1, 1, 1), "tanh", generator=generator(seed, "trap")).requires_grad_(False)
with torch.no_grad():
    for layer, (weight, bias) in zip((flat[0], flat[2]), ((4.0, -4.0), (4.0, 0.0))):
        layer.weight.fill_(weight)
        layer.bias.fill_(bias)
trap_level = ndtri(torch.tensor(0.9))
trap_slope = jacobians(flat, torch.zeros(1, 1)).abs().item()
trap_estimate = float(trap_level) / trap_slope
# μ rises with x, so the margin is where it has risen by Φ⁻¹(p₀): the success region is the half-space z <= μ(0) + Φ⁻¹(p₀).
trap_exact = (math.atanh((float(flat(torch.zeros(1, 1))) + float(trap_level)) / 4) + 4) / 4
trap_certificate = float(
    certified_margin(torch.tensor([0.9]), encoder_slopes(flat, torch.ones(1, 1))[0])
)
# And one whose scale moves, σ(x) = exp x, while μ(x) = x / 10: a slab |z| <= k that holds 90% at x = 0.
loud = mlp((1, 2), "tanh", generator=generator(seed, "trap")).requires_grad_(False)
with torch.no_grad():
    loud[0].weight.copy_(torch.tensor([[0.1], [2.0]]))
    loud[0].bias.zero_()
slab, loud_low, loud_high = float(ndtri(torch.tensor(0.95))), 0.0, 2.0
for _ in range(60):
    middle = (loud_low + loud_high) / 2
    edges = (torch.tensor([slab, -slab]) - 0.1 * middle) / math.exp(middle)
    inside = float(ndtr(edges[0]) - ndtr(edges[1])) > 0.5
    loud_low, loud_high = (middle, loud_high) if inside else (loud_low, middle)
loud_slopes = encoder_slopes(loud, torch.ones(1, 1))
loud_certificates = [  # with and without what the moving scale costs
    float(certified_margin(torch.tensor([0.9]), loud_slopes[0], c)) for c in (loud_slopes[1], 0.0)
]
torch.set_default_dtype(torch.float32)

# %% tags=["nbval-check-output"]
positive = certificates > 0
first_order = read.whitened[s.main][main.beta_rows]
chapter.claim(
    "B2",
    violations=float((certificates > seen.unclipped[main.beta_rows]).double().mean()),
    positive=float(positive.double().mean()),
    price=float((first_order[positive] / certificates[positive]).median()),
    trap=trap_certificate / trap_exact,
    trap_scale=loud_certificates[0] / loud_low,
    control=dict(
        violations=float((first_order > seen.unclipped[main.beta_rows]).double().mean()),
        positive=1.0,
        price=1.0,
        trap=trap_estimate / trap_exact,
        trap_scale=loud_certificates[1] / loud_low,
    ),
)

# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.5))
ladder = {"certificate": certificates, "Frobenius": read.frobenius[s.main][main.beta_rows], "spectral": read.spectral[s.main][main.beta_rows],
          "whitened": first_order, "attacked": beta_margin}  # fmt: skip
for b in s.betas:
    at = [j for j, i in enumerate(main.beta_rows) if main.members[i][0][1] == b]
    left.plot(
        list(ladder),
        [float(v[at].mean()) for v in ladder.values()],
        marker="o",
        color=SHADES[b],
        label=f"β = {b:g}",
    )
left.set(yscale="log", ylabel="mean margin (l2 norm)", title=f"{title}, r = {r_main:g}")
left.legend(fontsize=8)
x_trap = torch.linspace(0, 1.2, 200)
right.plot(
    x_trap,
    (flat(x_trap[:, None].double()) - flat(torch.zeros(1, 1).double())).detach()[:, 0],
    color=COLOURS["baseline"],
    label="μ(δ) − μ(0)",
)
right.plot(x_trap, trap_slope * x_trap, color=COLOURS["noise"], ls="--", label="its linear part")
right.axhline(float(trap_level), color="black", lw=0.8)
right.axvline(trap_exact, color=COLOURS["highlight"], label="exact margin")
right.axvline(trap_certificate, color=COLOURS["theory"], label="certificate")
right.set(
    xlabel="δ",
    ylabel="shift of the code",
    title="An encoder that deceives the estimate",
    ylim=(0, 3),
)
right.legend(fontsize=8)
chapter.show(
    fig,
    "certificate",
    alt="Left: mean certificate, three first-order bounds and attacked margin on a logarithmic axis, one line per beta, rising from left to right. Right: a code that hardly moves at first and then steeply; the linear part stays near zero, the exact margin and the smaller "
    "certificate are marked.",
    caption=f"Left: a certificate without error term costs a factor {float((first_order[positive] / certificates[positive]).median()):.1f} (median) against the whitened estimate. Right: here the estimate says {trap_estimate:.0f}, the truth is {trap_exact:.2f}, "
    f"the certificate {trap_certificate:.2f}. Where the scale moves instead, the certificate is {loud_certificates[0]:.2f}, the truth {loud_low:.2f}, and without its term for the scale it would be {loud_certificates[1]:.1f}.",
)

# %% [markdown]
# ### One step instead of many
#
# The bound singles out a direction, the top right-singular vector of $\mathrm{diag}(\sigma)^{-1}J^\mu$; the pullback metric of Khan and Storkey {cite}`khan2023adversarial` that of $J_gJ^\mu$. One step of given norm along each (the better sign), projected onto ball and box, against ascent at the same norm.

# %%
size = 1  # the second radius of the grid
pulled = main.ensemble.call(
    lambda m: pullback_directions(m, main.x)
).cpu()  # [members, images, n, d]
rescaled = torch.linalg.svd(read.jacobian / read.std[..., None], full_matrices=False)[2]
anywhere = torch.randn(*pulled[:, :, 0].shape, generator=generator(seed, "direction"))
directions = {
    "pullback": pulled[:, :, 0],
    "whitened": rescaled[:, :, 0],
    "random": torch.nn.functional.normalize(anywhere, dim=-1),
    "least": pulled[:, :, -1],
}
all_x = main.x.repeat(len(main.members), 1)
all_dev = member_deviation(main.ensemble, deviation, len(main.x), rows=s.rows)


def damage_of(delta):
    """What the better of several perturbations adds to the median deviation of the noise, [members × images]."""
    found = judge(all_dev, all_x, delta, levels[:1].to(all_x), latents=s.latents, draws=s.test_draws,
                  generator=generator(seed, "one step", device=device)).median  # fmt: skip
    return found[1:].amax(0) - found[0]


ascent = damage_of(seen.ascent[size : size + 1])
steps_share = {
    name: float(
        (
            damage_of(one_step(all_x, v.flatten(0, 1).to(all_x), radii[size : size + 1])[:, 0])
            / ascent
        ).median()
    )
    for name, v in directions.items()
}
ascent_delta = torch.nn.functional.normalize(
    seen.ascent[size].unflatten(0, seen.margin.shape).cpu(), dim=-1
)
cosines = {name: (v * ascent_delta).sum(-1).abs() for name, v in directions.items()}

# %% tags=["nbval-check-output"]
chapter.claim(
    "B3", **{name: steps_share[name] for name in ("pullback", "whitened", "random")}, cosine=float(cosines["pullback"].median()),
    control=dict(pullback=steps_share["least"], whitened=steps_share["whitened"], random=steps_share["random"]),
)  # fmt: skip

# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.2))
words = {
    "pullback": "J_g J",
    "whitened": "diag(σ)⁻¹ J",
    "random": "random",
    "least": "least of J_g J",
}
left.bar(
    list(words.values()),
    [steps_share[k] for k in words],
    color=[COLOURS[c] for c in ("theory", "noise", "light", "control")],
)
left.axhline(1, color="black", lw=1)
left.set(ylabel="damage added, one step / ascent", ylim=(0, 1.1))
right.boxplot(
    [cosines[k].flatten().numpy() for k in words],
    tick_labels=list(words.values()),
    showfliers=False,
)
right.set(ylabel="|cosine| with the ascent's perturbation", ylim=(0, 1))
for axis in (left, right):
    axis.tick_params(axis="x", labelsize=9)
chapter.show(
    fig,
    "one-step",
    alt="Left: bars of the damage of one step along four directions relative to ascent. Right: box plots of the modulus of the cosine between these directions and the ascent's perturbation.",
    caption=f"At norm {float(radii[size]):.2f} one step along the pullback direction does {100 * steps_share['pullback']:.0f}% of the ascent's damage, along the bound's own direction {100 * steps_share['whitened']:.0f}%, at random {100 * steps_share['random']:.0f}%.",
)

# %% [markdown]
# ### The whole profile in r
#
# One $r$ is a choice; the curve $r\mapsto R^r(x)$ is not. One attack serves all $r$. The median deviation under attack is the same curve read the other way: the smallest valid $r$ at a given attack size.

# %%
half_level, full_level = 1, s.main  # r and about 2 r
weak = rows_of(main, "beta", s.betas[0])
cap_p = float(clopper_pearson(torch.tensor([s.p0_draws]), s.p0_draws, 0.999)[0])
coarse = seen.coarse.clamp_max(float(radii[-1]))
grow = lambda t: float((t[full_level][weak] / t[half_level][weak]).median())

# %% tags=["nbval-check-output"]
chapter.claim(
    "B4",
    attacked=grow(coarse),
    bound=grow(read.frobenius),
    cap=float(ndtri(torch.tensor(cap_p))),
    control=dict(attacked=grow(coarse), bound=grow(coarse)),
)

# %% tags=["hide-input"]
fig, axes = plt.subplots(2, 2, figsize=(8.6, 6.4))
axes = axes.flatten()
for b in s.betas:
    at = rows_of(main, "beta", b)
    axes[3].plot(s.levels, seen.p0[:, at].mean((1, 2)), marker="o", color=SHADES[b])
    axes[0].plot(
        s.levels, coarse[:, at].mean((1, 2)), marker="o", color=SHADES[b], label=f"β = {b:g}"
    )
    axes[1].plot(s.levels, read.whitened[:, at].mean((1, 2)), marker="o", color=SHADES[b])
    axes[2].plot([0, *radii.tolist()], seen.median[:, at].mean((1, 2)), color=SHADES[b])
axes[0].axhline(float(radii[-1]), color="black", lw=0.8, ls=":")
axes[0].set(xlabel="r (l2)", ylabel="attacked margin (l2)", title="attacked")
axes[1].set(xlabel="r (l2)", ylabel="whitened bound (l2)", title="first order")
axes[2].set(
    xlabel="norm of the attack (l2)", ylabel="smallest valid r (l2)", title="median deviation"
)
axes[3].axhline(0.5, color="black", lw=0.8)
axes[3].set(xlabel="r (l2)", ylabel="clean probability p₀", title="no attack", ylim=(0, 1.05))
axes[0].legend(fontsize=8)
best_at = [
    s.betas[
        int(torch.stack([coarse[k, rows_of(main, "beta", b)].mean() for b in s.betas]).argmax())
    ]
    for k in range(len(s.levels))
]
p0_at = lambda b: float(seen.p0[0, rows_of(main, "beta", b)].mean())
noisiest = min(s.betas, key=p0_at)
chapter.show(
    fig,
    "r-profile",
    alt="Four panels, one line per beta: attacked margin rising with r, first-order bound rising and then flat, the median deviation rising with the norm of the attack from a clean value that grows with beta, and the clean probability rising with r to one, "
    "earlier for a smaller beta.",
    caption=f"Attacked margins grow with $r$; the bound stops at a ceiling that the number of draws sets ({s.p0_draws:,}: $\\Phi^{{-1}}$ at most {float(ndtri(torch.tensor(cap_p))):.2f}). The β with the largest attacked margin at r = "
    + ", ".join(f"{r:g}: {b:g}" for r, b in zip(s.levels, best_at))
    + f". Dotted: end of the grid. Without an attack the mean $p_0$ at r = {s.levels[0]:g} goes from {p0_at(s.betas[0]):.2f} at the smallest β to {p0_at(noisiest):.2f} at β = {noisiest:g}, where the decoded noise is largest.",
)

# %% [markdown]
# ### The sigma paradox
#
# Chapter 4's bounds *fall* with the posterior's scale, this chapter's *rises* with it. One network decides: the trained VAE ($\beta=1$), its posterior replaced by $\mathcal{N}(\mu(x),\gamma^2I)$ for a range of $\gamma$. Four curves: the clean probability; the first-order margin $\gamma\,\Phi^{-1}(p_0)/\|J\|_2$; the Lipschitz margin of
# {cite}`barrett2022certifiably` in its sharper form $\sqrt{(r/a)^2-2s^2}/b$ with $s=\gamma\sqrt n$ ({prf:ref}`thm-median` of chapter 4 derives it; $a$ and $b$ are Lipschitz constants of $g$ and $\mu$), once with products of spectral norms (a certificate) and once with the local slopes $\|J_g\|_2$, $\|J^\mu\|_2$ (an estimate, as ours is); and attacked margins under both definitions.

# %%
gammas = torch.cat([torch.logspace(-2.5, math.log10(1.6), s.scales - 1), torch.tensor([5.0])])
scaled = Ensemble([fixed_scale(solo, float(g)) for g in gammas]).requires_grad_(False)
few = main.x[:6]  # of the images: two definitions at all scales are twice the work
sweep = measure(scaled, few, "sigma")
both_random = lambda m: two_draws(m, chunk=None)  # draws come in blocks already
pairs_sweep = measure(scaled, few, "sigma pairs", build=both_random, latents=2 * s.latents)
j_local = torch.linalg.matrix_norm(
    read.jacobian[first, : len(few)].double(), 2
)  # ||J_mu||, [images]
g_local = torch.linalg.matrix_norm(decoder_j[first, : len(few)].double(), 2)
a_all, b_all = (
    product_bound(solo.decoder.cpu()),
    product_bound(fixed_scale(solo, 1.0).encoder.cpu()),
)
solo.to(device)
scale_n = gammas[:, None].double() * math.sqrt(s.latents)
lipschitz = lambda a, b: (
    ((r_main / a) ** 2 - 2 * scale_n**2).clamp_min(0).sqrt() / b
)  # [scales, images]
fixed_quantile = ndtri(sweep.low[s.main].clamp_min(0.5))
curves = {
    "first": gammas[:, None] * fixed_quantile / j_local, "local": lipschitz(g_local, j_local),
    "certified": lipschitz(torch.tensor(a_all), torch.tensor(b_all)),
    "attacked": sweep.margin, "attacked pairs": pairs_sweep.margin,
}  # fmt: skip
mean_curve = {name: v.mean(1) for name, v in curves.items()}
p0_curve = sweep.p0[s.main].mean(1)
first_curve = mean_curve["first"]
held_fixed = (gammas[:, None] * fixed_quantile[:1] / j_local).mean(1)

# %% tags=["nbval-check-output"]
chapter.claim(
    "B5",
    peak=float(first_curve.max() / first_curve[0]),
    end=float(first_curve[-1] / first_curve.max()),
    p0_falls=float(p0_curve.diff().max()),
    lipschitz_falls=float(mean_curve["local"].diff().max()),
    attacked_first=correlation(spearmanr, mean_curve["attacked"], first_curve),
    attacked_lipschitz=correlation(spearmanr, mean_curve["attacked pairs"], mean_curve["local"]),
    control=dict(
        peak=float(held_fixed.max() / held_fixed[0]), end=float(held_fixed[-1] / held_fixed.max()), p0_falls=0.0,
        lipschitz_falls=float(mean_curve["local"].diff().max()),
    ),
)  # fmt: skip

# %% tags=["hide-input"]
fig, (upper, lower) = plt.subplots(2, 1, figsize=(7.6, 5.6), sharex=True, height_ratios=(1, 2))
upper.plot(
    gammas, p0_curve, color=COLOURS["baseline"], marker=".", label="P₁: one draw against g(μ)"
)
upper.plot(
    gammas,
    pairs_sweep.p0[s.main].mean(1),
    color=COLOURS["baseline"],
    marker=".",
    ls=":",
    label="P₂: two draws",
)
upper.axhline(0.5, color="black", lw=0.8)
upper.set(ylabel="clean probability", ylim=(0, 1.05))
upper.legend(fontsize=8)
floor = 1e-4
for name, role, ls, label in (
    ("first", "noise", "-", "first order: γ Φ⁻¹(p₀) / ‖J‖₂"), ("local", "regulariser", "-", "Lipschitz margin, local slopes"),
    ("certified", "regulariser", "--", "Lipschitz margin, certified"), ("attacked", "highlight", "-", "attacked, reference g(μ)"),
    ("attacked pairs", "highlight", ":", "attacked, two draws"),
):  # fmt: skip
    values = mean_curve[name]
    shown = values > floor
    lower.plot(gammas[shown], values[shown], color=COLOURS[role], ls=ls, marker=".", label=label)
learnt_scale = float(read.std[first].log().mean().exp())
for axis in (upper, lower):
    axis.axvline(learnt_scale, color="black", lw=0.8, ls=":")
lower.set(
    xscale="log",
    yscale="log",
    xlabel="fixed posterior scale γ (dotted: geometric mean of the learnt σ)",
    ylabel=f"mean margin (l2), r = {r_main:g}",
)
fig.legend(*lower.get_legend_handles_labels(), fontsize=8, ncols=2, loc="outside lower center")
steady = mean_curve["attacked"][p0_curve > 0.95]
calm = float(steady.max() / steady.min())
peak_gamma = float(gammas[int(first_curve.argmax())])
chapter.show(
    fig,
    "sigma-paradox",
    alt="Above, clean probability against a fixed posterior scale, falling from one to zero, earlier for two draws. Below, on logarithmic axes: the first-order margin rises, peaks and ends; the Lipschitz margins are flat and drop to zero; the attacked margins are flat, then drop. "
    "A dotted line marks the learnt scale.",
    caption=f"Both signs are right. While $p_0$ is near one, more noise raises the first-order margin in proportion, up to γ = {peak_gamma:.2g}; then $p_0$ falls and takes it to zero. The Lipschitz margin only falls. While $p_0$ is above 0.95 the mean attacked margin varies by a factor of {calm:.2f}, over all γ its rank correlation is "
    f"{correlation(spearmanr, mean_curve['attacked'], first_curve):.2f} with the first and {correlation(spearmanr, mean_curve['attacked'], mean_curve['local']):.2f} with the second. Curves end where they reach zero.",
    answers="none: the two papers' bounds on one network",
)
chapter.keep(
    gammas=gammas,
    **{f"sigma_{name.replace(' ', '_')}": v for name, v in mean_curve.items()},
    sigma_p0=p0_curve,
)

# %% [markdown]
# ### Noise or disentanglement?
#
# $\beta$-VAEs and $\beta$-TCVAEs differ in two things at once: how latents are separated and how much noise reaches the reconstruction. To separate them we compare a $\beta$-TCVAE with $\beta$-VAEs *at equal noise* (clean median deviation), interpolating the margin over $\beta$.

# %%
noise_mean, margin_mean = noise_out.mean(1), seen.margin.mean(1).float()


def matched(i, values):
    """Margin of member i over that of the beta-VAEs of its seed, interpolated where `values` agree."""
    at = rows_of(main, "beta", member=main.members[i][1])
    at = at[
        : int(values[at].argmax()) + 1
    ]  # near collapse the noise falls again: only the rising branch
    order = values[at].argsort()
    grid, margin = values[at][order], margin_mean[at][order]
    place = int(torch.searchsorted(grid, values[i]).clamp(1, len(grid) - 1))
    share = ((values[i] - grid[place - 1]) / (grid[place] - grid[place - 1])).clamp(0, 1)
    return float(margin_mean[i] / (margin[place - 1] + share * (margin[place] - margin[place - 1])))


penalised = [i for i, ((kind, _), _) in enumerate(main.members) if kind == "tc"]
at_noise = [matched(i, noise_mean) for i in penalised]
at_error = [matched(i, main.quality.error) for i in penalised]
of_kind = lambda i, b: float(margin_mean[rows_of(main, "beta", b, main.members[i][1])[0]])

unmatched = [float(margin_mean[i]) / of_kind(i, 1) for i in penalised]
gap_of = lambda ratios: sum(abs(v - 1) for v in ratios) / len(ratios)

# %% tags=["nbval-check-output"]
chapter.claim(
    "B6",
    matched=at_noise,
    matched_error=at_error,
    unmatched=unmatched,
    gap=gap_of(at_noise),
    gap_unmatched=gap_of(unmatched),
    control=dict(matched=unmatched, gap=gap_of(unmatched), gap_unmatched=gap_of(unmatched)),
)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True)
for axis, values, label in zip(
    axes,
    (noise_mean, main.quality.error),
    ("noise: clean median deviation (l2)", "reconstruction error (l2)"),
):
    for member, ls in zip(seeds, ("-", "--", ":")):
        at = rows_of(main, "beta", member=member)  # joined in the order of beta
        axis.plot(
            values[at],
            margin_mean[at],
            color=COLOURS["noise"],
            ls=ls,
            marker="o",
            label="β-VAE" if member == seeds[0] else None,
        )
    axis.plot(
        values[penalised],
        margin_mean[penalised],
        "s",
        color=COLOURS["regulariser"],
        ms=7,
        label="β-TCVAE",
    )
    axis.set(xlabel=label)
axes[0].set(ylabel=f"mean attacked margin, r = {r_main:g} (l2)")
axes[0].legend()
chapter.show(
    fig,
    "noise-or-disentanglement",
    alt="Mean attacked margin against the clean median deviation and against the reconstruction error: lines of beta-VAEs for each seed, and squares for beta-TCVAEs.",
    caption="Margins of β-TCVAEs over those of β-VAEs with equal noise: "
    + ", ".join(f"{m:.2f}" for m in at_noise)
    + "; with equal reconstruction error: "
    + ", ".join(f"{m:.2f}" for m in at_error)
    + "; over the plain VAE, with nothing matched: "
    + ", ".join(f"{m:.2f}" for m in unmatched)
    + ". Lines: seeds.",
)

# %% [markdown]
# ### A constant passes
#
# A constant decoder has $D=0$: infinite margin, at any $r$, at no cost that the definition sees. With a large $r$ it is not even a bad reconstruction.

# %% tags=["nbval-check-output"]
to_mean = (test_flat - mean_image).norm(dim=-1)
to_other = (test_flat - test_flat.roll(1, 0)).norm(dim=-1)
part_within = lambda d, r: float((d <= r).double().mean())
chapter.claim(
    "B7",
    within_8=part_within(to_mean, 8),
    within_4=part_within(to_mean, 4),
    control=dict(within_8=part_within(to_other, 8), within_4=part_within(to_other, 4)),
)

# %%
for r in (*s.levels, 8.0):
    print(
        f"r = {r:4.1f}: {100 * part_within(to_mean, r):5.1f}% of images within r of the mean image, {100 * part_within(to_other, r):5.1f}% within r of another image"
    )
chapter.keep(
    betas=s.betas, **{f"bound_{n}": r.read.frobenius[s.main][r.beta_rows] for n, r in runs.items()},
    **{f"margin_{n}": r.seen.margin[r.beta_rows] for n, r in runs.items()}, error=main.quality.error, likelihood=main.quality.likelihood, kl=main.quality.kl,
)  # fmt: skip

# %% [markdown]
# ## Ledger

# %%
chapter.ledger()

# %% [markdown]
# ## At paper scale
#
# More draws for $p_0$ raise the ceiling of $\Phi^{-1}(p_0)$ (exercise {ref}`ex-draws`), so the bounds here are larger than those above by that alone.

# %% tags=["hide-input"]
paper_scale = chapter.paper_scale(
    "MNIST and Fashion-MNIST whole, two hidden layers of 512, eight values of β, two seeds, 100 images, 100,000 draws for $p_0$"
)
if paper_scale:
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.6))
    for axis, name in zip(axes, ("mnist", "fashion_mnist")):
        bound, margin = (
            torch.tensor(paper_scale["series"][f"{what}_{name}"]) for what in ("bound", "margin")
        )
        axis.scatter(bound, margin, s=8, color=COLOURS["noise"], alpha=0.5)
        axis.axline((0, 0), slope=1, color="black", ls="--", lw=1)
        axis.set(
            xlabel="Frobenius bound (l2)",
            ylabel="attacked margin (l2)",
            title=f"{NAMES[name]}: ρ = {correlation(pearsonr, bound, margin):.2f}",
        )
    chapter.show(
        fig,
        "paper-scale-scatter",
        alt="Attacked margin against bound for MNIST and Fashion-MNIST at the size of the gpu profile, with the diagonal.",
        caption="Bound and attacked margin at the larger size, redrawn from the recorded run.",
        answers="scatter of numerical margin against bound",
    )

# %% [markdown]
# ## Where it breaks
#
# What is said here of a measurement was found in the recorded `cpu` run; the ledger has the numbers of the run on this page.
#
# - **An estimate, not a certificate.** The main bound drops a second-order term and the movement of $\sigma$. It was never above an attacked margin here, but a smooth encoder on which it is wrong by orders of magnitude takes one unit (B2). The certificate of
#   {prf:ref}`prop-certificate` has neither gap; what it costs against the whitened estimate is under {numref}`certificate`.
# - **The correlation is mostly between models, and mostly the last one.** Among the images of one network bound and margin hardly go together, and without the largest $\beta$ the pooled correlation on MNIST is much weaker (C6). On Fashion-MNIST it does not come out at all, and there the bound grows several times over the grid while the attacked margin has no trend with $\beta$ (C7). Our networks are small and briefly
#   trained; the paper's settings were not available. Fashion-MNIST has a single seed, so nothing said of it can be told from the luck of one training; the images of one network are not independent of each other either, and the p-value beside C7 knows only the images.
# - **Larger margins come with near-collapse.** Over most of the grid the bound rises several times while the attacked margin barely moves; it rises where the reconstruction has lost the image ({numref}`robustness-trade-off`). A constant has an infinite margin.
# - **r decides the answer.** At small $r$ a larger $\beta$ lowers the clean probability and the attacked margin until near-collapse, as in the linear model (B8, {numref}`r-profile`). At large $r$ the sampled $p_0$ is one, and the bound is a constant times $\min_i\sigma_i/\|J\|$ whatever $r$ is (B4).
# - **The companion paper's ordering does not carry over.** A latent KL attack reaches a *smaller* objective on $\beta$-VAE and $\beta$-TCVAE than on a VAE: KL is measured in units of the posterior's own scale, which the penalties enlarge. The output attack does not tell the β-TCVAE from another seed of the VAE (C12a); on the β-VAE it ends higher than on either. Changes of weight norms and $\|\sigma\|$
#   (C12c, C12d) do not have all the signs that they have on their colour images. The Seatbelt keeps its ELBO, while its top layer, the only one penalised, carries few nats and under the penalty hardly more than the one that the rule asks for (printed above; there are no free bits here, unlike in the submission): a pass that says little about the hierarchy. A latent attack on it ends above the VAE's objective with one seed and below with the other (the line under C12b), and two seeds of the VAE alone differ by several times, so nothing can be read off.
#   The first version of this chapter let the VAE of another seed stand as the control above and below at once. C12a, C12c and C12d now ask for more than two seeds differ by; but their controls are that very difference, and B6's the unmatched ratios, so each meets a strict inequality with itself and still fails by arithmetic. With two seeds they show the scale, not that the rule bites.
# - **Disentanglement by itself defends no better than $\beta$** at equal noise, nor on average at equal error, but that noise *explains* margins is not shown: the ratios to the plain VAE, with nothing matched, are closer to one than the matched ones, and B6 asks for the opposite and for equality: its status does not mean that disentangled VAEs are more robust. No disentanglement score was measured.
# - **Mean or variance.** An attack along the gradient of $\sigma$ does much of the damage, because mean and scale share an encoder and the mean moves along; only with the mean held is the paper's observation clean (C8). Our first ratios had the clean noise above and below, and an untrained network passed.
# - **Attacked margins are upper bounds, and the largest are censored**: at the largest $\beta$ many of the MNIST images are not broken within the grid (share under {numref}`robustness-hero`) and count as its end, which biases slopes and means low. Projected ascent from near zero starts where the mean deviation hardly has a slope, which is why one step along a singular vector can match it at small radii (B3; the two singular vectors differ by less than we can tell). We keep the stronger of ascent and step.
# - **In the texts we saw**, the output attack is printed as a maximand to be minimised, and one form of the latent attack measures the distance to the clean posterior instead of the target's.
# - **Not done**: CIFAR-10, convolutional encoders, and the paper's own architectures; more than two seeds; the attack schedule of the companion paper (L-BFGS-B, ten pairs, fifty prices); a second-order correction of the bound along the attack; chapter 4's Lipschitz VAE in the scatter; a comparison of the
#   bounds at different numbers of draws.
#
# ## Exercises
#
# ```{exercise} Two latents, one stretched
# :label: ex-two-latents
# Two latents have $\sigma=(0.1,1)$ and Jacobian rows of norm 1 and 0.001, orthogonal. By what factor does the whitened bound exceed the Frobenius one, and what if the second row has norm 10?
# ```
#
# ````{solution-start} ex-two-latents
# :class: dropdown
# ````
# $\|\mathrm{diag}(\sigma)^{-1}J\|_2=\max_i\|J_i\|/\sigma_i$ for orthogonal rows. With a quiet second latent the two agree; with a loud and noisy one the Frobenius form charges all of its motion at the first one's noise.

# %%
for second in (0.001, 10.0):
    example = first_order_margins(
        torch.tensor(0.9), torch.tensor([0.1, 1.0]), torch.diag(torch.tensor([1.0, second]))
    )
    print(
        f"second row {second:6.3f}: whitened / Frobenius = {float(example['whitened'] / example['frobenius']):.2f}"
    )

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} How many draws?
# :label: ex-draws
# All $N$ draws are within $r$. Which $\Phi^{-1}(p_0)$ may be claimed at 99.9%, and how does it grow with $N$?
# ```
#
# ````{solution-start} ex-draws
# :class: dropdown
# ````
# The lower bound is $0.001^{1/N}$, so $1-p\approx6.9/N$ and $\Phi^{-1}$ grows like $\sqrt{2\log N}$: ten times the draws buy less than one unit.

# %%
for n in (100, 1_000, 10_000, 100_000, 1_000_000):
    print(f"N = {n:9,}: Φ⁻¹ = {float(ndtri(clopper_pearson(torch.tensor([n]), n, 0.999)[0])):.2f}")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} The other reference
# :label: ex-reference
# With both reconstructions random (chapter 4) and a linear decoder, which $r$ makes the clean probability one half, compared with this chapter's?
# ```
#
# ````{solution-start} ex-reference
# :class: dropdown
# ````
# The difference of two independent draws has twice the covariance of one, so exactly $\sqrt2$ times the $r$. On the trained network, whose decoder bends, nearly so:

# %%
draw_of = lambda what: torch.randn(
    2_000, 1, s.latents, generator=generator(seed, "exercise", what)
).to(device)
with torch.no_grad():
    here, there = main.x[:4], torch.cat([draw_of("one"), draw_of("two")], -1)
    single = deviation(solo)(here, here, draw_of("three")).median(0).values
    double = both_random(solo)(here, here, there).median(0).values
print("median of two draws over median of one:", [round(float(v), 2) for v in double / single])

# %% [markdown]
# ````{solution-end}
# ````

# %%
chapter.finish()
