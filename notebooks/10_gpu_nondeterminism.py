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
# (ch-gpu-nondeterminism)=
# # Non-determinism in training
#
# *Morin and Willetts, 2020* {cite}`morin2020nondeterminism`
#
# <!-- chips -->
#
# A ResNet is trained 50 times on CIFAR-10 with every seed fixed, and 50 times with a new seed per run. The spread of the test metrics with fixed seeds is 74 % and more than 80 % of the spread with free seeds, and the authors conclude that the execution of the GPU
# varies results more than initialisation and batch order do. This chapter takes the released hundred runs apart (the two labels of the abstract are exchanged, and both spreads of the free seeds rest on the first 36 of 50 runs), builds the statistics that such a claim needs, and shows on a CPU
# where the spread comes from: training amplifies *any* perturbation, and how far depends on how long one trains. The body of the paper was not available; what was seen is its abstract and first lines, and the authors' repository with code and data.

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
import math
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from companion.analysis import bitwise, run_spread
from companion.analysis import variance_components as vc
from companion.analysis.spectra import amplitudes
from companion.chapters import Chapter
from companion.chapters.figures import COLOURS
from companion.data import Batches, released_runs
from companion.models.gaussian_noise_injections import NoisyMLP, noised_loss, site_noise
from companion.models.keras_resnet import ResNetV2, build, paper_rate, penalty
from companion.models.nondeterminism import (
    PermutedRows,
    Recipe,
    Slot,
    epoch_rows,
    final_scores,
    initial,
    score,
    train,
)
from companion.nn.likelihoods import SquaredError
from companion.seeds import generator, member_seeds, numpy_generator
from companion.train import Ensemble, fit
from IPython.display import Markdown, display
from scipy import stats
from torch import nn

chapter = Chapter("10_gpu_nondeterminism", profile=profile, seed=seed)
# The book allows TF32 on a GPU; here float32 has to mean float32.
torch.set_float32_matmul_precision("highest")
torch.backends.cudnn.allow_tf32 = False

# %% [markdown]
# The settings of the three profiles differ in sizes, steps, seeds and data, never in method.

# %% tags=["hide-input"]
s = chapter.settings(
    smoke=dict(
        numbers=4_000, orders=40, probe_repeats=10, processes=2, child_steps=6, child_follow=(1, 6),
        curve_steps=200, curve_slots=3, lengths=(20, 60, 120), seeds=6, repeats=3, arm=8, rates=(0.25, 1.0), depths=(2, 4), rate_steps=60, rate_slots=2,
        simulations=1_000, draws=2_000, worlds=300, splits=20,
        image_data="digits", pool=1, execution="rows", probe_steps=4, paper_seeds=2, paper_steps=2, width=4, image_train=400, image_test=300, image_batch=32, image_steps=20, image_early=2, image_lr=5e-3, image_seeds=2, image_repeats=2, hardware_repeats=2,
        sines=dict(frequencies=(1, 2, 3, 4, 5), points=100, width=32, lr=5e-3), sine_steps=40, sine_seeds=2, sine_repeats=2, kernels=(3,), timed=3,
    ),
    cpu=dict(
        numbers=100_000, orders=300, probe_repeats=30, processes=2, child_steps=24, child_follow=(1, 2, 5, 10, 24),
        curve_steps=400, curve_slots=8, lengths=(50, 100, 200, 400, 1_600, 3_200), seeds=20, repeats=4, arm=50, rates=(0.03, 0.1, 0.3, 1.0, 2.0), depths=(1, 2, 3, 5), rate_steps=200, rate_slots=4,
        simulations=4_000, draws=20_000, worlds=1_000, splits=100,
        image_data="fashion_mnist", pool=2, execution="rows", probe_steps=16, paper_seeds=2, paper_steps=4, width=8, image_train=4_096, image_test=2_000, image_batch=32, image_steps=350, image_early=7, image_lr=5e-3, image_seeds=3, image_repeats=2, hardware_repeats=2,
        sines=dict(frequencies=(2, 4, 6, 8, 10), points=100, width=64, lr=3e-3), sine_steps=2_200, sine_seeds=5, sine_repeats=2, kernels=(3,), timed=3,
    ),
    gpu=dict(
        numbers=1_000_000, orders=500, probe_repeats=200, processes=2, child_steps=40, child_follow=(1, 2, 5, 10, 20, 40),
        curve_steps=400, curve_slots=30, lengths=(50, 100, 200, 400, 800, 1_600, 3_200), seeds=64, repeats=8, arm=200, rates=(0.03, 0.1, 0.3, 1.0, 2.0), depths=(1, 2, 3, 5), rate_steps=200, rate_slots=8,
        simulations=20_000, draws=100_000, worlds=4_000, splits=200,
        image_data="cifar10", pool=1, execution="hardware", probe_steps=200, paper_seeds=4, paper_steps=400, width=32, image_train=50_000, image_test=10_000, image_batch=512, image_steps=400, image_early=8, image_lr=3e-3, image_seeds=28, image_repeats=4, hardware_repeats=8,
        sines=dict(frequencies=tuple(range(5, 51, 5)), points=200, width=256, lr=3e-4), sine_steps=4_000, sine_seeds=8, sine_repeats=4, kernels=(3, 5, 7), timed=200,
    ),
)  # fmt: skip
device = chapter.device
ARMS = {"rows": COLOURS["noise"], "one ulp": COLOURS["regulariser"], "order": COLOURS["theory"], "weights": COLOURS["control"], "all seeds": COLOURS["baseline"]}  # fmt: skip


def nine(value):
    """Nine significant digits, and nothing below 1e-12: what a measurement near rounding can carry."""
    return 0.0 if abs(value) <= 1e-12 else float(f"{value:.9g}")


# %% [markdown]
# ## The effect in one picture
#
# A network that a CPU trains in seconds: scikit-learn's digits (500 for training, 1,297 for testing), three hidden layers of 32 with batch normalisation (in tests by the statistics of the training set), stochastic gradient descent. Nothing about it varies from run to run, so perturbations are put in by hand, none of which should
# matter: the rows *inside* each mini-batch are permuted (every sum has the same terms in another order), or one weight is moved to the next floating-point number. Every run is a slot of one batched matrix product.

# %% tags=["hide-input"]
parts = [chapter.load("digits", split) for split in ("train", "test")]
pixels, labels = torch.cat([p.x for p in parts]).flatten(1), torch.cat([p.y for p in parts])
shuffled = torch.randperm(len(pixels), generator=generator(seed, "split")).to(device)
pixels, labels = pixels[shuffled] - pixels[shuffled[:500]].mean(0), labels[shuffled]
x, y, x_test, y_test = pixels[:500], labels[:500], pixels[500:], labels[500:]

ENTRIES = (
    32 * 32
)  # weights of the second matrix: the first has dead ones, behind pixels that are always 0


def ulp_entry(k):
    return (37 * k + 5) % ENTRIES


def hundreds(steps):
    """About evenly spaced on a log axis, and the last step."""
    return tuple(sorted({round(v) for v in np.geomspace(1, steps, 22)}))


follow = hundreds(s.curve_steps)
K = s.curve_slots
curve_slots = [Slot()] + [Slot(rows=k) for k in range(K)] + [Slot(ulp=ulp_entry(k)) for k in range(K)] + [Slot(k + 1, k + 1) for k in range(K)]  # fmt: skip
kinds = {"rows": slice(1, K + 1), "one ulp": slice(K + 1, 2 * K + 1), "all seeds": slice(2 * K + 1, None)}  # fmt: skip
PRECISIONS = {
    "float32": dict(),
    "float64": dict(dtype=torch.float64),
    "bfloat16 products": dict(product=torch.bfloat16),
}
curves = {
    name: train(
        curve_slots if name == "float32" else curve_slots[: 2 * K + 1], x, y, Recipe(s.curve_steps, **options),
        seed=seed, twins=[0] * (len(curve_slots) if name == "float32" else 2 * K + 1), follow=follow,
    ).distance
    for name, options in PRECISIONS.items()
}  # fmt: skip
# Real threads, in fresh processes, on a small convolutional net
fresh = bitwise.fresh_runs(s.processes, steps=s.child_steps, follow=s.child_follow)

# %% [markdown]
# The second half of the picture is a design. At every length of training, seeds are crossed with executions: each of the seeds is run several times with other permutations of the rows, and several times with another weight moved by one ulp. How much of the variance is left within a seed is
# what "execution noise" means.

# %% tags=["hide-input"]
nested_slots = [Slot(k, k, rows=r) for k in range(s.seeds) for r in range(s.repeats)] + [Slot(k, k, ulp=ulp_entry(r)) for k in range(s.seeds) for r in range(s.repeats)]  # fmt: skip
sweep = {
    steps: final_scores(train(nested_slots, x, y, Recipe(steps), seed=seed), x_test, y_test, x)
    for steps in s.lengths
}
SHAPE = (2, s.seeds, s.repeats)


def nested_at(steps, metric="loss", source=0):
    """Seeds x executions of one metric; source 0 permutes rows, 1 moves one ulp."""
    return getattr(sweep[steps], metric).view(SHAPE)[source].numpy()


ratio_at = {
    (metric, source): [vc.nested_sd_ratio(nested_at(n, metric, source)) for n in s.lengths]
    for metric in ("loss", "accuracy")
    for source in (0, 1)
}
SHORT, LONG = s.lengths[min(1, len(s.lengths) - 1)], s.lengths[-1]
MIDDLE = s.lengths[len(s.lengths) // 2]


# %% tags=["hide-input"]
def band(axis, values, colour, label, style="-"):
    values = values.clamp_min(1e-18)
    axis.plot(follow, values.median(1).values, style, color=colour, label=label)
    axis.fill_between(follow, values.amin(1), values.amax(1), color=colour, alpha=0.15, lw=0)


fig, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.2))
band(left, curves["float32"][:, kinds["all seeds"]], ARMS["all seeds"], "other seeds")
band(left, curves["float32"][:, kinds["rows"]], ARMS["rows"], "rows permuted")
band(left, curves["float32"][:, kinds["one ulp"]], ARMS["one ulp"], "one ulp in one weight")
band(left, curves["float64"][:, kinds["rows"]], ARMS["rows"], "rows permuted, float64", "--")
left.plot(
    s.child_follow,
    np.maximum(fresh[0]["distance"], 1e-18),
    "k.",
    ms=8,
    label="2 threads for 1 (another net)",
)
left.set(xscale="log", yscale="log", xlabel="training step", ylabel="distance to the unperturbed twin / its norm", title="A run and its twin", ylim=(1e-17, 30))  # fmt: skip
left.legend(fontsize=8, loc="lower right")
for (metric, source), style in zip(ratio_at, ("-", "-", "--", "--"), strict=True):
    rows = ratio_at[metric, source]
    colour = ARMS["rows" if source == 0 else "one ulp"]
    shift = 1.0 + 0.05 * ((metric == "accuracy") + 2 * source)
    values, low, high = (
        np.array([float(getattr(r, part)) for r in rows]) for part in ("value", "low", "high")
    )
    right.errorbar(np.array(s.lengths) * shift, values, [values - low, high - values], fmt="o" + style, color=colour, ms=4, capsize=2, lw=1.3,
                   label=f"{'rows' if source == 0 else 'one ulp'}, {metric}")  # fmt: skip
