"""Chapter 8's model: a top-down ladder of categorical layers whose posteriors and priors are responsibilities.

After Willetts, Miscouridou, Roberts and Holmes, "Relaxed-Responsibility Hierarchical Discrete VAEs" (2020).
Reconstructed from the abstract and a derivation: the paper's architecture was not available. z_L is the top layer, z_1
the one next to the image; lists of layers run from the top down. An image is cut into patches, one token each,
`[batch, tokens, width]`; a layer of side s pools the tokens to an s × s grid and holds `groups` slots at each place.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from companion.nn.codebooks import Codebook, categorical_kl, sample
from companion.nn.pixel_likelihoods import PixelLikelihood


class Shape(NamedTuple):
    """What all members of an ensemble have in common: `layers` holds (side, groups) from the top down."""

    image: tuple[int, int, int]
    patch: int
    layers: tuple[tuple[int, int], ...]
    codes: int
    dim: int
    width: int

    @property
    def side(self) -> int:
        """Patches along one side of the image."""
        return self.image[1] // self.patch

    @property
    def slots(self) -> list[int]:
        """Slots of each layer, from the top down."""
        return [side * side * groups for side, groups in self.layers]

    @property
    def pixels(self) -> int:
        """Sub-pixels of an image."""
        return math.prod(self.image)


def _linear(inputs: int, outputs: int, generator: torch.Generator, gain: float = 1.0) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(gain * inputs**-0.5 * torch.randn(outputs, inputs, generator=generator))
        layer.bias.zero_()
    return layer


def _pooling(side: int, coarse: int) -> Tensor:
    """The matrix `[coarse², side²]` that averages a side × side grid to coarse × coarse."""
    cell = torch.arange(side) * coarse // side
    one = nn.functional.one_hot(cell, coarse).float().T
    both = torch.einsum("ai,bj->abij", one, one).reshape(coarse**2, side**2)
    return both / both.sum(1, keepdim=True)


class Block(nn.Module):
    """A residual block: tokens mixed with a matrix, then channels with two layers."""

    def __init__(self, tokens: int, width: int, generator: torch.Generator, gain: float = 0.3) -> None:
        super().__init__()
        self.mix = nn.Parameter(gain * tokens**-0.5 * torch.randn(tokens, tokens, generator=generator))
        self.wide = _linear(width, 2 * width, generator)
        self.back = _linear(2 * width, width, generator, gain=gain)

    def forward(self, u: Tensor) -> Tensor:
        """Map `[batch, tokens, width]` to the same shape."""
        u = u + (u.mT @ self.mix.mT).mT  # one product for the whole batch, where mix @ u would be one per image
        normed = nn.functional.layer_norm(u, u.shape[-1:])
        return u + self.back(nn.functional.silu(self.wide(normed)))


class Layer(nn.Module):
    """One stochastic layer: heads of prior and posterior, codebook(s), and the way of the code back into the state.

    Without `shared` the prior has a codebook of its own.
    """

    pool: Tensor

    def __init__(
        self,
        shape: Shape,
        place: int,
        *,
        shared: bool = True,
        generator: torch.Generator,
        **options: Any,
    ) -> None:
        super().__init__()
        side, groups = shape.layers[place]
        width, dim = shape.width, shape.dim
        self.grid, self.top = (side * side * groups, dim), place == 0
        self.register_buffer("pool", _pooling(shape.side, side))
        self.register_buffer("spread", (self.pool > 0).float().T.contiguous())
        self.codebook = Codebook(shape.codes, dim, generator=generator, **options)
        self.prior_codebook = None if shared else Codebook(shape.codes, dim, generator=generator, **options)
        # Residual branches shrink with depth, priors start broad and posteriors apart from them
        depth = len(shape.layers)
        self.prior = None if self.top else _linear(width, groups * dim, generator, gain=0.1)
        self.joint = _linear(2 * width, width, generator)
        self.posterior = _linear(width, groups * dim, generator, gain=1.5)
        self.embed = _linear(groups * dim, width, generator, gain=depth**-0.5)
        self.block = Block(shape.side**2, width, generator, gain=0.3 * depth**-0.5)

    def prior_output(self, u: Tensor) -> Tensor | None:
        """Return h^p `[batch, slots, d]`, or None at the top, whose prior is uniform."""
        if self.prior is None:
            return None
        normed = nn.functional.layer_norm(self.pool @ u, u.shape[-1:])
        return self.prior(normed).unflatten(-1, (-1, self.grid[1])).flatten(1, 2)

    def posterior_output(self, u: Tensor, features: Tensor) -> Tensor:
        """Return h^q `[batch, slots, d]`: the prior's output plus what the image says."""
        both = torch.cat([self.pool @ u, self.pool @ features], -1)
        normed = nn.functional.layer_norm(both, both.shape[-1:])
        shift = self.posterior(nn.functional.silu(self.joint(normed)))
        h = shift.unflatten(-1, (-1, self.grid[1])).flatten(1, 2)
        prior = self.prior_output(u)
        return h if prior is None else h + prior

    def log_prior(self, u: Tensor) -> Tensor:
        """Return the log-probability of each code given the layers above, `[batch, slots, K]`."""
        h = self.prior_output(u)
        if h is None:
            codes = len(self.codebook.mean)
            return u.new_full((len(u), self.grid[0], codes), -math.log(codes))
        book = self.codebook if self.prior_codebook is None else self.prior_codebook
        log_p: Tensor = book(h)
        return log_p

    def push(self, u: Tensor, z: Tensor) -> Tensor:
        """Return the state after the code `z` `[batch, slots, K]` has entered it."""
        return self.push_vector(u, z @ self.codebook.mean)

    def push_vector(self, u: Tensor, e: Tensor) -> Tensor:
        """Return the state after the vectors `e` `[batch, slots, d]` have entered it."""
        places = e.unflatten(1, (self.pool.shape[0], -1)).flatten(2)
        entered: Tensor = self.block(u + self.spread @ self.embed(places))
        return entered


