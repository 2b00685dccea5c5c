"""What the published recipes say, number by number, and what they ask of stores and batches."""

from __future__ import annotations

import json

import numpy as np
import official_slow
import pytest
import torch
from click.testing import CliRunner
from published_worlds import (
    SIDES,
    as_tensors,
    checkpoint,
    command,
    put_stores,
    random_sides,
    their_names,
)
from small_batches import tiny, tiny_batch

from hada.extract.common.errors import CheckpointError, RunError, StoreMismatchError
from hada.fuse.cli import fuse
from hada.fuse.embedding import embed_split
from hada.fuse.exchange.hub import HadaModel
from hada.fuse.exchange.import_official import import_checkpoint
from hada.fuse.exchange.official import read_official
from hada.fuse.recipes import RECIPES
from hada.fuse.run_files.config import completed, differences
from hada.fuse.tokens.split import Split
from hada.fuse.training.trainer import build_objective

# The configuration files and controllers of the authors' repositories, every field.
HADA = {
    "node_width": 512, "heads": 4, "head_width": 512, "graph_width": 512, "out_width": 512,
    "norm": "batch", "inputs": "published", "raw_embeddings": False, "use_embeddings": True,
    "use_globals": False, "convolution": "gatv2", "node_hidden": [], "graph_hidden": [],
    "head_hidden": [], "skip": True, "activation": "gelu",
    "dropout_nodes": 0.3, "dropout_graph": 0.3, "dropout_head": 0.25,
    "edge_own": 0.9, "edge_other": 0.7, "edge_between": 1.1, "edge_tokens": -1.0,
    "edge_loop_token": 0.9, "edge_loop_global": 1.1, "undirected": False,
    "first_tokens_only": False, "second_from_first": False,
    "weight_nce": 1.0, "weight_itm": 1.0, "weight_hinge": 0.0, "hinge_repeats": True,
    "image_share": 0.25, "margin": 0.3,
    "temperature": 0.07, "temperature_low": 0.01, "temperature_high": 0.5,
    "dropout_match": 0.3, "drop_logit": False, "momentum": 0.995, "momentum_dropout": True,
    "queue": 64000, "queue_noise": True, "distill": 0.4,
    "scores": "fused", "score_weights": [], "learn_scores": False, "tune_scores": False,
    "train_on_scores": True,
    "order": "pairs", "batch_size": 20, "accumulate": 1, "precision": "fp32", "epochs": 100,
    "learning_rate": 1e-4, "learning_rate_low": 5e-6, "schedule": "restarts",
    "warmup_epochs": 1.0, "restart_epochs": 50, "weight_decay": 0.02, "decay_all": True,
    "clip_norm": 0.0, "patience": 20, "choose": "rsum", "min_gain": 0.1, "save_minutes": 5.0,
    # None of the publications matches nodes or fits anything behind the network.
    "match_width": 0, "match_hidden": 512, "match_mirror": 0.5, "match_graph": "none",
    "match_graph_width": 128, "match_graph_heads": 4, "match_dropout": 0.1, "match_most": 0,
    "match_drop_tokens": 0.0, "match_captions": 2, "weight_match": 1.0,
    "finish_scores": False, "cca": False, "kernel_cca": False, "correct": "none", "bank": 5000,
    "node_bank": 300, "late": "none",
}  # fmt: skip
EXTEND = HADA | {
    "norm": "none", "dropout_nodes": 0.0, "dropout_graph": 0.7, "dropout_head": 0.7,
    "dropout_match": 0.7, "image_share": 0.3, "temperature_low": 0.001, "distill": 0.0,
    "scores": "first", "learn_scores": True, "learning_rate": 5e-5, "restart_epochs": 30,
    "patience": 5,
}  # fmt: skip
LAVIS = EXTEND | {
    "inputs": "as-is", "raw_embeddings": True, "dropout_graph": 0.4, "dropout_head": 0.4,
    "dropout_match": 0.4, "image_share": 0.5, "scores": "fused", "learn_scores": False,
    "first_tokens_only": True, "edge_loop_token": 1.0, "edge_loop_global": 1.0, "batch_size": 40,
    "learning_rate": 1e-4, "learning_rate_low": 1e-5,
}  # fmt: skip
BOTH = LAVIS | {
    "scores": "all", "score_weights": [1.0, 1.0, 0.5], "learn_scores": True, "image_share": 0.3,
}  # fmt: skip
CONCAT = HADA | {
    "convolution": "none", "norm": "layer", "inputs": "l2", "skip": False, "dropout_head": 0.3,
    "image_share": 0.3, "batch_size": 50, "restart_epochs": 40,
}  # fmt: skip
PUBLISHED = {
    "hada": HADA,
    "hada-extend": EXTEND,
    "hada-lavis": LAVIS,
    "hada-lavis-weighted": LAVIS | {"scores": "first", "learn_scores": True},
    "hada-lavis-both": BOTH,
    "hada-2": BOTH
    | dict.fromkeys(("dropout_graph", "dropout_head", "dropout_match"), 0.2)
    | {"queue": 10152, "batch_size": 24, "choose": "likelihood"},
    "concat": CONCAT,
    "concat-extend": CONCAT
    | dict.fromkeys(("dropout_nodes", "dropout_graph", "dropout_head", "dropout_match"), 0.0)
    | {"temperature_low": 0.001, "scores": "first", "learn_scores": True},
}


