"""Named random streams from one root seed, so that adding a draw never shifts another.

`generator(0, "noise")` and `generator(0, "order", 3)` are independent of each other and of all others.
"""

import hashlib

import numpy
import torch


def _sequence(seed: int, purpose: tuple[str | int, ...]) -> numpy.random.SeedSequence:
    # Strings are hashed with SHA-256: Python's own hash changes from process to process.
    # A number of NumPy's is the number it holds.
    parts = (part.item() if isinstance(part, numpy.generic) else part for part in purpose)
    words = [int.from_bytes(hashlib.sha256(repr(part).encode()).digest()[:8], "little") for part in parts]
    return numpy.random.SeedSequence([seed, *words])


def generator(seed: int, *purpose: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return the PyTorch generator of the stream `purpose` under the root `seed`."""
    state = int(_sequence(seed, purpose).generate_state(1, numpy.uint64)[0])
    return torch.Generator(device).manual_seed(state % 2**63)


def numpy_generator(seed: int, *purpose: str | int) -> numpy.random.Generator:
    """Return the NumPy generator of the stream `purpose` under the root `seed`."""
    return numpy.random.default_rng(_sequence(seed, purpose))


def random_state(seed: int, *purpose: str | int) -> int:
    """Return a number from the stream `purpose`, for libraries that take a number as their seed (scikit-learn)."""
    return int(numpy_generator(seed, *purpose).integers(2**31))


def member_seeds(seed: int, members: int) -> list[int]:
    """Return one independent root seed per member of an ensemble, all derived from `seed`."""
    return numpy_generator(seed, "members").integers(2**31, size=members).tolist()