right.axhline(1, color="black", lw=0.8, ls=":")
right.set(xscale="log", xlabel="training steps", ylabel="sd over executions / sd over fresh runs", ylim=(0, 1.05), title="How much of the spread is execution")  # fmt: skip
right.legend(fontsize=8, loc="upper left")
grown = float(curves["float32"][-1, kinds["rows"]].median())
first_d, first_64 = (float(curves[p][0, kinds["rows"]].median()) for p in ("float32", "float64"))
chapter.show(
    fig,
    "nondet-hero",
    alt="Left: relative distance between a run and its twin against the training step on log axes, for permuted rows, one ulp, other seeds, and float64. Right: ratio of standard deviations "
    "against the number of training steps with error bars, for two perturbations and two metrics.",
    caption=f"Permuting rows moves the weights by {first_d:.0e} in the first step and by {grown:.0e} after {s.curve_steps}. Of the standard deviation of a fresh run's test loss, executions make {float(ratio_at['loss', 0][0].value):.2f} after {s.lengths[0]} steps and "
    f"{float(ratio_at['loss', 0][-1].value):.2f} after {LONG}. Bands: all of {K} runs; bars: 95 % intervals, {s.seeds} seeds by {s.repeats} executions. Black dots: another net, over the few steps of its fresh processes.",
    answers="the question of the abstract, as a function of training length",
)

# %% [markdown]
# ## Derive
#
# ### Why order matters at all
#
# Floating-point addition is commutative and not associative. With unit roundoff $u$ ($2^{-24}$ in float32) every addition returns $(a+b)(1+\delta)$, $|\delta| \le u$. A GPU that lets threads add to one address as they come sums the same terms in another order each time.
#
# :::{prf:proposition} Error of a sum in any order
# :label: nondet-prop-sum
# Summed from left to right, $|\hat s - s| \le \gamma_{n-1}\sum|x_i|$; by halves, $|\hat s - s| \le \gamma_{\lceil\log_2 n\rceil}\sum|x_i|$, with $\gamma_k = ku/(1-ku)$. If all $x_i$ are multiples of $2^{-q}$ and all $\sum|x_i| < 2^{p-q}$, sums in $p$-bit arithmetic are exact, and the order is immaterial.
# :::
#
# :::{prf:proof}
# A term passes through at most $n-1$, respectively $\lceil\log_2n\rceil$, additions, each of which multiplies it by some $1+\delta$; a product of $k$ of those differs from 1 by at most $\gamma_k$. In the last case every partial sum is a multiple of $2^{-q}$ below $2^{p-q}$ and is therefore representable.
# :::
#
# Normal numbers stay far inside the bounds because their errors cancel. A one followed by numbers of half an ulp does not: from left to right each of them is rounded away. The normals are rounded to multiples of $2^{-24}$, so that the last part of the proposition applies to their float64 sums.

# %% tags=["hide-input"]
Q = 24
normals = numpy_generator(seed, "normals").standard_normal(s.numbers)
normals = (np.round(normals * 2.0**Q) / 2.0**Q).astype(np.float32)
assert np.array_equal(np.round(normals.astype(np.float64) * 2.0**Q), normals.astype(np.float64) * 2.0**Q)  # fmt: skip
tight = np.full(s.numbers, 2.0**-24, dtype=np.float32)
tight[0] = 1.0
U = 2.0**-24
stream = numpy_generator(seed, "orders")
sums = {"float32, left to right": [], "float32, by halves": [], "float64, left to right": []}
for _ in range(s.orders):
    row = normals[stream.permutation(s.numbers)]
    sums["float32, left to right"].append(float(bitwise.sequential_sum(row)))
    sums["float32, by halves"].append(float(bitwise.pairwise_sum(row)))
    sums["float64, left to right"].append(float(bitwise.sequential_sum(row.astype(np.float64))))
exact_sum = math.fsum(normals.tolist())


def gamma(k):
    return k * U / (1 - k * U)


depth = math.ceil(math.log2(s.numbers))
bound_left, bound_halves = gamma(s.numbers - 1), gamma(depth)


def over_bound(factor, *, halves):
    """Largest error / bound over all orders of the normals, and of the tight input."""
    errors = np.abs(np.array(sums["float32, by halves" if halves else "float32, left to right"]) - exact_sum).max()  # fmt: skip
    total = np.abs(normals.astype(np.float64)).sum()
    found = float((bitwise.pairwise_sum if halves else bitwise.sequential_sum)(tight))
    right = math.fsum(tight.tolist())
    return errors / (factor * total), abs(found - right) / (factor * right)


# Bits of a significand that hold every partial sum of multiples of 2^-Q, in any order
bits = math.ceil(math.log2(np.abs(normals.astype(np.float64)).sum())) + Q
left_errors, halves_errors = over_bound(bound_left, halves=False), over_bound(bound_halves, halves=True)  # fmt: skip
misread = over_bound(bound_halves, halves=False)

# %% tags=["nbval-check-output"]
chapter.claim(
    "C1a",
    sequential=max(left_errors),
    pairwise=max(halves_errors),
    reached=left_errors[1],
    exact=len(set(sums["float64, left to right"])),
    bits=bits,
    control=dict(
        sequential=max(misread),
        pairwise=max(misread),
        reached=left_errors[1],
        exact=len(set(sums["float64, left to right"])),
        bits=bits,
    ),
)

# %% [markdown]
# The paper's small experiment has the same two halves: with both seeds set, a matrix of normal draws agrees between versions, systems and devices; its mean does not (five different values, equal in four digits, in the authors' table).

# %% tags=["nbval-check-output"]
draws = [
    bitwise.digest(torch.randn(100, 100, generator=generator(seed, "matrix"))) for _ in range(5)
]
spread = {name: np.std(values) for name, values in sums.items()}
in_float64 = len(set(sums["float64, left to right"]))
chapter.claim(
    "C1b",
    draws=len(set(draws)),
    sequential=len(set(sums["float32, left to right"])),
    pairwise=len(set(sums["float32, by halves"])),
    spread=nine(spread["float32, left to right"] / spread["float32, by halves"]),
    control=dict(draws=len(set(draws)), sequential=in_float64, pairwise=in_float64, spread=0.0),
)

# %% tags=["hide-input"]
ulp = float(np.spacing(np.float32(abs(exact_sum))))
fig, axes = plt.subplots(1, 2, figsize=(9.6, 3.4))
for axis, name in zip(axes, ("float32, left to right", "float32, by halves"), strict=True):
    errors = (np.array(sums[name]) - exact_sum) / ulp
    axis.hist(errors, bins=40, color=COLOURS["noise"])
    axis.axvline(0, color="black", lw=1)
    axis.set(xlabel="error (ulp of the result)", ylabel="orders of summation", title=name)
chapter.show(
    fig,
    "nondet-sums",
    alt="Two histograms of the error of a float32 sum over random orders of summation, in units in the last place, from left to right and by halves.",
    caption=f"{s.numbers:,} normal numbers in {s.orders} random orders have {len(set(sums['float32, left to right']))} different float32 sums from left to right (sd {spread['float32, left to right'] / ulp:.1f} ulp) and "
    f"{len(set(sums['float32, by halves']))} by halves (sd {spread['float32, by halves'] / ulp:.1f} ulp). In float64 there is {in_float64}: all partial sums fit.",
    answers="the sums of section 2",
)

# %% [markdown]
# ### What is bitwise repeatable on this machine
#
# A small convolutional network, trained in fresh processes with one and with two threads. Bytes are compared, not values.

# %% tags=["nbval-check-output"]
one = [f[key] for f in fresh for key in ("1", "1 again")]
chapter.claim(
    "C1c",
    again=len(set(one)),
    two=len({f["2"] for f in fresh}),
    threads=len({fresh[0]["1"], fresh[0]["2"]}),
    control=dict(again=len(set(one)), two=len({f["2"] for f in fresh}), threads=len(set(one))),
)

# %% [markdown]
# Single operations, each repeated on fixed input, without and with deterministic algorithms asked for. On a CPU nothing varies with a fixed number of threads; the documentation's promise beside it is for CUDA, where the same cell fills the table in earnest.

# %% tags=["hide-input"]
probe_stream = generator(seed, "probes")
probe_rows = {}
for name, (probe, promise) in bitwise.probes(device, probe_stream).items():
    counts = []
    for on in (False, True):
        with bitwise.deterministic(on):
            counts.append(bitwise.distinct(probe, s.probe_repeats))
    probe_rows[name] = (*counts, promise)
lines = [f"| operation | distinct of {s.probe_repeats}, flags off | flags on | documented for CUDA |", "|---|---|---|---|"]  # fmt: skip
lines += [f"| {name} | {off} | {'raises' if on is None else on} | {promise} |" for name, (off, on, promise) in probe_rows.items()]  # fmt: skip
display(Markdown(f"Device: {device.type}.\n\n" + "\n".join(lines)))

# %% tags=["nbval-check-output"]
ATOMICS = ("index_add_", "scatter_add_", "bincount, weighted")
flagged = max(on or 1 for _, on, _ in probe_rows.values())
chapter.claim(
    "C1d",
    atomic=min(probe_rows[name][0] for name in ATOMICS),
    flagged=flagged,
    control=dict(atomic=min(probe_rows[name][1] or 1 for name in ATOMICS), flagged=flagged),
)

