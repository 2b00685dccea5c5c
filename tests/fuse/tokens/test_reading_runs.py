"""Whole trainings in every way of reading: the same bits where the order is the same."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from fuse_fakes import make_store, make_world

from hada.fuse.cli import fuse
from hada.fuse.recipes import RECIPES
from hada.fuse.run_files.weights import BEST
from hada.fuse.run_folder import RunFolder
from hada.fuse.tokens.loader import Loader
from hada.fuse.tokens.split import Split
from hada.fuse.training import checkpoint
from hada.fuse.training.trainer import Job, build_objective, build_optimizer, train

pytestmark = pytest.mark.slow

SMALL = {
    "node_width": 16, "heads": 2, "head_width": 8, "graph_width": 16, "out_width": 16,
    "batch_size": 16, "epochs": 2, "warmup_epochs": 0.5,
}  # fmt: skip
FAST = RECIPES["pooled"].changed(**SMALL)
# In pairs, against a queue: the order of the batches decides more than their sum.
HADA = RECIPES["hada"].changed(**{**SMALL, "queue": 64, "scores": "all", "learn_scores": True})


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return [
        [make_store(root, m, part, images=n, shards=(8, 20)) for m in ("left", "right")]
        for part, n in (("train", 72), ("val", 24))
    ]


def job(stores, path, recipe, way, shards):
    parts = [Split(some, in_memory=way == "memory") for some in stores]
    if way == "device":
        for part in parts:
            part.reside(torch.device("cpu"))
    objective = build_objective(recipe, parts[0], 0)
    return Job(
        objective=objective,
        optimizer=build_optimizer(recipe, objective),
        loader=Loader(
            parts[0],
            recipe.training.order,
            recipe.training.batch_size,
            0,
            shards=shards,
            windows=way == "window",
        ),
        val=parts[1],
        recipe=recipe,
        run=RunFolder(path),
        device=torch.device("cpu"),
        report=lambda _text: None,
    )


@pytest.mark.parametrize("recipe", [FAST, HADA], ids=["fast", "hada"])
@pytest.mark.parametrize(
    "ways",
    [("memory", "mapped", 0), ("memory", "device", 0), ("memory", "window", 3)],
    ids=["whole", "device", "windows"],
)
def test_where_tokens_come_from_changes_no_bit(stores, tmp_path, recipe, ways):
    *both, shards = ways
    for way in both:
        train(job(stores, tmp_path / way, recipe, way, shards))
    weights = [(tmp_path / way / BEST).read_bytes() for way in both]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("recipe", [FAST, HADA], ids=["fast", "hada"])
@pytest.mark.parametrize(("way", "shards"), [("mapped", 0), ("window", 3)])
def test_resumed_inside_an_epoch_equals_uninterrupted(
    stores, tmp_path, recipe, way, shards, monkeypatch
):
    often = recipe.changed(save_minutes=0)
    train(job(stores, tmp_path / "whole", often, way, shards))
    save, saves = checkpoint.save_last, 0

    def save_then_die(self, *args):
        nonlocal saves
        save(self, *args)
        saves += 1
        if saves == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_last", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        train(job(stores, tmp_path / "parts", often, way, shards))
    monkeypatch.undo()
    assert RunFolder(tmp_path / "parts").position().step == 3
    torch.manual_seed(999)
    train(job(stores, tmp_path / "parts", often, way, shards))
    assert (tmp_path / "whole" / BEST).read_bytes() == (tmp_path / "parts" / BEST).read_bytes()


def call(*words):
    settings = [f"--set={k}={v}" for k, v in SMALL.items()]
    result = CliRunner().invoke(fuse, ["train", "--manifest", "toy.yaml", *settings, *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


def test_the_command_says_what_it_chose_and_a_run_keeps_its_order(tmp_path, monkeypatch):
    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, said = call("--run", "auto")
    assert code == 0
    assert "reading from memory: the tokens take" in said
    assert "window_shards" not in json.loads((tmp_path / "auto" / "config.json").read_text())
    code, said = call("--run", "auto", "--reading", "window")
    assert code == 2
    assert "this run shuffles the whole split; go on with --reading mapped" in said

    code, said = call("--run", "far", "--reading", "window", "--memory", "0.01")
    assert code == 0
    assert "reading from window: " in said
    assert "windows of 1 of 1 shards" in said
    assert json.loads((tmp_path / "far" / "config.json").read_text())["window_shards"] == 1
    code, said = call("--run", "far", "--reading", "memory")
    assert code == 0
    assert "already finished" in said

    code, said = call("--run", "small", "--reading", "window", "--memory", "0.000001")
    assert code == 2
    assert "two windows of 1 shards and the batches on their way take" in said
    assert call("--memory", "0")[0] == 2
    assert call("--reading", "tape")[0] == 2
