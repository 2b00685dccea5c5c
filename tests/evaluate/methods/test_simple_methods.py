"""Galleries with items that not every model could read, runs on them, and simple sums."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import galleries
import numpy as np
import pytest
import torch

from hada.evaluate.methods import combinations
from hada.evaluate.methods.combinations import mean_of_cosines, single_models, tuned_sum
from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery
from hada.evaluate.methods.rerank import reranked
from hada.evaluate.results.measure import items_digest, measure
from hada.fuse import run_folder as checkpoint
from hada.fuse.embedding import embed_split
from hada.fuse.ranking.ranks import rank_positives, recalls
from hada.fuse.recipes import RECIPES
from hada.fuse.run_files.features import features_of
from hada.fuse.run_folder import RunFolder
from hada.fuse.tokens.split import Split
from hada.fuse.training.trainer import build_objective


@pytest.fixture
def stores() -> list[Any]:
    """Of 8 images with 2 captions each: a lost image 1, b captions 6, 7 (image 3) and 10."""
    return [
        galleries.make_store("stores/a", "a", images=8, failed={"image": [1]}),
        galleries.make_store("stores/b", "b", images=8, failed={"caption": [6, 7, 10]}),
        galleries.make_store("stores/c", "c", images=8, failed={"image": [5], "caption": [0]}),
    ]


def test_a_gallery_holds_what_every_model_could_read(stores: list[Any]) -> None:
    gallery = Gallery.of(stores[:2])
    assert gallery.image_rows.tolist() == [0, 2, 4, 5, 6, 7]
    assert gallery.caption_rows.tolist() == [0, 1, 4, 5, 8, 9, 11, 12, 13, 14, 15]
    assert gallery.caption_to_image.tolist() == [0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5]
    for rung, store in zip(single_models(gallery), stores, strict=False):
        for side, values in zip((store.image, store.caption), rung.pair, strict=True):
            rows = gallery.image_rows if side is store.image else gallery.caption_rows
            own = side.embeddings()[rows]
            want = own / np.linalg.norm(own, axis=1, keepdims=True)
            np.testing.assert_allclose(values, want, rtol=1e-6)


def make_run(stores: list[Any], **changes: Any) -> RunFolder:
    """A run of two models as training begins it, with its first weights as the best."""
    split = Split(stores)
    small = {"node_width": 8, "heads": 1, "head_width": 8, "graph_width": 8, "out_width": 8}
    recipe = RECIPES["pooled"].changed(**{**small, "head_hidden": (16,), **changes})
    objective = build_objective(recipe, split, 0)
    run = RunFolder(Path("runs/mine"))
    run.claim(
        {
            "format": checkpoint.FORMAT,
            "dataset": "tiny",
            "models": ["a", "b"],
            "recipe": recipe.to_json(),
            "seed": 0,
            "branches": {
                side: checkpoint.branch_to_json(getattr(objective.fuser, side).config)
                for side in ("image", "caption")
            },
            "features": {s.spec.model.name: features_of(s) for s in stores},
        }
    )
    parts = {"fuser": objective.fuser, "mix": objective.mix}
    if objective.discriminator is not None:
        parts["discriminator"] = objective.discriminator
    tensors = {f"{p}.{k}": v for p, part in parts.items() for k, v in part.state_dict().items()}
    run.save_tensors({**tensors, "temperature": objective.temperature.detach()})
    return run


def test_a_run_is_scored_on_the_gallerys_items(stores: list[Any]) -> None:
    """Another model lost more items than the run's own two did."""
    run = make_run(stores[:2])
    gallery = Gallery.of(stores)
    rung = combinations.fusions(run.path, gallery, "cpu")[0]
    found = embed_split(run, stores[:2], device="cpu")
    assert len(gallery.image_rows) < len(found.image_rows)
    for rows, there, values, own in (
        (gallery.image_rows, found.image_rows, rung.pair[0], found.image_IE),
        (gallery.caption_rows, found.caption_rows, rung.pair[1], found.caption_TE),
    ):
        for row, value in zip(rows, values, strict=True):
            np.testing.assert_array_equal(value, own[there.tolist().index(row)])


def test_the_grid_of_shares_has_its_ends_and_its_middle() -> None:
    two = combinations._share_grid(2)
    assert len(two) == 21
    assert {(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)} <= set(two)
    assert len(combinations._share_grid(3)) == 66
    assert all(abs(sum(shares) - 1) < 1e-9 for shares in combinations._share_grid(5))


