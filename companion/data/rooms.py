"""Rooms with one object, after 3D Shapes: drawn by ray casting, 32 x 32 RGB.

Factors: shape (cube, cylinder, sphere, capsule), scale (8), orientation (15), floor hue, wall hue, object hue (10
each). Burgess and Kim, "3D Shapes" (2018), has the same factors and sizes; the pictures are ours, alike only.
"""

import math

import torch
from torch import Tensor

SIZES = (4, 8, 15, 10, 10, 10)  # of the factors, in the order above
SIDE = 32
_STEPS = 24  # of sphere tracing: a ray that grazes the object and has not arrived by then passes it


def _distance(points: Tensor, shape: int) -> Tensor:
    """Return the signed distance `[...]` of `points` `[..., 3]` to a unit-sized solid standing on y = 0."""
    x, y, z = points.unbind(-1)
    if shape == 0:
        q = torch.stack([x.abs() - 0.7, (y - 0.7).abs() - 0.7, z.abs() - 0.7], -1)
        return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)
    radius = (x.square() + z.square()).sqrt()
    if shape == 1:
        q = torch.stack([radius - 0.7, (y - 0.8).abs() - 0.8], -1)
        return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)
    if shape == 2:
        return (radius.square() + (y - 0.9).square()).sqrt() - 0.9
    nearest = y.clamp(0.5, 1.5)
    return (radius.square() + (y - nearest).square()).sqrt() - 0.5


def _hues(count: int) -> Tensor:
    # Fully saturated hues around the circle, `[count, 3]`: six ramps, each channel a third of the circle apart.
    angle = torch.arange(count) / count * 6
    offsets = torch.tensor([0.0, 4.0, 2.0])
    return (((angle[:, None] + offsets) % 6 - 3).abs() - 1).clamp(0, 1)


class Rooms:
    """All 480,000 rooms: the geometry is traced once per shape, scale and orientation, the hues are looked up."""

    def __init__(self) -> None:
        eye = torch.tensor([0.0, 2.6, -4.6])
        axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
        v, u = torch.meshgrid(-axis, axis, indexing="ij")
        pitch = 0.34
        # Camera rays, turned down by `pitch`: [side, side, 3].
        rays = torch.stack(
            [
                0.5 * u,
                0.5 * v * math.cos(pitch) - math.sin(pitch),
                0.5 * v * math.sin(pitch) + math.cos(pitch),
            ],
            -1,
        )
        rays = rays / rays.norm(dim=-1, keepdim=True)
        masks: list[Tensor] = []
        lights: list[Tensor] = []
        floors: list[Tensor] = []
        depths: list[Tensor] = []
        size = torch.linspace(0.75, 1.25, SIZES[1])[:, None, None]
        light = torch.tensor([0.5, 0.75, -0.45])
        light = light / light.norm()
        for orientation in range(SIZES[2]):
            turn = math.radians(-30 + 60 * orientation / (SIZES[2] - 1))
            cos, sin = math.cos(turn), math.sin(turn)
            spin = torch.tensor([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])
            start, ray, lamp = spin @ eye, rays @ spin.mT, spin @ light
            floor = ray[..., 1] < 0
            reach = torch.where(floor, -start[1] / ray[..., 1].clamp(max=-1e-6), torch.inf)
            hit = start + reach.clamp(max=50)[..., None] * ray
            floor = floor & (hit[..., [0, 2]].abs().amax(-1) < 4)  # beyond are the walls of a square room
            # Which wall: the darker side where |x| is the larger coordinate shows the room turn.
            wall_x = ((4 * ray[..., 0].sign() - start[0]) / ray[..., 0]).clamp(min=0)
            wall_z = ((4 * ray[..., 2].sign() - start[2]) / ray[..., 2]).clamp(min=0)
            depths.append(torch.where(wall_x < wall_z, 0.75, 0.95))
            floors.append(floor)
            for shape in range(SIZES[0]):
                travelled = torch.zeros(SIZES[1], SIDE, SIDE)  # all scales at once
                for _ in range(_STEPS):
                    point = (start + travelled[..., None] * ray) / size[..., None]
                    travelled = travelled + size * _distance(point, shape)
                point = (start + travelled[..., None] * ray) / size[..., None]
                nudge = 1e-3 * torch.eye(3)
                slope = torch.stack(
                    [_distance(point + step, shape) - _distance(point - step, shape) for step in nudge], -1
                )
                normal = slope / slope.norm(dim=-1, keepdim=True).clamp(min=1e-9)
                masks.append(_distance(point, shape).abs() < 1e-2)
                lights.append(0.45 + 0.55 * (normal @ lamp).clamp(min=0))
        order = (SIZES[2], SIZES[0], SIZES[1], SIDE, SIDE)
        self._masks = torch.stack(masks).view(order)
        self._lights = torch.stack(lights).view(order)
        self._floors, self._depths = torch.stack(floors), torch.stack(depths)

    def __len__(self) -> int:
        return math.prod(SIZES)

    def factors(self, indices: Tensor) -> Tensor:
        """Return the factor values `[n, 6]` (int64, in the order given above) of grid `indices` `[n]`."""
        strides = torch.tensor([math.prod(SIZES[k + 1 :]) for k in range(len(SIZES))])
        return indices[:, None] // strides % torch.tensor(SIZES)

    def render(self, factors: Tensor) -> Tensor:
        """Draw images `[n, 3, 32, 32]` in [0, 1] for `factors` `[n, 6]`."""
        shape, scale, orientation, floor, wall, thing = factors.unbind(1)
        mask = self._masks[orientation, shape, scale][:, None]
        light = self._lights[orientation, shape, scale][:, None]
        ground = self._floors[orientation][:, None]
        shade = self._depths[orientation][:, None]
        hues = _hues(10)[:, :, None, None]
        room = torch.where(ground, hues[floor], hues[wall] * shade)
        return torch.where(mask, hues[thing] * light, room)
