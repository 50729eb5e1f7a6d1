"""Coloured digits and rooms: every factor shows, none leaks into another, splits share no picture."""

import pytest
import torch

from companion.analysis.clustering import nmi
from companion.data import load
from companion.data.coloured import PALETTE, paint
from companion.data.rooms import SIZES, Rooms
from companion.errors import CompanionError


def test_a_coloured_digit_is_the_digit_in_white_on_its_colour():
    grey, painted = load("digits"), load("coloured_digits")
    assert painted.x.shape == (len(grey), 3, 8, 8) and painted.y is not None
    assert torch.equal(painted.y[:, 0], grey.y)
    white = grey.x[:, 0] == 1
    assert (painted.x.movedim(1, -1)[white] == 1).all()
    corner = painted.x[:, :, 0, 0][grey.x[:, 0, 0, 0] == 0]
    torch.testing.assert_close(corner, PALETTE[painted.y[:, 1]][grey.x[:, 0, 0, 0] == 0])
    assert torch.equal(load("coloured_digits").x, painted.x)


@pytest.mark.parametrize(("correlation", "low", "high"), [(0.0, 0.0, 0.02), (0.5, 0.1, 0.4), (1.0, 0.75, 0.9)])
def test_colour_tells_of_the_digit_only_as_far_as_asked(correlation, low, high):
    y = load("coloured_digits", correlation=correlation).y
    assert y is not None and low <= nmi(y[:, 1], y[:, 0]) <= high


def test_paint_refuses_what_is_not_grey():
    with pytest.raises(CompanionError, match="grey"):
        paint(load("coloured_digits"))
    dark = paint(load("digits"), strength=0.5)
    assert float(dark.x[:, :, 0, 0].amax()) <= 0.9


def test_rooms_split_the_grid_and_vary_one_hue():
    train, test = load("rooms"), load("rooms", "test")
    assert (len(train), len(test)) == (3840, 960) and train.y is not None and test.y is not None
    assert len(torch.cat([train.y, test.y]).unique(dim=0)) == 4800
    assert [len(column.unique()) for column in train.y.unbind(1)] == [4, 8, 15, 10, 1, 1]
    wall = load("rooms", varying="wall").y
    assert wall is not None and [len(column.unique()) for column in wall.unbind(1)] == [4, 8, 15, 1, 10, 1]
    with pytest.raises(CompanionError, match="varies"):
        load("rooms", varying="object")


def test_every_factor_of_a_room_changes_its_own_pixels():
    rooms = Rooms()
    base = torch.tensor([[1, 4, 7, 0, 3, 6]])
    image = rooms.render(base)
    assert image.shape == (1, 3, 32, 32) and float(image.min()) >= 0 and float(image.max()) <= 1
    changed = []
    for factor, size in enumerate(SIZES):
        other = base.clone()
        other[0, factor] = (base[0, factor] + size // 2) % size
        changed.append((rooms.render(other) != image).any(1)[0])
    assert all(bool(pixels.any()) for pixels in changed)
    floor, wall, thing = changed[3:]
    assert not bool((floor & wall).any() or (floor & thing).any() or (wall & thing).any())
    assert bool((floor | wall | thing).all()), "every pixel is floor, wall or object"
    assert torch.equal(rooms.factors(torch.arange(3))[:, -1], torch.arange(3))


def test_a_larger_object_covers_more_pixels():
    factors = torch.tensor([[shape, scale, 7, 0, 3, 6] for shape in range(4) for scale in range(8)])
    area = Rooms()._masks[7, factors[:, 0], factors[:, 1]].sum((1, 2)).view(4, 8)
    assert (area.diff(dim=1) >= 0).all() and (area[:, -1] > 1.8 * area[:, 0]).all()