def test_the_sum_is_tuned_for_the_best_recall_and_the_mean_is_even() -> None:
    gallery = galleries.make_gallery("made", {"a": 1.2, "b": 0.9}, images=40)
    models = single_models(gallery)

    def rsum(weights: tuple[float, float]) -> float:
        scores = sum(
            w * rung.pair[0].astype(float) @ rung.pair[1].T.astype(float)
            for w, rung in zip(weights, models, strict=True)
        )
        ranks = np.array(
            [(scores[:, c] > scores[o, c]).sum() for c, o in enumerate(gallery.caption_to_image)]
        )
        back = np.array(
            [
                (
                    scores[i][gallery.caption_to_image != i]
                    > scores[i][gallery.caption_to_image == i].max()
                ).sum()
                for i in range(40)
            ]
        )
        return float(sum(100 * ((ranks < k).mean() + (back < k).mean()) for k in (1, 5, 10)))

    best = max(rsum((step / 20, 1 - step / 20)) for step in range(21))
    tuned = tuned_sum(models, gallery)
    assert recalls(tuned.ranks(gallery.caption_to_image))["rsum"] == pytest.approx(best)
    mean = mean_of_cosines(models)
    assert recalls(mean.ranks(gallery.caption_to_image))["rsum"] == pytest.approx(rsum((0.5, 0.5)))
    want = sum(0.5 * rung.pair[0] @ rung.pair[1].T for rung in models)
    np.testing.assert_allclose(mean.pair[0] @ mean.pair[1].T, want, atol=1e-6)


def test_gains_are_over_the_best_model_and_the_best_simple_combination() -> None:
    gallery = galleries.make_gallery("made", {"a": 2.0, "b": 0.7}, images=30)
    models = single_models(gallery)
    perfect = np.eye(30, dtype=np.float32)
    linear = EmbeddingMethod("linear", "linear", models[1].pair)
    hada = EmbeddingMethod("HADA", "hada", (perfect, perfect[gallery.caption_to_image]))
    result = measure(gallery, [*models, mean_of_cosines(models), linear, hada], resamples=50)
    figures = [rung["metrics"]["rsum"] for rung in result["methods"]]
    assert figures[0] < figures[2] < figures[1]
    assert result["protocol"]["compared_with"] == "b"
    last = result["methods"][-1]
    assert (last["gain"]["over"], last["gain_over_simple"]["over"]) == ("b", "linear")
    assert last["gain"]["rsum"] == pytest.approx(600 - figures[1])
    own = result["methods"][0]
    assert own["gain"]["over"] == "b"
    for way, name in (("i2t", "text"), ("t2i", "image")):
        for k in (1, 5, 10):
            fraction = own["clip_benchmark"][f"{name}_retrieval_recall@{k}"]
            assert fraction == pytest.approx(own["metrics"][f"{way}_R@{k}"] / 100)


def test_items_are_told_apart_by_ids_order_and_owners() -> None:
    gallery = galleries.make_gallery("made", {"a": 1.0}, images=4)
    other = replace(gallery, caption_to_image=np.array([0, 0, 1, 1, 2, 2, 2, 3]))
    fewer = replace(gallery, image_rows=gallery.image_rows[::-1])
    assert len({items_digest(x) for x in (gallery, other, fewer)}) == 3
    rank_positives(*single_models(gallery)[0].pair, other.caption_to_image)  # both can be ranked


def test_a_runs_matching_head_is_applied_as_it_was_trained(stores: list[Any]) -> None:
    """In eval mode, on the fused embeddings alone, with its own weights."""
    run = make_run(stores[:2], norm="batch", weight_itm=1.0)
    gallery = Gallery.of(stores)
    second: Any = reranked(
        run.path, combinations.fusions(run.path, gallery, "cpu")[0], gallery, 3, "cpu"
    )
    found = embed_split(run, stores[:2], device="cpu")
    images = [found.image_rows.tolist().index(row) for row in gallery.image_rows]
    captions = [found.caption_rows.tolist().index(row) for row in gallery.caption_rows]
    x, y = (
        torch.from_numpy(found.fused_image[images]),
        torch.from_numpy(found.fused_caption[captions]),
    )
    pairs = [(0, 0), (2, 1), (1, 3), (3, 5)]
    kept = {k.removeprefix("discriminator."): v for k, v in run.load_tensors().items()}
    for (i, t), logit in zip(pairs, second.head.logits(*np.array(pairs).T), strict=True):
        features = torch.cat([x[i], y[t], (x[i] - y[t]).abs(), x[i] * y[t]])
        raw = kept["head.linear.weight"][0] @ features + kept["head.linear.bias"][0]
        mean, variance = kept["head.norm.running_mean"][0], kept["head.norm.running_var"][0]
        want = (raw - mean) / (variance + 1e-5).sqrt() * kept["head.norm.weight"][0]
        assert logit == pytest.approx(float(want + kept["head.norm.bias"][0]), abs=1e-5)
