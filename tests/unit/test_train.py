"""The loop: what it records, refuses and survives."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from companion.data.batches import Batches
from companion.errors import CompanionError
from companion.seeds import generator
from companion.train import Ensemble, TrainingDiverged, cosine, fit
from companion.train.careful import Careful
from companion.train.progress import progress


def data() -> tuple[torch.Tensor, torch.Tensor]:
    draw = generator(0, "test data")
    x = torch.randn(120, 3, generator=draw)
    return x, x.square().sum(1, keepdim=True) + 0.1 * torch.randn(120, 1, generator=draw)


def batches(seed: int = 0) -> Batches:
    return Batches(*data(), batch_size=16, seed=seed)


def net(seed: int = 0) -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    draw = generator(seed, "init")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4, generator=draw)
    return module


def loss(module, batch, noise, hyper):
    x, y = batch
    error = (module(x + hyper["scale"] * noise) - y).square().mean()
    return error, {"rmse": error.sqrt()}


def noise(draw, batch):
    return torch.randn(batch[0].shape, generator=draw)


def run(checkpoint: Path | None = None, *, criterion=loss, **changed):
    settings = {"steps": 60, "lr": 1e-2, "noise": noise, "hyper": {"scale": 0.1}, "record_every": 20}
    settings |= {
        "clip": 1.0,
        "ema": 0.9,
        "schedule": cosine,
        "checkpoint_every": 10,
        "checkpoint": checkpoint,
    }
    return fit(net(), criterion, batches(), **settings | changed)


def same(one, two) -> bool:
    """Whether two histories agree in every bit."""
    pairs = [(one.module.state_dict(), two.module.state_dict()), (one.metrics, two.metrics)]
    pairs.append((one.ema.state_dict(), two.ema.state_dict()))
    return one.steps == two.steps and all(torch.equal(a[key], b[key]) for a, b in pairs for key in a | b)


def test_fit_equals_the_loop_written_out():
    history = run(clip=0.5, record=lambda module, step: {"bias": module[2].bias, "step": float(step)})
    module, draw = net(), generator(0, "noise")
    descent = torch.optim.Adam(module.parameters(), lr=1e-2, fused=True)
    average = [p.detach().clone() for p in module.parameters()]
    errors, biases = [], []
    for step in range(60):
        x, y = batches().batch(step)
        if step % 20 == 0:
            biases.append(module[2].bias.detach().clone())
        error = (module(x + 0.1 * torch.randn(x.shape, generator=draw)) - y).square().mean()
        errors.append(error.detach())
        descent.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        descent.param_groups[0]["lr"] = 1e-2 * cosine(step, 60)
        descent.step()
        for mean, parameter in zip(average, module.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 0.1)
    for ours, theirs in zip(history.module.parameters(), module.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    for ours, theirs in zip(history.ema.parameters(), average, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)
    assert history.steps == [0, 20, 40, 60]
    assert torch.allclose(history.metrics["loss"][:3], torch.stack(errors[::20]), atol=1e-6)
    assert torch.allclose(history.metrics["rmse"].square(), history.metrics["loss"])
    assert torch.allclose(history.metrics["bias"][:3], torch.stack(biases), atol=1e-6)
    assert torch.equal(history.metrics["bias"][3], history.module[2].bias)
    assert history.metrics["step"].tolist() == [0, 20, 40, 60]


def test_the_default_optimiser_uses_the_fused_kernel_and_given_choices_are_kept():
    seen = []
    for chosen in (torch.optim.Adam, lambda p, lr: torch.optim.SGD(p, lr=lr, foreach=False)):

        def build(parameters, chosen=chosen, **settings):
            seen.append(chosen(parameters, **settings))
            return seen[-1]

        run(optimiser=build)
    assert [descent.defaults["fused"] for descent in seen] == [None, True, None]


CHILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_train, torch
from companion.train import checkpoint

calls = 0
def deadly(module, batch, noise, hyper):
    global calls
    calls += 1
    if calls == 38:
        os.kill(os.getpid(), signal.SIGKILL)
    return test_train.loss(module, batch, noise, hyper)

def die(*names):
    if Path(names[1]).exists():  # the second checkpoint: there is a good one to lose
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*names)

torch.set_num_threads(int(sys.argv[4]))
if sys.argv[3] == "writing":
    rename, os.replace = os.replace, die
    test_train.run(Path(sys.argv[2]))
else:
    test_train.run(Path(sys.argv[2]), criterion=deadly)
"""


@pytest.mark.parametrize(("moment", "reached"), [("training", 30), ("writing", 10)])
def test_a_killed_run_resumes_bit_identically(tmp_path, moment, reached):
    path = tmp_path / "run.pt"
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(path), moment]
    child = subprocess.run([*command, str(torch.get_num_threads())], capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert torch.load(path, weights_only=True)["step"] == reached
    assert len(os.listdir(tmp_path)) == (2 if moment == "writing" else 1)  # the half-written one
    for half in tmp_path.glob(".run.pt.*"):  # as it will look tomorrow: today it might be a live run's
        os.utime(half, (0, 0))
    resumed = run(path)
    assert same(resumed, run())
    assert os.listdir(tmp_path) == ["run.pt"]
    assert same(run(path, criterion=counted(calls := [])), resumed)
    assert len(calls) == 1  # only the look at the first loss: a finished run is read, not repeated


def counted(calls: list):
    def criterion(*arguments):
        calls.append(1)
        return loss(*arguments)

    return criterion


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"lr": 0.02}, "lr"),
        ({"seed": 1}, "seed was"),
        ({"steps": 70}, "steps was 60, is 70"),
        ({"schedule": None}, "schedule"),
        ({"hyper": {"scale": 0.2}}, "other data, noise, initial weights or loss"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, changed, found):
    run(tmp_path / "run.pt")
    with pytest.raises(CompanionError, match=r"belongs to another run") as caught:
        run(tmp_path / "run.pt", **changed)
    assert found in str(caught.value)


