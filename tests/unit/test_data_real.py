"""The readers against real copies of the data, where they exist."""

import gzip
import io
import shutil
import tarfile
from pathlib import Path

import numpy
import pytest
import torch

from companion import data
from companion.data import images, tables
from companion.data.cards import Card
from companion.errors import CompanionError
from companion.seeds import generator

REAL = data.cache_dir()


@pytest.fixture
def real(monkeypatch):
    """Point the cache at the real copies, with downloads forbidden."""
    monkeypatch.setenv("COMPANION_DATA", str(REAL))
    monkeypatch.setenv("COMPANION_OFFLINE", "1")

    def need(name):
        if data.status(name) == "missing":
            pytest.skip(f"no copy of {name}: set COMPANION_DATA to a folder that has it")

    return need


# mean and standard deviation of the pixels, train and test, as published for these sets
@pytest.mark.parametrize(
    ("name", "train", "test", "counts"),
    [
        (
            "mnist",
            (0.1307, 0.3081),
            (0.1325, 0.3105),
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        ),
        ("fashion_mnist", (0.2860, 0.3530), (0.2868, 0.3524), [6000] * 10),
    ],
)
def test_mnist_and_fashion(name, train, test, counts, real):
    real(name)
    for split, expected, n in [("train", train, 60_000), ("test", test, 10_000)]:
        loaded = data.load(name, split)
        assert loaded.x.shape == (n, 1, 28, 28) and loaded.x.min() == 0 and loaded.x.max() == 1
        assert (loaded.x.mean().item(), loaded.x.std().item()) == pytest.approx(expected, abs=6e-5)
        assert loaded.y.dtype == torch.int64 and loaded.card.stands_in_for is None
        if split == "train":
            assert loaded.y.bincount().tolist() == counts


def test_mnist_images_belong_to_their_labels(real):
    real("mnist")
    train, test = data.load("mnist"), data.load("mnist", "test")
    assert train.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    means = torch.stack([train.x[train.y == digit].mean(0) for digit in range(10)]).flatten(1)
    nearest = torch.cdist(test.x.flatten(1), means).argmin(1)
    assert 0.80 < (nearest == test.y).float().mean() < 0.84  # the nearest-mean classifier is known to reach 82%


# rows, features, folds; mean and standard deviation of the target over all rows
@pytest.mark.parametrize(
    ("name", "rows", "features", "folds", "mean", "deviation"),
    [
        ("concrete", 1030, 8, 20, 35.8180, 16.6976),
        ("energy", 768, 8, 20, 22.3072, 10.0836),
        ("wine", 1599, 11, 20, 5.6360, 0.8073),
        ("power", 9568, 4, 20, 454.3650, 17.0661),
        ("naval", 11934, 16, 20, 0.9750, 0.0147),
        ("kin8nm", 8192, 8, 20, 0.7143, 0.2636),
        ("protein", 45730, 9, 5, 7.7485, 6.1182),
        ("yacht", 308, 6, 20, 10.4954, 15.1359),
    ],
)
def test_uci_tables(name, rows, features, folds, mean, deviation, real):
    real(name)
    train, test = data.load(name, fold=folds - 1), data.load(name, "test", fold=folds - 1)
    assert train.x.shape[1] == features and train.y.shape == (len(train), 1) and len(train) + len(test) == rows
    assert len(test) == pytest.approx(rows / 10, abs=1)
    assert train.x.mean(0).abs().max() < 1e-4 and train.y.mean().abs() < 1e-4
    spread = train.x.std(0, correction=0)
    assert torch.all((spread - 1).abs().lt(1e-3) | (train.x == 0).all(0)), "columns are of unit spread or constant"
    centre, scale = train.y_scale
    targets = torch.cat([train.y, test.y]).double() * scale + centre
    assert targets.mean().item() == pytest.approx(mean, abs=1e-4)
    assert targets.std(correction=0).item() == pytest.approx(deviation, abs=1e-3)
    assert test.y_scale == train.y_scale and str(folds) in train.card.shape and str(rows) in train.card.shape
    with pytest.raises(CompanionError, match=f"folds 0 to {folds - 1}"):
        data.load(name, fold=folds)


def test_uci_text_files_convert_to_the_known_arrays(real, tmp_path, monkeypatch):
    """Undo the conversion of a real set and convert its text files again: the hashes must agree."""
    real("yacht")
    table, splits = (REAL / file.path for file in tables.TABLES["yacht"].files)
    (tmp_path / "data.txt").write_bytes(gzip.decompress(table.read_bytes()))
    with numpy.load(splits, allow_pickle=False) as stored:
        for key in stored.files:
            name = key if key.startswith("index") else f"index_{key}"
            numpy.savetxt(tmp_path / f"{name}.txt", numpy.atleast_1d(stored[key]), fmt="%.18e")
    monkeypatch.setattr(tables, "download", lambda url, folder, sha256=None: Path(url))
    out = tmp_path / "out"
    out.mkdir()
    for file in tables.TABLES["yacht"].files:
        made = file.obtain(str(tmp_path), out, file.sha256)
        assert made.name == Path(file.path).name and file.digest(made) == file.sha256
    assert len(tables.TABLES["yacht"].files[0].mirrors) == 2


