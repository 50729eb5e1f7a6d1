"""One sweep on four engines, one worker killed, one training over two processes; writes book/results/scaling.json.

`python benchmarks/scaling.py` measures everything. With `--train FILE` it is the training alone, for `torchrun`.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import all_gather_object, init_process_group
from torch.nn.parallel import DistributedDataParallel

from companion import data
from companion.chapters import measured
from companion.data import Batches
from companion.errors import CompanionError
from companion.models.gaussian_noise_injections import NoisyMLP, noised_loss, site_noise
from companion.nn.likelihoods import CrossEntropy
from companion.seeds import generator
from companion.train import Ensemble, fit, sweep
from companion.train.parallel import Shard

SIZES, BATCH, VARIANCE, WORKERS = (64, 256, 256, 10), 128, 0.1, 2
SEEDS, STEPS = 8, 600  # of the sweep
TRAINING = 1500  # steps of the one training
LOSS = noised_loss(CrossEntropy)
# The order of a sum is all that differs: rounding of float32, carried through the training.
TOLERANCE = 1e-3


def network(seed: int) -> NoisyMLP:
    """Return the untrained network of `seed`: chapter 1's, on the digits."""
    return NoisyMLP(SIZES, generator=generator(seed, "init"))


def batches(seed: int) -> Batches:
    """Return the mini-batches of `seed`."""
    digits = data.load("digits")
    return Batches(digits.x.flatten(1), digits.y, batch_size=BATCH, seed=seed)


def digest(module: nn.Module) -> str:
    """Return the SHA-256 of all weights: equal only if every bit is."""
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()


def one(config: Mapping[str, Any]) -> dict[str, Any]:
    """Train the network of `config["seed"]`; the run after which `config["armed"]` is gone kills its worker."""
    if "log" in config:
        with open(config["log"], "a") as log:
            log.write(f"{config['seed']}\n")
        if config["seed"] == SEEDS // 2 and Path(config["armed"]).exists():
            Path(config["armed"]).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    net, seed, steps = network(config["seed"]), config["seed"], config["steps"]
    history = fit(
        net,
        LOSS,
        batches(seed),
        steps=steps,
        noise=site_noise(net),
        seed=seed,
        hyper={"variance": VARIANCE},
        record_every=steps,
    )
    return {"loss": float(history.metrics["loss"][-1]), "weights": digest(net)}


def ready(config: Mapping[str, Any]) -> dict[str, Any]:
    """Train for a moment and wait for the others, so that every worker has imported what a run needs."""
    one({"seed": 0, "steps": 2})
    time.sleep(1)
    return dict(config)


