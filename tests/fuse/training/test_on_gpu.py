"""Trainings on a GPU beside the same on the CPU: what no CPU can show. Seconds each.

No GPU was there when they were written: on a CPU, named `cpu:0`, all but the last one pass.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fuse_fakes import make_store
from small_trainings import FAST, HADA, reading_job, without_time

from hada.extract.common.host import free_on_device
from hada.fuse.recipes import RECIPES
from hada.fuse.run_files.weights import BEST
from hada.fuse.training import checkpoint
from hada.fuse.training.trainer import deterministic, train

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

NODES = RECIPES["fast"].changed(
    epochs=2, batch_size=16, match_width=8, match_hidden=8, match_graph="attention",
    match_graph_width=16, bank=20, node_bank=10,
)  # fmt: skip
RECIPES_HERE = pytest.mark.parametrize("recipe", [FAST, HADA, NODES], ids=["fast", "hada", "nodes"])
# Where an operation has no deterministic kernel it warns, and goes on: docs/fusion.md says so.
UNDETERMINED = "ignore:.*[Dd]eterministic"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return [
        [make_store(root, m, part, images=n, shards=(8, 20)) for m in ("left", "right")]
        for part, n in (("train", 72), ("val", 24))
    ]


def without_dropout(recipe):
    """A CPU and a GPU draw different numbers from one seed."""
    none = dict.fromkeys(("dropout_nodes", "dropout_graph", "dropout_head", "match_dropout"), 0.0)
    return recipe.changed(**none, dropout_match=0.0, weight_itm=0.0, epochs=1)


@RECIPES_HERE
@pytest.mark.filterwarnings(UNDETERMINED)
def test_an_epoch_on_a_gpu_is_that_of_the_cpu(stores, tmp_path, recipe):
    found = []
    for device in ("cpu", "cuda"):
        made = reading_job(
            stores, tmp_path / device, without_dropout(recipe), "memory", device=device
        )
        train(made)
        found.append(made.run.metrics()[-1])
    for name, value in found[0]["loss"].items():
        assert found[1]["loss"][name] == pytest.approx(value, rel=1e-3), name
    assert found[1]["val"]["loss"] == pytest.approx(found[0]["val"]["loss"], rel=1e-2)


@pytest.mark.parametrize("recipe", [FAST, HADA], ids=["fast", "hada"])
def test_every_way_of_reading_gives_the_same_bits_and_no_warning(stores, tmp_path, recipe):
    """Warnings are errors here: each operation of these recipes has a deterministic kernel."""
    weights = {}
    for way, shards in (("device", 3), ("memory", 3), ("mapped", 3), ("window", 3)):
        made = reading_job(stores, tmp_path / way, recipe, way, shards=shards, device="cuda")
        train(made)
        weights[way] = (tmp_path / way / BEST).read_bytes()
    assert all(found == weights["memory"] for found in weights.values())


@pytest.mark.parametrize("recipe", [FAST, HADA], ids=["fast", "hada"])
def test_a_run_goes_on_on_a_gpu_to_the_same_bits(stores, tmp_path, recipe, monkeypatch):
    often = recipe.changed(save_minutes=0)
    whole = reading_job(stores, tmp_path / "whole", often, "window", shards=3, device="cuda")
    train(whole)
    save, saves = checkpoint.save_last, []

    def save_then_die(*args):
        save(*args)
        saves.append(args)
        if len(saves) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_last", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            train(reading_job(stores, tmp_path / "parts", often, "window", shards=3, device="cuda"))
    torch.manual_seed(999)
    again = reading_job(stores, tmp_path / "parts", often, "device", shards=3, device="cuda")
    train(again)
    assert (tmp_path / "parts" / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()
    lines = [without_time(made.run.metrics()) for made in (whole, again)]
    assert lines[0] == lines[1]


@RECIPES_HERE
@pytest.mark.filterwarnings(UNDETERMINED)
def test_a_run_of_a_gpu_goes_on_on_the_cpu(stores, tmp_path, recipe):
    """And its figures are as good: nothing of a checkpoint is bound to the device."""
    first = reading_job(stores, tmp_path, recipe.changed(epochs=1), "device", device="cuda")
    train(first)
    made = reading_job(stores, tmp_path, recipe.changed(epochs=1), "memory")
    position = checkpoint.load_last(made.run, made.objective, made.optimizer, made.device)
    assert position.epoch == 1
    for name, value in first.objective.state_dict().items():
        assert torch.equal(made.objective.state_dict()[name], value.cpu()), name


@RECIPES_HERE
@pytest.mark.filterwarnings(UNDETERMINED)
def test_bf16_moves_a_step_as_little_as_on_a_cpu(stores, tmp_path, recipe):
    steps = []
    for precision in ("fp32", "bf16"):
        changed = without_dropout(recipe).changed(precision=precision)
        made = reading_job(stores, tmp_path / precision, changed, "device", device="cuda")
        batch = next(made.loader.batches(made.loader.epoch(0), device=made.device))
        torch.manual_seed(0)
        with deterministic():
            losses = made.objective(batch)
            losses["total"].backward()
        assert all(value.dtype == torch.float32 for value in losses.values())
        parts = [p.grad for p in made.objective.trainable().values() if p.grad is not None]
        steps.append(torch.cat([g.flatten() for g in parts]).double())
    moved = float((steps[0] - steps[1]).norm() / steps[0].norm())
    assert 2.0**-12 < moved < 10 * 2.0**-8


def test_tokens_of_an_earlier_training_leave_room_for_the_next():
    """What PyTorch keeps of freed memory counts as free."""
    device = torch.device("cuda")
    torch.empty(1, device=device)
    torch.cuda.empty_cache()
    before = free_on_device(device)
    held = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    assert free_on_device(device) <= before - (1 << 28)
    del held
    assert np.isclose(free_on_device(device), before, atol=1 << 24)
