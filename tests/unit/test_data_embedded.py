"""Embedded sets: digits, diabetes, sinusoids, sprites, and the catalogue's manners."""

import math

import numpy
import pytest
import torch

from companion import data
from companion.data import Sprites
from companion.data.sprites import SHAPES, _inside
from companion.errors import CompanionError
from companion.seeds import generator

EMBEDDED = ["digits", "diabetes", "sinusoids", "sprites"]


@pytest.fixture(autouse=True)
def no_cache_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("COMPANION_OFFLINE", "1")
    yield
    assert not (tmp_path / "nothing").exists(), "embedded sets write nothing"


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets_load_twice_alike(name):
    options = {"n": 50} if name == "sprites" else {}
    assert data.status(name) == "embedded" and data.fetch(name) == []
    for split in ("train", "test"):
        one, two = data.load(name, split, **options), data.load(name, split, **options)
        assert torch.equal(one.x, two.x) and torch.equal(one.y, two.y)
        assert one.x.dtype == torch.float32 and one.card == data.card(name) and len(one) == len(one.y)


def test_digits_split_is_stratified_and_complete():
    from sklearn.datasets import load_digits

    train, test = data.load("digits"), data.load("digits", "test")
    assert len(train) + len(test) == 1797 and train.x.shape[1:] == (1, 8, 8)
    assert train.x.min() == 0 and train.x.max() == 1
    counts = torch.bincount(train.y) + torch.bincount(test.y)
    assert torch.equal(torch.bincount(test.y), counts // 5)
    together = torch.cat([train.x, test.x]).flatten(1).numpy() * 16
    original = load_digits().data
    assert sorted(map(tuple, together)) == sorted(map(tuple, original)), "no digit is lost or seen twice"


def test_diabetes_is_standardised_by_its_training_rows():
    train, test = data.load("diabetes"), data.load("diabetes", "test")
    assert train.x.shape == (398, 10) and test.y.shape == (44, 1)
    assert torch.allclose(train.x.mean(0), torch.zeros(10), atol=1e-5)
    assert torch.allclose(train.x.std(0, correction=0), torch.ones(10), atol=1e-5)
    assert not torch.allclose(test.x.mean(0), torch.zeros(10), atol=1e-3)
    mean, deviation = train.y_scale
    targets = torch.cat([train.y, test.y]) * deviation + mean
    assert targets.min().item() == pytest.approx(25, abs=1e-3)
    assert targets.max().item() == pytest.approx(346, abs=1e-3)
    assert not torch.equal(test.x, data.load("diabetes", "test", fold=1).x)


def test_sinusoids_have_exactly_the_amplitudes_asked_for():
    frequencies = (3, 7, 20)
    train = data.load("sinusoids", frequencies=frequencies, points=128)
    assert train.x.shape == train.y.shape == (128, 1) and train.x[1, 0] == 1 / 128
    amplitude = numpy.abs(numpy.fft.rfft(train.y[:, 0].double())) / 128 * 2
    assert numpy.allclose(amplitude[list(frequencies)], 1, atol=1e-5)
    assert numpy.allclose(numpy.delete(amplitude, frequencies), 0, atol=1e-5)
    assert not torch.equal(train.y, data.load("sinusoids", frequencies=frequencies, points=128, seed=1).y)


def test_sinusoid_test_points_lie_between_and_phases_do_not_shift():
    train, test = data.load("sinusoids"), data.load("sinusoids", "test")
    assert len(train) == 200 and torch.allclose(test.x - train.x, torch.full((200, 1), 0.5 / 200), atol=1e-6)
    one, more = (data.load("sinusoids", frequencies=q).y for q in [(5,), (5, 9)])
    nine = data.load("sinusoids", frequencies=(9,)).y
    assert torch.allclose(more - one, nine, atol=1e-5), "adding a frequency leaves the others' phases alone"
    assert (one[0] - nine[0]).abs() > 0.01, "each frequency has its own phase"


GRID = Sprites()


def grid(**fixed):
    """Return the factors [n, 5] of every combination of the factors that are not fixed."""
    ranges = [
        [fixed[name]] if name in fixed else range(size)
        for name, size in zip(("shape", "scale", "orientation", "x", "y"), (3, 6, 40, 32, 32), strict=True)
    ]
    return torch.cartesian_prod(*[torch.tensor(list(values)) for values in ranges])


def test_sprite_count_and_order_are_those_of_dsprites():
    assert len(GRID) == 737_280
    indices = torch.tensor([0, 1, 32, 1024, 40 * 1024, 6 * 40 * 1024, 737_279])
    expected = [[0] * 5, [0, 0, 0, 0, 1], [0, 0, 0, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert GRID.factors(indices).tolist() == [*expected, [2, 5, 39, 31, 31]]
    assert torch.equal(GRID.factors(torch.arange(len(GRID))), grid())


def test_sprites_are_binary_and_never_cut_off():
    images = GRID.render(grid(orientation=3, x=0, y=31))
    assert images.shape == (18, 1, 64, 64) and images.dtype == torch.float32
    assert set(images.unique().tolist()) == {0.0, 1.0}
    centred = GRID.render(grid(x=16, y=16)).sum((1, 2, 3))
    for x, y in [(0, 0), (0, 31), (31, 0), (31, 31)]:
        assert torch.equal(GRID.render(grid(x=x, y=y)).sum((1, 2, 3)), centred), "nothing is cut off"


def test_area_grows_with_scale_and_is_near_the_outline_s():
    area = GRID.render(grid(x=10, y=20)).sum((1, 2, 3)).view(3, 6, 40)
    assert (area.diff(dim=1) > 0).all()
    scale = torch.linspace(0.5, 1, 6)[:, None]
    for shape, full in [(0, 22.2**2), (1, math.pi * 14.3 * 7.6)]:
        assert torch.allclose(area[shape], full * scale**2 * torch.ones(40), rtol=0.09)


def test_only_the_first_and_last_orientation_draw_the_same_image():
    images = GRID.render(grid(x=0, y=0)).view(3, 6, 40, -1)
    assert torch.equal(images[:, :, 0], images[:, :, 39])
    assert len(images[:, :, :39].flatten(0, 2).unique(dim=0)) == 3 * 6 * 39


def test_orientation_turns_by_the_angle_it_says():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for k in range(0, 39, 3):
        image = GRID.render(torch.tensor([[1, 5, k, 16, 16]]))[0, 0]
        u, v = (columns - 32.25)[image > 0], (rows - 32.1)[image > 0]
        angle = 0.5 * math.atan2(2 * float((u * v).mean()), float((u * u - v * v).mean()))  # of the long axis
        turned = (angle - 2 * math.pi * k / 39) % math.pi
        assert min(turned, math.pi - turned) < 0.03


def test_position_moves_the_centroid_one_pixel_a_step():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for shape in range(3):
        image = GRID.render(grid(shape=shape, scale=2, orientation=7))[:, 0].view(32, 32, 64, 64)
        mass = image.sum((2, 3))
        across, down = (image * columns).sum((2, 3)) / mass, (image * rows).sum((2, 3)) / mass
        step = torch.arange(32.0)
        assert torch.allclose(across - across[0, 0], step[:, None].expand(32, 32), atol=1e-4)
        assert torch.allclose(down - down[0, 0], step[None, :].expand(32, 32), atol=1e-4)


def test_heart_stands_upright():
    image = GRID.render(torch.tensor([[2, 5, 0, 16, 16]]))[0, 0]
    width = image.sum(1)[image.sum(1) > 0]
    assert width[-1] < width.max() / 3 < width[2], "a point below, two lobes above"
    across = (image.sum(0) * torch.arange(64)).sum() / image.sum()
    assert across.item() == pytest.approx(32.25, abs=0.1), "its own mirror image"


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_stay_within_the_patch(shape):
    angle = torch.linspace(0, 2 * math.pi, 2000)
    for radius in (16.4, 17.0, 25.0):
        assert not _inside(shape, radius * angle.cos(), radius * angle.sin()).any()


def test_indices_and_factors_draw_the_same_and_alone_as_in_a_batch():
    indices = torch.randint(len(GRID), (64,), generator=generator(0, "test"))
    batch = GRID.render(indices)
    assert torch.equal(batch, GRID.render(GRID.factors(indices)))
    assert torch.equal(batch, torch.cat([GRID.render(indices[k : k + 1]) for k in range(64)]))


@pytest.mark.parametrize(
    "wrong", [[-1], [737_280], [[3, 0, 0, 0, 0]], [[0, 0, 0, 0, -1]], [[0, 0]], [[[0, 0, 0, 0, 0]]]]
)
def test_impossible_sprites_are_refused(wrong):
    with pytest.raises(CompanionError, match="sprite"):
        GRID.render(torch.tensor(wrong))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_sprites_on_the_device():
    indices = torch.arange(0, 737_280, 7001)
    images = Sprites("cuda").render(indices)
    assert images.is_cuda and torch.equal(images.cpu(), GRID.render(indices))


def test_sprite_subsets_are_seeded_distinct_and_disjoint():
    train, test = data.load("sprites", n=300), data.load("sprites", "test", n=300)
    both = [tuple(row) for row in torch.cat([train.y, test.y]).tolist()]
    assert len(set(both)) == 600 and train.x.shape == (300, 1, 64, 64)
    assert torch.equal(train.x, GRID.render(train.y))
    assert not torch.equal(train.y, data.load("sprites", n=300, seed=1).y)
    with pytest.raises(CompanionError, match="n from 1 to 368640"):
        data.load("sprites", n=737_280)


def test_subset_draws_without_replacement():
    digits = data.load("digits")
    part = digits.subset(1000, generator(0, "subset"))
    assert part.x.shape == (1000, 1, 8, 8) and part.card == digits.card
    assert torch.equal(part.x, digits.subset(1000, generator(0, "subset")).x)
    whole = digits.subset(len(digits), generator(1, "subset"))
    assert torch.equal(whole.y.bincount(), digits.y.bincount()) and not torch.equal(whole.y, digits.y)
    with pytest.raises(CompanionError, match="asked for 1443"):
        digits.subset(len(digits) + 1, generator(0, "subset"))


def test_wrong_requests_are_told_what_exists():
    with pytest.raises(CompanionError, match=r"no data set 'minst' \(did you mean 'mnist'\?\).*digits.*yacht"):
        data.load("minst")
    for call in (data.card, data.status, data.fetch):
        with pytest.raises(CompanionError, match="no data set"):
            call("nothing")
    with pytest.raises(CompanionError, match="split is 'train' or 'test'"):
        data.load("digits", "validation")
    with pytest.raises(CompanionError, match="no option folds; it has fold"):
        data.load("concrete", folds=2)
    with pytest.raises(CompanionError, match="fallback 'mnist' is not embedded"):
        data.load("cifar10", fallback="mnist")


def test_missing_set_names_the_file_and_the_remedy_and_fallback_keeps_the_fold(tmp_path):
    with pytest.raises(data.DataMissing, match=r"UCI/yacht/data\.txt\.gz.*companion data fetch yacht") as caught:
        data.load("yacht")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    stand_in = data.load("yacht", "test", fallback="diabetes", fold=3)
    assert torch.equal(stand_in.x, data.load("diabetes", "test", fold=3).x)
    assert stand_in.card.stands_in_for == "yacht" and stand_in.y_scale is not None
    with pytest.raises(data.DataMissing, match="there is no mirror of it"):
        data.load("cifar10_jpeg75")
