"""Many independent runs of one function: joblib here or dask on many machines, a file per run."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError

from companion.errors import CompanionError
from companion.files import write_atomic
from companion.train.progress import progress

Row = dict[str, Any]
Run = Callable[[Row], Mapping[str, Any]]


def sweep(
    function: Run,
    configs: Sequence[Mapping[str, Any]],
    *,
    n_jobs: int = -1,
    backend: str = "loky",
    folder: Path | str | None = None,
) -> list[Row]:
    """Return `function(config)`, a row that JSON can hold, for each of `configs`, in their order.

    With `folder` every run writes `<hash of function name and config>.json` there when it ends, and is
    skipped when that file exists: after a crash or a killed worker, call again and only the missing runs are
    done. The code of `function` is not in the hash: change it, change the folder. A run has one thread.
    `backend="dask"` uses the open `dask.distributed.Client` (extra `[scale]`); its workers must see
    `folder`, and `n_jobs` has no say there.

    Raises CompanionError for a config or row that JSON cannot hold, a killed worker, a missing dask client.
    """
    if backend not in ("loky", "dask"):
        raise CompanionError(f"backend must be 'loky' or 'dask', not '{backend}'")
    named = {_key(function, config): dict(config) for config in configs}
    home = Path(folder) if folder is not None else None
    rows: dict[str, Row] = {}
    for key, config in named.items():
        if home is not None and (home / f"{key}.json").exists():
            rows[key] = _read(home / f"{key}.json", config)
    missing = [key for key in named if key not in rows]
    files = [home and home / f"{key}.json" for key in missing]
    todo = [named[key] for key in missing]
    if missing:
        done = _dask(function, todo, files) if backend == "dask" else _loky(function, todo, files, n_jobs)
        try:
            rows.update(zip(missing, progress(done, desc="sweep", total=len(missing)), strict=True))
        except _Killed:
            kept = f"the finished runs are in {home}" if home else "give a `folder` to keep finished runs"
            raise CompanionError(
                f"a sweep worker was killed (out of memory?); {kept}: call again for the rest"
            ) from None
    return [rows[_key(function, config)] for config in configs]


class _Killed(Exception):
    """A worker died under a run."""


def _loky(function: Run, configs: list[Row], files: Sequence[Path | None], n_jobs: int) -> Iterator[Row]:
    with joblib.parallel_config(backend="loky", n_jobs=n_jobs, inner_max_num_threads=1):
        jobs = (joblib.delayed(_run)(function, *one) for one in zip(configs, files, strict=True))
        try:
            yield from joblib.Parallel(return_as="generator")(jobs)
        except TerminatedWorkerError:
            raise _Killed from None


def _dask(function: Run, configs: list[Row], files: Sequence[Path | None]) -> Iterator[Row]:
    # By dask's own futures: joblib's dask backend (1.6) waits for ever once dask gives up on a killed worker.
    try:
        import distributed
    except ImportError:
        raise CompanionError("backend 'dask' needs dask.distributed: pip install 'companion[scale]'") from None
    try:
        client = distributed.get_client()
    except ValueError:
        raise CompanionError("backend 'dask' needs an open client: dask.distributed.Client(...)") from None
    futures = client.map(functools.partial(_run, function), configs, files, pure=False)
    try:
        for future in futures:
            yield future.result()
    except distributed.KilledWorker:
        raise _Killed from None
    finally:
        client.cancel(futures)


def _run(function: Run, config: Row, path: Path | None) -> Row:
    if path is not None and path.exists():  # another sweep was quicker, or dask lost the answer of a killed worker
        return _read(path, config)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the number changes the last bits, and workers share the cores
    try:
        row = dict(function(dict(config)))
    finally:
        torch.set_num_threads(threads)
    text = _json({"config": config, "row": row}, "the row")
    if path is not None:
        write_atomic(path, text.encode())
    fresh: Row = json.loads(text)["row"]  # as it will be read next time
    return fresh


def _read(path: Path, config: Row) -> Row:
    try:
        kept = json.loads(path.read_text())
        row: Row = kept["row"]
        known = kept["config"] == json.loads(json.dumps(config))
    except (ValueError, KeyError, TypeError):
        raise CompanionError(f"{path} is not a sweep result; remove it to run that configuration again") from None
    if not known:
        raise CompanionError(f"{path} holds another configuration; remove it to run this one")
    return row


def _key(function: Callable[..., Any], config: Mapping[str, Any]) -> str:
    if not hasattr(function, "__qualname__"):
        raise CompanionError("name the function: a partial has no name to keep results under")
    name = f"{function.__module__}.{function.__qualname__}"
    return hashlib.sha256(f"{name} {_json(dict(config), 'a config')}".encode()).hexdigest()[:16]


def _json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, sort_keys=True)
    except TypeError as error:
        raise CompanionError(f"JSON cannot hold {what} of the sweep ({error}); use numbers, strings, lists") from None
