"""Whole trainings in every way of reading: the same bits where the order is the same."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from fuse_fakes import make_store, make_world
from small_trainings import reading_job

from hada.fuse.cli import fuse
from hada.fuse.recipes import RECIPES
from hada.fuse.run_files.weights import BEST
from hada.fuse.run_folder import RunFolder
from hada.fuse.tokens import placement
from hada.fuse.training import checkpoint
from hada.fuse.training.trainer import train

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


@pytest.mark.parametrize("recipe", [FAST, HADA], ids=["fast", "hada"])
@pytest.mark.parametrize(
    "ways",
    [("memory", "mapped", 0), ("memory", "device", 0), ("memory", "window", 3)],
    ids=["whole", "device", "windows"],
)
def test_where_tokens_come_from_changes_no_bit(stores, tmp_path, recipe, ways):
    *both, shards = ways
    for way in both:
        train(reading_job(stores, tmp_path / way, recipe, way, shards=shards))
    weights = [(tmp_path / way / BEST).read_bytes() for way in both]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("recipe", [FAST, HADA], ids=["fast", "hada"])
@pytest.mark.parametrize(("way", "shards"), [("mapped", 0), ("window", 3)])
def test_resumed_inside_an_epoch_equals_uninterrupted(
    stores, tmp_path, recipe, way, shards, monkeypatch
):
    often = recipe.changed(save_minutes=0)
    train(reading_job(stores, tmp_path / "whole", often, way, shards=shards))
    save, saves = checkpoint.save_last, 0

    def save_then_die(self, *args):
        nonlocal saves
        save(self, *args)
        saves += 1
        if saves == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_last", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        train(reading_job(stores, tmp_path / "parts", often, way, shards=shards))
    monkeypatch.undo()
    assert RunFolder(tmp_path / "parts").position().step == 3
    torch.manual_seed(999)
    train(reading_job(stores, tmp_path / "parts", often, way, shards=shards))
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


def window_world(tmp_path, monkeypatch):
    """Stores of nine shards, and memory for windows of some of them; we are in its folder."""
    make_world(tmp_path)
    shutil.rmtree(tmp_path / "stores" / "toy" / "train")
    for model in ("left", "right"):
        make_store(tmp_path / "stores", model, "train", images=72, shards=(8, 20))
    monkeypatch.chdir(tmp_path)
    # Batches on their way take memory, too, as many as there are threads to make them.
    monkeypatch.setattr(placement, "reading_threads", lambda: 1)


def test_a_window_smaller_than_the_epoch_goes_on_anywhere_to_the_same_bits(tmp_path, monkeypatch):
    """Interrupted inside an epoch, then with windows, from memory, and from the files."""
    window_world(tmp_path, monkeypatch)
    words = ("--set=save_minutes=0", "--reading=window", "--memory=0.00018")
    code, said = call("--run", "whole", *words)
    assert code == 0, said
    assert "windows of 4 of 9 shards" in said
    save, saves = checkpoint.save_last, []

    def save_then_die(*args):
        save(*args)
        saves.append(args[-1].step)
        if len(saves) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_last", save_then_die)
        assert call("--run", "parts", *words)[0] != 0
    assert saves == [1, 2, 3]  # of five steps
    for way in ("window", "memory", "mapped"):
        shutil.copytree("parts", way)
        code, said = call("--run", way, *words[:1], "--reading", way)
        assert code == 0, said
        assert f"reading from {way}: " in said
        assert (tmp_path / way / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()
        assert json.loads((tmp_path / way / "config.json").read_text())["window_shards"] == 4


def test_help_names_every_way_of_reading():
    said = " ".join(CliRunner().invoke(fuse, ["train", "--help"]).output.split())
    for way in ("device: all on the GPU", "memory: all in memory", "mapped: the files", "window: "):
        assert way in said
