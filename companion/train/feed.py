"""What a training step eats: mini-batches and noise, for one model or for every member of an ensemble."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from companion.errors import CompanionError
from companion.seeds import generator

Noise = Callable[[torch.Generator, tuple[Tensor, ...]], Any]


class Source(Protocol):
    """Anything that gives the mini-batch of a step, as `companion.data.Batches` does."""

    def batch(self, step: int) -> tuple[Tensor, ...]: ...


class WarmUp:
    """Batches `(*tensors, factor)` of a source: a factor, of the KL say, rises to 1 in `steps` steps (0: at once)."""

    def __init__(self, source: Source, steps: int) -> None:
        self.source, self.steps = source, max(1, steps)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return the tensors of `step` and the factor, a scalar tensor."""
        tensors = self.source.batch(step)
        return *tensors, tensors[0].new_tensor(min(1.0, (step + 1) / self.steps))


class Feed:
    """Draws `(batch, noise)` of a step; member k gets the very draws it would get alone with its seed.

    Noise comes from one generator per member that runs on from step to step (its state belongs into the
    checkpoint): seeding a fresh one at each step would cost more than the noise.
    """

    def __init__(
        self,
        batches: Source | Sequence[Source],
        noise: Noise | None,
        seeds: Sequence[int],
        device: torch.device,
        *,
        stacked: bool,
    ) -> None:
        self.sources: list[Source] = list(batches) if isinstance(batches, Sequence) else [batches]
        if len(self.sources) not in {1, len(seeds)} or (not stacked and len(self.sources) != 1):
            raise CompanionError(f"{len(self.sources)} batches for {len(seeds)} members: pass one, or one per member")
        self.noise, self.stacked = noise, stacked
        self.generators = [generator(seed, "noise", device=device) for seed in seeds]
        first = self.sources[0]
        tensors = getattr(first, "tensors", None)
        same_data = tensors is not None and all(
            [id(t) for t in getattr(source, "tensors", ())] == [id(t) for t in tensors] for source in self.sources
        )
        whole = all(getattr(source, "batch_size", 0) is None for source in self.sources)
        self.shared = all(source is first for source in self.sources) or (same_data and whole)
        self._distinct = {id(source): source for source in self.sources}  # members may share one

    def __call__(self, step: int) -> tuple[tuple[Tensor, ...], Any]:
        """Return the batch (shared, or stacked as `[members, batch, ...]`) and the noise of `step`."""
        batch = self._batch(step)
        if self.noise is None:
            return batch, None
        if not self.stacked:
            return batch, self.noise(self.generators[0], batch)
        views = [batch if self.shared else tuple(t[k] for t in batch) for k in range(len(self.generators))]
        draws = [self.noise(one, view) for one, view in zip(self.generators, views, strict=True)]
        return batch, tree_map(lambda *leaves: torch.stack(leaves) if _is_tensor(leaves[0]) else leaves[0], *draws)

    def _batch(self, step: int) -> tuple[Tensor, ...]:
        first: Any = self.sources[0]
        if self.shared:
            batch: tuple[Tensor, ...] = first.batch(step)
            return batch
        drawn = {key: source.batch(step) for key, source in self._distinct.items()}
        return tuple(torch.stack(tensors) for tensors in zip(*(drawn[id(s)] for s in self.sources), strict=True))

    def state(self) -> list[Tensor]:
        """Return the state of every noise generator."""
        return [one.get_state() for one in self.generators]

    def restore(self, states: list[Tensor]) -> None:
        """Set every noise generator to a state that `state` returned."""
        for one, state in zip(self.generators, states, strict=True):
            one.set_state(state)


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)
