"""One loop for a single model and for an ensemble: schedule, clipping, EMA, records, resume, NaN guard."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from companion.errors import CompanionError
from companion.train import checkpoint as disk
from companion.train.ensemble import Ensemble
from companion.train.feed import Feed, Noise, Source
from companion.train.guard import Guard
from companion.train.objective import Loss, hyper_for, objective, optimiser_for, seeds_for
from companion.train.progress import progress
from companion.train.records import History, Log

Record = Callable[[Any, int], Mapping[str, Any]]


def cosine(step: int, steps: int) -> float:
    """Return the factor of the learning rate that falls from 1 to 0 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def fit(
    module: nn.Module,
    loss: Loss,
    batches: Source | Sequence[Source],
    *,
    steps: int,
    lr: float = 1e-3,
    optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    schedule: Callable[[int, int], float] | None = None,
    clip: float | None = None,
    ema: float | None = None,
    noise: Noise | None = None,
    seed: int | Sequence[int] = 0,
    hyper: Mapping[str, Any] | None = None,
    record: Record | None = None,
    record_every: int = 100,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    precision: str = "float32",
    compile: bool = False,
    desc: str = "",
) -> History:
    """Train `module` in place by `steps` updates of `loss(module, batch, noise, hyper) -> (scalar, metrics)`.

    Of an `Ensemble`, `seed` has one number per member, `batches` is shared or one per member, each value of
    `hyper` is `[members]` and `clip` acts per member: each trains as it would alone, up to rounding.
    Numbers in `hyper` reach the loss as scalar tensors; `noise(generator, batch)` draws what is random in it.
    `schedule(step, steps)` is a factor of `lr`; `ema` the decay of averaged weights, begun at the first ones.
    Records (loss, metrics, `record(module, step)`) follow 0, `record_every`, ..., `steps` updates.
    With `checkpoint` a killed run resumes from it, bit-identically on a CPU; a finished one is read.
    `precision="bf16"` (autocast) and `compile` act on CUDA only: elsewhere all is float32 and eager.

    Raises TrainingDiverged when the loss or a weight is not finite (no checkpoint ever holds such a one),
    CompanionError for settings that do not fit together or a checkpoint of another run.
    """
    began = time.perf_counter()
    _check(steps, record_every, checkpoint_every, clip, ema, precision)
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise CompanionError("the module has no parameters to train")
    cuda = parameters[0].is_cuda
    stacked, seeds = isinstance(module, Ensemble), seeds_for(module, seed)
    feed = Feed(batches, noise, seeds, parameters[0].device, stacked=stacked)
    settings = hyper_for(module, hyper, parameters[0])
    evaluate = objective(module, loss, shared=feed.shared)
    if compile and cuda:
        evaluate = torch.compile(evaluate)
    run = _Run(module, optimiser_for(module, optimiser, lr), ema, feed)
    identity = {
        "steps": steps,
        "seed": seeds,
        "optimiser": f"{type(run.descent).__name__} {sorted(run.descent.defaults.items())}",
        "careful": getattr(optimiser, "settings", None),
        "schedule": repr([schedule(step, steps) for step in (0, steps // 2, steps - 1)] if schedule else None),
        "clip": clip,
        "ema": ema,
        "record_every": record_every,
        "precision": precision if cuda else "float32",
    }

    def at(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch, draws = feed(step)
        if not (cuda and precision == "bf16"):
            return evaluate(batch, draws, settings)
        with torch.autocast("cuda", torch.bfloat16):
            return evaluate(batch, draws, settings)

    def note(step: int, losses: Tensor, metrics: Mapping[str, Tensor]) -> None:
        run.log.add(step, losses, metrics, record(module, step) if record else {})

    first, kept = 0, disk.load(checkpoint) if checkpoint else None
    if kept is not None:
        _check_same_run(checkpoint, kept, identity, at(0)[0].detach().cpu(), tolerance=1e-2 if cuda else 1e-5)
        first = run.restore(kept)
    guard = Guard(stacked=stacked, saved=checkpoint if kept is not None else None)

    def keep(step: int) -> None:
        guard.weights(step, run.tensors())
        if checkpoint:
            disk.save(checkpoint, {"identity": identity, "step": step, **run.state()})
            guard.saved = checkpoint

    for step in progress(range(first, steps), desc=desc, total=steps, start=first):
        losses, metrics = at(step)
        seen, due = losses.detach(), step % record_every == 0
        last = checkpoint is not None and (step + 1) % checkpoint_every == 0
        guard.watch(step, seen, now=due or last or step + 1 == steps)
        if step == 0:
            run.start = seen.cpu()
        if due:
            note(step, seen, metrics)
        run.descent.zero_grad()
        (losses.sum() if stacked else losses).backward()
        if isinstance(module, Ensemble) and clip is not None:
            module.clip_gradients(clip)
        elif clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        if schedule is not None:
            for group in run.descent.param_groups:
                group["lr"] = lr * schedule(step, steps)
        run.descent.step()
        run.blend(step)
        if last and step + 1 < steps:
            keep(step + 1)
    if run.log.steps[-1] != steps:  # else it was finished before
        guard.weights(steps, run.tensors())
        losses, metrics = at(steps)
        note(steps, losses.detach(), metrics)
        keep(steps)
    return History(run.log.steps, run.log.metrics(), module, run.average, time.perf_counter() - began)


class _Run:
    """Everything that changes during a run, and so what a checkpoint holds."""

    def __init__(self, module: nn.Module, descent: torch.optim.Optimizer, ema: float | None, feed: Feed) -> None:
        self.module, self.descent, self.feed, self.log = module, descent, feed, Log()
        self.average = copy.deepcopy(module) if ema is not None else None
        self._blend = get_ema_multi_avg_fn(ema) if ema is not None else None
        self._weights = list(module.parameters())
        self._means = list(self.average.parameters()) if self.average is not None else []
        # The losses at step 0 tell runs apart: data, noise, initial weights and the loss itself are in them.
        self.start = torch.empty(0)

    def blend(self, step: int) -> None:
        if self.average is not None and self._blend is not None:
            self._blend(self._means, self._weights, step)
            for mine, buffer in zip(self.average.buffers(), self.module.buffers(), strict=True):
                mine.copy_(buffer)

    def tensors(self) -> Iterator[Tensor]:
        for module in (self.module, self.average):
            yield from module.state_dict().values() if module is not None else ()
        for slots in self.descent.state.values():
            yield from (value for value in slots.values() if isinstance(value, Tensor))

    def state(self) -> dict[str, Any]:
        return {
            "start": self.start,
            "module": self.module.state_dict(),
            "average": self.average.state_dict() if self.average is not None else {},
            "optimiser": self.descent.state_dict(),
            "noise": self.feed.state(),
            "records": {"steps": self.log.steps, "metrics": self.log.metrics()},
        }

    def restore(self, kept: Mapping[str, Any]) -> int:
        self.start = kept["start"]
        self.module.load_state_dict(kept["module"])
        if self.average is not None:
            self.average.load_state_dict(kept["average"])
        self.descent.load_state_dict(kept["optimiser"])
        self.feed.restore(kept["noise"])
        self.log.restore(**kept["records"])
        step: int = kept["step"]
        return step


def _check(
    steps: int,
    record_every: int,
    checkpoint_every: int,
    clip: float | None,
    ema: float | None,
    precision: str,
) -> None:
    counts = {"steps": steps, "record_every": record_every, "checkpoint_every": checkpoint_every}
    for name, count in counts.items():
        if count < 1:
            raise CompanionError(f"{name} must be at least 1, not {count}")
    if clip is not None and not clip > 0:
        raise CompanionError(f"clip is the largest gradient norm and must be positive, not {clip}")
    if ema is not None and not 0 < ema < 1:
        raise CompanionError(f"ema is a decay between 0 and 1, not {ema}")
    if precision not in ("float32", "bf16"):
        raise CompanionError(f"precision must be 'float32' or 'bf16', not '{precision}'")


def _check_same_run(
    path: Path | None,
    kept: Mapping[str, Any],
    identity: Mapping[str, Any],
    start: Tensor,
    *,
    tolerance: float,
) -> None:
    differs = [
        f"{name} was {kept['identity'].get(name)}, is {value}"
        for name, value in identity.items()
        if kept["identity"].get(name) != value
    ]
    same = start.shape == kept["start"].shape and torch.allclose(start, kept["start"], rtol=tolerance, atol=0)
    if not same:
        differs.append("other data, noise, initial weights or loss")
    if differs:
        raise CompanionError(f"{path} belongs to another run ({differs[0]}): remove it or name another file")