def together(steps: int) -> list[float]:
    """Return the last loss of each seed, all seeds trained as one program."""
    members = Ensemble([network(seed) for seed in range(SEEDS)])
    history = fit(
        members,
        LOSS,
        [batches(seed) for seed in range(SEEDS)],
        steps=steps,
        noise=site_noise(network(0)),
        seed=range(SEEDS),
        hyper={"variance": torch.full((SEEDS,), VARIANCE)},
        record_every=steps,
    )
    return [float(loss) for loss in history.metrics["loss"][-1]]


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that `function()` takes, and what it returns."""
    began = time.perf_counter()
    value = function()
    return time.perf_counter() - began, value


def cluster() -> Any:
    """Return the client of a dask cluster of two processes on this machine."""
    import distributed  # only here: a process of torchrun has no use for it

    return distributed.Client(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None)


def sweeps(steps: int) -> list[dict[str, Any]]:
    """Run the same seeds on each engine; the rows of the workers must equal those of one process, bit for bit."""
    configs = [{"seed": seed, "steps": steps} for seed in range(SEEDS)]
    first = [{"worker": k} for k in range(2 * WORKERS)]
    ready({})
    alone, wanted = timed(lambda: sweep(one, configs, n_jobs=1))
    arms = [{"arm": "one process", "workers": 1, "start": 0.0, "seconds": alone, "difference": 0.0}]

    seconds, losses = timed(lambda: together(steps))
    difference = max(abs(a / b["loss"] - 1) for a, b in zip(losses, wanted, strict=True))
    assert difference <= TOLERANCE, f"the ensemble's losses are off by {difference}"
    arms.append({"arm": "one program", "workers": 1, "start": 0.0, "seconds": seconds, "difference": difference})

    start, _ = timed(lambda: sweep(ready, first, n_jobs=WORKERS))
    seconds, rows = timed(lambda: sweep(one, configs, n_jobs=WORKERS))
    assert rows == wanted, "loky's rows differ"
    arms.append({"arm": "loky", "workers": WORKERS, "start": start, "seconds": seconds, "difference": 0.0})

    began = time.perf_counter()
    with cluster():
        sweep(ready, first, backend="dask")
        start = time.perf_counter() - began
        seconds, rows = timed(lambda: sweep(one, configs, backend="dask"))
    assert rows == wanted, "dask's rows differ"
    arms.append({"arm": "dask", "workers": WORKERS, "start": start, "seconds": seconds, "difference": 0.0})
    return arms


def killed(backend: str, steps: int, folder: Path) -> dict[str, Any]:
    """Kill a worker in the middle of a sweep; finished runs must not be run again, and no row may change."""
    armed, log, rows = folder / "armed", folder / "log", folder / "rows"
    armed.touch()
    configs = [{"seed": s, "steps": steps, "armed": str(armed), "log": str(log)} for s in range(SEEDS)]

    def run() -> list[dict[str, Any]]:
        return sweep(one, configs, n_jobs=WORKERS, backend=backend, folder=rows)

    def finished() -> set[Path]:
        return set(rows.glob("*.json"))

    message, calls = "", 1
    try:
        found = run()
        kept = 0
    except CompanionError as error:
        message, kept, calls = str(error).replace(str(rows), "FOLDER"), len(finished()), 2
        found = run()
    started = [int(line) for line in log.read_text().split()]
    assert not armed.exists(), "no worker was killed"
    wanted = sweep(one, [{"seed": s, "steps": steps} for s in range(SEEDS)], n_jobs=1)
    assert found == wanted, "rows changed when a worker was killed"
    assert len(finished()) == SEEDS
    lost = len(started) - SEEDS  # a killed run starts twice, and so does what was in its neighbour's hands
    assert 1 <= lost <= WORKERS, f"{lost} runs were repeated"
    return {"backend": backend, "runs": SEEDS, "calls": calls, "kept": kept, "repeated": lost, "message": message}


def train(target: Path, steps: int) -> None:
    """Train one network in every process of the group, each on its part of the batches; rank 0 writes the weights."""
    torch.set_num_threads(1)
    one({"seed": 0, "steps": 2})  # so that the time is that of the steps, not of imports
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    net = network(0)
    part = Shard(batches(0), rank, world)
    if world > 1:
        init_process_group("gloo")
    history = fit(
        DistributedDataParallel(net) if world > 1 else net,
        LOSS,
        part,
        steps=steps,
        noise=part.noise(site_noise(net)),
        hyper={"variance": VARIANCE},
        record_every=steps,
    )
    digests: list[Any] = [digest(net)] * world
    if world > 1:
        all_gather_object(digests, digest(net))
    assert len(set(digests)) == 1, "the replicas differ"
    if rank == 0:
        torch.save(net.state_dict(), target.with_suffix(".pt"))
        target.write_text(json.dumps({"world": world, "seconds": history.seconds, "weights": digests[0]}))
    if world > 1:
        os._exit(0)  # leaving in order, gloo may wait for its own threads for ever (seen with PyTorch 2.13)


def launched(processes: int, steps: int, target: Path) -> dict[str, Any]:
    """Run `train` under `processes` processes of torchrun (1: plain Python) and return what it wrote."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), __file__]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--train", str(target), "--steps", str(steps)], env=env, check=True, timeout=600)
    return dict(json.loads(target.read_text()), tensors=torch.load(target.with_suffix(".pt"), weights_only=True))


def parallel(steps: int, folder: Path) -> dict[str, Any]:
    """Compare one process with two on the same training, and two with two."""
    alone, pair, again = (launched(n, steps, folder / f"{k}.json") for k, n in enumerate((1, WORKERS, WORKERS)))
    gaps = [(pair["tensors"][k] - v).norm() / v.norm() for k, v in alone["tensors"].items()]
    difference = float(max(gaps))
    assert difference <= TOLERANCE, f"the weights of one and two processes differ by {difference}"
    assert pair["weights"] == again["weights"], "two launches differ"
    return {
        "processes": WORKERS,
        "steps": steps,
        "alone": alone["seconds"],
        "together": pair["seconds"],
        "difference": difference,
        "repeatable": pair["weights"] == again["weights"],
    }


def measure(steps: int, training: int) -> dict[str, Any]:
    """Measure everything and return the content of scaling.json."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for backend in ("loky", "dask"):
            (folder / backend).mkdir()
        arms = sweeps(steps)
        print("killing workers on purpose: what dask and multiprocessing say about it is expected", flush=True)
        kills = [killed("loky", steps, folder / "loky")]
        # dask tries a killed worker's run elsewhere, and its nanny starts another worker.
        with cluster():
            kills.append(killed("dask", steps, folder / "dask"))
        torchrun = parallel(training, folder)
    origin = measured.origin() | {"libraries": {name: version(name) for name in ("joblib", "distributed")}}
    weights = sum(p.numel() for p in network(0).parameters())
    problem = {"seeds": SEEDS, "steps": steps, "parameters": weights, "batch": BATCH, "tolerance": TOLERANCE}
    return {"provenance": origin, "problem": problem, "sweep": arms, "killed": kills, "torchrun": torchrun}


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--train", type=Path, help="only the training, for torchrun; its result goes here")
    options.add_argument("--steps", type=int, help="updates (of the sweep's runs, or of the training)")
    given = options.parse_args()
    if given.train:
        train(given.train, given.steps or TRAINING)
    else:
        torch.set_num_threads(1)
        print(f"written: {measured.write('scaling', measure(given.steps or STEPS, given.steps or TRAINING))}")
