"""Downloads against a real HTTP server on loopback that serves well, badly, half and not at all."""

import gzip
import json
import os
import resource
import subprocess
import sys
import threading
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy
import pytest
import torch

from companion import data
from companion.data import cache, catalogue, images, tables
from companion.data.cache import DataCorrupt, DataMissing, File
from companion.data.cards import Card, Source
from companion.errors import CompanionError


class Server:
    """Serves `/<behaviour>/<name>` on loopback; `asked` lists the paths; it can be stopped and come back."""

    def __init__(self):
        self.content: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.half_sent, self.release = threading.Event(), threading.Event()
        self.port = 0
        self.start()

    def start(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.asked.append(self.path)
                behaviour, name = self.path.lstrip("/").split("/", 1)
                body = outer.content.get(name)
                if behaviour == "absent" or body is None:
                    return self.send_error(404)
                self.send_response(200)
                sent = {"wrong": bytes(len(body)), "truncated": body[: len(body) // 2]}.get(behaviour, body)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                if behaviour in ("dies", "stalls"):
                    sent = sent[: len(sent) // 2]
                self.wfile.write(sent)
                if behaviour == "stalls":
                    outer.half_sent.set()
                    outer.release.wait(30)

        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.http.server_port
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self):
        self.release.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def url(self, behaviour, name=""):
        return f"http://127.0.0.1:{self.port}/{behaviour}/{name}"


@pytest.fixture
def server():
    running = Server()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("COMPANION_OFFLINE", raising=False)
    cache.forget_hosts()
    yield tmp_path / "cache"
    cache.forget_hosts()


CONTENT = {
    "train-images-idx3-ubyte.gz": bytes(16) + bytes(range(256)) * 49,  # 16 images of 28 x 28
    "train-labels-idx1-ubyte.gz": bytes(8) + bytes(range(16)),
    "t10k-images-idx3-ubyte.gz": bytes(16) + bytes(784),
    "t10k-labels-idx1-ubyte.gz": bytes(8) + b"\x07",
}
PACKED = {name: gzip.compress(content, mtime=0) for name, content in CONTENT.items()}


@pytest.fixture
def tiny(server, monkeypatch):
    """Return a function that puts the set "tiny" (MNIST's format) into the catalogue with given mirrors."""
    server.content.update(PACKED)

    def register(*behaviours):
        files = tuple(
            File(f"Tiny/raw/{name}", sha256(packed).hexdigest(), tuple(server.url(b, name) for b in behaviours))
            for name, packed in PACKED.items()
        )
        card = Card("tiny", "Tiny", "", "", "", "", {file.path: file.sha256 for file in files})
        monkeypatch.setitem(catalogue.SETS, "tiny", Source(card, images.read_idx, files))
        return files

    return register


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.name[0] == ".")


COMPLETE = sorted(f"Tiny/raw/{name}" for name in PACKED)


def test_good_mirror_gives_the_tensors(tiny, folder):
    tiny("good")
    assert data.status("tiny") == "missing"
    train, test = data.load("tiny"), data.load("tiny", "test")
    assert data.status("tiny") == "cached" and everything(folder) == COMPLETE
    assert train.x.shape == (16, 1, 28, 28) and train.x.dtype == torch.float32
    expected = torch.arange(256).repeat(49).view(16, 1, 28, 28) / 255
    assert torch.equal(train.x, expected) and torch.equal(train.y, torch.arange(16))
    assert test.y.tolist() == [7] and test.y.dtype == torch.int64


@pytest.mark.parametrize("fault", ["truncated", "wrong", "absent", "dies"])
def test_a_faulty_mirror_gives_way_to_the_next(fault, tiny, folder, server):
    tiny(fault, "good")
    assert len(data.load("tiny")) == 16
    assert everything(folder) == COMPLETE
    assert sum(path.startswith(f"/{fault}/") for path in server.asked) == 4, "the first mirror was tried first"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("truncated", "wrong checksum"),
        ("wrong", "wrong checksum"),
        ("absent", "404"),
        ("dies", "dropped half-way"),
    ],
)
def test_a_single_faulty_mirror_leaves_nothing(fault, words, tiny, folder):
    tiny(fault)
    with pytest.raises(DataMissing, match=words) as caught:
        data.load("tiny")
    message = str(caught.value)
    assert "\n" not in message and "companion data fetch tiny" in message and str(folder) in message
    assert everything(folder) == [] and data.status("tiny") == "missing"


def test_a_recovered_server_succeeds(tiny, folder, server):
    tiny("good")
    server.stop()
    with pytest.raises(DataMissing, match="no connection"):
        data.load("tiny")
    assert everything(folder) == []
    server.start()
    with pytest.raises(DataMissing, match="no connection"):
        data.load("tiny")
    assert server.asked == [], "a host that was down is not asked again by load"
    paths = data.fetch("tiny")
    assert [path.name for path in paths] == list(PACKED) and everything(folder) == COMPLETE
    assert len(data.load("tiny")) == 16


