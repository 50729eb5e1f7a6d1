"""How far an input must move to change a classifier's answer."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vjp, vmap

Logits = Callable[[Tensor], Tensor]


def _input_jacobian(logits: Logits, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits `[batch, classes]` and their input Jacobian `[batch, classes, pixels]`."""
    out, pullback = vjp(logits, x)  # type: ignore[misc]
    rows = torch.eye(out.shape[-1]).to(out)[:, None].expand(-1, len(x), -1)
    return out, vmap(pullback)(rows)[0].movedim(0, 1).flatten(2)


def _step(logits: Logits, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return the signed distance to the nearest linearised boundary of `label` `[batch]`, and the way."""
    out, jacobian = _input_jacobian(logits, x)
    index = torch.arange(len(x), device=x.device)
    gap = out[index, label][:, None] - out  # f_y − f_j, [batch, classes]
    normal = jacobian[index, label][:, None] - jacobian  # ∇f_y − ∇f_j, [batch, classes, pixels]
    distance = gap / normal.norm(dim=-1).clamp_min(1e-12)
    distance[index, label] = torch.inf
    margin, rival = distance.min(1)
    toward = normal[index, rival]
    return margin, -toward / toward.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def linear_margin(logits: Logits, x: Tensor, y: Tensor) -> Tensor:
    """Return the first-order input margin min_{j≠y} (f_y − f_j) / ‖∇f_y − ∇f_j‖₂ per example, `[batch]`.

    Negative where the example is misclassified. In units of the input (Euclidean).
    """
    return _step(logits, x, y)[0]


def deepfool_radius(logits: Logits, x: Tensor, *, steps: int = 20, overshoot: float = 1e-3) -> Tensor:
    """Return an upper bound on the distance to the decision boundary, `[batch]`, NaN where none was crossed.

    DeepFool (Moosavi-Dezfooli et al. 2016): walk to the nearest linearised boundary until the label changes,
    then bisect the straight way there.
    """
    label = logits(x).argmax(-1)
    moved, crossed = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for _ in range(steps):
        margin, direction = _step(logits, moved, label)
        stride = torch.where(crossed, torch.zeros_like(margin), margin + overshoot)
        moved = moved + (stride[:, None] * direction).reshape(x.shape)
        crossed = crossed | (logits(moved).argmax(-1) != label)
    path = (moved - x).flatten(1)
    near, far = x.new_zeros(len(x)), x.new_ones(len(x))  # the last step may overshoot: bisect along the way
    for _ in range(12):
        middle = (near + far) / 2
        outside = logits(x + (middle[:, None] * path).reshape(x.shape)).argmax(-1) != label
        near, far = torch.where(outside, near, middle), torch.where(outside, middle, far)
    return torch.where(crossed, far * path.norm(dim=1), torch.nan)
