"""Mini-batches of a set that lives on one device as a tensor: index permutations, no loader processes."""

import torch
from torch import Tensor

from companion.errors import CompanionError
from companion.seeds import generator


class Batches:
    """Mini-batches `(x[batch, ...], y[batch, ...])`, a pure function of `seed` and step.

    Every epoch visits each example once in a fresh order; the last partial batch is dropped.
    `batch_size=None` gives the full set at every step. A size larger than the set is an error.
    """

    def __init__(self, x: Tensor, y: Tensor | None = None, *, batch_size: int | None, seed: int) -> None:
        if y is not None and len(y) != len(x):
            raise CompanionError(f"{len(x)} inputs but {len(y)} targets")
        if batch_size is not None and not 0 < batch_size <= len(x):
            raise CompanionError(f"batch size {batch_size} must lie between 1 and the {len(x)} examples")
        self.tensors = (x,) if y is None else (x, y)
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = 1 if batch_size is None else len(x) // batch_size
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Return the tensors of `step` (0, 1, ...), whatever was asked for before."""
        if self.batch_size is None:
            return self.tensors
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            x = self.tensors[0]
            # Drawn on the CPU: the order is the same on every device.
            order = torch.randperm(len(x), generator=generator(self.seed, "order", epoch))
            self._epoch, self._order = epoch, order.to(x.device)
        chosen = self._order[place * self.batch_size : (place + 1) * self.batch_size]
        return tuple(tensor[chosen] for tensor in self.tensors)