def test_every_number_of_a_published_recipe():
    for name, wanted in PUBLISHED.items():
        assert RECIPES[name].flat() == {"name": name, **wanted}, name
    assert set(PUBLISHED) == set(RECIPES) - {"fast", "dense", "closed-form", "pooled"}


def test_the_command_shows_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command(tmp_path, "suggest", "--help")
    words = ["train", "--recipe", "hada-2", "--model", "one", "--print-config"]
    sides, owner = random_sides(2, 1)
    for split in ("train", "val"):
        put_stores(tmp_path, split, sides, owner)
    shown = CliRunner().invoke(fuse, [*words, "--manifest", "toy.yaml"])
    assert json.loads(shown.stdout)["recipe"]["scores"]["weights"] == [1.0, 1.0, 0.5]


@pytest.mark.parametrize(("weights", "kept"), [((0.02, 0.05, 0.001), (0.1, 0.1, 0.01)),
                                              ((3.0, 2.0, 1.5), (3.0, 2.0, 1.5))])  # fmt: skip
def test_learned_weights_of_three_scores_have_the_published_floors(weights, kept):
    objective = tiny(scores="all", score_weights=weights, learn_scores=True)
    objective.train()(tiny_batch())
    values = [float(v.detach()) for v in objective.mix.values]
    assert values == pytest.approx(kept)
    shares = objective.mix.shares().detach()
    torch.testing.assert_close(shares, torch.tensor(kept) / sum(kept))


def test_the_hinge_counts_an_images_other_captions_only_as_published():
    """Three rows of one image: with the published hinge they are each other's negatives."""
    ids = [4, 4, 4, 7]
    losses = []
    for repeats in (False, True):
        objective = tiny(weight_hinge=1.0, hinge_repeats=repeats)
        batch = tiny_batch(4, 1, ids)
        with torch.no_grad():
            objective.eval()
            image = objective.fuser.encode("image", batch.image)
            caption = objective.fuser.encode("caption", batch.caption)
            losses.append(float(objective(batch)["hinge"]))
        scores = (image @ caption.T / 0.07).numpy()
        found = []
        for query in (scores, scores.T):
            for i in range(4):
                rivals = [query[i, j] for j in range(4) if j != i and (repeats or ids[j] != ids[i])]
                found.append(max(0.0, *(0.3 + r - query[i, i] for r in rivals)))
        assert losses[-1] == pytest.approx(sum(found) / 4, abs=1e-4)
    assert losses[0] != losses[1]


@pytest.fixture
def lavis(tmp_path, monkeypatch):
    """An unweighted HADA-LAVIS checkpoint, its sides, and the fuser it was made of."""
    monkeypatch.chdir(tmp_path)
    sides, owner = random_sides(23, 1)
    stores = put_stores(tmp_path, "test", sides, owner)
    recipe = RECIPES["hada-lavis"].with_settings(
        {"node_width": "8", "head_width": "6", "graph_width": "6", "out_width": "5", "queue": "0"}
    )
    fuser = build_objective(recipe, Split(stores, first_tokens_only=True), 0).fuser
    disc = {"disc.linear.0.weight": torch.zeros(1, 20)}
    # As its `save_model` writes it where weights are not learned.
    path = checkpoint(tmp_path / "best.pth.tar", fuser, disc, weight_1=0)
    return path, sides, owner, stores, fuser


def test_lavis_is_told_by_its_file_whatever_clips_store_holds(lavis, tmp_path):
    """The second store here has tokens, which HADA-LAVIS never looked at."""
    path, sides, _, stores, fuser = lavis
    run = import_checkpoint(path, stores, tmp_path / "run")
    recipe = run.recipe().flat()
    told = {k: recipe[k] for k in ("inputs", "first_tokens_only", "second_from_first")}
    assert told == {"inputs": "as-is", "first_tokens_only": True, "second_from_first": True}
    assert run.config()["branches"]["image"]["evaluation_batch"] == 20
    found = embed_split(run, stores, device="cpu")
    exported = HadaModel.from_run(run).embed(stores, device="cpu")
    for side, got in (("image", found.fused_image), ("caption", found.fused_caption)):
        items, weights = as_tensors(sides)[side], their_names(getattr(fuser, side))
        want = official_slow.evaluate(weights, "lavis", items, 20)
        np.testing.assert_allclose(got, want, atol=1e-5)
        other = official_slow.evaluate(weights, "lavis", items, 23)
        assert np.abs(got - other.numpy()).max() > 1e-2, "the batch would not matter"
    np.testing.assert_array_equal(exported.fused_image, found.fused_image)


