"""What is fitted behind a network: kept only where it helps, saved with the run, found again."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fuse_fakes import make_store, make_world
from item_node_sets import nodes_of
from small_trainings import SMALL, call, without_time

from hada.extract.common.errors import RunError, UsageError
from hada.extract.store import open_store
from hada.fuse.closed_form.correction import Correction
from hada.fuse.embedding import embed, embed_split
from hada.fuse.exchange.hub import HadaModel
from hada.fuse.exchange.stores import write_embedded, write_nodes
from hada.fuse.job import train_run
from hada.fuse.plan import Plan
from hada.fuse.ranking.ranks import rank_matrix, rank_positives, recalls
from hada.fuse.recipes import RECIPES
from hada.fuse.run_files.weights import BEST
from hada.fuse.run_folder import RunFolder
from hada.fuse.scores import heads as heads_module
from hada.fuse.scores.heads import Bank, Heads, kernel_pair, node_popularity
from hada.fuse.scores.item_nodes import score_matrix
from hada.fuse.scores.shares import ScoreTable, score_loss, tuned_shares
from hada.fuse.tokens.split import Split
from hada.fuse.training import checkpoint, closing, trainer
from hada.fuse.training.closing import chosen_shares
from hada.fuse.training.trainer import build_objective

NODES = {"match_width": 8, "match_hidden": 12, "match_graph_width": 8, "head_hidden": ()}
FAST = RECIPES["fast"].changed(**{**SMALL, **NODES, "epochs": 2, "bank": 40, "node_bank": 16})


def trained(stores, folder, recipe, **options):
    """A run of the stores of train and of val."""
    plan = Plan(
        dataset="toy",
        train_split="train",
        val_split="val",
        models=tuple(store.spec.model.name for store in stores["train"]),
        recipe=recipe,
        seed=0,
        paths={split: [str(store.path) for store in opened] for split, opened in stores.items()},
        folder=folder,
    )
    return train_run(plan, device="cpu", **options)


def make_stores(root, models, images=(120, 60), **options):
    return {
        split: [make_store(root, model, split, images=count, **options) for model in models]
        for split, count in zip(("train", "val"), images, strict=True)
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Stores of 120 and 60 images as two models see them, and a finished run."""
    root = tmp_path_factory.mktemp("closing")
    stores = make_stores(root, ("left", "right"), noise=1.0)
    return root, stores, trained(stores, root / "run", FAST)


@pytest.fixture
def found(world):
    """What the run makes of val."""
    _, stores, run = world
    return embed_split(run, stores["val"], device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["none", "attention"])
@pytest.mark.parametrize(
    "models", [("left",), ("left", "right"), ("left", "right", "flat"), ("flat",)]
)
def test_any_models_train(tmp_path, models, graph):
    """One, two and three models; one that has embeddings and no tokens, alone or as the third."""
    stores = make_stores(tmp_path, models, images=(40, 20))
    recipe = FAST.changed(epochs=1, match_graph=graph, match_drop_tokens=0.2, match_most=4)
    run = trained(stores, tmp_path / "run", recipe)
    embedded = embed_split(run, stores["val"], device="cpu")
    assert embedded.nodes is not None
    scores = np.concatenate([block for _, block in embedded.scores()], axis=1)
    assert scores.shape == (20, 40)
    assert np.isfinite(scores).all()


def test_the_whole_score_is_what_its_parts_say(found):
    """Slowly: shares times cosines and node scores, less what is paid."""
    assert found.nodes is not None
    # Whether two epochs make nodes worth a share is chance.
    paid = (np.linspace(-1, 1, 60, dtype="f4"), np.linspace(1, 0, 120, dtype="f4"))
    shares = tuple(0.6 * share for share in found.shares)
    found = replace(found, shares=shares, node_share=0.4, node_penalties=paid)
    table = ScoreTable.of(found)
    plain = table.total([*found.shares, found.node_share])
    plain -= paid[0][:, None] + paid[1][None]
    whole = np.concatenate([block for _, block in found.scores()], axis=1)
    np.testing.assert_allclose(whole, plain, atol=2e-5)
    images, captions = np.array([3, 0, 59]), np.array([0, 7, 100])
    np.testing.assert_allclose(
        found.pair_scores(images, captions), whole[images, captions], atol=2e-5
    )
    part = found.part(np.array([2, 5]), np.flatnonzero(np.isin(found.caption_to_image, [2, 5])))
    some = np.concatenate([block for _, block in part.scores()], axis=1)
    columns = np.flatnonzero(np.isin(found.caption_to_image, [2, 5]))
    np.testing.assert_allclose(some, whole[np.ix_([2, 5], columns)], atol=2e-5)


