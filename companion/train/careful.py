"""An optimiser that clips each member's gradient and skips updates of outliers, but never for ever."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from companion.train.guard import TrainingDiverged

Build = Callable[..., torch.optim.Optimizer]


class Careful:
    """Builds `build`'s optimiser with norm clipping and skipping in place of `fit`'s `clip`; counts what it skipped.

    Per member (of an Ensemble of `members`; None: one model), the gradient is scaled to an L2 norm of at most `clip`;
    where it exceeds `skip`, or is not finite, that member's weights and moments stay as they were. After `patience`
    skips in a row the update is taken, clipped: a threshold below every norm would stop training for ever; one that
    is still not finite then raises TrainingDiverged. Every run counts from 0; the counts are not in a checkpoint.
    """

    def __init__(
        self, build: Build, *, clip: float, skip: float, members: int | None = None, patience: int = 10
    ) -> None:
        self.build, self.clip, self.skip, self.members, self.patience = build, clip, skip, members, patience
        self._start()

    @property
    def settings(self) -> list[float]:
        """What tells two runs apart besides the optimiser's own options."""
        return [self.clip, self.skip, self.patience]

    def _start(self) -> None:
        self.skipped = torch.zeros(self.members or 1, dtype=torch.int64)
        self._row = torch.zeros_like(self.skipped)
        self._steps = 0
        self._kept: list[tuple[Tensor, Tensor]] = []

    def __call__(self, parameters: Any, **options: Any) -> torch.optim.Optimizer:
        """Return the optimiser over `parameters` of a new run; every option goes to `build`."""
        self._start()
        optimiser = self.build(parameters, **options)
        optimiser.register_step_pre_hook(self._before)
        optimiser.register_step_post_hook(self._after)
        return optimiser

    def _before(self, optimiser: torch.optim.Optimizer, *_: Any) -> None:
        weights = [p for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        rows = self.members or 1
        flat = torch.cat([p.grad.reshape(rows, -1) for p in weights if p.grad is not None], 1)
        norms = torch.linalg.vector_norm(flat, dim=1)
        wild = ~(norms <= self.skip)
        if self.skipped.device != wild.device:
            self.skipped, self._row = self.skipped.to(wild.device), self._row.to(wild.device)
        stuck = (self._row >= self.patience) & ~norms.isfinite()
        if bool(stuck.any()):
            who = stuck.nonzero().flatten().tolist() if self.members else []
            raise TrainingDiverged(self._steps, who, None)
        skip = wild & (self._row < self.patience)
        self._steps += 1
        self._row = torch.where(skip, self._row + 1, 0)
        self.skipped += skip
        factor = torch.where(skip, 0.0, (self.clip / (norms + 1e-6)).clamp(max=1.0))
        flat = torch.where(skip[:, None], 0.0, flat * factor[:, None])
        sizes = [weight.numel() // rows for weight in weights]
        for weight, gradient in zip(weights, flat.split(sizes, 1), strict=True):
            weight.grad = gradient.reshape(weight.shape).contiguous()
        self._kept = []
        if bool(skip.any()):
            slots = [v for w in weights for v in optimiser.state[w].values() if isinstance(v, Tensor) and v.ndim]
            self._kept = [(t, t.detach().clone()) for t in (*weights, *slots)]
            self._held = skip

    def _after(self, *_: Any) -> None:
        with torch.no_grad():
            for tensor, before in self._kept:
                rows = self._held.view(-1, *[1] * (tensor.ndim - 1)) if self.members else self._held[0]
                tensor.copy_(torch.where(rows, before, tensor))
        self._kept = []
