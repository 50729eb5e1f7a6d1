"""The loss as the loop calls it: the same for one model and for all members of an ensemble at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.errors import CompanionError
from companion.train.ensemble import Ensemble

Loss = Callable[[Any, tuple[Tensor, ...], Any, Mapping[str, Tensor]], tuple[Tensor, Mapping[str, Any]]]
Evaluate = Callable[[tuple[Tensor, ...], Any, Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
# Their update of one number depends on no other number, so that stacked members do not feel each other.
ELEMENTWISE = (
    *FUSED,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
)


def objective(module: nn.Module, loss: Loss, *, shared: bool) -> Evaluate:
    """Return `evaluate(batch, noise, hyper)`: losses (scalar, or `[members]`) and metrics shaped alike.

    `shared`: all members of an ensemble see the same batch. Raises CompanionError for a loss not scalar.
    """

    def one(member: Any, batch: tuple[Tensor, ...], noise: Any, hyper: Mapping[str, Tensor]) -> Any:
        value, metrics = loss(member, batch, noise, hyper)
        if value.ndim:
            raise CompanionError(f"the loss must return a scalar, not shape {list(value.shape)}: take a mean")
        return value, {name: torch.as_tensor(metric).detach() for name, metric in metrics.items()}

    def evaluate(batch: tuple[Tensor, ...], noise: Any, hyper: Mapping[str, Tensor]) -> Any:
        if not isinstance(module, Ensemble):
            return one(module, batch, noise, hyper)
        if shared:
            return module.call(lambda member, *rest: one(member, batch, *rest), noise, hyper)
        return module.call(one, batch, noise, hyper)

    return evaluate


def optimiser_for(module: nn.Module, build: Callable[..., torch.optim.Optimizer], lr: float) -> torch.optim.Optimizer:
    """Build the optimiser; for an ensemble only one that treats each number alone, else CompanionError."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    built = build(parameters, lr=lr)
    if isinstance(module, Ensemble) and type(built) not in ELEMENTWISE:
        raise CompanionError(
            f"{type(built).__name__} may mix the members of an Ensemble: use Adam, AdamW, SGD or RMSprop"
        )
    # One kernel instead of a Python loop over tensors: a third of the time per step, on the CPU too.
    if type(built) in FUSED and built.defaults["foreach"] is None and built.defaults["fused"] is None:
        built = build(parameters, lr=lr, fused=True)
    return built


def seeds_for(module: nn.Module, seed: int | Sequence[int]) -> list[int]:
    """Return one seed per member. Raises CompanionError when their number does not fit the module."""
    if not isinstance(module, Ensemble):
        if isinstance(seed, int):
            return [seed]
        raise CompanionError(f"one model takes one seed, not {seed}: train several as an Ensemble")
    if isinstance(seed, int) or len(seed) != len(module):
        raise CompanionError(f"an Ensemble of {len(module)} needs as many seeds, one per member, not {seed}")
    return list(seed)


def hyper_for(module: nn.Module, hyper: Mapping[str, Any] | None, like: Tensor) -> dict[str, Tensor]:
    """Return hyper-parameters as tensors of `like`'s type: the same numbers alone and in an ensemble."""
    tensors = {name: torch.as_tensor(value, device=like.device) for name, value in (hyper or {}).items()}
    for name, tensor in tensors.items():
        if isinstance(module, Ensemble) and tensor.shape[:1] != (len(module),):
            raise CompanionError(
                f"hyper '{name}' has shape {list(tensor.shape)}: give one value to each of {len(module)}"
            )
    return {name: t.to(like.dtype) if t.is_floating_point() else t for name, t in tensors.items()}
