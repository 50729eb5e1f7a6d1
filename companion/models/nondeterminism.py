"""Many runs of one small network as one program, each with its own seeds and its own perturbation.

The network amplifies rounding within some hundred steps: batch normalisation before every ReLU, stochastic gradient
descent with heavy ball at a learning rate that falls linearly to 0. Every run is a slot of `torch.bmm`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from companion.data import Batches
from companion.errors import CompanionError
from companion.seeds import generator


@dataclass(frozen=True)
class Recipe:
    """How a slot is trained; `product` casts the factors of every matrix product (None: as they are)."""

    steps: int
    hidden: tuple[int, ...] = (32, 32, 32)
    lr: float = 1.0
    momentum: float = 0.9
    batch: int = 10
    dtype: torch.dtype = torch.float32
    product: torch.dtype | None = None


class Slot(NamedTuple):
    """What distinguishes one run: seeds of weights and order, and at most one perturbation that should not matter.

    `rows` permutes the examples inside each mini-batch, which no exact arithmetic notices. `ulp` moves that entry of
    the second matrix to the next floating-point number. None: unperturbed.
    """

    weights: int = 0
    order: int = 0
    rows: int | None = None
    ulp: int | None = None


class Trained(NamedTuple):
    """Weights of all slots, `[slots, in, out]` a layer, and the distances that were followed, `[steps, slots]`."""

    weights: list[Tensor]
    distance: Tensor
    recipe: Recipe


def initial(slots: Sequence[Slot], sizes: Sequence[int], *, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """Return He-normal weights, drawn in float32 for every dtype, with the one-ulp changes made in `dtype`."""
    layers = []
    for k, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        drawn = {
            s: torch.randn(fan_in, fan_out, generator=generator(seed, "weights", s, k)) * math.sqrt(2 / fan_in)
            for s in {slot.weights for slot in slots}
        }
        layers.append(torch.stack([drawn[slot.weights] for slot in slots]).to(dtype))
    for k, slot in enumerate(slots):
        if slot.ulp is not None:
            entries = layers[1][k].view(-1)
            entries[slot.ulp] = torch.nextafter(entries[slot.ulp], entries.new_tensor(math.inf))
    return layers


def logits(
    weights: Sequence[Tensor], x: Tensor, product: torch.dtype | None = None, reference: Tensor | None = None
) -> Tensor:
    """Return `[slots, n, classes]` for x `[slots, n, in]`, normalised by the statistics of `reference` (default: x)."""

    def times(h: Tensor, w: Tensor) -> Tensor:
        return torch.bmm(h, w) if product is None else torch.bmm(h.to(product), w.to(product)).to(h.dtype)

    for w in weights[:-1]:
        x = times(x, w)
        base = x if reference is None else times(reference, w)
        mean = base.mean(1, keepdim=True)
        scale = torch.rsqrt((base - mean).square().mean(1, keepdim=True) + 1e-5)
        x = ((x - mean) * scale).relu()
        if reference is not None:
            reference = ((base - mean) * scale).relu()
    return times(x, weights[-1])


def epoch_rows(slots: Sequence[Slot], n: int, recipe: Recipe, seed: int, epoch: int) -> Tensor:
    """Return the examples of every step of an epoch, `[slots, steps, batch]`, rows permuted where a slot asks."""
    steps = n // recipe.batch
    drawn = {s: torch.randperm(n, generator=generator(seed, "order", s, epoch)) for s in {t.order for t in slots}}
    chosen = torch.stack([drawn[slot.order][: steps * recipe.batch].view(steps, -1) for slot in slots])
    for k, slot in enumerate(slots):
        if slot.rows is not None:
            keys = torch.rand(
                steps, recipe.batch, generator=generator(seed, "rows", slot.weights, slot.order, slot.rows, epoch)
            )
            chosen[k] = chosen[k].gather(1, keys.argsort(1))
    return chosen


def train(
    slots: Sequence[Slot],
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    *,
    seed: int,
    twins: Sequence[int] = (),
    follow: Sequence[int] = (),
) -> Trained:
    """Train every slot on x `[n, in]`, y `[n]`; after the steps in `follow` note the relative distance to its twin.

    `twins` names for every slot the one it is compared with: norm of the difference over the norm of the twin.
    Raises CompanionError where `follow` lacks twins.
    """
    if follow and len(twins) != len(slots):
        raise CompanionError(f"{len(twins)} twins for {len(slots)} slots: name one for each")
    x = x.to(recipe.dtype)
    sizes = (x.shape[1], *recipe.hidden, int(y.max()) + 1)
    weights = [w.to(x.device).requires_grad_() for w in initial(slots, sizes, seed=seed, dtype=recipe.dtype)]
    speeds = [torch.zeros_like(w) for w in weights]
    per_epoch, distances = len(x) // recipe.batch, []
    for step in range(recipe.steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            chosen = epoch_rows(slots, len(x), recipe, seed, epoch).to(x.device)
        rows = chosen[:, place]
        scores = logits(weights, x[rows], recipe.product)
        loss = cross_entropy(scores.flatten(0, 1), y[rows].flatten(), reduction="sum") / recipe.batch
        gradients = torch.autograd.grad(loss, weights)
        rate = recipe.lr * (1 - step / recipe.steps)
        with torch.no_grad():
            for w, speed, gradient in zip(weights, speeds, gradients, strict=True):
                speed.mul_(recipe.momentum).add_(gradient)
                w.sub_(speed, alpha=rate)
            if step + 1 in follow:
                flat = torch.cat([w.flatten(1) for w in weights], 1)
                twin = flat[list(twins)]
                distances.append(((flat - twin).norm(dim=1) / twin.norm(dim=1)).double().cpu())
    return Trained([w.detach() for w in weights], torch.stack(distances) if distances else torch.empty(0), recipe)


class Scored(NamedTuple):
    """Test metrics per slot: cross-entropy (nats, no penalty), accuracy, and predicted classes `[slots, n]`."""

    loss: Tensor
    accuracy: Tensor
    classes: Tensor


def score(scores: Tensor, y: Tensor) -> Scored:
    """Return the metrics of logits `[slots, n, classes]` for labels y `[n]`, accumulated in float64."""
    scores = scores.double()
    loss = -scores.log_softmax(-1)[:, torch.arange(len(y), device=y.device), y].mean(1)
    classes = scores.argmax(-1)
    return Scored(loss.cpu(), (classes == y).double().mean(1).cpu(), classes.cpu())


def final_scores(run: Trained, x: Tensor, y: Tensor, reference: Tensor) -> Scored:
    """Return the test metrics of all slots on x `[n, in]`, y `[n]`, normalised by the training inputs `reference`.

    With statistics of the test batch, one example's error would depend on the others.
    """
    with torch.no_grad():
        stacked, base = (part.to(run.recipe.dtype).expand(len(run.weights[0]), -1, -1) for part in (x, reference))
        return score(logits(run.weights, stacked, run.recipe.product, base), y)


class PermutedRows:
    """Mini-batches of `batches` with the examples of each in another order, fixed by `seed` and `repeat`."""

    def __init__(self, batches: Batches, *, seed: int, repeat: int) -> None:
        self._batches, self._key = batches, (seed, "rows", repeat)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return the tensors of `step`, their rows permuted together."""
        tensors = self._batches.batch(step)
        order = torch.randperm(len(tensors[0]), generator=generator(*self._key, step)).to(tensors[0].device)
        return tuple(tensor[order] for tensor in tensors)
