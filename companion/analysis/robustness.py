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
class Judged:
    """What perturbations do, on fresh draws; upper bounds on the margins for each r.

    `radius` `[r, batch]` is the norm of the smallest perturbation that breaks r-robustness by the binomial test,
    infinite where none does, 0 where the clean reconstruction fails; `share` `[r, sizes, batch]` the fraction of draws
    within r, `clean` `[r, batch]` without a perturbation; `median` `[1 + sizes, batch]` that of the deviation, the
    unperturbed one first.
    """

    radius: Tensor
    share: Tensor
    clean: Tensor
    median: Tensor


def judged(attacked: Tensor, clean: Tensor, norms: Tensor, r: Tensor, *, level: float) -> Judged:
    """Judge deviations at every r of `r` `[r]`: r-robustness is broken where P(D <= r) <= 1/2 at confidence `level`.

    `attacked` is `[draws, sizes, batch]`, `clean` `[draws, batch]`, and `norms` `[sizes, batch]` those of the
    perturbations.
    """
    n = len(attacked)
    inside = torch.stack([(attacked <= limit).sum(0) for limit in r])
    inside_clean = torch.stack([(clean <= limit).sum(0) for limit in r])
    broken, failing = (clopper_pearson(count, n, level)[1] <= 0.5 for count in (inside, inside_clean))
    radius = torch.where(broken, norms.double().cpu(), torch.inf).amin(1)
    median = torch.cat([clean.median(0).values[None], attacked.median(0).values])
    return Judged(
        torch.where(failing, 0.0, radius), (inside / n).cpu(), (inside_clean / n).cpu(), median.cpu()
    )  # fmt: skip


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
        attacked, clean = deviation(x + attack.delta, x, fresh[:, None]), deviation(x, x, fresh)
    found = judged(attacked, clean, attack.delta.norm(dim=-1), torch.tensor([r]).to(x), level=level)
    return AttackedMargin(found.radius[0], found.share[0], attack.delta, found.clean[0])
