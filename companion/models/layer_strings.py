"""Layer strings of hierarchical VAEs, and what they say about depth, weights and starting scale.

A decoder string lists cells from coarse to fine, an encoder string blocks from fine to coarse, separated by commas:
`8x3` three distinct cells at 8 × 8, `8r3` one cell applied three times, `8m4` a cell that mixes in the state of 4 × 4
(`8m4r3`: the first of three applications does), `8d2` a block followed by 2 × 2 average pooling (`8x3d2`: the last).
`x`, `m` and `d` are those of openai/vdvae; `r` is ours.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from companion.errors import CompanionError

_TOKEN = re.compile(r"(\d+)(?:m(\d+))?(?:([xr])(\d+))?(?:d(\d+))?")


@dataclass(frozen=True)
class Step:
    """One application of a block: where, of which weights, what is mixed in or pooled, and for how long."""

    resolution: int
    block: int
    mixin: int | None = None
    down: int | None = None
    time: float = 1.0


def parse(layers: str) -> list[Step]:
    """Return the applications that a layer string lists; CompanionError for a token it does not know."""
    steps: list[Step] = []
    blocks = 0
    for token in layers.split(","):
        found = _TOKEN.fullmatch(token.strip())
        if not found:
            raise CompanionError(f"layer string {layers!r}: cannot read {token!r}; examples: 8x3, 8r3, 8m4r3, 8x3d2")
        resolution, mixin, kind, count, down = found.groups()
        number = int(count or 1)
        for k in range(number):
            steps.append(
                Step(
                    int(resolution),
                    blocks + (k if kind == "x" else 0),
                    mixin=int(mixin) if mixin and k == 0 else None,
                    down=int(down) if down and k == number - 1 else None,
                )
            )
        blocks = steps[-1].block + 1
    return steps


def residual_scale(path: Sequence[Step], *, naive: bool = False) -> float:
    """Return 1/√n at which last layers start. n counts applications: a shared block adds up over all its uses.

    `naive` counts distinct blocks instead, which starts a block of N uses √N too large.
    """
    return (path[-1].block + 1 if naive else len(path)) ** -0.5


def retimed(trained: Sequence[Step], other: str) -> list[Step]:
    """Return the applications of `other`, of the cells of `trained`, each cell's total time kept.

    CompanionError where the two strings have different numbers of distinct cells.
    """
    steps = parse(other)
    if steps[-1].block != trained[-1].block:
        raise CompanionError(f"{other!r} has {steps[-1].block + 1} distinct cells, not {trained[-1].block + 1}")

    def uses(path: Sequence[Step], block: int) -> int:
        return sum(step.block == block for step in path)

    return [replace(step, time=uses(trained, step.block) / uses(steps, step.block)) for step in steps]


def wide(path: Sequence[Step]) -> list[bool]:
    """Return for each distinct block whether it works above 2 × 2, where its kernels are 3 × 3."""
    return [next(s.resolution > 2 for s in path if s.block == k) for k in range(path[-1].block + 1)]
