"""Stopping a run whose numbers are no longer finite, without waiting for the device at every step."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from companion.errors import CompanionError


class TrainingDiverged(CompanionError):
    """The loss or a weight was not finite at `step`; `members` and last good `checkpoint` if any."""

    def __init__(self, step: int, members: list[int], checkpoint: Path | None) -> None:
        who = f" (member {', '.join(map(str, members))})" if members else ""
        kept = f"last good checkpoint: {checkpoint}" if checkpoint else "no checkpoint was kept"
        super().__init__(f"training diverged: not finite at step {step}{who}; {kept}; lower lr or set clip")
        self.step, self.members, self.checkpoint = step, members, checkpoint


class Guard:
    """Collects the losses and looks at them together: one wait for the device per look, yet the exact step.

    `saved` is the last good checkpoint, for the error. Both checks raise TrainingDiverged.
    """

    def __init__(self, *, stacked: bool, saved: Path | None, every: int = 50) -> None:
        self.stacked, self.saved, self.every = stacked, saved, every
        self._losses: list[Tensor] = []

    def watch(self, step: int, losses: Tensor, *, now: bool) -> None:
        """Take in the losses of `step` (scalar or `[members]`); look at them when `now`, or enough are in."""
        self._losses.append(losses)
        if not now and len(self._losses) < self.every:
            return
        finite = torch.stack(self._losses).isfinite().reshape(len(self._losses), -1).cpu()
        if not finite.all():
            row = int((~finite.all(1)).nonzero()[0])
            self._stop(step - len(self._losses) + 1 + row, (~finite[row]).nonzero().flatten().tolist())
        self._losses.clear()

    def weights(self, step: int, tensors: Iterable[Tensor]) -> None:
        """Check what is about to be kept: a finite loss can still have had a gradient that was not."""
        bad: set[int] = set()
        for tensor in tensors:
            rows = (~tensor.isfinite()).reshape(len(tensor) if tensor.ndim else 1, -1).any(1)
            bad |= set(rows.nonzero().flatten().tolist())
        if bad:
            self._stop(step, sorted(bad))

    def _stop(self, step: int, members: list[int]) -> None:
        raise TrainingDiverged(step, members if self.stacked else [], self.saved)