def test_cifar_subset(real):
    real("cifar10_first4000")
    exact = data.load("cifar10_first4000")
    held_out = data.load("cifar10_first4000", "test")
    assert exact.x.shape == (3000, 3, 32, 32) and held_out.x.shape == (1000, 3, 32, 32)
    assert exact.y[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert (exact.x[0, :, 0, 0] * 255).tolist() == [59, 62, 63]
    assert (torch.cat([exact.y, held_out.y])).bincount().tolist() == [
        396,
        366,
        420,
        384,
        422,
        393,
        414,
        385,
        407,
        413,
    ]


def test_jpeg_copy_is_labelled_and_is_the_exact_images_but_for_compression(real, tmp_path):
    """Cut 500 known training and 500 test images out of the real file and read them with its reader."""
    real("cifar10_first4000")
    real("cifar10_jpeg75")
    with numpy.load(REAL / "CIFAR10/cifar10_jpeg75_all60000.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    scans, offsets = arrays["scans"].tobytes(), arrays["offsets"]
    kept = numpy.concatenate([arrays["row_of_first4000"][:500], numpy.arange(50_000, 60_000, 20)])
    parts = [scans[offsets[row] : offsets[row + 1]] for row in kept]
    arrays["scans"] = numpy.frombuffer(b"".join(parts), dtype=numpy.uint8)
    arrays["offsets"] = numpy.cumsum([0, *map(len, parts)])
    arrays |= {"labels": arrays["labels"][kept], "is_train": arrays["is_train"][kept]}
    numpy.savez(tmp_path / "small.npz", **arrays)
    card = data.card("cifar10_jpeg75")
    assert card.title == "CIFAR-10, JPEG quality 75" and "not comparable" in card.note
    lossy, test = (images.read_cifar_jpeg(card, split, [tmp_path / "small.npz"]) for split in ("train", "test"))
    assert lossy.x.shape == test.x.shape == (500, 3, 32, 32) and lossy.x.is_contiguous()
    assert test.y.bincount().tolist() == [50] * 10 and len(test.y[:60].unique()) == 10, "classes are mixed"
    exact = data.load("cifar10_first4000")
    order = torch.randperm(500, generator=generator(0, "cifar10_jpeg75", "train"))
    assert torch.equal(lossy.y, exact.y[:500][order])
    error = lossy.x - exact.x[:500][order] * 255
    assert error.abs().mean().item() == pytest.approx(5.8, abs=0.3)
    assert error.square().mean().sqrt().item() == pytest.approx(8.1, abs=0.4)


CARD = Card("made", "made", "", "", "", "")


def test_cifar_binary_reader(tmp_path):
    """Write the archive's format with known bytes: batches out of order, as in the official one."""
    stream = numpy.random.default_rng(0)
    batches = {}
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-bin/"))
        for name in [
            "data_batch_4",
            "batches.meta.txt",
            "data_batch_1",
            "test_batch",
            "data_batch_5",
            "data_batch_2",
            "data_batch_3",
        ]:
            body = b"airplane"
            if "batch_" in name or name == "test_batch":
                rows = stream.integers(0, 256, (4, 3073), dtype=numpy.uint8)
                rows[:, 0] %= 10
                batches[name], body = rows, rows.tobytes()
                name += ".bin"
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    train, test = (images.read_cifar_binary(CARD, split, [path]) for split in ("train", "test"))
    rows = numpy.concatenate([batches[f"data_batch_{k}"] for k in range(1, 6)])
    assert train.y.tolist() == rows[:, 0].tolist() and test.y.tolist() == batches["test_batch"][:, 0].tolist()
    assert train.x.shape == (20, 3, 32, 32) and train.x[7, 1, 2, 3] == rows[7, 1 + 1024 + 2 * 32 + 3]


def test_svhn_reader(tmp_path):
    """Write the MATLAB layout [32, 32, 3, n] with labels 1 to 10: a zero is stored as 10."""
    from scipy.io import savemat

    pixels = numpy.random.default_rng(0).integers(0, 256, (32, 32, 3, 5), dtype=numpy.uint8)
    paths = [tmp_path / "train_32x32.mat", tmp_path / "test_32x32.mat"]
    savemat(paths[0], {"X": pixels, "y": numpy.array([[1], [10], [3], [9], [10]], dtype=numpy.uint8)})
    savemat(paths[1], {"X": pixels[..., :2], "y": numpy.array([[2], [10]], dtype=numpy.uint8)})
    train, test = (images.read_svhn(CARD, split, paths) for split in ("train", "test"))
    assert train.y.tolist() == [1, 0, 3, 9, 0] and test.y.tolist() == [2, 0]
    assert train.x.shape == (5, 3, 32, 32) and train.x[4, 2, 7, 11] == pixels[7, 11, 2, 4]


def test_a_damaged_copy_of_a_real_file_is_refused(real, tmp_path, monkeypatch):
    real("yacht")
    for file in tables.TABLES["yacht"].files:
        (tmp_path / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REAL / file.path, tmp_path / file.path)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    whole = data.load("yacht")
    assert len(whole) == 277
    for file in tables.TABLES["yacht"].files:
        path = tmp_path / file.path
        good = path.read_bytes()
        for damaged in (
            good[: len(good) // 2],
            good[: len(good) // 2] + b"\xff\x00" + good[len(good) // 2 + 2 :],
            b"",
        ):
            path.write_bytes(damaged)
            assert data.status("yacht") == "corrupt"
            with pytest.raises(data.DataCorrupt):
                data.load("yacht", fallback="diabetes")
        path.write_bytes(good)
    assert torch.equal(data.load("yacht").x, whole.x)