# %% [markdown]
# ### What fixing the seeds fixes
#
# The paper checks that initial weights, data and batch order of fixed-seed runs are identical, in a pilot of 5 runs; so does this cell, by digests.


# %% tags=["nbval-check-output"]
def starting_digests(weight_seeds, order_seeds):
    """Distinct digests of weights, order of the first three epochs, and data."""
    weights, orders, data_ = set(), set(), set()
    for w, o in zip(weight_seeds, order_seeds, strict=True):
        weights.add(bitwise.digest(*initial([Slot(w, o)], (64, 32, 32, 32, 10), seed=seed, dtype=torch.float32)))  # fmt: skip
        orders.add(bitwise.digest(*[epoch_rows([Slot(w, o)], 500, Recipe(150), seed, e) for e in range(3)]))  # fmt: skip
        data_.add(bitwise.digest(*[part for split in ("train", "test") for part in (chapter.load("digits", split).x, chapter.load("digits", split).y)]))  # fmt: skip
    return len(weights), len(orders), len(data_)


same, different, half_seeded = (starting_digests(w, o) for w, o in (([0] * 5, [0] * 5), (range(5), range(5)), ([0] * 5, range(5))))  # fmt: skip
chapter.claim(
    "C2",
    fixed=max(same),
    weights=different[0],
    order=different[1],
    data=different[2],
    control=dict(fixed=max(half_seeded), weights=half_seeded[0], order=half_seeded[1], data=half_seeded[2]),
)  # fmt: skip

# %% [markdown]
# ### What a ratio of spreads can say
#
# Let $Y$ be a final metric, $s$ the seed and $g$ the execution. Then $\mathrm{Var}\,Y = E_s\mathrm{Var}_g(Y\mid s) + \mathrm{Var}_sE_g(Y\mid s)$. The fixed-seed arm of the paper estimates $\mathrm{Var}_g(Y\mid s = 0)$, one term of the average. **Variances add, standard deviations do not**: a ratio of
# 0.74 is a share of 55 %, not 74 %; and "execution dominates" means a share above one half, a ratio above 0.707.
#
# :::{prf:proposition} Intervals
# :label: nondet-prop-intervals
# For normal runs: (i) with $F = \hat\sigma_a^2/\hat\sigma_b^2$ on $m - 1$ and $n - 1$ degrees of freedom, $[F/F_{0.975},\,F/F_{0.025}]$ covers $\sigma_a^2/\sigma_b^2$ with probability 0.95. (ii) For $S$ seeds by $R$ executions let $F = \mathrm{MS}_{between}/\mathrm{MS}_{within}$, $L = F/F_{0.975;S-1,S(R-1)}$ and $U = F/F_{0.025;S-1,S(R-1)}$; then
# $[R/(R-1+U),\,R/(R-1+L)]$ covers the share of the execution $\sigma_g^2/(\sigma_g^2+\sigma_s^2)$ with probability 0.95.
# :::
#
# :::{prf:proof}
# (i) $F\sigma_b^2/\sigma_a^2$ is F-distributed. (ii) $E\,\mathrm{MS}_{between} = \sigma_g^2 + R\sigma_s^2$, both mean squares are independent scaled chi-squared, so $F/(1 + R\theta)$ is F-distributed with $\theta = \sigma_s^2/\sigma_g^2$; solve for the share $1/(1+\theta)$, which is monotone.
# :::
#
# Coverage is simulated. The control is a warning: the same intervals on heavy-tailed runs.


# %% tags=["hide-input"]
def coverages(noise):
    """Coverage of the ratio's interval (50 and 5 runs an arm) and of the nested share (0.1, 0.5, 0.9)."""
    rng = numpy_generator(seed, "coverage", noise.__name__)
    ratios, shares = [], []
    for runs in (50, 5):
        found = vc.sd_ratio(
            0.75 * noise(rng, (s.simulations, runs)), noise(rng, (s.simulations, runs))
        )
        ratios.append(float(np.mean((found.low <= 0.75) & (found.high >= 0.75))))
    for share in (0.1, 0.5, 0.9):
        runs = share**0.5 * noise(rng, (s.simulations, 24, 4)) + (1 - share) ** 0.5 * noise(rng, (s.simulations, 24, 1))  # fmt: skip
        found = vc.nested(runs)
        shares.append(float(np.mean((found.low <= share) & (share <= found.high))))
    return dict(ratio=ratios, share=shares)


def normal_runs(rng, shape):
    return rng.standard_normal(shape)


def heavy_runs(rng, shape):
    return rng.standard_t(3, shape) / 3**0.5


# %% tags=["nbval-check-output"]
chapter.claim("B2", **coverages(normal_runs), control=coverages(heavy_runs))

# %% [markdown]
# How many runs per arm would the paper have needed? Exact power of the F test.

# %% tags=["hide-input"]
rows_of = []
for true in (0.74, 0.76, 0.87, 0.90):
    dominance = vc.runs_needed(true, 0.5**0.5)
    rows_of.append(f"| {true} | {true**2:.2f} | {float(vc.power(true, 50)):.2f} | {vc.runs_needed(true)} | {float(vc.power(true, 50, 0.5**0.5)):.2f} | {dominance} |")  # fmt: skip
display(Markdown("\n".join(["| true sd ratio | share | power at 50: differs from 1 | runs for 80 % | power at 50: differs from 0.707 | runs for 80 % |", "|---|---|---|---|---|---|", *rows_of])))  # fmt: skip

# %% [markdown]
# ### Test set against distribution
#
# :::{prf:proposition} Where a spread of test errors comes from
# :label: nondet-prop-test
# Let $e_i(h)\in\{0,1\}$ say that run $h$ errs on example $i$, $\varepsilon_i = E_he_i$, and let the test set be $n$ independent examples. Then $E_S\mathrm{Var}_h\,\mathrm{err}_S(h) = \frac{n-1}{n}\mathrm{Var}_h\,\mathrm{err}(h) + \frac1{n^2}E_S\sum_i\varepsilon_i(1-\varepsilon_i)$.
# :::
#
# :::{prf:proof}
# $\mathrm{Var}_h\,\mathrm{err}_S = n^{-2}\sum_{ij}\mathrm{Cov}_h(e_i,e_j)$. For $i\neq j$ the expectation over two independent examples is $\mathrm{Var}_h(E_xe(x,h)) = \mathrm{Var}_h\,\mathrm{err}(h)$; there are $n(n-1)$ such terms. The diagonal terms are $\varepsilon_i(1-\varepsilon_i)$.
# :::
#
# With $R$ runs both variances are estimated with $R - 1$ in the denominator, which keeps the estimate unbiased {cite}`jordan2023variance`. The check simulates runs of varying quality on examples of varying difficulty.


# %% tags=["hide-input"]
def simulated_worlds(n, runs, effect, *, naive=False):
    """Mean estimate over simulated runs and test sets, over the true variance of the error on the distribution."""
    g = generator(seed, "worlds", n, runs)
    quality = effect * torch.randn(s.worlds, runs, 1, generator=g, dtype=torch.float64)
    hardness = torch.randn(s.worlds, 1, n, generator=g, dtype=torch.float64) - 1.5
    wrong = torch.rand(s.worlds, runs, n, generator=g, dtype=torch.float64) < torch.sigmoid(2 * hardness + quality)  # fmt: skip
    found = run_spread.error_variance(wrong)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = torch.as_tensor(weights / weights.sum())
    grid = torch.as_tensor(nodes)
    error = (torch.sigmoid(2 * (grid - 1.5)[None] + effect * grid[:, None]) * weights).sum(1)
    truth = float((error**2 * weights).sum() - (error * weights).sum() ** 2)
    return nine(float((found.test if naive else found.distribution).mean()) / truth)


CASES = ((50, 20, 0.5), (200, 10, 0.3), (400, 5, 0.3))

# %% tags=["nbval-check-output"]
chapter.claim(
    "C10a",
    ratio=[simulated_worlds(*case) for case in CASES],
    control=dict(ratio=[simulated_worlds(*case, naive=True) for case in CASES]),
)

# %% [markdown]
# ### Amplification
#
# Two executions of one run differ by rounding, $\delta_1\sim u$. As long as the difference is small, $\delta_{t+1} = J_t\delta_t + O(u)$ with $J_t$ the Jacobian of the update along the common path: the difference is $u$ times something that knows the path and not the precision. So curves in float32 and float64 are
# **parallel**, $\log_{10}2^{29} = 8.73$ decades apart, until the upper one is as large as the weights. Higher precision delays; it does not change the rate.


# %% tags=["hide-input"]
def parallel(pair, steps):
    """Mean and sd of the log distance between float32 and float64 curves before saturation, and growth in float64."""
    single, double = (np.log10(np.maximum(d.median(1).values.numpy(), 1e-30)) for d in pair)
    before = single < -3
    gap = (single - double)[before]
    return dict(offset=nine(gap.mean()), parallel=nine(gap.std()), growth=nine(double[-1] - double[0]))  # fmt: skip


pair = [curves[p][:, kinds["rows"]] for p in ("float32", "float64")]
calm = [
    train(curve_slots[: K + 1], x, y, Recipe(s.curve_steps, lr=0.01, dtype=dtype), seed=seed, twins=[0] * (K + 1), follow=follow).distance[:, 1:]
    for dtype in (torch.float32, torch.float64)
]  # fmt: skip

# %% tags=["nbval-check-output"]
chapter.claim("B3", **{k: round(v, 3) for k, v in parallel(pair, follow).items()}, control={k: round(v, 3) for k, v in parallel(calm, follow).items()})  # fmt: skip

# %% [markdown]
# ## The released hundred runs
#
# The authors published the final test metrics of all runs, two columns without a header. The book ships those hundred rows with their source.

# %% tags=["hide-input"]
released = released_runs.load()
fixed_rows, free_rows = released["same_seed"], released["different_seeds"]
LOSS, ACCURACY = 0, 1  # what the two columns turn out to be


