"""A sweep loses no finished run."""

import functools
import json
import os
import resource
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from companion.errors import CompanionError
from companion.train import sweep

sweep_room = sys.modules["companion.train.sweep"]  # the package's name `sweep` is the function


def square(config):
    with open(config["log"], "a") as log:
        log.write(f"{config['x']}\n")
    torch.manual_seed(config["x"])
    return {"y": config["x"] ** 2, "pair": (1, 2), "threads": torch.get_num_threads(), "pid": os.getpid()}


def deadly(config):
    if config["x"] == 3 and Path(config["armed"]).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return square(config)


def failing(config):
    if config["x"] == 1:
        raise ZeroDivisionError("as planned")
    return square(config)


def configs(folder: Path, count: int = 4) -> list[dict]:
    return [{"x": x, "log": str(folder / "log"), "armed": str(folder / "armed")} for x in range(count)]


def calls(folder: Path) -> list[int]:
    return sorted(int(line) for line in (folder / "log").read_text().split())


def test_rows_come_in_order_from_single_threaded_workers_and_files_are_read_again(tmp_path):
    rows = sweep(square, configs(tmp_path), n_jobs=2, folder=tmp_path / "rows")
    assert [row["y"] for row in rows] == [0, 1, 4, 9]
    assert {row["threads"] for row in rows} == {1}
    assert os.getpid() not in {row["pid"] for row in rows}
    assert rows[0]["pair"] == [1, 2]  # as JSON gives it, the first time too
    again = sweep(square, [*configs(tmp_path, 5), configs(tmp_path)[0]], n_jobs=1, folder=tmp_path / "rows")
    assert again[:4] == rows and again[5] == rows[0]
    assert calls(tmp_path) == [0, 1, 2, 3, 4]  # only the new one ran, once
    assert len(list((tmp_path / "rows").iterdir())) == 5


def test_a_run_in_this_process_gives_the_threads_back(tmp_path):
    before = torch.get_num_threads()
    assert sweep(square, configs(tmp_path, 1), n_jobs=1)[0]["threads"] == 1
    assert torch.get_num_threads() == before


def test_a_killed_worker_costs_no_finished_run(tmp_path):
    (tmp_path / "armed").touch()
    first = configs(tmp_path)[:3]
    finished = sweep(deadly, first, n_jobs=2, folder=tmp_path / "rows")
    with pytest.raises(CompanionError, match="a sweep worker was killed"):
        sweep(deadly, configs(tmp_path), n_jobs=2, folder=tmp_path / "rows")
    assert len(list((tmp_path / "rows").iterdir())) == 3
    (tmp_path / "armed").unlink()
    rows = sweep(deadly, configs(tmp_path), n_jobs=2, folder=tmp_path / "rows")
    assert rows[:3] == finished and rows[3]["y"] == 9
    assert calls(tmp_path) == [0, 1, 2, 3]


def test_what_another_sweep_has_done_meanwhile_is_read_and_not_done_again(tmp_path):
    (one,) = sweep(square, configs(tmp_path, 1), n_jobs=1, folder=tmp_path / "rows")
    (file,) = (tmp_path / "rows").iterdir()
    # As a worker sees it whose task was handed out before that file was there, or whose first answer was lost.
    again = sweep_room._run(square, configs(tmp_path, 1)[0], file)
    assert again == one and calls(tmp_path) == [0]
    file.unlink()
    assert sweep_room._run(square, configs(tmp_path, 1)[0], file)["y"] == 0
    assert calls(tmp_path) == [0, 0] and file.exists()


def test_two_sweeps_at_once_on_one_folder_give_the_same_rows(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(sweep, square, configs(tmp_path), n_jobs=1, folder=tmp_path / "rows") for _ in range(2)]
    first, second = (future.result() for future in both)
    assert [row["y"] for row in first] == [row["y"] for row in second] == [0, 1, 4, 9]
    assert len(list((tmp_path / "rows").iterdir())) == 4


def test_a_full_disk_costs_no_finished_run(tmp_path):
    finished = sweep(square, configs(tmp_path, 2), n_jobs=1, folder=tmp_path / "rows")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))  # no file may grow beyond 60 bytes
    try:
        with pytest.raises(
            CompanionError, match=r"cannot write .*File too large; nothing was changed: free some space"
        ):
            sweep(
                square, [dict(c, log=os.devnull) for c in configs(tmp_path, 3)][2:], n_jobs=1, folder=tmp_path / "rows"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(list((tmp_path / "rows").iterdir())) == 2, "nothing half-written is left"
    rows = sweep(square, configs(tmp_path, 3), n_jobs=1, folder=tmp_path / "rows")
    assert rows[:2] == finished and rows[2]["y"] == 4


def test_a_run_that_raises_is_heard_and_the_finished_ones_stay(tmp_path):
    with pytest.raises(ZeroDivisionError, match="as planned"):
        sweep(failing, configs(tmp_path, 2), n_jobs=1, folder=tmp_path / "rows")
    assert len(list((tmp_path / "rows").iterdir())) == 1


def test_dask_runs_the_same_call_and_survives_a_killed_worker(tmp_path):
    distributed = pytest.importorskip("distributed")
    import dask

    (tmp_path / "armed").touch()
    with pytest.raises(CompanionError, match="needs an open client"):
        sweep(deadly, configs(tmp_path), backend="dask")
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        finished = sweep(deadly, configs(tmp_path)[:3], backend="dask", folder=tmp_path / "rows")
        assert os.getpid() not in {row["pid"] for row in finished}
        with pytest.raises(CompanionError, match="a sweep worker was killed"):
            sweep(deadly, configs(tmp_path), backend="dask", folder=tmp_path / "rows")
    (tmp_path / "armed").unlink()
    rows = sweep(deadly, configs(tmp_path), n_jobs=1, folder=tmp_path / "rows")
    assert rows[:3] == finished and rows[3]["y"] == 9
    assert calls(tmp_path) == [0, 1, 2, 3]


def test_what_cannot_be_kept_is_refused(tmp_path):
    with pytest.raises(CompanionError, match="JSON cannot hold a config"):
        sweep(square, [{"x": torch.zeros(1)}])
    with pytest.raises(CompanionError, match="JSON cannot hold the row"):
        sweep(tensor_row, [{"x": 0}], n_jobs=1)
    with pytest.raises(CompanionError, match="backend must be"):
        sweep(square, [], backend="slurm")
    with pytest.raises(CompanionError, match="name the function"):
        sweep(functools.partial(square), [{"x": 0}])


def tensor_row(config):
    return {"y": torch.zeros(1)}


@pytest.mark.parametrize(
    ("content", "found"),
    [("{", "is not a sweep result"), (json.dumps({"config": {}, "row": {}}), "holds another configuration")],
)
def test_a_damaged_or_foreign_file_is_refused(tmp_path, content, found):
    sweep(square, configs(tmp_path, 1), n_jobs=1, folder=tmp_path / "rows")
    next((tmp_path / "rows").iterdir()).write_text(content)
    with pytest.raises(CompanionError, match=found):
        sweep(square, configs(tmp_path, 1), n_jobs=1, folder=tmp_path / "rows")
