"""What is measured along a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from companion.errors import CompanionError


@dataclass(frozen=True)
class History:
    """A finished fit. `metrics[name]` is `[records, ...]`, or `[records, members, ...]`, on the CPU.

    Record i was taken after `steps[i]` updates. `seconds` counts this call, not what was resumed.
    """

    steps: list[int]
    metrics: dict[str, Tensor]
    module: nn.Module
    ema: nn.Module | None
    seconds: float


class Log:
    """Rows of measurements that all have the same names."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._columns: dict[str, list[Tensor]] = {}

    def add(self, step: int, loss: Tensor, metrics: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
        """Append a row. Raises CompanionError for a name used twice, or one that comes and goes."""
        names = ["loss", *metrics, *measured]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise CompanionError(f"two measurements are called '{twice[0]}': rename one, in the loss or `record`")
        if self.steps and (odd := sorted(set(names) ^ self._columns.keys())):
            raise CompanionError(f"'{odd[0]}' is measured at some records only: measure the same names each time")
        self.steps.append(step)
        for name, value in {"loss": loss, **metrics, **measured}.items():
            self._columns.setdefault(name, []).append(_kept(value))

    def metrics(self) -> dict[str, Tensor]:
        """Return every column as one tensor `[records, ...]`."""
        return {name: torch.stack(values) for name, values in self._columns.items()}

    def restore(self, steps: list[int], metrics: Mapping[str, Tensor]) -> None:
        """Take up the rows of a run that was interrupted."""
        self.steps = list(steps)
        self._columns = {name: list(column) for name, column in metrics.items()}


def _kept(value: Any) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    return tensor.detach().to("cpu", copy=True)  # a copy: it may be a weight that the next update changes
