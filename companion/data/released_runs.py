"""The 100 final test metrics that Morin and Willetts released, as they stand in their two files."""

import hashlib
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from companion.errors import CompanionError

SOURCE = (
    "https://github.com/miguelmorin/reproducibility (commit 861d443: resnet_same_seed.csv, resnet_different_seeds.csv)"
)
SHA256 = "779c8703f02c6da7dab0c22f5626799b03044ca46c95579e6fcdea768223be9c"
ARMS = ("same_seed", "different_seeds")
# Standard deviations (ddof 0) as the README of that repository prints them, in the order of its columns
README_SD = {"same_seed": (0.01994929, 0.00301954), "different_seeds": (0.02699318, 0.00346379)}


class Runs(NamedTuple):
    """One arm in the order of its runs, `[50]` each; what the columns are is for the reader to find out."""

    column_1: NDArray[np.float64]
    column_2: NDArray[np.float64]


def load() -> dict[str, Runs]:
    """Return both arms, read from the package (no network). Raises CompanionError where the file was changed."""
    content = files("companion.data").joinpath("released_runs.csv").read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise CompanionError("released_runs.csv is not the file that was packaged: reinstall the package")
    lines = [line.split(",") for line in content.decode().splitlines()[1:]]
    return {
        arm: Runs(*(np.array([float(line[column]) for line in lines if line[0] == arm]) for column in (2, 3)))
        for arm in ARMS
    }
