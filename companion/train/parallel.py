"""One training over several processes: each takes its part of every mini-batch and of the noise."""

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from companion.errors import CompanionError
from companion.train.feed import Noise, Source


class Shard:
    """What process `rank` of `world` takes of the mini-batches of `source`: equal parts, together the whole.

    The mean over processes of the mean over a part is the mean over the batch, so that DistributedDataParallel
    takes the step that one process would take alone. CompanionError for batches that cannot be dealt out evenly.
    """

    def __init__(self, source: Source, rank: int, world: int) -> None:
        self.source, self.rank, self.world = source, rank, world

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return this process's part of the tensors of `step`."""
        whole = self.source.batch(step)
        if len(whole[0]) % self.world:
            raise CompanionError(f"{self.world} processes cannot share a batch of {len(whole[0])} evenly")
        return tuple(tensor[self.rank :: self.world] for tensor in whole)

    def noise(self, draw: Noise) -> Noise:
        """Return `draw` for this process: the noise of the whole batch is drawn, and its part kept."""

        def part(generator: Any, batch: tuple[Tensor, ...]) -> Any:
            whole = tuple(tensor.repeat_interleave(self.world, 0) for tensor in batch)
            return tree_map(
                lambda noise: noise[self.rank :: self.world] if isinstance(noise, Tensor) else noise,
                draw(generator, whole),
            )

        return part