def test_a_checkpoint_of_other_clipping_is_refused_and_counts_begin_anew(tmp_path):
    careful = Careful(torch.optim.SGD, clip=1.0, skip=1e-9, patience=70)
    run(tmp_path / "run.pt", optimiser=careful)
    assert int(careful.skipped) == 60
    for other in (dict(clip=2.0), dict(skip=2e-9), dict(patience=71)):
        changed = Careful(torch.optim.SGD, **(dict(clip=1.0, skip=1e-9, patience=70) | other))
        with pytest.raises(CompanionError, match="careful was"):
            run(tmp_path / "run.pt", optimiser=changed)
    run(tmp_path / "run.pt", optimiser=careful)  # the same run, read
    assert int(careful.skipped) == 0


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "run.pt").write_bytes(content)
    with pytest.raises(CompanionError, match="not a readable checkpoint"):
        run(tmp_path / "run.pt")


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    torch.save({"step": Path("/")}, tmp_path / "run.pt")  # any class pickles as code
    with pytest.raises(CompanionError, match="not a readable checkpoint"):
        run(tmp_path / "run.pt")


def test_an_unwritable_folder_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CompanionError, match="cannot write"):
        run(tmp_path / "file" / "run.pt")


def test_a_loss_that_is_not_finite_stops_at_its_step_with_the_last_good_checkpoint(tmp_path):
    path, calls = tmp_path / "run.pt", []

    def bad(module, batch, noise, hyper):
        calls.append(1)
        value, metrics = loss(module, batch, noise, hyper)
        return (value * float("nan") if len(calls) == 38 else value), metrics

    with pytest.raises(TrainingDiverged, match=r"step 37; last good checkpoint: .*run\.pt") as caught:
        run(path, criterion=bad)
    assert (caught.value.step, caught.value.checkpoint) == (37, path)
    kept = torch.load(path, weights_only=True)
    assert kept["step"] == 30
    assert all(tensor.isfinite().all() for tensor in kept["module"].values())


@pytest.mark.parametrize("at", [39, 59])  # the update before a checkpoint; the last update of all
def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(tmp_path, at):
    path, calls = tmp_path / "run.pt", []

    def bad(module, batch, noise, hyper):
        calls.append(1)
        value, metrics = loss(module, batch, noise, hyper)
        if len(calls) == at + 1:
            value = value + (module[2].bias - module[2].bias.detach()).sqrt().sum()  # 0, with slope inf
        return value, metrics

    with pytest.raises(TrainingDiverged) as caught:
        run(path, criterion=bad, clip=None)
    assert caught.value.step == at + 1
    kept = torch.load(path, weights_only=True)
    assert kept["step"] == at // 10 * 10
    assert all(tensor.isfinite().all() for tensor in kept["module"].values())


def test_divergence_without_a_checkpoint_names_the_members():
    ensemble = Ensemble([net(k) for k in range(3)])
    settings = {"noise": noise, "seed": [0, 1, 2], "hyper": {"scale": [0.1, float("inf"), 0.1]}}
    with pytest.raises(TrainingDiverged, match=r"step 0 \(member 1\); no checkpoint was kept") as caught:
        fit(ensemble, loss, batches(), steps=3, **settings)
    assert caught.value.members == [1]


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"record_every": 0}, "record_every must be at least 1"),
        ({"clip": 0.0}, "clip is the largest"),
        ({"ema": 1.0}, "ema is a decay"),
        ({"precision": "fp16"}, "precision must be"),
        ({"seed": [0, 1]}, "one model takes one seed"),
        ({"record": lambda module, step: {"loss": 0.0}}, "two measurements are called 'loss'"),
        ({"record": lambda module, step: {"a": 0.0} if step else {}}, "'a' is measured at some records only"),
        ({"criterion": lambda module, batch, *rest: (module(batch[0]), {})}, "must return a scalar"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed, found):
    with pytest.raises(CompanionError, match=found):
        run(**changed)


def test_a_module_without_parameters_is_refused():
    with pytest.raises(CompanionError, match="no parameters"):
        fit(nn.Tanh(), loss, batches(), steps=1)


def test_precision_and_compile_change_nothing_on_a_cpu():
    assert same(run(), run(precision="bf16", compile=True))


@pytest.mark.parametrize(
    ("environment", "terminal", "shown"),
    [({}, True, True), ({}, False, False), ({"CI": "true"}, True, False), ({"RANK": "1"}, True, False)],
)
def test_the_bar_is_drawn_only_for_someone_who_watches(monkeypatch, capsys, environment, terminal, shown):
    for name in ("CI", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert list(progress(range(3), desc="epochs")) == [0, 1, 2]
    assert ("epochs" in capsys.readouterr().err) == shown
