"""Margins of r-robustness of VAEs: clean probability, first-order bounds, certificates and attacked margins.

Deviations are from the deterministic reconstruction g(μ(x)), as in Camuto et al. (2021). A *bound* here is first order
in the perturbation, hence an estimate; a *certificate* holds as stated; an *attacked margin* is an upper bound.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.special import ndtr, ndtri

from companion.analysis.attacks import Box, pgd, project
from companion.analysis.lipschitz import linear_layers
from companion.analysis.robustness import Deviation, Judged, clopper_pearson, judged
from companion.nn.jacobians import jacobians
from companion.train.ensemble import Ensemble

# --- many models as one batch ---


def member_deviation(
    ensemble: Ensemble, build: Callable[[Any], Deviation], images: int, *, rows: int = 4_000
) -> Deviation:
    """Return one deviation for all members at once: of data `[groups × members × images, d]`, in that order.

    `build(model)` is the deviation of one model. Draws go through in blocks of at most `rows` codes per member.
    """
    members = len(ensemble)

    def stack(flat: Tensor) -> Tensor:  # [..., groups × members × images, d] to [members, ..., groups × images, d]
        return flat.unflatten(-2, (-1, members, images)).movedim(-3, 0).flatten(-3, -2)

    def measure(v: Tensor, x: Tensor, eps: Tensor) -> Tensor:
        perturbed, clean = stack(v), stack(x)
        found = torch.cat([
            ensemble.call(lambda model, *data: build(model)(*data), perturbed, clean, stack(block))
            for block in eps.split(max(1, rows // perturbed.shape[1]))
        ], 1)  # fmt: skip
        return found.unflatten(-1, (-1, images)).movedim(0, -2).flatten(-3)

    return measure


# --- attacked margins, for several r from one attack ---


def maximum_damage(
    deviation: Deviation, x: Tensor, radii: Tensor, *, latents: int, draws: int, steps: int, step: float = 0.15,
    restarts: int = 1, box: Box | None = (0.0, 1.0), generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """Return attacks `[radii, batch, d]` on `x` `[batch, d]` that raise the mean deviation over fixed draws."""
    wide = x.expand(len(radii), -1, -1).flatten(0, 1)
    limits = radii.to(x)[:, None].expand(-1, len(x)).flatten()
    fixed = _draw(generator, draws, len(x), latents, x)[:, None].expand(-1, len(radii), -1, -1).flatten(1, 2)
    found = pgd(
        lambda v: deviation(v, wide, fixed).mean(0), wide, limits,
        steps=steps, step=step, restarts=restarts, box=box, generator=generator,
    )  # fmt: skip
    return found.delta.view(len(radii), *x.shape)


@torch.no_grad()
def one_step(x: Tensor, direction: Tensor, radii: Tensor, box: Box = (0.0, 1.0)) -> Tensor:
    """Return perturbations `[2, radii, batch, d]` along ±`direction` `[batch, d]`, of norm `radii` and inside the box.

    The nearest feasible point to one far out: pixels that meet the box stay there, and the others use up the norm.
    """
    signs = 1e3 * torch.stack([direction, -direction])[:, None].to(x)
    limits = radii.to(x)[:, None].expand(-1, len(x))
    return project(signs.expand(-1, len(radii), -1, -1), limits.expand(2, -1, -1), box[0] - x, box[1] - x)


@torch.no_grad()
def strongest(
    deviation: Deviation, x: Tensor, candidates: Tensor, *, latents: int, draws: int, generator: torch.Generator
) -> Tensor:
    """Return, of `candidates` `[candidates, radii, batch, d]`, those with the largest mean deviation."""
    eps = _draw(generator, draws, len(x), latents, x)[:, None].expand(-1, candidates.shape[1], -1, -1).flatten(1, 2)
    wide = x.expand(candidates.shape[1], -1, -1).flatten(0, 1)
    damage = torch.stack([deviation(wide + c.flatten(0, 1), wide, eps).mean(0) for c in candidates])
    best = damage.argmax(0).view(candidates.shape[1:3])
    return candidates.gather(0, best[None, ..., None].expand(1, *candidates.shape[1:]))[0]


@torch.no_grad()
def judge(
    deviation: Deviation, x: Tensor, delta: Tensor, r: Tensor, *,
    latents: int, draws: int, level: float = 0.999, generator: torch.Generator,
) -> Judged:  # fmt: skip
    """Test perturbations `delta` `[sizes, batch, d]` of `x` `[batch, d]` for every `r` `[r]` on shared fresh draws."""
    eps = _draw(generator, draws, len(x), latents, x)
    clean = deviation(x, x, eps)
    wide = x.expand(len(delta), -1, -1).flatten(0, 1)
    repeated = eps[:, None].expand(-1, len(delta), -1, -1).flatten(1, 2)
    attacked = deviation(wide + delta.flatten(0, 1), wide, repeated).unflatten(1, delta.shape[:2])
    return judged(attacked, clean, delta.norm(dim=-1), r, level=level)


def refined(
    deviation: Deviation, x: Tensor, delta: Tensor, radius: Tensor, r: float, *,
    latents: int, draws: int, parts: int = 5, level: float = 0.9998, generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """Shorten the perturbation that set each attacked margin `radius` `[batch]`, testing `parts` lengths to the next.

    `delta` `[sizes, batch, d]` is of growing size. Returns margins `[batch]` of finer resolution, upper bounds as
    before: the stricter `level` pays for the number of tests.
    """
    norms = delta.norm(dim=-1).double().cpu()
    place = (norms - radius).abs().argmin(0)
    chosen = delta[place.to(delta.device), torch.arange(len(x), device=delta.device)]
    below = torch.where(place > 0, norms.gather(0, (place - 1).clamp_min(0)[None])[0], 0.0)
    share = below / norms.gather(0, place[None])[0]
    scale = share + (1 - share) * torch.arange(1, parts, dtype=torch.float64)[:, None] / parts  # [parts − 1, batch]
    found = judge(
        deviation, x, scale.to(chosen)[..., None] * chosen, torch.tensor([r]).to(x),
        latents=latents, draws=draws, level=level, generator=generator,
    )  # fmt: skip
    usable = radius.isfinite() & (radius > 0)
    return torch.where(usable, torch.minimum(radius, found.radius[0].where(found.radius[0] > 0, radius)), radius)


@torch.no_grad()
def clean_probability(
    deviation: Deviation, x: Tensor, r: Tensor, *, latents: int, draws: int, level: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return p0 = P(D <= r) without a perturbation and its lower confidence bound, both `[r, batch]`."""
    found = deviation(x, x, _draw(generator, draws, len(x), latents, x))
    inside = torch.stack([(found <= limit).sum(0) for limit in r])
    return (inside / draws).double().cpu(), clopper_pearson(inside, draws, level)[0]