def printed_error(loss, accuracy, prefix):
    """Largest difference to the four printed standard deviations if the columns are (loss, accuracy)."""
    found = [fixed_rows[loss].std(), fixed_rows[accuracy].std(), free_rows[loss][:prefix].std(), free_rows[accuracy][:prefix].std()]  # fmt: skip
    printed = [*released_runs.README_SD["same_seed"], *released_runs.README_SD["different_seeds"]]
    return max(abs(f - p) for f, p in zip(found, printed, strict=True))


def fitting_prefixes(loss, accuracy):
    return sum(printed_error(loss, accuracy, k) < 5e-9 for k in range(2, 51))


def label_measures(loss, accuracy, prefix):
    """B1 if column `loss` is the loss; the last two measures say how an accuracy would look."""
    everything = np.concatenate([fixed_rows[loss], free_rows[loss]])
    mean = np.concatenate([fixed_rows[accuracy], free_rows[accuracy]]).mean()
    binomial = math.sqrt(abs(mean * (1 - mean)) / 10_000)
    return dict(error=printed_error(loss, accuracy, prefix), prefixes=fitting_prefixes(loss, accuracy), impossible=int((everything > 1).sum()), binomial=fixed_rows[loss].std() / binomial)  # fmt: skip


print(f"source: {released_runs.SOURCE}")
print(f"column 1: {min(c[0].min() for c in released.values()):.3f} to {max(c[0].max() for c in released.values()):.3f}, column 2: {min(c[1].min() for c in released.values()):.4f} to {max(c[1].max() for c in released.values()):.4f}")  # fmt: skip

# %% [markdown]
# Two findings, before any statistics. The abstract gives 0.020 and 0.027 as spreads of test *accuracy*. The rows show them in the first column, whose values exceed 1: it is the loss, which Keras' `evaluate` returns first (with the L2 penalty in it). And the printed free-seed spreads are those of the **first 36 of 50** rows.

# %% tags=["nbval-check-output"]
chapter.claim(
    "B1", **label_measures(LOSS, ACCURACY, 36), control=label_measures(ACCURACY, LOSS, 50)
)

# %% tags=["hide-input"]
fig, axes = plt.subplots(1, 2, figsize=(10.0, 3.7), width_ratios=(1.35, 1))
k = np.arange(5, 51)
for column, (name, colour) in enumerate((("column 1", COLOURS["noise"]), ("column 2", COLOURS["regulariser"]))):  # fmt: skip
    relative = [free_rows[column][:n].std() / released_runs.README_SD["different_seeds"][column] for n in k]  # fmt: skip
    axes[0].plot(k, relative, ".-", color=colour, lw=1, label=name)
axes[0].axhline(1, color="black", lw=0.8)
axes[0].axvline(36, color=COLOURS["highlight"], lw=1, ls="--")
axes[0].set(xlabel="free-seed runs counted, in released order", ylabel="their sd / sd printed in the README", title="Which rows were used?")  # fmt: skip
axes[0].legend()
jitter = numpy_generator(seed, "jitter")
groups = [("column 1, fixed", fixed_rows[0]), ("column 1, free", free_rows[0]), ("column 2, fixed", fixed_rows[1]), ("column 2, free", free_rows[1])]  # fmt: skip
for row, (name, values) in enumerate(groups):
    colour = COLOURS["noise" if row < 2 else "regulariser"]
    height = 3 - row + 0.3 * jitter.uniform(-1, 1, len(values))
    axes[1].plot(values, height, "." if row % 2 else "x", ms=5, color=colour, alpha=0.7)
axes[1].axvspan(1, 1.08, color=COLOURS["light"], alpha=0.25, lw=0)
axes[1].text(1.005, 0.4, "no accuracy\nis above 1", fontsize=9)
axes[1].set_yticks([3, 2, 1, 0], [name for name, _ in groups], fontsize=9)
axes[1].set(xlabel="value", title="Which column is which?")
fits_at = [n for n in range(2, 51) if printed_error(LOSS, ACCURACY, n) < 5e-9]
chapter.show(
    fig,
    "nondet-detective",
    alt="Left: standard deviation of the first k free-seed runs over the printed one against k for both columns, a dashed line at 36. Right: all released values as dots in four rows, two columns by two arms; a part of the first column lies above 1.",
    caption=f"Both printed free-seed spreads are met to eight digits at k = {', '.join(map(str, fits_at))} and at no other number of runs. Column 1 exceeds 1 in {label_measures(LOSS, ACCURACY, 36)['impossible']} of 100 runs, so it is the loss: what the abstract calls accuracy is loss.",
    answers="the numbers of the abstract and the README",
)

# %% [markdown]
# Now the claims as printed, judged by the rows; the corrected ratios (0.759 for the loss, 0.902 for the accuracy, all rows) are what the emulation below is held against.

# %% tags=["nbval-check-output"]
arm_halves = [free_rows[ACCURACY][::2], free_rows[ACCURACY][1::2]]
chapter.claim(
    "C3a",
    fixed=fixed_rows[ACCURACY].std(),
    free=free_rows[ACCURACY].std(),
    ratio=fixed_rows[ACCURACY].std() / free_rows[ACCURACY].std(),
    control=dict(fixed=arm_halves[0].std(), free=arm_halves[1].std(), ratio=arm_halves[0].std() / arm_halves[1].std()),
)  # fmt: skip
chapter.claim(
    "C4a",
    ratio=fixed_rows[LOSS].std() / free_rows[LOSS].std(),
    control=dict(ratio=fixed_rows[LOSS].std() / free_rows[LOSS][:36].std()),
)
exact_ratio = {
    name: vc.sd_ratio(fixed_rows[column], free_rows[column])
    for name, column in (("loss", LOSS), ("accuracy", ACCURACY))
}
short_ratio = {m: ratio_at[m, 0][s.lengths.index(SHORT)] for m in ("loss", "accuracy")}
chapter.claim(
    "C5a",
    **{m: float(r.low) for m, r in exact_ratio.items()},
    **{f"{m}_value": float(r.value) for m, r in exact_ratio.items()},
    control={m: nine(float(r.low)) for m, r in short_ratio.items()}
    | {f"{m}_value": nine(float(r.value)) for m, r in short_ratio.items()},
)
chapter.claim(
    "C6",
    p=vc.equivalence_p(fixed_rows[ACCURACY], free_rows[ACCURACY], 0.002),
    control=dict(p=vc.equivalence_p(fixed_rows[ACCURACY], free_rows[ACCURACY] + 0.005, 0.002)),
)


def pair_share(values, sigma_root):
    """Share of pairs that differ by more than half a point, over the normal formula."""
    apart = np.abs(values[:, None] - values[None])[np.triu_indices(len(values), 1)]
    share = float((apart > 0.005 + 1e-12).mean())
    return dict(share=share, ratio=share / (2 * stats.norm.sf(0.005 / (values.std(ddof=1) * sigma_root))))  # fmt: skip


chapter.claim(
    "C7",
    **pair_share(free_rows[ACCURACY], 2**0.5),
    control=pair_share(free_rows[ACCURACY], 1.0),
)

# %% [markdown]
# Four ways to put uncertainty on the ratio, for the published selection of rows and for all.


# %% tags=["hide-input"]
def forest_row(name, fixed, free):
    rng = numpy_generator(seed, "forest", name)
    found = vc.sd_ratio(fixed, free)
    low, high = vc.bootstrap_ratio(fixed, free, draws=s.draws, rng=rng)
    return dict(name=name, value=float(found.value), low=float(found.low), high=float(found.high), boot=(low, high), f=float(found.p),
                perm=vc.permutation_p(fixed, free, draws=s.draws, rng=rng), levene=vc.brown_forsythe_p(fixed, free))  # fmt: skip


forest = [
    forest_row(f"{metric}, {rows}", fixed_rows[column], free_rows[column][:count])
    for metric, column in (("loss", LOSS), ("accuracy", ACCURACY))
    for rows, count in (("README (36 free)", 36), ("all rows", 50))
]
lines = ["| | sd ratio, F interval | bootstrap | share | p: F, permutation, Brown–Forsythe |", "|---|---|---|---|---|"]  # fmt: skip
lines += [f"| {r['name']} | {r['value']:.3f}, {r['low']:.3f} – {r['high']:.3f} | {r['boot'][0]:.3f} – {r['boot'][1]:.3f} | {r['value'] ** 2:.2f} ({r['low'] ** 2:.2f} – {r['high'] ** 2:.2f}) | {r['f']:.3f}, {r['perm']:.3f}, {r['levene']:.2f} |" for r in forest]  # fmt: skip
serial = {(arm, c): stats.spearmanr(np.arange(50), rows[c]).pvalue for arm, rows in released.items() for c in (0, 1)}  # fmt: skip
welch = [
    stats.ttest_ind(fixed_rows[c], free_rows[c], equal_var=False).pvalue for c in (LOSS, ACCURACY)
]
binomial_sd = math.sqrt(free_rows[ACCURACY].mean() * (1 - free_rows[ACCURACY].mean()) / 10_000)
display(Markdown("\n".join(lines) + f"\n\nEqual means (Welch): p = {welch[0]:.2f} for the loss, {welch[1]:.2f} for the accuracy. Drift along the 50 runs of one process (Spearman): smallest of four p {min(serial.values()):.2f}. A single test set of 10,000 at this accuracy has a binomial sd of {100 * binomial_sd:.2f} points; the released sds are {100 * fixed_rows[ACCURACY].std(ddof=1):.2f} and {100 * free_rows[ACCURACY].std(ddof=1):.2f}."))  # fmt: skip

# %% [markdown]
# So what can these data carry? They show beyond doubt that fixing the seeds did **not** make results equal, and that what is left is *comparable* to the whole. They do not show that it is more than half: both intervals contain 0.707, and 1. They do not say whether seed 0 is typical, since there is only that one; and they do not
# say that the GPU's arithmetic is imprecise, since the spread is rounding times amplification. For that we need other designs.

# %% [markdown]
# ## Train
#
# ### The paper's design, emulated
#
# Five arms at the longest training: all seeds fixed with rows permuted, all fixed with one ulp, only the order drawn, only the weights drawn, all drawn. Runs of one batched product need not be equal slot by slot, so the control is run apart: the same slot alone, twice, and beside others.

