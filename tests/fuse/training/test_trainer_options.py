"""Accumulation, bf16, seeds, the lock, trackers, and beginning with another run's weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from small_trainings import FAST, HADA, SETTINGS, call, job, two_splits

from hada.extract.common.errors import RunError, UsageError
from hada.fuse.run_files.checkpoint import LAST, Position
from hada.fuse.run_folder import METRICS, RunFolder
from hada.fuse.training import checkpoint
from hada.fuse.training.lock import only_trainer
from hada.fuse.training.trackers import parse
from hada.fuse.training.trainer import train, train_epoch, train_step


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return two_splits(tmp_path_factory.mktemp("stores"))


def test_accumulated_batches_make_the_mean_of_their_gradients(splits, tmp_path):
    """Three batches, groups of two: a step of two and a step of one."""
    recipe = FAST.changed(accumulate=2, clip_norm=0.0, dropout_graph=0.0, dropout_head=0.0)
    made, alone = job(splits, tmp_path / "a", recipe), job(splits, tmp_path / "b", recipe)
    batches = list(made.loader.batches(made.loader.epoch(0)))
    start = {k: p.detach().clone() for k, p in made.objective.trainable().items()}
    want = []
    for batch in batches:
        alone.objective.zero_grad()
        alone.objective.train()(batch)["total"].backward()
        want.append([p.grad.clone() for p in alone.objective.trainable().values()])
    position = Position()
    train_step(made, batches[0], position, len(batches))
    for key, parameter in made.objective.trainable().items():
        assert torch.equal(parameter, start[key])
    position.step = 1
    train_step(made, batches[1], position, len(batches))
    for parameter, a, b in zip(made.objective.trainable().values(), *want[:2], strict=True):
        torch.testing.assert_close(parameter.grad, (a + b) / 2, rtol=1e-4, atol=1e-7)
    moved = {k: p.detach().clone() for k, p in made.objective.trainable().items()}
    assert any(not torch.equal(moved[k], start[k]) for k in moved)
    position.step = 2
    train_step(made, batches[2], position, len(batches))
    # The last group holds one batch, which counts whole.
    assert any(not torch.equal(p, moved[k]) for k, p in made.objective.trainable().items())


def test_a_checkpoint_never_splits_a_group(splits, tmp_path, monkeypatch):
    recipe = FAST.changed(accumulate=2, save_minutes=0, batch_size=8)
    made, saved = job(splits, tmp_path, recipe), []
    monkeypatch.setattr(checkpoint, "save_last", lambda *args: saved.append(args[-1].step))
    train_epoch(made, Position())
    assert saved == [2, 4]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [FAST, HADA], ids=["fast", "hada"])
def test_bf16_trains_like_fp32(splits, tmp_path, recipe):
    losses = {}
    for precision in ("fp32", "bf16"):
        made = job(splits, tmp_path / precision, recipe.changed(precision=precision, epochs=2))
        train(made)
        losses[precision] = [line["loss"]["total"] for line in made.run.metrics()]
        assert all(p.dtype == torch.float32 for p in made.objective.parameters())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["bf16"] != losses["fp32"]


def test_two_trainers_never_share_a_folder(tmp_path):
    """A living process keeps others out; a killed one does not, though its file stays."""
    script = (
        "import pathlib, sys, time\n"
        "from hada.fuse.training.lock import only_trainer\n"
        f"with only_trainer(pathlib.Path({str(tmp_path)!r})):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    message = f"process {process.pid} on .* is training there"
    with pytest.raises(RunError, match=message), only_trainer(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (tmp_path / "lock").exists()
    with only_trainer(tmp_path):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()
    with only_trainer(tmp_path):
        pass


WORDS = ["train", "--manifest", "toy.yaml", *SETTINGS]


@pytest.mark.slow
def test_a_held_folder_is_refused_before_anything_is_thrown_away(world):
    assert call(*WORDS, "--run", "run", "--epochs", "1")[0] == 0
    with only_trainer(world / "run"):
        code, _, said = call(*WORDS, "--run", "run", "--epochs", "1", "--fresh")
    assert code == 2
    assert "is training there now" in said
    assert (world / "run" / LAST).exists()


@pytest.mark.slow
def test_seeds_give_mean_and_deviation(world):
    code, out, said = call(*WORDS, "--epochs", "1", "--seeds", "0, 1 3", "--report-to", "none")
    assert code == 0
    runs = [RunFolder(world / line) for line in out.splitlines()]
    assert [run.name[-2:] for run in runs] == ["s0", "s1", "s3"]
    best = torch.tensor([run.metrics()[0]["val"]["rsum"] for run in runs])
    assert f"3 seeds: RSum {best.mean():.1f} ± {best.std():.1f}" in said
    assert len({run.metrics()[0]["loss"]["total"] for run in runs}) == 3
    for wrong in ("0,0", "a", "-1", ""):
        code, _, said = call(*WORDS, "--seeds", wrong)
        assert code == 2
        assert "expected different numbers" in said


@pytest.mark.slow
def test_tensorboard_follows_the_metrics_through_a_kill(world):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert call(*WORDS, "--run", "run", "--epochs", "2", "--set=patience=9")[0] == 0
    run = RunFolder(world / "run")
    events = EventAccumulator(str(world / "run" / "tensorboard")).Reload()
    assert "learning_rate" in events.Tags()["scalars"]
    found = [(e.step, e.value) for e in events.Scalars("val/rsum")]
    want = [(line["epoch"], line["val"]["rsum"]) for line in run.metrics()]
    assert [step for step, _ in found] == [1, 2]
    assert [value for _, value in found] == pytest.approx([v for _, v in want], rel=1e-6)


@pytest.mark.slow
def test_trackers_are_named_when_they_are_unknown_or_missing():
    with pytest.raises(UsageError, match="Did you mean 'wandb'"):
        parse("wadb")
    script = (
        "import importlib.util, sys\n"
        "importlib.util.find_spec = lambda name: None\n"
        "from hada.fuse.training.trackers import parse\n"
        "assert parse(None) == ()\n"
        "try:\n"
        "    parse('mlflow')\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'hada[mlflow]'" in done.stdout


@pytest.mark.slow
def test_wandb_offline(world, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = [*WORDS, "--run", "run", "--epochs", "1", "--report-to", "wandb"]
    done = subprocess.run(
        [sys.executable, "-m", "hada.fuse.cli", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list((world / "run" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow
def test_mlflow_in_a_folder(world, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{world}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    words = [*WORDS, "--run", "run", "--epochs", "1", "--report-to", "mlflow"]
    done = subprocess.run(
        [sys.executable, "-m", "hada.fuse.cli", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (found,) = (world / "mlruns").glob("*/*/metrics/val/rsum")
    best = RunFolder(world / "run").metrics()[0]["val"]["rsum"]
    assert float(found.read_text().split()[1]) == pytest.approx(best)
    assert mlflow.__version__


def test_a_second_step_begins_with_the_weights_of_the_first(world):
    first = [*WORDS, "--recipe", "hada-lavis", "--set=queue=32", "--run", "one", "--epochs", "1"]
    assert call(*first)[0] == 0
    second = [*WORDS, "--recipe", "hada-lavis-weighted", "--set=queue=32", "--run", "two"]
    slow = ["--epochs", "1", "--set=learning_rate=0", "--set=learning_rate_low=0"]
    assert call(*second, *slow, "--init", "one")[0] == 0
    one, two = (RunFolder(world / n) for n in ("one", "two"))
    a, b = one.load_tensors(), two.load_tensors()
    assert all(torch.equal(a[k], b[k]) for k in a if not k.startswith(("mix", "temperature")))
    assert len(json.loads((world / "two" / "config.json").read_text())["init"]) == 64
    code, _, said = call(*second, "--epochs", "1", "--run", "three", "--init", "nowhere")
    assert code == 2
    assert "no training run there" in said
    other = [*WORDS, "--recipe", "hada", "--set=queue=32", "--run", "four", "--init", "one"]
    code, _, said = call(*other, "--epochs", "1")
    assert code == 2
    assert "do not fit this recipe" in said
    assert not (world / "four" / METRICS).exists()
