"""Execute chapters with papermill: cached by digest, several at once, never leaving a half-written copy."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from companion.chapters import notebooks, paths, profiles, provenance, results
from companion.chapters.lock import alone
from companion.chapters.publish import publish
from companion.errors import CompanionError

_CELLS = re.compile(rb"(\d+)/(\d+) \[")  # papermill's progress bar, on its standard error
# jsonschema would compile a grammar that nobody here uses, for three seconds (as in companion.chapters).
_PAPERMILL = "import sys; sys.modules['rfc3987_syntax'] = None; from papermill.cli import papermill; papermill()"
_KILL_AFTER = 10.0  # seconds between asking a run to stop and stopping it


@dataclass(frozen=True)
class Outcome:
    """What became of one chapter: `state` is "cached", "done" or "failed"; `error` is the traceback."""

    chapter: str
    state: str
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class _Job:
    chapter: str
    profile: str
    parameters: dict[str, Any]
    key: str  # digest of everything that the outputs follow from


def environment(profile: str, results_dir: Path, figures_dir: Path) -> dict[str, str]:
    """Return the environment of a kernel: what must be set before Python starts for runs to agree.

    Threads follow the profile alone: the bits of a result do not depend on what else runs.
    """
    threads = str(profiles.get(profile).threads)
    # Kernels start in another folder than the one that a relative path was meant from.
    data = {k: str(Path(v).expanduser().absolute()) for k, v in os.environ.items() if k == "COMPANION_DATA" and v}
    return {
        **os.environ,
        **data,
        "COMPANION_ROOT": str(paths.root()),
        "COMPANION_RESULTS": str(results_dir),
        "COMPANION_FIGURES": str(figures_dir),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        # Threads that wait sleep soon: no slower alone, and on a busy machine two to three times as fast.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),
        "PYTHONHASHSEED": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        # The inline backend draws a forgotten figure into the output, where the site build refuses it.
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "SOURCE_DATE_EPOCH": "0",
        "CI": os.environ.get("CI") or "true",  # no progress bars inside the page
        "JUPYTER_PREFER_ENV_PATH": "1",
    }


def chosen(names: Sequence[str]) -> list[str]:
    """Return the chapters asked for, or all; a unique prefix such as "05" will do.

    Raises CompanionError listing the valid names.
    """
    if not (known := paths.chapters()):
        raise CompanionError(f"no chapters in {paths.root() / 'notebooks'}: run this inside the book's folder")
    found = []
    for name in names or known:
        matches = [k for k in known if k.startswith(name)]
        found.append(matches[0] if len(matches) == 1 else paths.check_chapter(name))
    return list(dict.fromkeys(found))


def run(
    names: Sequence[str],
    profile: str,
    jobs: int = 1,
    parameters: Mapping[str, Any] | None = None,
    force: bool = False,
) -> list[Outcome]:
    """Execute the chapters `names` (all when empty) and return their outcomes in order.

    A failing chapter doesn't stop the others. A copy replaces the last good one only when it is whole.
    Raises CompanionError on unknown names, KeyboardInterrupt when interrupted (finished chapters are kept).
    """
    profiles.get(profile)
    work = [_job(name, profile, parameters or {}) for name in chosen(names)]
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    quiet = bool(os.environ.get("CI")) or not console.is_terminal
    with Progress(*columns, console=console, disable=quiet) as progress:
        waiting = [job for job in work if force or not _cached(job)]
        for job in work:
            console.print(f"{job.chapter}: {'running' if job in waiting else 'cached'} ({profile})")
        done = _run_all(waiting, jobs_at_once(jobs, len(waiting)), progress)
    return [done.get(job.chapter) or Outcome(job.chapter, "cached") for job in work]


def jobs_at_once(jobs: int, chapters: int) -> int:
    """Return how many of `chapters` run side by side: one on a GPU. Raises CompanionError on less than one job."""
    if jobs < 1:
        raise CompanionError(f"-j {jobs}: the number of chapters to run at once must be at least 1")
    if min(jobs, chapters) > 1:
        import torch  # only here, as above

        return 1 if torch.cuda.is_available() else min(jobs, chapters)
    return 1


def _job(name: str, profile: str, parameters: Mapping[str, Any]) -> _Job:
    defaults = notebooks.parameters(notebooks.read_source(paths.notebook(name)))
    free = {k: v for k, v in defaults.items() if k != "profile"}
    for key, value in parameters.items():
        if key not in free:
            hint = "use --profile" if key == "profile" else f"choose from {', '.join(free) or '(none)'}"
            raise CompanionError(f"{name} has no parameter {key!r} to set: {hint}")
        if isinstance(free[key], float) and type(value) is int:
            continue
        if type(value) is not type(free[key]):
            kind = type(free[key]).__name__
            raise CompanionError(f"{name}: parameter {key}={value!r} should be of type {kind}, like {free[key]!r}")
    given = {**parameters, "profile": profile}
    # A chapter may redraw what the GPU found, so a new recorded file makes a new page.
    recorded = paths.recorded_file(name, "gpu")
    page = recorded.read_bytes() if recorded.is_file() else b""
    seen = [provenance.digest(name, profile).encode(), json.dumps(given, sort_keys=True).encode(), page]
    return _Job(name, profile, given, hashlib.sha256(b"\0".join(seen)).hexdigest())


def _cached(job: _Job) -> bool:
    try:
        result, note = results.read(job.chapter, job.profile), results.run_note(job.chapter, job.profile)
        made_of = paths.digest_file(job.chapter, job.profile).read_bytes()
        whole = notebooks.is_whole(paths.executed_file(job.chapter, job.profile))
    except (CompanionError, OSError):  # damaged or gone: the run that writes it anew mends it
        return False
    if result is None or note is None or not whole:
        return False
    if wanted := results.stand_ins(result):
        from companion import data  # only here: PyTorch takes seconds to import

        # What ran on a stand-in for want of data runs again once the data is there.
        if any(data.status(name) != "missing" for name in wanted):
            return False
    return made_of == job.key.encode()


def is_current(chapter: str, profile: str) -> bool:
    """Say whether the executed copy, run with default parameters, still follows from the sources."""
    return _cached(_job(chapter, profile, {}))


def _run_all(waiting: list[_Job], at_once: int, progress: Progress) -> dict[str, Outcome]:
    stop = threading.Event()
    pool = ThreadPoolExecutor(max_workers=at_once)
    futures = {j.chapter: pool.submit(_run_one, j, progress, stop) for j in waiting}
    try:
        return {chapter: future.result() for chapter, future in futures.items()}
    finally:
        stop.set()  # after an interrupt; when all is done nobody listens any more
        pool.shutdown(wait=True, cancel_futures=True)


def _run_one(job: _Job, progress: Progress, stop: threading.Event) -> Outcome:
    path = paths.build_dir() / "locks" / job.profile / f"{job.chapter}.lock"
    waiting = f"{job.chapter}: waiting for another run of it ({job.profile})"
    try:
        with alone(path, stop, lambda: progress.console.print(waiting)) as waited:
            if waited and _cached(job):
                return Outcome(job.chapter, "cached")
            return _run_alone(job, progress, stop)
    except CompanionError as problem:
        return _failed(job, str(problem), progress, stop)


def _failed(job: _Job, error: str, progress: Progress, stop: threading.Event, seconds: float = 0.0) -> Outcome:
    if not stop.is_set():
        progress.console.print(f"{error}\n{job.chapter}: FAILED (the last good copy, if any, is kept)")
    return Outcome(job.chapter, "failed", seconds, error)


def _run_alone(job: _Job, progress: Progress, stop: threading.Event) -> Outcome:
    start = time.monotonic()
    scratch = paths.build_dir() / "running" / job.profile / job.chapter
    shutil.rmtree(scratch, ignore_errors=True)
    bar = progress.add_task(job.chapter, total=None)
    try:
        scratch.mkdir(parents=True)
        # A name of its own: the kernel of a runner that was killed may still be writing into the last one.
        folder = Path(tempfile.mkdtemp(dir=scratch))
        code, log = _papermill(job, folder, stop, lambda n, total: progress.update(bar, completed=n, total=total))
        seconds = time.monotonic() - start
        if code == 0:
            publish(job.chapter, job.profile, job.key, folder, seconds)
            progress.console.print(f"{job.chapter}: done in {seconds:.1f} s")
            return Outcome(job.chapter, "done", seconds)
        error = "interrupted" if stop.is_set() else _keep_failed(job, folder) or log[-4000:]
    except CompanionError as problem:
        error = str(problem)
    except OSError as problem:
        error = f"cannot write under {paths.build_dir()}: {problem}"
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _failed(job, error, progress, stop, time.monotonic() - start)


def _keep_failed(job: _Job, folder: Path) -> str:
    """Keep the notebook as far as it came and return its traceback, or "" if there is none to be had."""
    executed = folder / "executed.ipynb"
    try:
        cells = nbformat.read(executed, as_version=4).cells
    except (OSError, ValueError):  # not begun, or cut short by a full disk: papermill's own log says it
        return ""
    raised = [o for cell in cells for o in cell.get("outputs", []) if o.output_type == "error"]
    kept = paths.executed_file(job.chapter, job.profile).with_suffix(".failed.ipynb")
    paths.write_atomic(kept, executed.read_bytes())
    return "\n".join(line for output in raised for line in output.traceback)


def _papermill(job: _Job, folder: Path, stop: threading.Event, report: Any) -> tuple[int, str]:
    source = folder / "source.ipynb"
    source.write_text(notebooks.dumps(notebooks.read_source(paths.notebook(job.chapter))), "utf8")
    command = [sys.executable, "-c", _PAPERMILL, str(source), str(folder / "executed.ipynb"), "--kernel", "python3"]
    command += ["--cwd", str(paths.notebook(job.chapter).parent), "--progress-bar", "-y", json.dumps(job.parameters)]
    env = environment(job.profile, folder / "results", folder / "figures")
    quiet, pipe, log = subprocess.DEVNULL, subprocess.PIPE, b""
    # Its own session: Ctrl-C reaches only us, and we stop the run in order.
    with subprocess.Popen(command, env=env, stdout=quiet, stderr=pipe, start_new_session=True) as process:
        threading.Thread(target=_stop_when_told, args=(process, stop), daemon=True).start()
        while chunk := process.stderr.read1(65536):  # type: ignore[union-attr]
            log += chunk
            for done, total in _CELLS.findall(chunk):
                report(int(done), int(total))
    return process.returncode, log.decode("utf8", "replace")


def _stop_when_told(process: subprocess.Popen[bytes], stop: threading.Event) -> None:
    while process.poll() is None:
        if stop.wait(timeout=0.2):
            process.terminate()  # nbclient takes its kernel down on SIGTERM
            try:
                process.wait(_KILL_AFTER)
            except subprocess.TimeoutExpired:
                process.kill()