# %% tags=["hide-input"]
n_arm = s.arm
arm_slots = {
    "rows": [Slot(rows=k) for k in range(n_arm)],
    "one ulp": [Slot(ulp=ulp_entry(k)) for k in range(n_arm)],
    "order": [Slot(order=1_000 + k) for k in range(n_arm)],
    "weights": [Slot(weights=1_000 + k) for k in range(n_arm)],
    "all seeds": [Slot(1_000 + k, 1_000 + k) for k in range(n_arm)],
}
flat_slots = [slot for group in arm_slots.values() for slot in group]
arms = {}
for steps in (SHORT, LONG):
    run = train(flat_slots, x, y, Recipe(steps), seed=seed)
    found = final_scores(run, x_test, y_test, x)
    arms[steps] = {
        arm: type(found)(*(part.view(len(arm_slots), n_arm, *part.shape[1:])[k] for part in found))
        for k, arm in enumerate(arm_slots)
    }
alone = [train([Slot()], x, y, Recipe(SHORT), seed=seed).weights for _ in range(3)]
beside = train([Slot()] * 7, x, y, Recipe(SHORT), seed=seed).weights
print(
    f"the same run alone, three times: {len({bitwise.digest(*w) for w in alone})} distinct set of weights"
)
print(f"seven copies in one batched product: {len({bitwise.digest(*(layer[k] for layer in beside)) for k in range(7)})} distinct")  # fmt: skip


def wrong_of(found):
    return (found.classes != y_test.cpu()).long()


def emulated(metric, steps, count, arm="rows"):
    """Ratio of an arm's spread to that of all seeds, with its interval; `count` runs an arm."""
    fixed, free = (getattr(arms[steps][a], metric)[:count].numpy() for a in (arm, "all seeds"))
    found = vc.sd_ratio(fixed, free)
    low, high = nine(float(found.low)), nine(float(found.high))
    return dict(ratio=nine(float(found.value)), low=low, high=high, width=high / max(low, 1e-9))


# %% tags=["nbval-check-output"]
for claim_id, metric in (("C3b", "loss"), ("C4b", "accuracy")):
    chapter.claim(claim_id, **emulated(metric, LONG, n_arm), control=emulated(metric, SHORT, n_arm))

# %% tags=["hide-input"]
lines = ["| arm | steps | accuracy (%) | sd (points) | test loss | sd | disagreement (%) |", "|---|---|---|---|---|---|---|"]  # fmt: skip
churn_of = {}
for steps in (SHORT, LONG):
    for arm, found in arms[steps].items():
        matrix = run_spread.churn(found.classes)
        churn_of[steps, arm] = float(matrix[torch.triu(torch.ones_like(matrix), 1) > 0].mean())
        lines.append(f"| {arm} | {steps} | {100 * float(found.accuracy.mean()):.2f} | {100 * float(found.accuracy.std()):.2f} | {float(found.loss.mean()):.3f} | {float(found.loss.std()):.4f} | {100 * churn_of[steps, arm]:.1f} |")  # fmt: skip
display(Markdown("\n".join(lines)))

# %% tags=["hide-input"]
rows_shown = [(r["name"] + ", released", r["value"], r["low"], r["high"], COLOURS["baseline"]) for r in forest]  # fmt: skip
for metric in ("loss", "accuracy"):
    for arm in ("rows", "one ulp", "order", "weights"):
        e = emulated(metric, LONG, n_arm, arm)
        rows_shown.append((f"{metric}, {arm} (fixed arm)", e["ratio"], e["low"], e["high"], ARMS[arm]))  # fmt: skip
    for source, arm in enumerate(("rows", "one ulp")):
        r = ratio_at[metric, source][-1]
        rows_shown.append((f"{metric}, {arm} (nested)", float(r.value), float(r.low), float(r.high), ARMS[arm]))  # fmt: skip
fig, axis = plt.subplots(figsize=(8.6, 5.6))
for k, (name, value, low, high, colour) in enumerate(reversed(rows_shown)):
    axis.errorbar(value, k, xerr=[[value - low], [high - value]], fmt="o", color=colour, capsize=3, ms=5)  # fmt: skip
axis.set_yticks(range(len(rows_shown)), [r[0] for r in reversed(rows_shown)], fontsize=9)
axis.axvline(1, color="black", lw=0.8, ls=":")
axis.axvline(0.5**0.5, color=COLOURS["highlight"], lw=1, ls="--", label="half of the variance")
axis.set(xlabel="standard deviation over that of free seeds (95 % interval)", xlim=(0, 1.5))
axis.legend(loc="lower right", fontsize=9)
over = sum(r[2] > 0.5**0.5 for r in rows_shown)
chapter.show(
    fig,
    "nondet-forest",
    alt="Forest plot: ratios of standard deviations with 95 per cent intervals for the released data, README selection and all rows, and for the arms of the emulation in the fixed-seed and nested designs; a dashed line at 0.707.",
    caption=f"Ratios with exact intervals; training of {LONG} steps in the emulation. {over} of {len(rows_shown)} intervals lie entirely above the dashed line, where a source is more than half of the variance; of the released data {sum(r[2] > 0.5**0.5 for r in rows_shown[:4])} of 4 do.",
    answers="the abstract's 74 % and 80 %, with uncertainty",
)

# %% [markdown]
# ### Seeds crossed with executions
#
# The design that answers the question: many seeds, several executions of each, and the share of the variance that is left within a seed, with its exact interval.


# %% tags=["nbval-check-output"]
def share_at(steps):
    rows, ulp = (vc.nested(nested_at(steps, source=k)) for k in (0, 1))
    return dict(share=nine(float(rows.share)), low=nine(float(rows.low)), ulp=nine(float(ulp.share)), ulp_low=nine(float(ulp.low)))  # fmt: skip


chapter.claim("C5b", **share_at(LONG), control=share_at(s.lengths[0]))

ulp_loss = {n: emulated("loss", n, n_arm, "one ulp") for n in (SHORT, LONG)}
chapter.claim(
    "C8",
    loss=ulp_loss[LONG]["ratio"],
    low=ulp_loss[LONG]["low"],
    churn=nine(churn_of[LONG, "one ulp"] / churn_of[LONG, "all seeds"]),
    control=dict(loss=ulp_loss[SHORT]["ratio"], low=ulp_loss[SHORT]["low"], churn=nine(churn_of[SHORT, "one ulp"] / churn_of[SHORT, "all seeds"])),
)  # fmt: skip


def by_length(pick):
    short, middle, long = (pick(n) for n in (SHORT, MIDDLE, LONG))
    return dict(short=nine(float(short.value)), middle=nine(float(middle.value)), long=nine(float(long.value)), short_high=nine(float(short.high)), long_low=nine(float(long.low)))  # fmt: skip


def half_against_half(steps):
    first = nested_at(steps)[:, 0]
    return vc.sd_ratio(first[::2], first[1::2])


# The same design in float64, rows permuted: the rounding is a factor of 5e8 smaller and has not been amplified yet.
row_slots = nested_slots[: s.seeds * s.repeats]
in_double = final_scores(
    train(row_slots, x, y, Recipe(MIDDLE, dtype=torch.float64), seed=seed), x_test, y_test, x
)
double = nine(float(vc.nested_sd_ratio(in_double.loss.view(SHAPE[1:]).numpy()).value))
chapter.claim("C9", **by_length(lambda n: vc.nested_sd_ratio(nested_at(n))), double=double, control=by_length(half_against_half) | dict(double=nine(float(vc.nested_sd_ratio(nested_at(MIDDLE)).value))))  # fmt: skip

# %% [markdown]
# ### A ResNet on images
#
# Eight layers on Fashion-MNIST (pooled to 14 × 14 at the `cpu` profile), trained with the paper's schedule in relative terms (Adam, decays at 40, 60, 80 and 90 % of training), one run at a time: replicas batched together would be computed by other kernels. With a handful of runs a standard deviation has
# no precision; *disagreement* has, since every pair of runs and every test image counts. The `gpu`
# profile trains a wider net on CIFAR-10, in repeats that differ in nothing but the execution of the hardware, and the paper's ResNet29v2 beside it; here ResNet29v2 takes a few steps, to show that it is the same code.

# %% tags=["hide-input"]
paper_net = ResNetV2(generator=generator(seed, "paper net"))
trainable = sum(p.numel() for p in paper_net.parameters())
statistics = sum(b.numel() for name, b in paper_net.named_buffers() if not name.endswith("tracked"))
print(f"ResNet29v2 of the paper: {trainable + statistics:,} parameters, {trainable:,} of them trained")  # fmt: skip

image_train = chapter.load(s.image_data, fallback="digits")
image_test = chapter.load(s.image_data, "test", fallback="digits")
fallen_back = image_train.card.name == "digits"
pool = nn.Identity() if fallen_back else nn.AvgPool2d(s.pool)
chosen = image_train.subset(min(s.image_train, len(image_train)), generator(seed, "images"))
chosen_test = image_test.subset(min(s.image_test, len(image_test)), generator(seed, "test images"))
mean_image = pool(chosen.x).mean(0)
images, test_images = pool(chosen.x) - mean_image, pool(chosen_test.x) - mean_image


def image_loss(net, batch, _noise, _hyper):
    return nn.functional.cross_entropy(net(batch[0]), batch[1]) + penalty(net), {}


def image_run(copy, *, repeat=None, steps=None, on=False, kind="small"):
    """Train one net; `repeat` permutes rows, None leaves them; return logits of the test images and the weights."""
    steps = steps or s.image_steps
    net = build(kind, width=s.width, channels=images.shape[1], generator=generator(seed, "image net", copy)).to(device)  # fmt: skip
    batches = Batches(images, chosen.y, batch_size=s.image_batch, seed=1_000 * seed + copy)
    source = batches if repeat is None else PermutedRows(batches, seed=copy, repeat=repeat)
    with bitwise.deterministic(on):
        fit(net, image_loss, source, steps=steps, lr=s.image_lr, schedule=paper_rate, record_every=steps, desc=f"ResNet {copy}")  # fmt: skip
    net.eval()
    with torch.no_grad():
        scores = torch.cat([net(part) for part in test_images.split(500)])
    return scores, nn.utils.parameters_to_vector(net.parameters()).detach()


