"""Bit for bit: digests, sums in many orders, and operations repeated on fixed inputs.

Bytes are compared, not values: NaN differs from NaN, and 0 equals -0, for `==`.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from companion.analysis import fresh_process
from companion.errors import CompanionError

Probe = Callable[[], Tensor]


def digest(*tensors: Tensor) -> str:
    """Return the SHA-256 of the bytes of all tensors."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def sequential_sum(rows: NDArray) -> NDArray:
    """Return sums over the last axis, strictly from left to right, in the rows' own precision."""
    return np.add.accumulate(rows, axis=-1)[..., -1]


def pairwise_sum(rows: NDArray) -> NDArray:
    """Return sums over the last axis by halves: a tree of depth ceil(log2 n), in the rows' own precision."""
    while rows.shape[-1] > 1:
        odd = rows.shape[-1] % 2
        paired = rows[..., : rows.shape[-1] - odd]
        halves = paired[..., ::2] + paired[..., 1::2]
        rows = np.concatenate([halves, rows[..., -1:]], -1) if odd else halves
    return rows[..., 0]


def fresh_runs(processes: int, *, steps: int, follow: tuple[int, ...]) -> list[dict]:
    """Train the same small network in new Python processes with one and two threads; see `fresh_process`.

    One dictionary per process: digests of the final weights "1", "1 again" and "2" (threads), and the relative
    distance between one and two threads after the steps in `follow`. Raises CompanionError if one fails.
    """
    # -I: no user settings and no PYTHON* variables of this process, or the comparison would not be of fresh processes
    command = [sys.executable, "-I", str(Path(fresh_process.__file__)), json.dumps({"steps": steps, "follow": follow})]
    patient = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # two threads on a busy machine would spin
    found = []
    for _ in range(processes):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=patient)
        if done.returncode:
            raise CompanionError(f"the fresh process failed: {done.stderr.strip().splitlines()[-1:]}")
        found.append(json.loads(done.stdout))
    return found


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Ask PyTorch for deterministic algorithms (raising where there is none), or not; restore all flags after."""
    mode, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    cudnn = torch.backends.cudnn.deterministic
    try:
        torch.set_deterministic_debug_mode("error" if on else "default")
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = on, False
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn, benchmark


def distinct(probe: Probe, repeats: int) -> int | None:
    """Count distinct results, bit for bit, of `repeats` calls; None where PyTorch refuses to run it."""
    try:
        return len({digest(probe()) for _ in range(repeats)})
    except RuntimeError as error:
        if "determinis" not in str(error):
            raise
        return None


# What the documentation of PyTorch says of CUDA (reproducibility note and `torch.use_deterministic_algorithms`)
ATOMIC = "atomic additions"
RAISES = "raises when determinism is asked for"
LISTED = "not listed as nondeterministic"


def probes(device: torch.device, generator: torch.Generator) -> Mapping[str, tuple[Probe, str]]:
    """Return operations on fixed inputs with what is documented of each on CUDA."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def backward(function: Callable[[Tensor], Tensor], at: Tensor) -> Probe:
        weight = draw(*function(at).shape)

        def run() -> Tensor:
            leaf = at.clone().requires_grad_()
            return torch.autograd.grad((function(leaf) * weight).sum(), leaf)[0]

        return run

    images, kernel, many = draw(16, 8, 16, 16), draw(8, 8, 3, 3), draw(20_000)
    bins = torch.randint(50, (20_000,), generator=generator).to(device)
    labels = torch.randint(10, (256,), generator=generator).to(device)
    left, right, scores, table = draw(128, 256), draw(256, 64), draw(256, 10), draw(50, 8)
    zeros = torch.zeros(50, device=device)
    return {
        "sum": (lambda: many.sum(), LISTED),
        "matmul, float32": (lambda: left @ right, LISTED),
        "matmul, bfloat16": (lambda: (left.bfloat16() @ right.bfloat16()).float(), LISTED),
        "conv2d": (lambda: F.conv2d(images, kernel, padding=1), "cuDNN: repeatable"),
        "conv2d backward (kernel)": (
            backward(lambda w: F.conv2d(images, w, padding=1), kernel),
            "cuDNN: ALGO_0 and ALGO_3 use atomics",
        ),
        "conv2d backward (input)": (
            backward(lambda x: F.conv2d(x, kernel, padding=1), images),
            "cuDNN: ALGO_0 uses atomics",
        ),
        "batch norm backward": (backward(lambda x: F.batch_norm(x, None, None, training=True), images), LISTED),
        "max pool backward": (backward(lambda x: F.max_pool2d(x, 3, 2), images), "cuDNN: atomics"),
        "cross-entropy backward": (backward(lambda s: F.cross_entropy(s, labels), scores), LISTED),
        "index_select backward": (backward(lambda t: t[bins], table), ATOMIC),
        "index_add_": (lambda: zeros.clone().index_add_(0, bins, many), ATOMIC),
        "scatter_add_": (lambda: zeros.clone().scatter_add_(0, bins, many), ATOMIC),
        "bincount, weighted": (lambda: torch.bincount(bins, many, 50), RAISES),
        "cumsum": (lambda: many.cumsum(0), RAISES),
        "bilinear backward": (
            backward(lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"), images),
            RAISES,
        ),
    }
