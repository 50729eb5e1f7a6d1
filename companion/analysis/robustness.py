"""r-robustness of random reconstructions: the median of the deviation, its confidence bounds, and attacked margins.

A reconstruction is r-robust to a perturbation if it is more likely than not to stay within r of its reference
(Camuto et al. 2021; Barrett et al. 2022): P(D <= r) > 1/2, that is, the median of the deviation D is below r. The two
papers differ in the reference: g(μ(x)) in the first, a second random reconstruction of x in the other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import beta, binom
from torch import Tensor

from companion.analysis.attacks import Box, pgd

# Deviations D `[draws, batch]` of perturbed from clean data, both `[batch, d]`, by normal draws `[draws, batch, k]`.
# They broadcast: perturbed `[radii, batch, d]` with draws `[draws, 1, batch, k]` give `[draws, radii, batch]`.
Deviation = Callable[[Tensor, Tensor, Tensor], Tensor]


def clopper_pearson(successes: Tensor, trials: int, level: float) -> tuple[Tensor, Tensor]:
    """Return exact one-sided lower and upper confidence bounds of a probability, each at confidence `level`."""
    count = successes.double().cpu()
    low = torch.as_tensor(beta.ppf(1 - level, count, trials - count + 1)).nan_to_num(0.0)
    high = torch.as_tensor(beta.ppf(level, count + 1, trials - count)).nan_to_num(1.0)
    return low, high


def median_bounds(samples: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Return one-sided lower and upper confidence bounds of the median of `samples` `[draws, ...]` (order statistics).

    Raises ValueError for too few draws to have such a bound (fewer than log(1 − level) / log ½).
    """
    n = len(samples)
    below = int(binom.ppf(1 - level, n, 0.5)) - 1  # P(fewer than `below` + 1 of n lie below the median) <= 1 − level
    while below >= 0 and binom.cdf(below, n, 0.5) > 1 - level:
        below -= 1
    if below < 0:
        raise ValueError(f"{n} draws give no bound of the median at confidence {level}")
    ordered = samples.sort(dim=0).values
    return ordered[below], ordered[n - 1 - below]


@dataclass(frozen=True)
class AttackedMargin:
    """Upper bounds on the margin: `radius` `[batch]` of the smallest attack that broke r-robustness.

    `radius` is infinite where no attack succeeded. `share` `[radii, batch]` is the fraction of fresh draws within r at
    each radius, `delta` `[radii, batch, d]` the attacks, `clean` `[batch]` that fraction without an attack.
    """

    radius: Tensor
    share: Tensor
    delta: Tensor
    clean: Tensor


def attacked_margin(
    deviation: Deviation,
    x: Tensor,
    r: float,
    radii: Tensor,
    *,
    noise_size: int,
    attack_draws: int = 16,
    test_draws: int = 400,
    level: float = 0.999,
    steps: int = 20,
    step: float = 0.15,
    restarts: int = 1,
    box: Box | None = None,
    generator: torch.Generator,
) -> AttackedMargin:
    """Attack `x` `[batch, d]` at all `radii` `[radii]` in one batch and return the smallest that breaks r-robustness.

    The attack maximises the mean deviation over fixed draws; r-robustness is then judged on fresh ones and counts as
    broken only where P(D <= r) <= 1/2 at confidence `level` (Clopper-Pearson), so that chance cannot lower the
    bound. A perturbation of norm c breaks every margin >= c: an attack can miss, never overstate, so this is an
    *upper* bound of the margin (0 where the clean reconstruction already fails the same test).
    """
    device, batch = generator.device, len(x)

    def draw(draws: int) -> Tensor:
        return torch.randn(draws, batch, noise_size, generator=generator, device=device).to(x)

    # The same draws at every radius, so that what belongs to the clean data is computed once for all.
    fixed, fresh = draw(attack_draws)[:, None], draw(test_draws)
    attack = pgd(
        lambda v: deviation(v, x, fixed).mean(0),
        x.expand(len(radii), -1, -1), radii.to(x)[:, None], steps=steps, step=step, restarts=restarts, box=box,
        generator=generator,
    )  # fmt: skip
    with torch.no_grad():
        inside = (deviation(x + attack.delta, x, fresh[:, None]) <= r).sum(0)
        clean = (deviation(x, x, fresh) <= r).sum(0)
    broken = clopper_pearson(inside, test_draws, level)[1] <= 0.5
    norms = attack.delta.norm(dim=-1).double().cpu()
    smallest = torch.where(broken, norms, torch.inf).min(0).values
    smallest = torch.where(clopper_pearson(clean, test_draws, level)[1] <= 0.5, 0.0, smallest)
    return AttackedMargin(smallest, (inside / test_draws).cpu(), attack.delta, (clean / test_draws).cpu())