def image_group(steps, *, seeds=None, kind="small"):
    """Seeds x executions; metrics and predictions of all runs, and the seed of each."""
    copies = [c for c in range(seeds or s.image_seeds) for _ in range(s.image_repeats)]
    repeats_of = [r % s.image_repeats if s.execution == "rows" else None for r in range(len(copies))]  # fmt: skip
    runs = [image_run(c, repeat=r, steps=steps, kind=kind)[0] for c, r in zip(copies, repeats_of, strict=True)]  # fmt: skip
    return score(torch.stack(runs), chosen_test.y), torch.tensor(copies)


# Probe first: are identical runs identical? Then the control, then the main runs
repeats = [image_run(0, steps=s.probe_steps)[1] for _ in range(s.hardware_repeats)]
controls = [image_run(0, steps=s.probe_steps, on=True)[1] for _ in range(2)]
print(f"identical runs, flags off: {len({bitwise.digest(w) for w in repeats})} distinct of {len(repeats)}; flags on: {len({bitwise.digest(w) for w in controls})} of {len(controls)}")  # fmt: skip
print(f"execution noise of the runs below: {'rows permuted inside each batch' if s.execution == 'rows' else 'the hardware, flags off'}")  # fmt: skip
image_scored, image_copies = image_group(s.image_steps)
early_scored, _ = image_group(s.image_early)
paper_scored, paper_copies = image_group(s.paper_steps, seeds=s.paper_seeds, kind="paper")

lines = ["| net | runs | steps | accuracy (%) | churn in a seed (%) | between (%) | sd ratio of the loss |", "|---|---|---|---|---|---|---|"]  # fmt: skip
for name, (found, copies, steps) in {
    "small": (image_scored, image_copies, s.image_steps),
    "ResNet29v2": (paper_scored, paper_copies, s.paper_steps),
}.items():
    matrix = run_spread.churn(found.classes)
    within_between = [100 * float(run_spread.pairs_of(matrix, copies, same=kind).mean()) for kind in (True, False)]  # fmt: skip
    r = vc.nested_sd_ratio(found.loss.view(-1, s.image_repeats).numpy())
    lines.append(f"| {name} | {len(copies)} | {steps} | {100 * float(found.accuracy.mean()):.1f} | {within_between[0]:.2f} | {within_between[1]:.2f} | {float(r.value):.2f} ({float(r.low):.2f} – {float(r.high):.2f}) |")  # fmt: skip
display(Markdown("\n".join(lines)))


# %% tags=["nbval-check-output"]
def churn_ratios(scored):
    """Per seed: mean disagreement of its executions over its mean disagreement with other seeds."""
    matrix, found = run_spread.churn(scored.classes), []
    for copy in range(s.image_seeds):
        mine = image_copies == copy
        inside = run_spread.pairs_of(matrix[mine][:, mine], image_copies[mine], same=True).mean()
        found.append(nine(float(inside / matrix[mine][:, ~mine].mean())))
    return found


chapter.claim(
    "B6", churn=churn_ratios(image_scored), control=dict(churn=churn_ratios(early_scored))
)

# %% tags=["hide-input"]
matrix = run_spread.churn(image_scored.classes)
inside = run_spread.pairs_of(matrix, image_copies, same=True)
outside = run_spread.pairs_of(matrix, image_copies, same=False)
early_matrix = run_spread.churn(early_scored.classes)
fig, (left, right) = plt.subplots(1, 2, figsize=(9.8, 3.8))
for k, (label, m) in enumerate(((f"{s.image_early} steps", early_matrix), (f"{s.image_steps} steps", matrix))):  # fmt: skip
    for j, (same_seed, colour, name) in enumerate(((True, COLOURS["noise"], "two executions of a seed"), (False, COLOURS["baseline"], "two seeds"))):  # fmt: skip
        points = 100 * run_spread.pairs_of(m, image_copies, same=same_seed).numpy()
        spots = k + (j - 0.5) * 0.3 + np.linspace(-0.09, 0.09, len(points))
        left.plot(spots, points, ".", color=colour, label=name if k == 0 else None)
left.set_xticks([0, 1], [f"{s.image_early} steps", f"{s.image_steps} steps"])
left.set(ylabel="test images classified differently (%)", title="Disagreement of pairs of runs", yscale="symlog", ylim=(0, 130))  # fmt: skip
left.set_yticks([0, 1, 3, 10, 30, 100], [0, 1, 3, 10, 30, 100])
left.legend(fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))
spots = image_copies.numpy() + np.tile(np.linspace(-0.1, 0.1, s.image_repeats), s.image_seeds)
right.plot(spots, 100 * image_scored.accuracy.numpy(), "o", color=COLOURS["noise"])
right.set(xlabel="seed", ylabel="test accuracy (%)", title="Executions of each seed", xticks=range(s.image_seeds))  # fmt: skip
chapter.show(
    fig,
    "nondet-resnet",
    alt="Left: percentage of test images on which two runs disagree, for two executions of a seed and for two seeds, early and at the end of training. Right: test accuracy of every execution of every seed.",
    caption=f"A small ResNet on {image_train.card.name} after {s.image_steps} steps: two executions of one seed disagree on {100 * float(inside.mean()):.1f} % of the test images, two seeds on {100 * float(outside.mean()):.1f} % (mean accuracy {100 * float(image_scored.accuracy.mean()):.1f} %).",
)

# %% [markdown]
# ## Visualise
#
# The share of the variance against the length of training, per source.

# %% tags=["hide-input"]
fig, panels = plt.subplots(1, 3, figsize=(12.2, 3.8))
axes = panels[:2]
for axis, metric in zip(axes, ("loss", "accuracy"), strict=True):
    for source, arm in enumerate(("rows", "one ulp")):
        parts = [vc.nested(nested_at(n, metric, source)) for n in s.lengths]
        share, low, high = (np.array([float(getattr(p, f)) for p in parts]) for f in ("share", "low", "high"))  # fmt: skip
        axis.plot(s.lengths, share, "o-", color=ARMS[arm], label=f"{arm}")
        axis.fill_between(s.lengths, low, high, color=ARMS[arm], alpha=0.15, lw=0)
    axis.axhline(0.5, color=COLOURS["highlight"], ls="--", lw=1)
    axis.set(xscale="log", xlabel="training steps", title=f"test {metric}", ylim=(0, 1))
axes[0].set_ylabel("share of the variance within a seed")
axes[0].legend(fontsize=9)
for k, n in enumerate((SHORT, MIDDLE, LONG)):
    table = (
        sweep[n].loss.view(SHAPE).permute(1, 0, 2).flatten(1)
    )  # both kinds of execution, [seeds, executions]
    inside = table.std(1).numpy()
    panels[2].plot(k + np.linspace(-0.2, 0.2, s.seeds), np.sort(inside), ".", color=COLOURS["noise"], label="a seed" if k == 0 else None)  # fmt: skip
    panels[2].plot([k - 0.3, k + 0.3], [float(table.mean(1).std())] * 2, color=COLOURS["baseline"], label="between seed means" if k == 0 else None)  # fmt: skip
panels[2].set_xticks(range(3), [f"{n} steps" for n in (SHORT, MIDDLE, LONG)])
panels[2].set(yscale="log", ylabel="sd over executions (nats)", title="test loss, seed by seed")
panels[2].legend(fontsize=9)
uneven = {n: sweep[n].loss.view(SHAPE).permute(1, 0, 2).flatten(1).std(1) for n in (SHORT, LONG)}
first_long = next((n for n in s.lengths if float(vc.nested(nested_at(n)).low) > 0.5), None)
chapter.show(
    fig,
    "nondet-shares",
    alt="Share of the variance that is left within a seed against training steps, for test loss and test accuracy and two kinds of perturbation, with bands and a dashed line at one half. Right: standard deviation of the test loss over executions, one dot per seed, at three lengths, and between seed means.",
    caption="Execution is more than half of the variance of the test loss, with its interval, "
    + (f"from {first_long} steps on" if first_long else "at no length here")
    + f" (rows permuted, {s.seeds} seeds by {s.repeats}). Bands: 95 % intervals. Seed by seed the sd over executions differs by a factor of {float(uneven[SHORT].max() / uneven[SHORT].min()):.0f} at {SHORT} steps and {float(uneven[LONG].max() / uneven[LONG].min()):.1f} at {LONG}: one fixed seed is not the average one.",
)

# %% [markdown]
# What is the spread made of? Jordan's decomposition on free seeds and on executions alone, and the classes against random groups.


# %% tags=["nbval-check-output"]
def distribution_share(steps, arm):
    """sd on the distribution over sd on the test set; an estimate below 0 counts as 0."""
    parts = run_spread.error_variance(wrong_of(arms[steps][arm]))
    return nine(float((parts.distribution.clamp_min(0) / parts.test).sqrt()))


halves = {
    (steps, arm): run_spread.split_half(wrong_of(arms[steps][arm]), draws=s.splits, generator=generator(seed, "halves"))
    for steps, arm in ((LONG, "rows"), (LONG, "all seeds"), (SHORT, "all seeds"))
}  # fmt: skip
chapter.claim(
    "C10b",
    long=distribution_share(LONG, "all seeds"),
    short=distribution_share(SHORT, "all seeds"),
    control=dict.fromkeys(("long", "short"), distribution_share(SHORT, "all seeds")),
)
chapter.claim(
    "B5",
    half=nine(float(halves[LONG, "rows"].mean())),
    control=dict(half=nine(float(halves[SHORT, "all seeds"].mean()))),
)


def random_groups(k):
    return torch.randperm(len(y_test), generator=generator(seed, "groups", k)) % 10


def group_ratio(groups, arm="all seeds"):
    """Excess variance of the groups over that of random ones."""
    errors = wrong_of(arms[LONG][arm])
    chance = torch.stack([run_spread.group_excess(errors, random_groups(k)) for k in range(1, 11)])
    return nine(float(run_spread.group_excess(errors, groups) / chance.mean()))


chapter.claim("C11b", ratio=group_ratio(y_test.cpu()), execution=group_ratio(y_test.cpu(), "rows"), control=dict(ratio=group_ratio(random_groups(0))))  # fmt: skip