def test_the_corrected_graph_does_not_depend_on_the_batch(lavis, tmp_path):
    path, sides, owner, stores, _ = lavis
    run = import_checkpoint(path, stores, tmp_path / "run", settings={"second_from_first": "false"})
    whole = embed_split(run, stores, device="cpu")
    few = {side: sides[side][:3] for side in SIDES}
    part = embed_split(run, put_stores(tmp_path, "few", few, owner[:3]), device="cpu")
    np.testing.assert_allclose(part.fused_image, whole.fused_image[:3], atol=1e-6)


def unit(sides):
    return {
        s: [{k: v / np.linalg.norm(v) if k[0] == "p" else v for k, v in i.items()} for i in rows]
        for s, rows in sides.items()
    }


@pytest.mark.parametrize("recipe", ["hada-lavis", "hada-lavis-weighted", "hada-2"])
def test_unit_length_stores_are_refused_where_projections_are_needed(lavis, tmp_path, recipe):
    path, sides, owner, stores, _ = lavis
    run = import_checkpoint(path, stores, tmp_path / "run")
    for split in ("train", "val", "unit"):
        old = put_stores(tmp_path, split, unit(sides), owner, normalized=(True, False))
    with pytest.raises(StoreMismatchError, match=r"normalized: true.*Extract 'one' again"):
        import_checkpoint(path, old, tmp_path / "other")
    with pytest.raises(RunError, match="normalized: the run was trained on False"):
        embed_split(run, old, device="cpu")
    words = ["train", "--recipe", recipe, "--model", "one", "--model", "two", "--manifest"]
    command(tmp_path, "suggest", "--help")  # writes the manifest
    result = CliRunner().invoke(fuse, [*words, "toy.yaml", "--run", "new"])
    assert result.exit_code == 2
    assert "Extract 'one' again" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_unit_length_stores_give_hada_m_the_same(lavis, tmp_path):
    """The recipe makes unit length itself, so old stores and new ones train and embed alike."""
    _, sides, owner, stores, _ = lavis
    small = {"node_width": "8", "head_width": "6", "graph_width": "6", "out_width": "5"}
    recipe = RECIPES["hada"].with_settings({**small, "queue": "0"})
    old = put_stores(tmp_path, "old", unit(sides), owner, normalized=(True, True))
    fuser = build_objective(recipe, Split(stores), 0).fuser
    path = checkpoint(tmp_path / "hada.pth.tar", fuser, {})
    run = import_checkpoint(path, stores, tmp_path / "run")
    found = [embed_split(run, some, device="cpu") for some in (stores, old)]
    np.testing.assert_allclose(found[0].fused_image, found[1].fused_image, atol=1e-6)
    np.testing.assert_allclose(found[0].own[0][0], found[1].own[0][0], atol=1e-6)


def test_a_misfit_names_the_settings_that_tensors_do_not_tell(lavis, tmp_path):
    path, *_, stores, _ = lavis
    with pytest.raises(CheckpointError, match="--set first_tokens_only=true"):
        import_checkpoint(path, stores[:1], tmp_path / "run")


def test_a_learned_number_that_is_none_is_named(lavis, tmp_path):
    path, *_ = lavis
    content = torch.load(path, weights_only=False)
    for bad, says in (([1.0, 2.0], "expected one number"), (float("nan"), "finite number")):
        torch.save(content | {"weight_1": bad}, tmp_path / "bad.pth.tar")
        with pytest.raises(CheckpointError, match=f"weight_1: .*{says}"):
            read_official(tmp_path / "bad.pth.tar")


def test_a_run_of_before_these_settings_is_the_same_run(lavis, tmp_path):
    path, *_, stores, _ = lavis
    imported = import_checkpoint(path, stores, tmp_path / "run").config()
    today = imported | {"recipe": RECIPES["fast"].to_json()}
    before = json.loads(json.dumps(today))
    before["recipe"] = RECIPES["fast"].flat()  # of before there were records
    for key in ("raw_embeddings", "hinge_repeats"):
        del before["recipe"][key]
    for side in SIDES:
        del before["branches"][side]["evaluation_batch"]
    for features in before["features"].values():
        del features["normalized"]
    assert differences(completed(before, today["features"]), today) == []
    before["recipe"]["dropout_head"] = 0.1
    ((name, there, here),) = differences(completed(before, today["features"]), today)
    assert (name, there, here) == ("recipe.network.dropout_head", 0.1, 0.3)