@dataclass(frozen=True)
class Pass:
    """One pass: outputs for the likelihood `[batch, ...]`, and per layer log q, log p `[batch, slots, K]` and draws."""

    out: Tensor
    log_q: list[Tensor]
    log_p: list[Tensor]
    z: list[Tensor]

    def rates(self) -> Tensor:
        """Return KL(q || p) of each layer in nats, `[batch, layers]`."""
        pairs = zip(self.log_q, self.log_p, strict=True)
        return torch.stack([categorical_kl(q, p).sum(-1) for q, p in pairs], -1)


class Ladder(nn.Module):
    """A hierarchical discrete VAE of `len(shape.layers)` layers; `options` go to every `Layer` and its codebook."""

    layers: Any  # an nn.ModuleList of `Layer`, which its own type does not say

    def __init__(
        self,
        shape: Shape,
        likelihood: PixelLikelihood,
        *,
        levels: int,
        marginal: Tensor | None = None,
        generator: torch.Generator,
        **options: Any,
    ) -> None:
        super().__init__()
        self.shape, self.likelihood, self.levels = shape, likelihood, levels
        tokens, width = shape.side**2, shape.width
        pixels = shape.patch**2 * shape.image[0]
        self.read = _linear(pixels, width, generator)
        self.places = nn.Parameter(0.3 * torch.randn(tokens, width, generator=generator))
        self.bottom_up = nn.ModuleList(Block(tokens, width, generator) for _ in range(2))
        self.start = nn.Parameter(0.3 * torch.randn(tokens, width, generator=generator))
        places = range(len(shape.layers))
        self.layers = nn.ModuleList(Layer(shape, place, generator=generator, **options) for place in places)
        self.last = Block(tokens, width, generator)
        self.write = _linear(width, pixels * likelihood.outputs, generator, gain=0.3)
        # Where the decoder starts: each pixel's own statistics, so that steps are not spent on the blank border
        bias = torch.zeros(shape.pixels * likelihood.outputs) if marginal is None else marginal.reshape(-1)
        self.bias = nn.Parameter(bias.clone())

    def features(self, x: Tensor) -> Tensor:
        """Return d(x) `[batch, tokens, width]` for integer pixels `x` `[batch, pixels]`."""
        channels, side, patch = self.shape.image[0], self.shape.side, self.shape.patch
        scaled = 2 * x / (self.levels - 1) - 1
        cut = scaled.reshape(-1, channels, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        u = self.read(cut.reshape(len(x), side * side, -1)) + self.places
        for block in self.bottom_up:
            u = block(u)
        return u

    def finish(self, u: Tensor) -> Tensor:
        """Return the outputs for the likelihood `[batch, pixels × outputs]` from the last state."""
        channels, side, patch = self.shape.image[0], self.shape.side, self.shape.patch
        normed = nn.functional.layer_norm(self.last(u), u.shape[-1:])
        cut = self.write(normed).reshape(len(u), side, side, channels, patch, patch, -1)
        whole = cut.permute(0, 3, 1, 4, 2, 5, 6).reshape(len(u), -1)
        return whole + self.bias

    def initial(self, batch: int) -> Tensor:
        """Return the learnt constant u_L `[batch, tokens, width]`."""
        return self.start.expand(batch, -1, -1)

    def forward(
        self, x: Tensor, uniform: Sequence[Tensor], temperature: Tensor | float = 1.0, hard: Tensor | float = 1.0
    ) -> Pass:
        """Infer and decode `x` with one uniform draw `[batch, slots, K]` per layer; `hard` = 1 samples exactly."""
        return self.infer(x, lambda place, log_q: sample(log_q, uniform[place], temperature, hard))

    def infer(self, x: Tensor, choose: Callable[[int, Tensor], Tensor]) -> Pass:
        """Infer and decode `x` with the codes that `choose(layer, log q)` returns."""
        features, u = self.features(x), self.initial(len(x))
        log_q, log_p, draws = [], [], []
        for place, layer in enumerate(self.layers):
            log_q.append(layer.codebook(layer.posterior_output(u, features)))
            log_p.append(layer.log_prior(u))
            draws.append(choose(place, log_q[-1]))
            u = layer.push(u, draws[-1])
        return Pass(self.finish(u), log_q, log_p, draws)

    def generate(
        self, uniform: Sequence[Tensor], given: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return outputs and one-hot codes of one pass from the prior; a layer in `given` is taken, not drawn."""
        u, draws = self.initial(len(uniform[0])), []
        for place, (layer, noise) in enumerate(zip(self.layers, uniform, strict=True)):
            known = given[place] if given is not None else None
            draws.append(sample(layer.log_prior(u), noise, 1.0, 1.0) if known is None else known)
            u = layer.push(u, draws[-1])
        return self.finish(u), draws


def slot_noise(shape: Shape) -> Any:
    """Return `noise(generator, batch)`: uniform draws `[batch, slots, K]` for each layer."""

    def draw(generator: torch.Generator, batch: tuple[Tensor, ...]) -> list[Tensor]:
        x = batch[0]
        sizes = [(len(x), slots, shape.codes) for slots in shape.slots]
        return [torch.rand(size, generator=generator, device=x.device) for size in sizes]

    return draw


def relaxed_loss(model: Any, batch: tuple[Tensor, ...], noise: Any, hyper: Mapping[str, Tensor]) -> Any:
    """The training loss per image, nats: −log p(x|z) + β Σ KL with relaxed z.

    The batch is (x, β, τ); `hyper["hard"]` = 1 makes the draw straight-through, `hyper["coolest"]` is a floor of τ.
    """
    x, beta, temperature = batch
    seen = model(x, noise, torch.maximum(temperature, hyper["coolest"]), hyper["hard"])
    rate, fit = seen.rates().sum(-1).mean(), model.likelihood.log_pixels(seen.out, x).sum(-1).mean()
    return beta * rate - fit, {"rate": rate, "fit": fit}


class Annealed:
    """Batches (x, β, τ) of a source: β rises to 1 over a fifth of `steps`, τ falls from 1 to ½ over two fifths."""

    def __init__(self, source: Any, steps: int) -> None:
        self.source, self.steps = source, steps

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return the images of `step` and the two numbers as scalar tensors."""
        x = self.source.batch(step)[0]
        beta = min(1.0, (step + 1) / (0.2 * self.steps))
        return x, x.new_tensor(beta), x.new_tensor(max(0.5, 1 - 0.5 * step / (0.4 * self.steps)))
