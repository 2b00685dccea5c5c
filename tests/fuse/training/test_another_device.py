"""Whole trainings on a device that is not the CPU: no tensor stays behind, figures are the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from another_device import ELSEWHERE, There, another_device
from fuse_fakes import make_store
from item_node_sets import made
from small_trainings import FAST, HADA, SMALL, reading_job

from hada.fuse.ranking.ranks import rank_positives, recalls
from hada.fuse.recipes import RECIPES
from hada.fuse.scores.item_nodes import pair_node_scores, score_matrix
from hada.fuse.training import checkpoint
from hada.fuse.training.trainer import train

pytestmark = [
    pytest.mark.slow,
    # torch takes the name for what it is elsewhere: a device without numbers.
    pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter"),
]

NODES = RECIPES["fast"].changed(
    epochs=1, batch_size=16, match_width=8, match_hidden=8, match_graph="attention",
    match_graph_width=16, match_most=4, match_drop_tokens=0.2, bank=20, node_bank=10,
)  # fmt: skip
TRAININGS = {
    "pooled": FAST.changed(epochs=1),
    "hada": HADA.changed(epochs=1),
    "nodes": NODES,
    "lavis": RECIPES["hada-lavis-both"].changed(
        **{**SMALL, "epochs": 1, "queue": 64}, raw_embeddings=False
    ),
    "packed": FAST.changed(epochs=1, graph_hidden=(12,)),
    "gcn": FAST.changed(epochs=1, convolution="gcn"),
    "transformer": FAST.changed(epochs=1, convolution="transformer", undirected=True),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return [
        [make_store(root, m, part, images=n, shards=(8, 20)) for m in ("left", "right")]
        for part, n in (("train", 40), ("val", 16))
    ]


def test_tensors_of_two_devices_do_not_mix():
    """The device would find such a mistake."""
    with another_device() as device:
        here, there = torch.ones(3), torch.ones(3, device=device)
        assert (there + 1).device == ELSEWHERE
        assert isinstance(there.sum() * torch.tensor(2.0), There)  # a single number may
        for mixed in (lambda: there + here, lambda: there[here.long()], lambda: here @ there):
            with pytest.raises(RuntimeError, match="of the CPU and of another device"):
                mixed()
        assert torch.equal((here.to(device) + there).cpu(), here + 1)
        with pytest.raises((RuntimeError, TypeError), match="numpy"):
            there.numpy()


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_elsewhere_is_that_of_the_cpu(stores, tmp_path, name):
    """The same numbers are drawn, so that only the order of sums differs."""
    recipe, lines = TRAININGS[name], []
    for device in ("cpu", "meta"):
        with another_device():
            way = "memory" if device == "cpu" else "device"
            running = reading_job(stores, tmp_path / device, recipe, way, device=device)
            train(running)
            assert isinstance(next(running.objective.parameters()), There) == (device == "meta")
        lines.append(running.run.metrics()[-1])
    for part in ("loss", "val"):
        assert lines[0][part].keys() == lines[1][part].keys()
    for key, value in lines[0]["loss"].items():
        assert lines[1]["loss"][key] == pytest.approx(value, rel=1e-4), key
    assert lines[1]["val"]["loss"] == pytest.approx(lines[0]["val"]["loss"], rel=1e-3)


def test_a_run_goes_on_elsewhere_and_back(stores, tmp_path, monkeypatch):
    """Every tensor of a checkpoint arrives where it is used; AdamW counts its steps on the CPU."""
    often = HADA.changed(epochs=1, save_minutes=0)
    whole = reading_job(stores, tmp_path / "whole", often, "memory")
    train(whole)
    save, saves = checkpoint.save_last, []

    def save_then_die(*args):
        save(*args)
        saves.append(args)
        if len(saves) == 2:
            raise KeyboardInterrupt

    for device in ("cpu", "meta"):
        with another_device(), monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_last", save_then_die)
            saves.clear()
            with pytest.raises(KeyboardInterrupt):
                train(reading_job(stores, tmp_path / "parts", often, "memory", device=device))
    with another_device():
        again = reading_job(stores, tmp_path / "parts", often, "memory", device="meta")
        position = checkpoint.load_last(again.run, again.objective, again.optimizer, again.device)
        assert position.step == 4
        state = again.optimizer.state
        assert state
        for parameter, kept in state.items():
            assert isinstance(parameter, There)
            assert isinstance(kept["exp_avg"], There)
            assert not isinstance(kept["step"], There)
        assert all(isinstance(x, There) for x in again.objective.state_dict().values())
    last = reading_job(stores, tmp_path / "parts", often, "memory")
    train(last)
    for name, value in whole.objective.state_dict().items():
        torch.testing.assert_close(
            last.objective.state_dict()[name], value, rtol=1e-3, atol=1e-5, msg=name
        )


def test_sets_of_nodes_are_scored_elsewhere_as_on_the_cpu():
    """All with all, and some pairs, as a second stage asks for them."""
    image, caption = made(5), made(7, seed=1)
    pairs = np.array([0, 1, 1, 4]), np.array([3, 0, 6, 1])
    found = []
    for device in ("cpu", "meta"):
        with another_device():
            scores = score_matrix(image, caption, 0.5, device=device)
            found.append((scores, pair_node_scores(image, caption, *pairs, 0.5, device=device)))
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_ranks_are_counted_elsewhere_as_on_the_cpu():
    random = np.random.default_rng(0)
    owner = random.permutation(np.repeat(np.arange(60), 3))
    image = random.normal(size=(60, 8))
    caption = image[owner] + random.normal(size=(180, 8))
    expected = rank_positives(image, caption, owner)
    with another_device():
        found = rank_positives(image, caption, owner, device="meta", block_numbers=900)
    assert recalls(found) == recalls(expected)
    assert recalls(expected)["i2t_R@1"] < 100