# %% tags=["hide-input"]
fig, (left, right) = plt.subplots(1, 2, figsize=(10.0, 3.8), width_ratios=(1.25, 1))
groups_shown = [(SHORT, "all seeds"), (LONG, "all seeds"), (LONG, "weights"), (LONG, "order"), (LONG, "rows"), (LONG, "one ulp")]  # fmt: skip
for j, (part, colour, name) in enumerate((("test", COLOURS["baseline"], "on the test set"), ("independent", COLOURS["noise"], "if errors were independent"), ("distribution", COLOURS["regulariser"], "on the distribution"))):  # fmt: skip
    values = [
        100 * float(getattr(run_spread.error_variance(wrong_of(arms[n][a])), part).clamp_min(0).sqrt())
        for n, a in groups_shown
    ]  # fmt: skip
    left.bar(np.arange(len(values)) + 0.27 * (j - 1), values, 0.25, color=colour, label=name)
left.set_xticks(range(len(groups_shown)), [f"{a}\n{n} steps" for n, a in groups_shown], fontsize=8)
left.set(ylabel="sd of the error (points)", yscale="log", ylim=(0.1, 6))
left.set_yticks([0.1, 0.2, 0.5, 1, 2, 5], [0.1, 0.2, 0.5, 1, 2, 5])
left.minorticks_off()
left.legend(fontsize=8)
order = torch.randperm(len(y_test), generator=generator(seed, "halves", "figure"))
for arm in ("all seeds", "rows"):
    errors = wrong_of(arms[LONG][arm])
    sides = [100 * errors[:, part].double().mean(1) for part in order.chunk(2)]
    right.plot(*sides, "o", ms=4, color=ARMS[arm], alpha=0.7, label=arm)
right.set(xlabel="error on one half of the test set (%)", ylabel="error on the other half (%)")
right.legend(fontsize=9)
chapter.show(
    fig,
    "nondet-testset",
    alt="Left: bars of three standard deviations of the error, on the test set, under independent errors, and on the distribution, for several arms. Right: error on one half of the test set against the other half, for free seeds and for executions.",
    caption=f"After {LONG} steps the sd on the distribution is {distribution_share(LONG, 'all seeds'):.2f} of that on the test set for free seeds and {distribution_share(LONG, 'rows'):.2f} for executions alone. The halves correlate by {float(halves[LONG, 'all seeds'].mean()):.2f} and {float(halves[LONG, 'rows'].mean()):.2f} (mean over {s.splits} splits).",
    answers="the split-half figure of Jordan 2023",
)

# %% [markdown]
# ## Beyond the paper
#
# ### Where amplification comes from
#
# In float64 nothing saturates, so the growth of a rounding difference can be read off as a number: decades gained in a fixed number of steps, over learning rate and depth. Amplification is a property of the configuration, not of the hardware.


