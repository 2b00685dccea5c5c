"""What the trainer decides: rates, decay, clipping, what is distilled, and which epoch is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_trainings import FAST, HADA, job, two_splits

from hada.fuse.embedding import embed
from hada.fuse.network.build import branch_config
from hada.fuse.ranking.ranks import rank_positives, recalls
from hada.fuse.run_folder import Position
from hada.fuse.scores.shares import ScoreTable, tuned_shares
from hada.fuse.settings import EdgeWeights
from hada.fuse.training import checkpoint, trainer
from hada.fuse.training.schedule import learning_rate_cosine
from hada.fuse.training.trainer import (
    build_objective,
    build_optimizer,
    train_step,
    validate,
)

# No epoch is one step only, so the ramp of distillation has one.
SMALL_HADA = HADA.changed(scores="fused", learn_scores=False, batch_size=20, queue=32)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    return two_splits(tmp_path_factory.mktemp("stores"))


def test_the_distillation_ramp_reaches_the_objective(splits, tmp_path, monkeypatch):
    made, shares = job(splits, tmp_path, SMALL_HADA.changed(distill=0.4)), []
    forward = made.objective.forward

    def listen(batch, distill=0.0):
        shares.append(distill)
        return forward(batch, distill=distill)

    monkeypatch.setattr(made.objective, "forward", listen)
    for epoch in (0, 1):
        trainer.train_epoch(made, Position(epoch=epoch))
    assert shares == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4])


@pytest.mark.parametrize("everything", [True, False])
def test_vectors_decay_only_where_it_is_asked_for(splits, everything):
    recipe = SMALL_HADA.changed(decay_all=everything, weight_decay=0.07)
    objective = build_objective(recipe, splits[0], 0)
    decay = {
        id(p): group["weight_decay"]
        for group in build_optimizer(recipe, objective).param_groups
        for p in group["params"]
    }
    parameters = objective.trainable()
    assert len(decay) == len(parameters)
    for name, parameter in parameters.items():
        wanted = 0.07 if everything or parameter.ndim > 1 else 0.0
        assert decay[id(parameter)] == wanted, name


def test_a_step_has_its_rate_and_a_clipped_gradient(splits, tmp_path):
    recipe = FAST.changed(clip_norm=1e-3, epochs=5, warmup_epochs=0.5, batch_size=10)
    made = job(splits, tmp_path, recipe)
    batches = list(made.loader.batches(made.loader.epoch(0)))
    for epoch, step in ((0, 0), (0, 1), (2, 1), (4, 3)):
        train_step(made, batches[step], Position(epoch=epoch, step=step), 4)
        want = learning_rate_cosine(
            4 * epoch + step,
            20,
            recipe.training.learning_rate,
            recipe.training.learning_rate_low,
            2,
        )
        assert {g["lr"] for g in made.optimizer.param_groups} == {want}
        gradients = [p.grad.norm() for p in made.objective.trainable().values()]
        assert float(torch.stack(gradients).norm()) == pytest.approx(1e-3, rel=1e-3)


SCRIPTS = [
    # Gains of 0.05 are none, and patience begins anew with the gain of the third epoch.
    ("rsum", 2, [100.0, 100.05, 100.2, 100.25, 100.1, 300.0], [0, 2], 5),
    ("rsum", 3, [100.0, 100.05, 100.2, 100.25, 100.1, 300.0], [0, 2, 5], 6),
    ("likelihood", 2, [3.0, 2.5, 2.6, 2.4999, 2.9, 2.6, 0.1], [0, 1, 3], 6),
]


@pytest.mark.parametrize(("choose", "patience", "values", "kept", "epochs"), SCRIPTS)
def test_gains_are_kept_and_their_absence_ends_the_training(
    splits, tmp_path, monkeypatch, choose, patience, values, kept, epochs
):
    recipe = FAST.changed(choose=choose, patience=patience, min_gain=0.1, epochs=len(values))
    made, told, saved = job(splits, tmp_path, recipe), iter(values), []

    def epoch_of_nothing(_job, position):
        position.sums, position.step = {"total": 0.0}, 1

    def scripted(_job):
        value = next(told)
        table = {f"{way}_R@{k}": 0.0 for way in ("i2t", "t2i") for k in (1, 5, 10)}
        # What does not decide says the opposite.
        one, other = ("rsum", "loss") if choose == "rsum" else ("loss", "rsum")
        return table | {one: value, other: value}

    monkeypatch.setattr(trainer, "train_epoch", epoch_of_nothing)
    monkeypatch.setattr(trainer, "validate", scripted)
    monkeypatch.setattr(checkpoint, "save_best", lambda *_: saved.append(len(made.run.metrics())))
    position = trainer.train(made)
    assert saved == kept
    assert (position.best_epoch, position.epoch) == (kept[-1], epochs)
    assert (position.best_rsum if choose == "rsum" else position.best_loss) == values[kept[-1]]
    early = f"no gain for {patience} epochs"
    assert position.finished == (early if epochs < len(values) else f"all {epochs} epochs are done")


def test_validation_is_of_the_validation_split_by_the_tuned_score(splits, tmp_path):
    recipe = FAST.changed(use_embeddings=True)
    assert recipe.scores.tune
    made = job(splits, tmp_path, recipe)
    table = validate(made)
    found = embed(made.objective.fuser, made.objective.mix, splits[1], torch.device("cpu"))
    shares, loss = tuned_shares(ScoreTable.of(found))
    assert made.objective.mix.shares().tolist() == pytest.approx(shares, abs=1e-6)
    assert shares != pytest.approx([1 / 3] * 3, abs=1e-3)
    assert table["loss"] == pytest.approx(loss)
    tuned = replace(found, shares=shares)
    ranks = rank_positives(tuned.image_IE, tuned.caption_TE, tuned.caption_to_image)
    assert table["rsum"] == recalls(ranks)["rsum"]
    alone = rank_positives(found.fused_image, found.fused_caption, found.caption_to_image)
    assert table["fused_rsum"] == recalls(alone)["rsum"]
    assert len(ranks.i2t_lo) == 16


def test_a_branch_has_the_recipes_edges_and_dropouts(splits):
    recipe = FAST.changed(edge_own=0.1, edge_other=0.2, edge_between=0.3, edge_tokens=0.4,
        edge_loop_token=0.5, edge_loop_global=0.6, undirected=True,
        dropout_nodes=0.11, dropout_graph=0.12, dropout_head=0.13,
    )  # fmt: skip
    made = branch_config(recipe, splits[0].shapes("image"))
    assert made.edges == EdgeWeights(
        own=0.1, other=0.2, between=0.3, tokens=0.4, loop_token=0.5, loop_global=0.6,
        undirected=True,
    )  # fmt: skip
    assert (made.dropout_nodes, made.dropout_graph, made.dropout_head) == (0.11, 0.12, 0.13)


def test_weights_depend_on_the_seed(splits):
    one, same, other = (
        build_objective(FAST, splits[0], seed).fuser.image.head.linear.weight for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_an_epoch_runs_in_training_mode(splits, tmp_path):
    made = job(splits, tmp_path, FAST)
    made.objective.eval()
    trainer.train_epoch(made, Position())
    assert made.objective.training


def test_another_run_gives_its_encoders_to_the_slow_ones_and_its_matching_head(splits, tmp_path):
    first = job(splits, tmp_path / "one", SMALL_HADA, seed=1)
    first.run.path.mkdir()
    checkpoint.save_best(first.run, first.objective, 0)
    second = build_objective(SMALL_HADA, splits[0], 2)
    parts = [(second.fuser, first.objective.fuser), (second.slow, first.objective.fuser)]
    parts.append((second.discriminator, first.objective.discriminator))
    assert not any(_equal(a, b) for a, b in parts)
    checkpoint.start_from(first.run, second)
    assert all(_equal(a, b) for a, b in parts)


def _equal(a, b):
    own, other = a.state_dict(), b.state_dict()
    return all(torch.equal(own[k], other[k]) for k in other)
