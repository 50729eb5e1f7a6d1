"""A hierarchical VAE from layer strings (see `layer_strings`), whose cells may share weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion.models.hvae_cell import Block, Cell, Gaussian, conv, full_precision, kl, log_ratio
from companion.models.layer_strings import Step, parse, residual_scale, wide


class Trace(NamedTuple):
    """A pass through the decoder: output, KL per cell `[cells, batch]`, and with `record` what else it met.

    `log_ratio`: log q(z) − log p(z) at the sample, per cell `[cells, batch]`; `log_variance_ratio`: mean of
    log σ_q²/σ_p² per cell `[cells, batch]`; `price`: nats of the KL that are due to unequal variances; `entries`,
    `states`: the state that enters and leaves each cell.
    """

    output: Tensor
    kl: Tensor
    log_ratio: Tensor
    log_variance_ratio: Tensor
    price: Tensor
    entries: list[Tensor]
    states: list[Tensor]


class HVAE(nn.Module):
    """p(z_1) ... p(z_L | z_<L) p(x | z) and its top-down posterior, from an encoder and a decoder string.

    Images are `[batch, channels, R, R]` in [−1, 1]; with `patch` = 2 the finest rung is left to stem and head, which
    read blocks of 2 × 2 pixels as channels. Flags are buffers, so that the members of an Ensemble may differ in them;
    what a flag needs exists only where it is given at all: `keep` (False: states replaced, not incremented),
    `normalise` (True: each state rescaled to root mean square 1), `clock` (True: cells are told their place by a
    learnt vector), `sync` (True: cell i reads the mirrored encoder block), `every`: only
    each k-th cell has a latent; `fourier` (True: sin and cos of the pixels as inputs); `gaussian_start` (True: the
    first state is a latent with prior N(0, I) around the learnt constant). `naive_scale`: residual scale by distinct
    blocks; `last`: that scale itself. `enlarge(state, factor)` is the way to a finer resolution, nearest upsampling.
    """

    start: Tensor | None
    keep: Tensor | None
    normalise: Tensor | None
    clock: Tensor | None
    sync: Tensor | None
    noisy: Tensor | None
    fourier: Tensor | None
    first: Block | None
    enlarge: Callable[[Tensor, int], Tensor]

    def __init__(
        self,
        encoder: str,
        decoder: str,
        *,
        width: int,
        middle: int,
        latents: int,
        channels: int = 1,
        outputs: int = 1,
        patch: int = 1,
        generator: torch.Generator,
        keep: bool | None = None,
        normalise: bool | None = None,
        clock: bool | None = None,
        sync: bool | None = None,
        every: int | None = None,
        fourier: bool | None = None,
        gaussian_start: bool | None = None,
        naive_scale: bool = False,
        last: float | None = None,
    ) -> None:
        super().__init__()
        self.up_path, self.down_path = parse(encoder), parse(decoder)
        self.width, self.latents, self.patch = width, latents, patch
        self.resolutions = sorted({step.resolution for step in self.down_path})
        inputs = channels * (1 if fourier is None else 1 + 2 * len(FREQUENCIES))
        self.stem = conv(inputs * patch**2, width, 3, generator=generator)
        self.enlarge = nearest
        scales = [
            residual_scale(path, naive=naive_scale) if last is None else last for path in (self.up_path, self.down_path)
        ]
        self.blocks = nn.ModuleList(
            Block(width, middle, width, wide=w, last=scales[0], generator=generator) for w in wide(self.up_path)
        )
        self.cells = nn.ModuleList(
            Cell(width, middle, latents, wide=w, scale=scales[1], generator=generator) for w in wide(self.down_path)
        )
        self.starts = nn.ParameterDict({str(r): nn.Parameter(torch.zeros(width, r, r)) for r in self.resolutions})
        self.gain, self.shift = nn.Parameter(torch.ones(width, 1, 1)), nn.Parameter(torch.zeros(width, 1, 1))
        self.head = conv(width, outputs * patch**2, 1, generator=generator)
        self.places = None if clock is None else nn.Parameter(torch.zeros(len(self.down_path), width, 1, 1))
        self.first = None
        if gaussian_start is not None:
            self.first = Block(width, middle, 2 * width, wide=False, last=1.0, generator=generator)
        flags = {
            "start": gaussian_start,
            "keep": keep,
            "normalise": normalise,
            "clock": clock,
            "sync": sync,
            "fourier": fourier,
        }
        for name, flag in flags.items():
            self.register_buffer(name, None if flag is None else torch.tensor(float(flag)))
        noisy = None if every is None else torch.tensor([float(k % every == 0) for k in range(len(self.down_path))])
        self.register_buffer("noisy", noisy)

    def noise_size(self, path: Sequence[Step] | None = None) -> int:
        """Return how many standard normal numbers one image takes along `path` (None: the trained one)."""
        return sum(self._noise_sizes(self.down_path if path is None else path))

    def _noise_sizes(self, path: Sequence[Step]) -> list[int]:
        return [self.latents * s.resolution**2 for s in path] + ([self.width] if self.first is not None else [])

    def encode(self, x: Tensor) -> dict[int, list[Tensor]]:
        """Return the activations `[batch, width, r, r]` of the encoder's blocks, by resolution r and in their order."""
        if self.fourier is not None:
            waves = [wave(math.pi * k * x) for k in FREQUENCIES for wave in (torch.sin, torch.cos)]
            x = torch.cat([x, *(self.fourier * wave for wave in waves)], 1)
        state = self.stem(functional.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        found: dict[int, list[Tensor]] = {}
        for step in self.up_path:
            state = state + self.blocks[step.block](state)
            found.setdefault(step.resolution, []).append(state)
            if step.down:
                state = functional.avg_pool2d(state, step.down)
        return found

    def forward(self, x: Tensor, noise: Tensor, **options: Any) -> Trace:
        """Return the pass of the posterior for images x and standard normal `noise` `[batch, noise_size]`."""
        return self.descend(noise, self.encode(x), **options)

    def descend(
        self,
        noise: Tensor,
        skips: Mapping[int, Sequence[Tensor]] | None = None,
        *,
        temperature: Tensor | float = 1.0,
        scale: Mapping[int, float] | None = None,
        path: Sequence[Step] | None = None,
        record: bool = False,
    ) -> Trace:
        """Return one pass through the cells, of the posterior; without `skips`, those of `encode`, of the prior.

        `noise` is standard normal, `[batch, noise_size]`, for a `path` of its own as long as that path needs.
        `temperature` (one, or one per cell) multiplies the prior's standard deviations, `scale` the state that enters
        a cell; `path` replaces the trained applications by others of the same cells.
        """
        path = self.down_path if path is None else path
        parts = list(noise.split(self._noise_sizes(path), 1))
        heat = torch.as_tensor(temperature, dtype=noise.dtype, device=noise.device).expand(len(path)).log()
        states: dict[int, Tensor] = {}
        rates, log_ratios, variances, prices, entries, exits = [], [], [], [], [], []
        extra = None
        if self.first is not None and self.start is not None:
            r = self.resolutions[0]
            origin, extra = self._origin(parts.pop(), skips)
            states[r] = self.starts[str(r)] + self.start * origin
        for place, step in enumerate(path):
            cell, x = self._cell(step), self._enter(step, states, len(noise))
            if scale and place in scale:
                x = scale[place] * x
            told = (
                None
                if self.places is None or self.clock is None
                else self.clock * self.places[min(place, len(self.places) - 1)]
            )
            skip = None if skips is None else self._skip(skips[step.resolution], place, path)
            prior, posterior, drift = cell.laws(x if told is None else x + told, skip)
            eps = parts[place].view(-1, self.latents, step.resolution, step.resolution)
            spread = posterior.log_std + heat[place] if skips is None else posterior.log_std
            z = posterior.mean + spread.exp() * eps
            if step.time != 1:
                z = step.time * posterior.mean + step.time**0.5 * spread.exp() * eps
            noisy = 1.0 if self.noisy is None else self.noisy[min(place, len(self.noisy) - 1)]
            entered, x = x, cell.move(x, drift, noisy * z, time=step.time, keep=self.keep, told=told)
            if self.normalise is not None:
                x = x * (1 + self.normalise * (_inverse_rms(x) - 1))
            states[step.resolution] = x
            if skips is not None:
                near = Gaussian(prior.mean + step.time**0.5 * (posterior.mean - prior.mean), posterior.log_std)
                rates.append((noisy * kl(near, prior)).flatten(1).sum(1))
            if record:
                entries.append(entered)
                exits.append(x)
            if record and skips is not None:
                log_ratios.append((noisy * log_ratio(near, prior, eps)).flatten(1).sum(1))
                ratio = 2 * (posterior.log_std - prior.log_std)
                variances.append(ratio.flatten(1).mean(1))
                prices.append((noisy * 0.5 * (ratio.exp() - 1 - ratio)).flatten(1).sum(1))
        output = self.head(states[self.resolutions[-1]] * self.gain + self.shift)
        if self.patch > 1:
            output = functional.pixel_shuffle(output, self.patch)
        if extra is not None and skips is not None:
            rates[0] = rates[0] + extra[0]
            log_ratios[:1] = [value + extra[1] for value in log_ratios[:1]]
        none = noise.new_zeros(len(path), len(noise))
        stacks = (torch.stack(rows) if rows else none for rows in (rates, log_ratios, variances, prices))
        one, two, three, four = stacks
        return Trace(full_precision(output), one, two, three, four, entries, exits)

    def _cell(self, step: Step) -> Cell:
        cell = self.cells[step.block]
        assert isinstance(cell, Cell)
        return cell

    def _enter(self, step: Step, states: Mapping[int, Tensor], batch: int) -> Tensor:
        x = states.get(step.resolution)
        if x is None:
            x = self.starts[str(step.resolution)].expand(batch, -1, -1, -1)
        if step.mixin is not None:
            # The inclusion of the coarser space: the constant of this resolution is all that is new.
            x = x + self.enlarge(states[step.mixin], step.resolution // step.mixin)
        return x

    def _skip(self, skips: Sequence[Tensor], place: int, path: Sequence[Step]) -> Tensor:
        if self.sync is None:
            return skips[-1]
        visit = sum(step.resolution == path[place].resolution for step in path[:place])
        mirrored = skips[max(len(skips) - 1 - visit, 0)]
        return skips[-1] + self.sync * (mirrored - skips[-1])

    def _origin(self, eps: Tensor, skips: Mapping[int, Sequence[Tensor]] | None) -> tuple[Tensor, list[Tensor]]:
        assert self.first is not None and self.start is not None
        r = self.resolutions[0]
        eps = eps.view(-1, self.width, 1, 1)
        prior = law = Gaussian(torch.zeros_like(eps), torch.zeros_like(eps))
        if skips is not None:
            law = Gaussian(*map(full_precision, self.first(skips[r][-1].mean((2, 3), keepdim=True)).chunk(2, 1)))
        costs = [self.start * cost.flatten(1).sum(1) for cost in (kl(law, prior), log_ratio(law, prior, eps))]
        return (law.mean + law.log_std.exp() * eps).expand(-1, -1, r, r), costs


FREQUENCIES = (1, 2)  # of the Fourier features, in half turns per unit of intensity


def parameter_count(encoder: str, decoder: str, **options: Any) -> int:
    """Return the number of parameters of `HVAE(encoder, decoder, **options)` without allocating any."""
    with torch.device("meta"):
        network = HVAE(encoder, decoder, generator=torch.Generator(), **options)  # which nothing is drawn from
        return sum(p.numel() for p in network.parameters())


def nearest(x: Tensor, factor: int) -> Tensor:
    """Return the inclusion of a coarse state in a space finer by `factor`."""
    return functional.interpolate(x, scale_factor=factor)


def rms(x: Tensor) -> Tensor:
    """Return the root mean square `[batch]` of states `[batch, ...]`: their norm in L2 of the unit square."""
    return x.square().flatten(1).mean(1).sqrt()


def _inverse_rms(x: Tensor) -> Tensor:
    return (x.square().mean((1, 2, 3), keepdim=True) + 1e-8).rsqrt()