# %% tags=["hide-input"]
def growth_of(lr, depth, seeds=2):
    """Decades from the first step to the last, median over twins, mean over seeds."""
    slots = [Slot(k, k, rows=r) for k in range(seeds) for r in (None, *range(s.rate_slots))]
    twins = [(j // (s.rate_slots + 1)) * (s.rate_slots + 1) for j in range(len(slots))]
    recipe = Recipe(s.rate_steps, hidden=(32,) * depth, lr=lr, dtype=torch.float64)
    distance = train(slots, x, y, recipe, seed=seed, twins=twins, follow=(1, s.rate_steps)).distance
    ratios = (distance[1] / distance[0].clamp_min(1e-17)).view(seeds, -1)[:, 1:]
    return float(ratios.log10().median(1).values.mean())


growth = np.array([[growth_of(lr, depth) for lr in s.rates] for depth in s.depths])
fig, (left, right) = plt.subplots(1, 2, figsize=(10.0, 3.8))
picture = left.imshow(growth, aspect="auto", origin="lower", cmap="viridis")
left.set_xticks(range(len(s.rates)), s.rates)
left.set_yticks(range(len(s.depths)), s.depths)
left.grid(False)
for i in range(len(s.depths)):
    for j in range(len(s.rates)):
        left.text(j, i, f"{growth[i, j]:.1f}", ha="center", va="center", color="white" if growth[i, j] < growth.max() * 0.6 else "black")  # fmt: skip
left.set(xlabel="learning rate", ylabel="hidden layers", title=f"Decades in {s.rate_steps} steps, float64")  # fmt: skip
fig.colorbar(picture, ax=left)
for name, style, colour in (("bfloat16 products", ":", COLOURS["regulariser"]), ("float32", "-", COLOURS["noise"]), ("float64", "--", COLOURS["theory"])):  # fmt: skip
    band(right, curves[name][:, kinds["rows"]], colour, name, style)
right.set(xscale="log", yscale="log", xlabel="training step", ylabel="distance to the twin / norm", title="Rows permuted", ylim=(1e-17, 10))  # fmt: skip
right.legend(fontsize=9)
chapter.show(
    fig,
    "nondet-amplification",
    alt="Left: heat map of the growth of a rounding difference in decades over learning rate and number of hidden layers. Right: distance to the twin against training step for bfloat16 products, float32 and float64.",
    caption=f"Growth ranges from {growth.min():.1f} to {growth.max():.1f} decades over configurations of one and the same arithmetic. Right: float32 and float64 run {parallel(pair, follow)['offset']:.2f} decades apart before saturation (8.73 expected); products in bfloat16 round a permutation away until they do not.",
)

# %% [markdown]
# ### The book turned on itself
#
# Chapter 1's headline: the ratio of the amplitudes learnt at the highest frequency of a sum of sines, with noise over without. How much of its spread is the seed, how much the order of rows in the sums? Executions of a seed share targets, weights and every draw of noise, attached to the *example* and not to its row.

# %% tags=["hide-input"]
sine_seeds = [m for m in member_seeds(seed, s.sine_seeds) for _ in range(s.sine_repeats)]
frequencies = torch.tensor(s.sines["frequencies"])
sine_sets = {
    m: chapter.load("sinusoids", frequencies=s.sines["frequencies"], points=s.sines["points"], seed=m)
    for m in sorted(set(sine_seeds))
}  # fmt: skip
some_set = sine_sets[sine_seeds[0]]


def sine_sources():
    for k, m in enumerate(sine_seeds):
        one = Batches(torch.cat([sine_sets[m].x, sine_sets[m].y], 1), torch.arange(len(some_set), device=device), batch_size=None, seed=0)  # fmt: skip
        yield PermutedRows(one, seed=m, repeat=k % s.sine_repeats)


plain_loss = noised_loss(SquaredError)


def by_example(net, batch, noise, hyper):
    """Chapter 1's loss, its noise looked up by example."""
    values, example = batch
    return plain_loss(net, (values[:, :1], values[:, 1:]), [e[example] for e in noise], hyper)


sine_nets = [NoisyMLP((1, *[s.sines["width"]] * 5, 1), "relu", bias=True, generator=generator(m, "sines", "init")) for m in sine_seeds]  # fmt: skip
members = len(sine_seeds)
sources = list(sine_sources())
hidden_only = torch.tensor([0.0] + [1.0] * 5)
tail_from = s.sine_steps - max(1, s.sine_steps // 10)


def sine_record(ensemble, step):
    with torch.no_grad():
        return {"amplitude": amplitudes(ensemble.call(lambda net: net(some_set.x)[0][:, 0]).cpu(), frequencies)}  # fmt: skip


sine_run = fit(
    Ensemble(sine_nets * 2).to(device), by_example, sources * 2, seed=sine_seeds * 2, steps=s.sine_steps, lr=s.sines["lr"],
    noise=site_noise(sine_nets[0]), record=sine_record, record_every=max(1, s.sine_steps // 50), desc="chapter 1 again",
    hyper={"variance": torch.cat([torch.zeros(members, 1), torch.full((members, 1), 0.01)]) * hidden_only},
)  # fmt: skip
late = sine_run.metrics["amplitude"][-max(1, len(sine_run.steps) // 10) :].mean(0)[:, -1]
headline = (late[members:] / late[:members]).view(s.sine_seeds, s.sine_repeats).double().numpy()


# %% tags=["nbval-check-output"]
def headline_measures(table):
    found = vc.nested_sd_ratio(table)
    return dict(headline=nine(float(table.mean())), worst=nine(float(table.max())), execution=nine(float(found.value)), high=nine(float(found.high)))  # fmt: skip


mixed = numpy_generator(seed, "labels").permutation(headline.ravel()).reshape(headline.shape)
chapter.claim("B4", **headline_measures(headline), control=headline_measures(mixed))

# %% tags=["hide-input"]
parts = vc.nested(headline)
fig, axis = plt.subplots(figsize=(7.4, 3.4))
for k in range(s.sine_seeds):
    axis.plot(np.full(s.sine_repeats, k) + np.linspace(-0.12, 0.12, s.sine_repeats), headline[k], "o", color=COLOURS["noise"])  # fmt: skip
axis.axhline(0.7, color=COLOURS["highlight"], ls="--", lw=1, label="bound of chapter 1's C8")
axis.set(xlabel="seed (target, weights, noise)", ylabel="amplitude with / without noise", xticks=range(s.sine_seeds), ylim=(0, None))  # fmt: skip
axis.legend()
chapter.show(
    fig,
    "nondet-chapter-1",
    alt="Chapter 1's ratio of amplitudes at the highest frequency, one dot per execution, grouped by seed, with a dashed line at chapter 1's bound of 0.7.",
    caption=f"Chapter 1's ratio {headline.mean():.3f} varies with a standard deviation of {float(parts.between) ** 0.5:.3f} over seeds and of {float(parts.within) ** 0.5:.3f} over executions of a seed ({s.sine_seeds} by {s.sine_repeats} runs of {s.sine_steps} steps).",
)

# %% [markdown]
# ### Buying determinism
#
# Deterministic algorithms cost time where other ones are faster. There is nothing to switch on a CPU, and a time is no measurement that two runs share, so only a GPU run times training steps.


# %% tags=["hide-input"]
def step_time(kernel, on):
    """Milliseconds per step of a small convolutional net with this kernel size."""
    torch.manual_seed(0)
    net = nn.Sequential(*[part for k in range(4) for part in (nn.Conv2d(3 if k == 0 else 64, 64, kernel, padding=kernel // 2), nn.ReLU())]).to(device)  # fmt: skip
    batch = torch.randn(128, 3, 32, 32, device=device)
    with bitwise.deterministic(on):
        for step in range(s.timed + 10):
            if step == 10:
                torch.cuda.synchronize()
                began = time.perf_counter()
            net.zero_grad()
            net(batch).square().mean().backward()
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / s.timed * 1e3


slowdown, unchanged = [math.nan], [math.nan]
if device.type == "cuda" and profile == "gpu":  # a smoke run records nothing that a clock decides
    slowdown = [step_time(k, True) / step_time(k, False) for k in s.kernels]
    unchanged = [step_time(k, False) / step_time(k, False) for k in s.kernels]

# %% tags=["nbval-check-output"]
chapter.claim("C11a", slowest=max(slowdown), control=dict(slowest=max(unchanged)))

# %% tags=["hide-input"]
chapter.keep(
    lengths=list(s.lengths),
    **{f"share_{source}_{part}": [float(getattr(vc.nested(nested_at(n, 'loss', k)), part)) for n in s.lengths] for k, source in enumerate(("rows", "ulp")) for part in ("share", "low", "high")},
    probe_off=[off for off, _, _ in probe_rows.values()],
    probe_on=[on or 0 for _, on, _ in probe_rows.values()],
    repeats_distinct=[len({bitwise.digest(w) for w in group}) for group in (repeats, controls)],
    resnet_accuracy=image_scored.accuracy.view(s.image_seeds, s.image_repeats),
    resnet_loss=image_scored.loss.view(s.image_seeds, s.image_repeats),
    paper_net_loss=paper_scored.loss.view(s.paper_seeds, s.image_repeats),
    headline=headline,
)  # fmt: skip

# %% [markdown]
# ## Ledger

# %%
chapter.ledger()

# %% [markdown]
# ## At paper scale
#
# The `gpu` profile probes first (every operation of the table 200 times, flags off and on; 8 identical runs of 200 steps hashed), then runs the control with flags on, then 28 seeds by 4 executions of a wider ResNet on CIFAR-10 with the flags off, and 4 by 4 of the paper's ResNet29v2, and times deterministic kernels. If the probe finds identical runs identical, that is the finding, and `execution="rows"` in the settings creates the noise honestly. C1d and C11a wait for it.

# %% tags=["hide-input"]
paper_scale = chapter.paper_scale(
    "probes, the control with flags on, 28 seeds by 4 executions of a ResNet on CIFAR-10, 4 by 4 of ResNet29v2"
)
if paper_scale:
    kept = paper_scale["series"]
    fig, axis = plt.subplots(figsize=(8.4, 4.2))
    spots = np.arange(len(probe_rows))
    axis.barh(spots + 0.2, kept["probe_off"], 0.4, color=COLOURS["noise"], label="flags off")
    axis.barh(
        spots - 0.2, kept["probe_on"], 0.4, color=COLOURS["baseline"], label="flags on (0: raises)"
    )
    axis.set_yticks(spots, list(probe_rows), fontsize=9)
    axis.set(xlabel="distinct results", xscale="symlog")
    axis.legend()
    chapter.show(
        fig,
        "nondet-paper-scale",
        alt="Bars of the number of distinct results per operation on the GPU, with deterministic algorithms off and on.",
        caption=f"Operations on the recorded GPU. Identical training runs, flags off and on: {kept['repeats_distinct'][0]} and {kept['repeats_distinct'][1]} distinct sets of weights.",
        answers="the cause that the paper names",
    )

# %% [markdown]
# ## Where it breaks
#
# What is said here of a measurement was found in the recorded `cpu` run; the ledger has the numbers of the run on this page.
#
# - **The abstract's numbers are not those of its labels** (C3a, C4a, B1). The spread called accuracy is that of the penalised loss. An sd of 0.02 would be more than five times the binomial spread of an accuracy on 10,000 images. With all runs the ratios are 0.759 (loss) and 0.902 (accuracy) where the README's are 0.739 and 0.872. Whether the tables of the
#   paper carry the same labels is unknown here; only the abstract was seen. None of this touches the finding that seeds did not make the GPU's results equal.
# - **"Dominates" is not in the released data** (C5a): the intervals contain one half of the variance, and all of it. With 50 runs an arm, and the estimates taken as true, the chance to show it was small (table of powers); for the loss the table asks for between one and four thousand runs an arm. The bootstrap and the rank-free tests agree with the F interval; the README's selection alone makes the F test significant.
# - **In the emulation it does dominate, late** (C5b, C9): after short training execution is negligible, after long training it is most of the variance. The claim is therefore one about *amplification and length of training*, of which the GPU is one trigger among others. One ulp in one weight gives the disagreement of other seeds and a large part of their spread (C8), and two threads for one start the same growth. **How large a part depends on the processor**: on the one recorded before, with the same code, the ratio of spreads was near one, and its interval hardly meets the one found here ({doc}`/book/comparison`). Where training amplifies rounding, another processor is another draw, and the interval, which takes runs for normal, may be too narrow. This is the reading of Summers and Dinneen
#   {cite}`summers2021nondeterminism` and Jordan {cite}`jordan2023variance`, measured on a small network whose learning rate was chosen so that it amplifies. {numref}`nondet-amplification` shows configurations that hardly do.
# - **An emulation is not a GPU.** C3b and C4b say that a network with permuted rows has ratios compatible with the paper's; so would many others, since 50 runs an arm allow a factor of 1.33 either way. They do not confirm the paper's numbers, they show what kind of process gives such numbers. C1d and C11a need the device. Nothing here was measured on one.
# - **One fixed seed is one draw** ({numref}`nondet-shares`, right): at short training the spread over executions differs between seeds by orders of magnitude, and the paper has only seed 0. The nested interval assumes one common variance within seeds and normal runs; where seeds are that uneven, its 95 % is nominal. B2's control shows what heavy tails do to it.
# - **Jordan's decomposition** (C10b): on 1,297 test digits free seeds still differ on the distribution after the longest training, less than after short training but by more than half; the network is small, its errors are few, and its learning rate large. Whether a lucky execution generalises is open (B5): its two halves correlate by more than C10b's half would allow, but 50 runs leave an error of about 0.14, and on one of the two processors the excess is no larger. The network normalises test examples by training statistics; with those of the test batch, an earlier version, that correlation was smaller, by no more than the two errors allow, and each example's error hung on the others.
# - **A ResNet on images** (B6) disagrees with itself much less than with another seed after some epochs: its rounding has grown, and not yet saturated. Neither the size of C8 nor, at this budget, a third of it is reached. Three seeds, one learning rate, chosen on other seeds.
# - **The book, by its own test** (B4): at chapter 1's own number of steps its ratio stays below its bound in every run, seeds and executions alike. The order of rows in the sums alone moves it visibly, less than the seed does; with so few runs the interval ends about where both would weigh the same, below it on one processor and above it on the other. A single run of chapter 1 would not be evidence; its rule judges a mean over seeds. Every
#   chapter's claims should be read with that in mind.
# - **The numbers of this page depend on the machine**, by their own argument: another CPU, another library or another number of threads gives other runs, the same kind of spread, and (if the rules are sound) the same statuses. The recorded run says which it was.
# - **Left out**: data augmentation, several devices, mixed precision beyond one curve, and the paper's comparison of TensorFlow versions. The statistics treat runs as independent; drift over the runs of one process was looked for in the released rows and not found.

# %% [markdown]
# ## Exercises
#
# ```{exercise} How much is five runs?
# :label: nondet-ex-pilot
# The authors' pilot of 5 runs of 3 epochs has standard deviations of 0.152 with a fixed seed and 0.088 with free ones (column 1): a ratio of 1.7. Is a fixed seed noisier?
# ```
#
# ````{solution-start} nondet-ex-pilot
# :class: dropdown
# ````
# Four degrees of freedom on each side give $\sqrt{F_{0.975;4,4}} = 3.1$: the interval reaches from just above one half to above 5. Nothing follows.

# %%
factor = stats.f.ppf(0.975, 4, 4) ** 0.5
pilot = 0.152 / 0.088
print(f"ratio {pilot:.2f}, 95 % interval {pilot / factor:.2f} to {pilot * factor:.2f}")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} How many runs to compare two methods?
# :label: nondet-ex-runs
# Two methods differ by 0.2 points of accuracy; single runs have the released free-seed spread. How many runs of each show it with a power of 80 %? How many if one could remove the execution's share, as the point estimate has it?
# ```
#
# ````{solution-start} nondet-ex-runs
# :class: dropdown
# ````
# $n = 2(1.96+0.84)^2\sigma^2/\Delta^2$. Without execution noise only the seeds' part of the variance is left. If instead a seed moved both methods alike, equal seeds would cancel in pairs and leave the execution: pairing gains little where execution dominates.

# %%
sigma = free_rows[ACCURACY].std(ddof=1)
share = float(exact_ratio["accuracy"].value) ** 2
for words, variance in (
    ("all drawn anew", sigma**2),
    ("equal seeds, paired", share * sigma**2),
    ("no execution noise, seeds drawn anew", (1 - share) * sigma**2),
):
    print(f"{words}: {math.ceil(2 * 2.8**2 * variance / 0.002**2)} runs of each")

# %% [markdown]
# ````{solution-end}
# ````
#
# ```{exercise} Does averaging predictions buy stability?
# :label: nondet-ex-ensemble
# Average the predicted probabilities of the executions of one seed. By how much does the disagreement between seeds fall, and what did it cost?
# ```
#
# ````{solution-start} nondet-ex-ensemble
# :class: dropdown
# ````
# Votes are enough to see it: take the majority class of the executions of a seed (nested runs at the longest training). It costs as many trainings as there are votes.

# %%
classes = sweep[LONG].classes.view(2, s.seeds, s.repeats, -1)[0]
votes = nn.functional.one_hot(classes, 10).sum(1)
firm = votes.argmax(-1)
for words, predicted in (("single runs", classes[:, 0]), ("majority of executions", firm)):
    matrix = run_spread.churn(predicted)
    apart = matrix[torch.triu(torch.ones_like(matrix), 1) > 0].mean()
    right_share = (predicted == y_test.cpu()).double().mean()
    print(f"{words}: disagreement {100 * float(apart):.1f} %, accuracy {100 * float(right_share):.1f} %")  # fmt: skip

# %% [markdown]
# ````{solution-end}
# ````

# %%
chapter.finish()