def test_a_killed_download_leaves_no_file_and_the_next_one_succeeds(tiny, folder, server):
    file = tiny("stalls")[0]
    script = "import sys; from companion.data.cache import *; ensure(File(*sys.argv[1:3], sys.argv[3:]), 'tiny')"
    command = [sys.executable, "-c", script, file.path, file.sha256, *file.mirrors]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    assert server.half_sent.wait(60)
    process.kill()
    process.wait()
    assert not (folder / file.path).exists()
    left = list(folder.glob(".download-*"))
    os.utime(left[0], (0, 0))  # a day later
    tiny("good")
    data.fetch("tiny")
    assert len(left) == 1 and everything(folder) == COMPLETE


SCRIPT = "import sys; from companion.data.cache import *; print(ensure(File(*sys.argv[1:3], sys.argv[3:]), 'tiny'))"


def test_two_processes_that_fetch_the_same_file_at_once_both_get_it(tiny, folder):
    file = tiny("good")[0]
    command = [sys.executable, "-c", SCRIPT, file.path, file.sha256, *file.mirrors]
    both = [subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].decode().strip() for process in both]
    assert said == [str(folder / file.path)] * 2 and {process.returncode for process in both} == {0}
    assert everything(folder) == [file.path] and cache.check(file) == "cached"


def test_a_full_disk_leaves_nothing_and_says_so(tiny, folder):
    tiny("good")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))  # no file may grow beyond 20 bytes
    try:
        with pytest.raises(DataMissing, match="File too large"):
            data.load("tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert everything(folder) == []
    assert len(data.load("tiny")) == 16


def test_corrupt_file_is_fetched_anew(tiny, folder):
    tiny("good")
    data.fetch("tiny")
    victim = folder / COMPLETE[0]
    victim.write_bytes(victim.read_bytes()[:-9])
    assert data.status("tiny") == "corrupt"
    assert len(data.load("tiny")) == 16
    assert data.status("tiny") == "cached"


def test_corrupt_file_is_refused_and_never_replaced_by_a_fallback(tiny, folder):
    files = tiny("good")
    data.fetch("tiny")
    victim, gone = folder / files[3].path, folder / files[0].path
    victim.write_bytes(bytes(30))
    gone.unlink()  # a missing file must not hide the corrupt one
    tiny("absent")
    with pytest.raises(DataCorrupt, match="is corrupt") as caught:
        data.load("tiny", fallback="digits")
    assert isinstance(caught.value, CompanionError) and "\n" not in str(caught.value)
    assert victim.read_bytes() == bytes(30), "the user's file is left as it was"


def test_read_only_folder_works_and_is_not_written(tiny, folder, server):
    files = tiny("good")
    data.fetch("tiny")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    asked = len(server.asked)
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        assert len(data.load("tiny")) == 16
        cache._digests.clear()
        assert data.status("tiny") == "cached"
        missing = replace(files[0], path="Tiny/raw/other.gz")
        with pytest.raises(DataMissing, match="cannot write in"):
            cache.ensure(missing, "tiny")
        (folder / files[0].path).write_bytes(b"damage")
        with pytest.raises(DataCorrupt, match="cannot write in"):
            data.load("tiny", fallback="digits")
        assert len(server.asked) == asked
        assert set(before) == set(folder.rglob("*"))
    finally:
        for path in folders:
            path.chmod(0o755)


def test_unwritable_cache_is_one_clear_line(tiny, tmp_path, monkeypatch):
    tiny("good")
    (tmp_path / "occupied").write_text("a file, not a folder")
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "occupied" / "cache"))
    with pytest.raises(DataMissing, match="cannot write in") as caught:
        data.fetch("tiny")
    assert "\n" not in str(caught.value) and "COMPANION_DATA" in str(caught.value)


def test_offline_forbids_downloads(tiny, server, monkeypatch):
    tiny("good")
    monkeypatch.setenv("COMPANION_OFFLINE", "1")
    for call in (data.load, data.fetch):
        with pytest.raises(DataMissing, match="COMPANION_OFFLINE"):
            call("tiny")
    assert server.asked == []
    monkeypatch.setenv("COMPANION_OFFLINE", "0")
    assert len(data.load("tiny")) == 16


def test_fallback_says_what_it_stands_in_for(tiny, folder):
    tiny("absent")
    stand_in = data.load("tiny", fallback="digits")
    assert stand_in.card.name == "digits" and stand_in.card.stands_in_for == "tiny"
    assert torch.equal(stand_in.x, data.load("digits").x)
    note = stand_in.card.note
    assert "Tiny/raw/train-images-idx3-ubyte.gz is missing" in note and "$COMPANION_DATA" in note
    assert str(folder) not in note, "the note is published: it must not name this machine's folders"
    tiny("good")
    assert data.load("tiny", fallback="digits").card.stands_in_for is None


def test_fallback_is_used_when_only_the_other_split_is_missing(tiny, folder):
    tiny("good")
    data.fetch("tiny")
    (folder / "Tiny/raw/t10k-labels-idx1-ubyte.gz").unlink()
    tiny("absent")
    assert data.load("tiny", "train", fallback="digits").card.stands_in_for == "tiny"