def _draw(generator: torch.Generator, draws: int, batch: int, latents: int, like: Tensor) -> Tensor:
    return torch.randn(draws, batch, latents, generator=generator, device=generator.device).to(like)


# --- first-order bounds ---


def shift_jacobian(model: Any, x: Tensor) -> Tensor:
    """Return the Jacobian of the encoder mean at each example, `[batch, n, d]`."""
    return jacobians(lambda v: model.encode(v)[0], x)


def pullback_directions(model: Any, x: Tensor) -> Tensor:
    """Return the right-singular vectors of J_g J, `[batch, n, d]`: the first moves the reconstruction most."""
    decoder = jacobians(model.decode, model.encode(x)[0])
    # J_g = QR, and Q keeps lengths: the product of two thin matrices need not be formed.
    return torch.linalg.svd(torch.linalg.qr(decoder).R @ shift_jacobian(model, x), full_matrices=False)[2]


def first_order_margins(p0: Tensor, std: Tensor, jacobian: Tensor) -> dict[str, Tensor]:
    """Return three bounds `[...]` for `p0` `[...]`, `std` `[..., n]` and the encoder mean's Jacobian `[..., n, d]`.

    "frobenius" is the paper's min σ Φ⁻¹(p0) / ||J||_F; "spectral" has ||J||_2; "whitened" is
    Φ⁻¹(p0) / ||diag(σ)⁻¹ J||_2, the largest that the argument gives. All are 0 for p0 <= 1/2.
    """
    level = ndtri(p0.clamp_min(0.5)).to(std)
    smallest = std.amin(-1)
    return {
        "frobenius": level * smallest / torch.linalg.matrix_norm(jacobian),
        "spectral": level * smallest / torch.linalg.matrix_norm(jacobian, 2),
        "whitened": level / torch.linalg.matrix_norm(jacobian / std[..., None], 2),
    }


# --- certificates ---


def encoder_slopes(encoder: nn.Sequential, std: Tensor) -> tuple[Tensor, float]:
    """Return Lipschitz constants of x -> μ(x) / std, `[batch]` for `std` `[batch, n]`, and of x -> log σ(x).

    Products of spectral norms: valid for every input. `encoder` is fully connected and gives (μ, log σ²), or μ alone
    (then the second number is 0).
    """
    (*weights, last), slopes = linear_layers(encoder)
    trunk = math.prod([float(torch.linalg.matrix_norm(w, 2)) for w in weights]) * math.prod(slopes)
    n = std.shape[-1]
    mean = torch.linalg.matrix_norm(last[:n] / std.double()[..., None], 2) * trunk
    log_std = 0.5 * float(torch.linalg.matrix_norm(last[n:], 2)) * trunk if len(last) > n else 0.0
    return mean, log_std


def certified_margin(p0: Tensor, mean_slope: Tensor, log_std_slope: Tensor | float = 0.0) -> Tensor:
    """Return R such that every perturbation of norm below R keeps P(D <= r) > 1/2, `[...]`, given p0 at least `p0`.

    Neyman-Pearson for the shift of the mean, total variation for the change of the scale:
    P >= Φ(Φ⁻¹(p0) − w R) − (KL / 2)^½ with KL <= (e^{2cR} − 1 − 2cR) / 2, for slopes w of μ / σ(x) and c of log σ.
    """
    level = ndtri(p0.double().clamp_min(0.5))
    slope = torch.as_tensor(mean_slope, dtype=torch.float64)
    c = torch.as_tensor(log_std_slope, dtype=torch.float64)
    low, high = torch.zeros_like(level / slope), level / slope
    for _ in range(60):
        middle = (low + high) / 2
        scale = 2 * c * middle
        variation = ((scale.expm1() - scale).clamp_min(0) / 4).sqrt()
        holds = ndtr(level - slope * middle) - variation > 0.5
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return low
