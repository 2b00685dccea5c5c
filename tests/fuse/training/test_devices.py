"""What a device may change of a training, and what it may not.

A CPU stands for the GPU where it can: its name `cpu:0` differs from the `cpu` of its tensors, as
`cuda` differs from the `cuda:0` of theirs. What only CUDA has is faked, and nothing else.
"""

from __future__ import annotations

import pytest
import torch
from small_trainings import FAST, job, two_splits

from hada.extract.common import host
from hada.fuse import embedding
from hada.fuse.recipes import RECIPES
from hada.fuse.run_files.checkpoint import Position
from hada.fuse.scores import shares
from hada.fuse.training import checkpoint
from hada.fuse.training.trainer import train, validate

pytestmark = pytest.mark.slow

GPU = torch.device("cuda", 1)
NODES = RECIPES["fast"].changed(epochs=1, batch_size=16, match_width=8, match_hidden=8)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return two_splits(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def generators(monkeypatch):
    """CUDA's generators, one a GPU, as what they hold."""
    held = {0: 10, 1: 11}
    monkeypatch.setattr(
        torch.cuda, "get_rng_state", lambda device: torch.tensor(held[device.index])
    )

    def restore(state, device):
        held[device.index] = int(state)

    monkeypatch.setattr(torch.cuda, "set_rng_state", restore)
    return held


def test_a_checkpoint_keeps_the_generator_of_its_own_gpu(generators):
    states = checkpoint.device_states(GPU)
    assert [int(state) for state in states] == [11]
    generators[1] = 99
    checkpoint.restore_device(states, GPU)
    assert generators == {0: 10, 1: 11}
    # The run goes on on another GPU, and with a checkpoint of a machine of eight.
    checkpoint.restore_device(states, torch.device("cuda", 0))
    assert generators == {0: 11, 1: 11}
    checkpoint.restore_device([torch.tensor(20 + k) for k in range(8)], GPU)
    assert generators == {0: 11, 1: 21}
    checkpoint.restore_device([], GPU)
    assert generators == {0: 11, 1: 21}


def test_a_training_on_the_cpu_asks_no_gpu(splits, tmp_path, monkeypatch):
    """To ask one takes memory of it, on a machine where others use it."""

    def asked(*_):
        raise AssertionError("a GPU was asked")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state", "get_rng_state_all", "set_rng_state", "set_rng_state_all"):
        monkeypatch.setattr(torch.cuda, name, asked)
    made = job(splits, tmp_path, FAST)
    checkpoint.save_last(made.run, made.objective, made.optimizer, Position())


def test_a_checkpoint_is_read_to_the_cpu_whatever_the_device(splits, tmp_path):
    """The steps that AdamW counts stay there; on the device they would be fetched in each step."""
    recipe = FAST.changed(epochs=1)
    first = job(splits, tmp_path, recipe)
    train(first)
    made = job(splits, tmp_path, recipe, seed=1)
    elsewhere = torch.device("meta")  # tensors that were sent there would have lost their numbers
    position = checkpoint.load_last(made.run, made.objective, made.optimizer, elsewhere)
    assert position.epoch == 1
    for name, value in first.objective.state_dict().items():
        assert torch.equal(made.objective.state_dict()[name], value), name
    counts = [state["step"] for state in made.optimizer.state.values()]
    assert counts
    assert all(count.device.type == "cpu" and count > 0 for count in counts)


def test_validation_matches_nodes_on_the_device_of_the_training(splits, tmp_path, monkeypatch):
    """A quarter of a million pairs of sets, after every epoch: on a CPU longer than the epoch."""
    match, seen = shares.score_matrix, []

    def watched(image, caption, mirror, *, device="cpu"):
        seen.append(device)
        return match(image, caption, mirror, device=device)

    monkeypatch.setattr(shares, "score_matrix", watched)
    made = job(splits, tmp_path, NODES)
    made.device = torch.device("cpu", 0)
    validate(made)
    assert seen == ["cpu:0"]
    train(made)
    assert set(seen) == {"cpu:0"}
    assert len(seen) > 2  # of the last fit, too


def test_a_network_that_is_there_already_is_not_moved_again(splits, tmp_path, monkeypatch):
    made = job(splits, tmp_path, FAST)
    fuser, moved = made.objective.fuser, []
    monkeypatch.setattr(fuser, "to", moved.append)
    for device in ("cpu", "cpu:0"):
        embedding.embed(fuser, made.objective.mix, splits[1], torch.device(device))
    assert moved == []


def test_what_the_allocator_kept_of_an_earlier_training_is_free(monkeypatch):
    """60 of 80 GiB were tokens of the seed before: the driver sees 15 free, PyTorch 73."""
    for name, value in (
        ("mem_get_info", (15, 80)),
        ("memory_reserved", 62),
        ("memory_allocated", 4),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert host.free_on_device(GPU) == 73
    assert host.free_on_device(torch.device("cpu")) == 0