def test_checksum_is_computed_once_per_file(tiny, monkeypatch):
    hashed = []
    files = [replace(file, digest=lambda path: hashed.append(path) or cache.file_digest(path)) for file in tiny("good")]
    monkeypatch.setitem(catalogue.SETS, "tiny", replace(catalogue.SETS["tiny"], files=tuple(files)))
    data.fetch("tiny")
    hashed.clear()
    for _ in range(3):
        data.load("tiny")
    assert len(hashed) == 4
    path = cache.cache_dir() / files[0].path
    path.write_bytes(bytes(path.stat().st_size))
    assert data.status("tiny") == "corrupt", "a changed file is looked at again"


@pytest.fixture
def table(server, monkeypatch):
    """Return a function that registers "table", a UCI-like set of 20 rows and 2 folds, with given mirrors."""
    stream = numpy.random.default_rng(0)
    rows = stream.normal(size=(20, 4))
    rows[:, 1] = 0.998  # a constant column, as naval has
    orders = [stream.permutation(20) for _ in range(2)]
    text = "\n".join(" ".join(map(repr, row)) for row in rows.tolist()).encode()
    arrays = {"index_features": numpy.arange(3), "index_target": numpy.array(3)}
    for k, order in enumerate(orders):
        arrays |= {f"train_{k}": order[:17], f"test_{k}": order[17:]}
    seen = sha256()
    for name in sorted(arrays):
        seen.update(name.encode() + arrays[name].astype("<i4").tobytes())
        file = name if name.startswith("index") else f"index_{name}"
        body = "\n".join(f"{value:.18e}" for value in arrays[name].ravel())
        server.content[f"table/{file}.txt"] = body.encode()
    server.content["table/data.txt"] = text
    source = tables._source("table", "table", "table", 20, 3, 2, sha256(text).hexdigest(), seen.hexdigest())

    def register(*behaviours):
        mirrors = tuple(server.url(behaviour, "table") for behaviour in behaviours)
        files = tuple(replace(file, mirrors=mirrors) for file in source.files)
        monkeypatch.setitem(catalogue.SETS, "table", replace(source, files=files))

    register.rows, register.orders = rows, orders
    return register


@pytest.mark.parametrize("faults", [(), ("truncated",), ("wrong", "dies"), ("absent",)])
def test_table_is_converted_and_standardised(faults, table, folder):
    table(*faults, "good")
    test = data.load("table", "test", fold=1)
    assert everything(folder) == ["UCI/table/data.txt.gz", "UCI/table/splits.npz"]
    train_rows, rows = table.rows[table.orders[1][:17]], table.rows[table.orders[1][17:]]
    expected = (rows - train_rows.mean(0)) / numpy.where(train_rows.std(0) < 1e-9, 1, train_rows.std(0))
    assert numpy.allclose(test.x, expected[:, :3], atol=1e-6) and numpy.allclose(test.y, expected[:, 3:], atol=1e-6)
    assert test.y.shape == (3, 1) and torch.all(test.x[:, 1].abs() < 1e-6)
    mean, deviation = test.y_scale
    assert numpy.allclose(test.y.numpy() * deviation + mean, rows[:, 3:], atol=1e-6)
    with pytest.raises(CompanionError, match="folds 0 to 1, not 2"):
        data.load("table", fold=2)


def test_table_packed_differently_is_the_same_data(table, folder):
    table("good")
    path = data.fetch("table")[0]
    text = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(text, compresslevel=1, mtime=12345))
    assert data.status("table") == "cached"
    path.write_bytes(gzip.compress(text.replace(b"0.998", b"0.997", 1)))
    assert data.status("table") == "corrupt"
    path.write_bytes(gzip.compress(text)[:-10])
    assert data.status("table") == "corrupt"


class Bomb:
    """Unpickling this creates the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_an_npz_is_refused_and_never_run(table, folder, tmp_path):
    table("good")
    path = data.fetch("table")[1]
    mark = tmp_path / "exploded"
    with numpy.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    arrays["index_features"] = numpy.array([Bomb(mark)], dtype=object)
    numpy.savez(path, **arrays)
    table("absent")
    assert data.status("table") == "corrupt"
    with pytest.raises(DataCorrupt, match="unreadable"):
        data.load("table", fallback="diabetes")
    assert not mark.exists()
    with numpy.load(path, allow_pickle=True) as stored:
        stored["index_features"]
    assert mark.exists(), "the trap was live"


def test_the_pickled_cifar_folder_of_torchvision_is_not_touched(folder):
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    (batches / "data_batch_1").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert data.status("cifar10") == "missing"


def test_cards_and_mirrors_of_the_catalogue():
    for name in data.names():
        source = catalogue.SETS[name]
        card = source.card
        assert card.name == name and card.title and card.source and card.licence and card.citation and card.shape
        assert dict(card.sha256) == {file.path: file.sha256 for file in source.files}
        assert json.loads(json.dumps(card.sha256)) == card.sha256
        assert all(len(value) == 64 and set(value) <= set("0123456789abcdef") for value in card.sha256.values())
        assert all(len(file.mirrors) >= 2 for file in source.files if "npz" not in file.path or "UCI" in file.path)
