"""Training learns, resumes to the bit, stops when it should, and its results can be used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from fuse_fakes import make_store
from small_trainings import FAST, HADA, SETTINGS, call, job, without_time

from hada.extract.common.errors import NonFiniteError, RunError
from hada.extract.store import open_store
from hada.fuse.embedding import embed_split
from hada.fuse.exchange.stores import write_embedded
from hada.fuse.ranking.ranks import rank_positives, recalls
from hada.fuse.run_files.checkpoint import LAST
from hada.fuse.run_files.weights import BEST
from hada.fuse.run_folder import METRICS, RunFolder
from hada.fuse.tokens.split import Split
from hada.fuse.training import checkpoint
from hada.fuse.training.trainer import train


@pytest.mark.slow
def test_fusion_beats_each_of_its_views(tmp_path):
    models = ("left", "right")
    parts = [
        Split([make_store(tmp_path, m, split, images=n, noise=1.0) for m in models])
        for split, n in (("train", 400), ("val", 100))
    ]
    recipe = FAST.changed(
        epochs=8, use_embeddings=True, dropout_graph=0, dropout_head=0, learning_rate=3e-3
    )
    made = job(parts, tmp_path / "run", recipe)
    position = train(made)
    alone = []
    for m in (0, 1):
        sides = [parts[1].sources[side][m].embeddings for side in ("image", "caption")]
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in sides]
        alone.append(recalls(rank_positives(*unit, parts[1].caption_to_image))["rsum"])
    assert max(line["val"]["fused_rsum"] for line in made.run.metrics()) > max(alone) + 10
    assert position.best_rsum > max(alone) + 50


@pytest.mark.parametrize(
    "recipe", [FAST, pytest.param(HADA, marks=pytest.mark.slow)], ids=["fast", "hada"]
)
def test_resumed_equals_uninterrupted(splits, tmp_path, recipe, monkeypatch):
    whole = job(splits, tmp_path / "whole", recipe)
    train(whole)

    # Save after every step, and die in the middle of the second epoch, after a save.
    often = recipe.changed(save_minutes=0)
    first = job(splits, tmp_path / "parts", often)
    steps = 0
    save = checkpoint.save_last

    def save_then_die(self, *args):
        nonlocal steps
        save(self, *args)
        steps += 1
        if steps == len(first.loader.epoch(0)) + 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_last", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        train(first)
    monkeypatch.undo()
    torch.manual_seed(999)
    second = job(splits, tmp_path / "parts", often, seed=0)
    train(second)
    for key, value in whole.objective.state_dict().items():
        assert torch.equal(value, second.objective.state_dict()[key]), key
    assert (tmp_path / "whole" / BEST).read_bytes() == (tmp_path / "parts" / BEST).read_bytes()
    lines = [without_time(RunFolder(tmp_path / name).metrics()) for name in ("whole", "parts")]
    assert lines[0] == lines[1]


def test_early_stopping(splits, tmp_path):
    made = job(splits, tmp_path, FAST.changed(epochs=9, patience=1, min_gain=1000.0))
    position = train(made)
    assert position.epoch == 2
    assert position.finished == "no gain for 1 epochs"


def test_a_loss_that_is_not_finite_stops_before_the_step(splits, tmp_path):
    made = job(splits, tmp_path, FAST)
    with torch.no_grad():
        made.objective.fuser.image.head.linear.bias.fill_(float("nan"))
    before = made.objective.fuser.caption.head.linear.weight.detach().clone()
    with pytest.raises(NonFiniteError, match="epoch 1, step 1"):
        train(made)
    assert torch.equal(before, made.objective.fuser.caption.head.linear.weight)
    assert not (tmp_path / LAST).exists()


def test_one_model_and_three_models_train(tmp_path):
    recipe = FAST.changed(epochs=1)
    for models in (("right",), ("flat",), ("left", "right", "flat")):
        root = tmp_path / "+".join(models)
        parts = [
            Split([make_store(root, m, s, images=n) for m in models])
            for s, n in (("train", 40), ("val", 16))
        ]
        position = train(job(parts, root, recipe))
        assert position.best_rsum > 0


@pytest.mark.slow
def test_killed_training_goes_on_and_ends_the_same(world):
    """SIGKILL in the middle; then the same command; then every byte of the result is compared."""
    words = ["train", "--manifest", "toy.yaml", "--epochs", "8", "--set=patience=8",
             "--set=save_minutes=0", *SETTINGS, "--run"]  # fmt: skip
    assert call(*words, "whole")[0] == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "hada.fuse.cli", *words, "killed"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = world / "killed" / METRICS
    while process.poll() is None and not (
        metrics.exists() and metrics.read_bytes().count(b"\n") >= 2
    ):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    code, _, said = call(*words, "killed")
    assert code == 0
    assert "continuing killed" in said
    runs = [RunFolder(world / name) for name in ("whole", "killed")]
    assert len(runs[1].metrics()) == 8
    assert without_time(runs[0].metrics()) == without_time(runs[1].metrics())
    assert (runs[0].path / BEST).read_bytes() == (runs[1].path / BEST).read_bytes()


@pytest.mark.slow
def test_embedded_split_scores_as_validation_did(world):
    tmp_path = world
    assert (
        call("train", "--manifest", "toy.yaml", "--run", "run", "--epochs", "2", *SETTINGS)[0] == 0
    )
    run = RunFolder(tmp_path / "run")
    stores = [open_store(tmp_path / "stores" / "toy" / "val" / m) for m in ("right", "left")]
    found = embed_split(run, stores, device="cpu")
    image, caption = found
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, rtol=1e-5)
    best = max(run.metrics(), key=lambda line: line["val"]["rsum"])
    table = recalls(rank_positives(image, caption, found.caption_to_image))
    assert table["rsum"] == pytest.approx(best["val"]["rsum"], abs=1e-9)

    write_embedded(tmp_path / "out", "run", run, found, stores)
    store = open_store(tmp_path / "out")
    np.testing.assert_array_equal(store.image.embeddings(), image)
    assert store.spec.model.family == "hada"
    assert tuple(store.caption.ids) == tuple(stores[0].caption.ids)

    with pytest.raises(RunError, match="store of 'left' is missing"):
        embed_split(run, stores[:1])
    other = make_store(tmp_path / "other", "left", "val", images=16)
    changed = replace(other.spec, model=replace(other.spec.model, weights_digest="new"))
    other.spec = changed
    with pytest.raises(RunError, match="weights_digest: the run was trained on 'left-weights'"):
        embed_split(run, [other, stores[0]])


@pytest.mark.slow
def test_a_finished_run_is_reported_and_another_request_refused(world):
    words = ["train", "--manifest", "toy.yaml", "--epochs", "1", *SETTINGS]
    folder = world / "runs" / "toy" / "left+right-fast-s0"
    code, out, _ = call(*words)
    assert (code, out.strip()) == (0, str(folder.relative_to(world)))
    config = json.loads((folder / "config.json").read_text())
    assert config["stores"]["train"]["captions"] == 80
    saved = (folder / BEST).stat().st_mtime_ns
    code, _, said = call(*words)
    assert code == 0
    assert "already finished" in said
    assert (folder / BEST).stat().st_mtime_ns == saved
    code, _, said = call(*words, "--set=learning_rate=0.5")
    assert code == 2
    assert "recipe.training.learning_rate = 0.003, now it is 0.5" in said
    assert call(*words, "--set=learning_rate=0.5", "--fresh")[0] == 0
