"""Files on disk: found in the cache folder, checked against SHA-256, fetched from mirrors when absent.

A file enters the cache by one rename after its checksum was right, so nothing half-written is ever seen.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from companion.errors import CompanionError

TIMEOUT = (5.0, 10.0)  # seconds to connect, seconds between two packets
_STALE = 24 * 3600  # seconds after which a scratch folder belongs to no running download

_digests: dict[tuple[str, int, int], str] = {}  # (path, mtime, size) -> digest: each file is hashed once
_down: set[str] = set()  # hosts that refused a connection in this process


class DataMissing(CompanionError):
    """A file is not in the cache and could not be fetched; `note` says so without this machine's folders."""

    def __init__(self, message: str, note: str) -> None:
        super().__init__(message)
        self.note = note


class DataCorrupt(CompanionError):
    """A file of the cache does not have its checksum and could not be replaced."""


def file_digest(path: Path) -> str:
    """Return the SHA-256 of the bytes of `path`."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def unpacked_digest(path: Path) -> str:
    """Return the SHA-256 of what a gzip file holds: two packings of one text are the same data."""
    with gzip.open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def download(url: str, folder: Path, sha256: str | None = None) -> Path:
    """Fetch `url` into `folder`, return its path; OSError when it fails, ValueError for a wrong hash."""
    import pooch
    import requests

    host = urlsplit(url).netloc
    if host in _down:
        raise ConnectionError("no connection")
    pooch.get_logger().setLevel("WARNING")
    bar = sys.stderr.isatty() and not os.environ.get("CI")
    # Without `identity` a server may announce a .gz as an encoding, and requests would unpack it.
    fetcher = pooch.HTTPDownloader(
        progressbar=bar, chunk_size=1 << 16, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}
    )
    name = url.rsplit("/", 1)[-1]
    known = None if sha256 is None else f"sha256:{sha256}"
    try:
        return Path(pooch.retrieve(url, known_hash=known, fname=name, path=folder, downloader=fetcher))
    except requests.exceptions.ChunkedEncodingError as error:
        raise OSError("connection dropped half-way") from error
    except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
        _down.add(host)
        raise ConnectionError("no connection") from error
    except requests.exceptions.HTTPError as error:
        raise OSError(str(error).partition(" for url")[0]) from error
    except ValueError as error:
        raise ValueError("wrong checksum") from error


@dataclass(frozen=True)
class File:
    """A file of the cache: `path` below the folder, hash, mirrors in order of trial.

    `digest(path)` is compared with the hash; `obtain(mirror, folder, sha256)` makes the file in a scratch
    folder.
    """

    path: str
    sha256: str
    mirrors: tuple[str, ...] = ()
    digest: Callable[[Path], str] = file_digest
    obtain: Callable[[str, Path, str], Path] = download


def cache_dir() -> Path:
    """Return the folder that holds the data: `$COMPANION_DATA`, else the platform's cache folder."""
    chosen = os.environ.get("COMPANION_DATA")
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    import pooch

    return Path(pooch.os_cache("companion"))


def place(file: File) -> str:
    """Name where `file` belongs, in words that hold on every machine."""
    if os.environ.get("COMPANION_DATA"):
        return f"$COMPANION_DATA/{file.path}"
    return str(cache_dir() / file.path).replace(str(Path.home()), "~", 1)


def check(file: File) -> str:
    """Return "cached", "missing" or "corrupt" for one file; nothing is downloaded."""
    path = cache_dir() / file.path
    if not path.is_file():
        return "missing"
    return "cached" if _digest(file, path) == file.sha256 else "corrupt"


def ensure(file: File, name: str) -> Path:
    """Return the checked path of a file of the set `name`, fetched if need be; DataMissing or DataCorrupt."""
    path, state = cache_dir() / file.path, check(file)
    if state == "cached":
        return path
    reason = _fetch(file, path)
    if reason is None:
        return path
    if state == "corrupt":
        raise DataCorrupt(
            f"{path} is corrupt: expected SHA-256 {file.sha256[:12]}…, found {_digest(file, path)[:24]}, and "
            f"no fresh copy could be had ({reason}); replace it or run `companion data fetch {name}`"
        )
    remedy = f"or run `companion data fetch {name}` with a network" if file.mirrors else "there is no mirror of it"
    raise DataMissing(
        f"'{name}' needs {file.path}: not in {cache_dir()} and not to be had ({reason}); "
        f"place it there, set COMPANION_DATA to a folder that has it, {remedy}",
        f"{file.path} is missing: looked for {place(file)}, and no mirror could be used; place the file "
        f"there, set COMPANION_DATA to a folder that has it, {remedy}.",
    )


def ensure_all(files: Sequence[File], name: str) -> list[Path]:
    """Return the checked paths of `files` of the set `name`; a corrupt one counts before a missing one."""
    damaged = [file for file in files if check(file) == "corrupt"]
    for file in damaged:
        ensure(file, name)
    return [ensure(file, name) for file in files]


def forget_hosts() -> None:
    """Try every host again: called when the user asks for a download by name."""
    _down.clear()


def _digest(file: File, path: Path) -> str:
    state = path.stat()
    key = (str(path), state.st_mtime_ns, state.st_size)
    if key not in _digests:
        try:
            _digests[key] = file.digest(path)
        except Exception as error:  # damaged bytes make gzip, zip and NumPy fail in many ways: one verdict
            return f"unreadable ({type(error).__name__})"
    return _digests[key]


def _fetch(file: File, path: Path) -> str | None:
    """Put `file` at `path` from the first mirror that serves it right; return why not when none does."""
    if os.environ.get("COMPANION_OFFLINE", "0") not in ("", "0"):
        return "COMPANION_OFFLINE forbids downloads"
    if not file.mirrors:
        return "no mirror"
    cache = cache_dir()
    if not (_writable(cache) and _writable(path.parent)):
        return f"cannot write in {cache}"
    for left in cache.glob(".download-*"):  # what a killed process could not clear away
        if time.time() - left.stat().st_mtime > _STALE:
            shutil.rmtree(left, ignore_errors=True)
    reasons = []
    for mirror in file.mirrors:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as scratch:
                fresh = file.obtain(mirror, Path(scratch), file.sha256)
                if file.digest(fresh) != file.sha256:
                    raise ValueError("wrong checksum")
                path.parent.mkdir(parents=True, exist_ok=True)
                fresh.replace(path)
            return None
        except (OSError, ValueError) as error:
            reasons.append(f"{urlsplit(mirror).netloc}: {getattr(error, 'strerror', None) or error}")
    return "; ".join(dict.fromkeys(reasons))


def _writable(folder: Path) -> bool:
    """Say whether `folder`, or its nearest ancestor that exists, may be written in.

    The mode counts too: the superuser may write everywhere, but a folder marked read-only is left alone.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK) and bool(folder.stat().st_mode & 0o222)