def test_the_whole_score_pays_for_its_cosines_and_for_its_nodes(world):
    """Slowly, with the split itself as the bank."""
    _, stores, run = world
    split, device = Split(stores["val"]), torch.device("cpu")
    plain = embed(*run.load_best(), split, device)
    shares = (*(0.6 / len(plain.shares) for _ in plain.shares), 0.4)
    seen = Heads(shares).applied(plain, split, device)
    bank = Bank(seen.cosines(), seen.nodes)
    of_cosines, of_nodes = Correction(8, 0.5, 16, 0.25), Correction(4, 0.75, 2, 0.5)
    heads = Heads(shares, correction=of_cosines, node_correction=of_nodes, bank=bank)
    found = heads.applied(plain, split, device)
    image, caption = seen.cosines()
    parts = image @ caption.T, 0.4 * score_matrix(*seen.nodes, seen.mirror)

    def paid(scores, k, alpha):
        return alpha * np.sort(scores, axis=1)[:, -k:].mean(axis=1)

    by_image, by_caption = paid(parts[0], 8, 0.5), paid(parts[0].T, 16, 0.25)
    for one, other in zip(found.penalties, (by_image, by_caption), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    whole = by_image + paid(parts[1], 4, 0.75), by_caption + paid(parts[1].T, 2, 0.5)
    for one, other in zip(found.node_penalties, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    # One of the two alone.
    for kept in ({"correction": of_cosines}, {"node_correction": of_nodes}):
        alone = Heads(shares, bank=bank, **kept).applied(plain, split, device).node_penalties
        less = whole[0] - by_image if "node_correction" in kept else by_image
        np.testing.assert_allclose(alone[0], less, atol=1e-5)


def test_the_bank_is_what_the_run_makes_of_images_of_train(world):
    """Cosines of all that are drawn; nodes of the first ones, with all their captions."""
    _, stores, run = world
    fuser, mix = run.load_best()
    heads, split, device = run.load_heads(), Split(stores["train"]), torch.device("cpu")
    found = closing._bank(fuser, mix, heads, split, FAST.scores, device)
    drawn = np.random.default_rng(0).permutation(120)[:40]
    part = split.subset(drawn)
    whole = replace(heads, bank=None).applied(embed(fuser, mix, part, device), part, device)
    for one, other in zip(found.cosines, whole.cosines(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert found.nodes is not None
    assert whole.nodes is not None
    captions = np.flatnonzero(whole.caption_to_image < 16)
    for one, every, rows in zip(found.nodes, whole.nodes, (range(16), captions), strict=True):
        expected = every.take(np.array(rows))
        assert one.lengths.tolist() == expected.lengths.tolist()
        np.testing.assert_allclose(one.weights_S, expected.weights_S, atol=1e-6)
        np.testing.assert_allclose(one.vectors_SW, expected.vectors_SW, atol=1e-3)


def test_without_its_nodes_a_run_embeds_the_same(world):
    _, stores, run = world
    (fuser, mix), split, device = run.load_best(), Split(stores["val"]), torch.device("cpu")
    whole, light = (embed(fuser, mix, split, device, nodes=some) for some in (True, False))
    assert (whole.nodes is None, light.nodes is None) == (False, True)
    np.testing.assert_array_equal(light.fused_image, whole.fused_image)
    np.testing.assert_array_equal(light.fused_caption, whole.fused_caption)


def test_validation_matches_nodes_of_few_images_only(world, monkeypatch):
    """All figures but the network's own are theirs, and the shares are fitted on them."""
    _, stores, _run = world
    split = Split(stores["val"])
    monkeypatch.setattr(trainer, "MOST_IMAGES_OF_NODES", 20)
    objective = build_objective(FAST, split, 3)
    job = SimpleNamespace(objective=objective, val=split, recipe=FAST, device=torch.device("cpu"))
    table = trainer.validate(job)
    found = embed(objective.fuser, objective.mix, split, job.device)
    few = ScoreTable.of(found, 20)
    shares = tuned_shares(few)[0]
    np.testing.assert_allclose(objective.mix.shares().tolist(), shares, atol=1e-4)
    ranks = rank_matrix(few.total(shares), few.caption_to_image_T.numpy())
    assert table["rsum"] == pytest.approx(recalls(ranks)["rsum"], abs=0.5)
    ranks = rank_positives(found.fused_image, found.fused_caption, found.caption_to_image)
    assert table["fused_rsum"] == pytest.approx(recalls(ranks)["rsum"], abs=0.5)


def test_who_pays_nothing_is_not_matched_with_the_bank(world, monkeypatch):
    """Payments are as before: alpha times what `node_popularity` says, and exact zeros."""
    _, stores, run = world
    (fuser, mix), split, device = run.load_best(), Split(stores["val"]), torch.device("cpu")
    heads = replace(run.load_heads(), correction=None)
    shares = (0.1, *[0.8 / (len(heads.shares) - 2)] * (len(heads.shares) - 2), 0.1)
    plain = embed(fuser, mix, split, device)
    matched = []
    whole = heads_module.score_blocks

    def counted(image, caption, *rest, **options):
        matched.append(len(image) * len(caption))
        return whole(image, caption, *rest, **options)

    monkeypatch.setattr(heads_module, "score_blocks", counted)
    for alphas, pairs in (((0.5, 0.0), 60 * 32), ((0.0, 0.5), 120 * 16)):
        correction = Correction(4, alphas[0], 8, alphas[1])
        one = replace(heads, shares=shares, node_correction=correction)
        found = one.applied(plain, split, device)
        assert sum(matched) == pairs
        by_image, by_caption = node_popularity(found, one.bank, [4], [8], device="cpu")
        assert found.node_penalties is not None
        for paid, alpha, (near,) in zip(
            found.node_penalties, alphas, (by_image, by_caption), strict=True
        ):
            np.testing.assert_allclose(paid, alpha * near, atol=1e-6)
        matched.clear()


def test_the_first_stage_is_one_corrected_product(found):
    paid = (np.linspace(-1, 1, 60, dtype="f4"), np.linspace(1, 0, 120, dtype="f4"))
    found = replace(found, penalties=paid)
    image, caption = found.cosines()
    owner = found.caption_to_image
    one = rank_positives(found.image_IE, found.caption_TE, owner)
    np.testing.assert_array_equal(
        one.t2i, rank_matrix(image @ caption.T - paid[0][:, None], owner).t2i
    )
    np.testing.assert_array_equal(
        one.i2t, rank_matrix(image @ caption.T - paid[1][None], owner).i2t
    )


def test_heads_survive_the_file_and_the_export(world, found, tmp_path):
    _, stores, run = world
    heads = run.load_heads()
    again = Heads.from_tensors(heads.tensors())
    for name, value in heads.tensors().items():
        assert torch.equal(value, again.tensors()[name]), name
    assert Heads.from_tensors({}) is None
    HadaModel.from_run(run).save_pretrained(tmp_path / "model")
    back = HadaModel.from_pretrained(tmp_path / "model").embed(stores["val"], device="cpu")
    np.testing.assert_array_equal(found.image_IE, back.image_IE)
    for (_, one), (_, other) in zip(found.scores(), back.scores(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_score_that_does_not_help_is_left_out_and_said_so(found):
    table = ScoreTable.of(replace(found, nodes=None))
    noise = torch.randn(1, *table.scores_KIT.shape[1:], generator=torch.Generator().manual_seed(0))
    table = replace(table, scores_KIT=torch.cat([table.scores_KIT, noise]))
    labels = [f"s{k}" for k in range(len(table.scores_KIT))]
    said = []
    shares = chosen_shares(table, labels, said.append)
    assert shares[-1] == 0
    assert f"{labels[-1]}: left out: right matches are as likely without it" in said
    assert sum(shares) == pytest.approx(1)


@pytest.mark.slow
def test_a_run_that_dies_while_it_is_finished_finishes_later(world, monkeypatch, tmp_path):
    """After the heads are written and before the checkpoint knows of them, and before that."""
    _, stores, run = world
    for moment in ("before", "after"):
        with monkeypatch.context() as patch:
            if moment == "before":
                patch.setattr(trainer, "fit_heads", _die)
            else:
                whole = checkpoint.save_last

                def save(run, objective, optimizer, position, whole=whole):
                    if position.finished:
                        raise KeyboardInterrupt
                    whole(run, objective, optimizer, position)

                patch.setattr(checkpoint, "save_last", save)
            with pytest.raises(KeyboardInterrupt):
                trained(stores, tmp_path / moment, FAST)
        again = trained(stores, tmp_path / moment, FAST)
        assert without_time(again.metrics()) == without_time(run.metrics())
        assert (again.path / BEST).read_bytes() == (run.path / BEST).read_bytes()


@pytest.fixture
def world_of_files(tmp_path, monkeypatch):
    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _die(*_args, **_options):
    raise KeyboardInterrupt


def test_other_recipes_have_no_heads(world, tmp_path):
    _, stores, _ = world
    recipe = RECIPES["pooled"].changed(**SMALL | {"epochs": 1})
    assert trained(stores, tmp_path / "pooled", recipe).load_heads() is None


def test_a_mixture_is_not_below_its_members(found):
    """On the images that chose it, by the measure that chose it."""
    table = ScoreTable.of(found)
    whole = score_loss(table, [*found.shares, found.node_share])
    for k in range(len(table.scores_KIT)):
        alone = [float(k == other) for other in range(len(table.scores_KIT))]
        assert whole <= score_loss(table, alone) + 0.005


def test_nothing_to_fit_is_told():
    with pytest.raises(UsageError, match="finish_scores=true"):
        RECIPES["pooled"].changed(epochs=0)
    with pytest.raises(UsageError, match="needs scores=all"):
        RECIPES["pooled"].changed(scores="fused", tune_scores=False, finish_scores=True)
    with pytest.raises(UsageError, match="finish_scores"):
        RECIPES["pooled"].changed(cca=True)


def test_fit_is_a_run_like_any_other(world_of_files):
    """By the command: fitted, finished when called again, embedded like a trained one."""
    words = ("fit", "--manifest", "toy.yaml", "--run", "closed", "--set", "bank=40")
    code, out, said = call(*words)
    assert code == 0
    assert out.strip() == "closed"
    assert "fitted in closed form" in said
    assert (
        "already finished"
        in call("fit", "--manifest", "toy.yaml", "--run", "closed", "--set", "bank=40")[2]
    )
    run = RunFolder(world_of_files / "closed")
    stores = [open_store(world_of_files / "stores/toy/val" / m) for m in ("left", "right")]
    found = embed_split(run, stores, device="cpu")
    assert found.shares[0] == 0
    rsum = recalls(rank_positives(found.image_IE, found.caption_TE, found.caption_to_image))["rsum"]
    own = [recalls(rank_positives(*pair, found.caption_to_image))["rsum"] for pair in found.own]
    assert rsum > max(own) - 20
    assert closing.LEAST_GAIN > 0


def test_stored_nodes_and_embeddings_score_as_the_run_does(world, found, tmp_path):
    """Opened as stores: the first stage's order, and the second stage's scores to float16."""
    _, stores, run = world
    write_embedded(tmp_path / "fused", "fused", run, found, stores["val"])
    write_nodes(tmp_path / "nodes", "nodes", run, found, stores["val"])
    fused, nodes = open_store(tmp_path / "fused"), open_store(tmp_path / "nodes")
    owner = found.caption_to_image
    one = rank_positives(fused.image.embeddings(), fused.caption.embeddings(), owner)
    np.testing.assert_array_equal(
        one.t2i, rank_positives(found.image_IE, found.caption_TE, owner).t2i
    )
    assert nodes.spec.dtype == "float16"
    sides = [
        nodes_of(side.tokens(np.arange(len(side.ids))), np.asarray(side.lengths))
        for side in (nodes.image, nodes.caption)
    ]
    back = replace(found, nodes=(sides[0], sides[1]))
    for (_, now), (_, before) in zip(back.scores(), found.scores(), strict=True):
        np.testing.assert_allclose(now, before, atol=3e-3)
    pooled = replace(found, nodes=None)
    with pytest.raises(RunError, match="matches no nodes"):
        write_nodes(tmp_path / "none", "none", run, pooled, stores["val"])


@pytest.mark.slow
def test_the_kernel_head_is_kept_with_the_run(tmp_path, capsys):
    """Fitted where it helps, told in one line, and the same when the run is opened again."""
    stores = make_stores(tmp_path, ("left", "right"), noise=1.0)
    recipe = RECIPES["closed-form"].changed(cca=False, correct="none", late="none", bank=40)
    run = trained(stores, tmp_path / "run", recipe)
    said = capsys.readouterr().err
    kernel = run.load_heads().kernel
    assert kernel is not None
    assert said.count("kernel: shrinkage") == said.count("kernel: share") == 1
    found = embed_split(run, stores["val"], device="cpu")
    for pair, again in zip(found.own[-1], kernel_pair(kernel, Split(stores["val"])), strict=True):
        np.testing.assert_array_equal(pair, again)
    assert found.shares[-1] > 0

    def rsum(pair):
        return recalls(rank_positives(*pair, found.caption_to_image))["rsum"]

    assert rsum((found.image_IE, found.caption_TE)) > max(rsum(pair) for pair in found.own)


def test_a_head_that_does_not_help_leaves_no_trace(tmp_path, monkeypatch):
    """Both heads, one of them, none: what is left keeps its own share."""
    stores = make_stores(tmp_path, ("left", "right"), noise=1.0)
    splits = [Split(stores[split]) for split in ("train", "val")]
    recipe = RECIPES["closed-form"].changed(**SMALL)
    objective = build_objective(recipe, splits[0], 0)
    for left_out in ([], ["cca"], ["kernel"], ["cca", "kernel"]):

        def shares(_table, labels, _report, left_out=left_out, **_options):
            return tuple(0.0 if name in left_out else float(k) for k, name in enumerate(labels))

        corrected = []

        def seen(heads, found, table, *_others, corrected=corrected):
            corrected.append((found, table))
            return heads

        monkeypatch.setattr(closing, "chosen_shares", shares)
        monkeypatch.setattr(closing, "corrected", seen)
        settings = replace(recipe.scores, late="none", bank=40)
        heads = closing.fit_heads(
            objective.fuser, objective.mix, *splits, settings,
            names=("left", "right"), device=torch.device("cpu"), report=lambda _: None,
        )  # fmt: skip
        whole = {"fused": 0.0, "left": 1.0, "right": 2.0, "cca": 3.0, "kernel": 4.0}
        assert heads.shares == tuple(v for name, v in whole.items() if name not in left_out)
        assert [heads.cca is None, heads.kernel is None] == [
            k in left_out for k in ("cca", "kernel")
        ]
        found = heads.applied(
            embed(objective.fuser, objective.mix, splits[1], torch.device("cpu")), splits[1], "cpu"
        )
        # What the correction is chosen for is what the run will compute.
        ((before, table),) = corrected
        assert found.shares == before.shares
        assert len(found.shares) == 1 + len(found.own) == len(table.scores_KIT)
        for pair, other in zip(found.own, before.own, strict=True):
            for values, others in zip(pair, other, strict=True):
                np.testing.assert_array_equal(values, others)
