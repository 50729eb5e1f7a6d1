"""The three profiles: how much a run may cost, and so which claims it can decide."""

import os
from dataclasses import dataclass

from companion.errors import CompanionError


def cores() -> int:
    """Return how many processors this process may use, which a container or a batch system may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Profile:
    """One profile: its name, the CPU threads a chapter gets, and its budget in seconds."""

    name: str
    threads: int
    budget: int


# In order of cost: each profile can decide whatever an earlier one can.
PROFILES: dict[str, Profile] = {
    "smoke": Profile("smoke", threads=1, budget=40),
    "cpu": Profile("cpu", threads=2, budget=180),
    "gpu": Profile("gpu", threads=cores(), budget=600),
}


def get(name: str) -> Profile:
    """Return the profile called `name`; raises CompanionError listing the valid names."""
    if name not in PROFILES:
        raise CompanionError(f"no profile named {name!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def reaches(profile: str, needed: str) -> bool:
    """Say whether a run at `profile` can decide a claim whose cheapest profile is `needed`."""
    order = list(PROFILES)
    return order.index(get(profile).name) >= order.index(get(needed).name)
