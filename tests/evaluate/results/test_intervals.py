"""An interval is one of the figure beside it: mean of folds, uneven captions, ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hada.evaluate.crops.classification import expected_hits
from hada.evaluate.methods.gallery import EmbeddingMethod
from hada.evaluate.methods.rerank import Reranked
from hada.evaluate.results.measure import mean_table, parts_of, ranks_in_folds
from hada.evaluate.results.significance import Hits, bootstrap_rsums, draws
from hada.fuse.ranking.ranks import Ranks, rank_positives, recalls


def split_up(seed: int, images: int, folds: int, most: int, *, ties: bool) -> tuple[Any, ...]:
    """A method with uneven captions, its ranks within folds, and the folds."""
    random = np.random.default_rng(seed)
    caption_to_image = np.repeat(np.arange(images), random.integers(1, most + 1, images))
    image = random.normal(size=(images, 3))
    caption = image[caption_to_image] + random.normal(size=(len(caption_to_image), 3))
    if ties:
        image, caption = np.round(image), np.round(caption)
    method = EmbeddingMethod("x", "model", (image.astype("f4"), caption.astype("f4")))
    cut = parts_of(caption_to_image, folds)
    return method, caption_to_image, cut, ranks_in_folds(method, caption_to_image, cut)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 8), st.integers(1, 20), st.booleans()
)
def test_the_value_is_the_statistic_of_drawing_every_image_once(
    seed: int, folds: int, size: int, most: int, ties: bool
) -> None:
    _, caption_to_image, cut, ranks = split_up(seed, folds * size, folds, most, ties=ties)
    hits = Hits.of(ranks, caption_to_image, folds=folds)
    once = np.ones((1, folds * size), np.int64)
    assert hits.rsum(once)[0] == pytest.approx(mean_table(ranks, cut)["rsum"])


def test_resamples_of_folds_equal_a_slow_loop() -> None:
    images, folds = 20, 4
    method, caption_to_image, cut, ranks = split_up(3, images, folds, 9, ties=False)
    hits = Hits.of(ranks, caption_to_image, folds=folds)
    (found,) = bootstrap_rsums([hits], resamples=50, seed=5)
    (counts_RI,) = draws(images, folds, 50, 5)
    scores = method.pair[0].astype(float) @ method.pair[1].astype(float).T
    for counts, value in zip(counts_RI, found, strict=True):
        tables = []
        for rows, captions in cut:
            assert counts[rows].sum() == len(rows)  # every fold is drawn from itself
            drawn = np.repeat(rows, counts[rows])
            total = 0.0
            for k in (1, 5, 10):
                i2t = [
                    any(
                        caption_to_image[j] == i
                        for j in captions[np.argsort(-scores[i, captions])[:k]]
                    )
                    for i in drawn
                ]
                queries = [j for i in drawn for j in np.flatnonzero(caption_to_image == i)]
                t2i = [
                    caption_to_image[j] in rows[np.argsort(-scores[rows, j])[:k]] for j in queries
                ]
                total += 100 * float(np.mean(i2t) + np.mean(t2i))
            tables.append(total)
        assert value == pytest.approx(np.mean(tables))


def test_the_middle_of_the_interval_is_the_mean_of_folds_and_not_the_pooled_figure() -> None:
    """Few captions an image and found in one fold, many and never found in the other."""
    counts = [1] * 10 + [50] * 10
    caption_to_image = np.repeat(np.arange(20), counts)
    first = np.zeros(len(caption_to_image), np.int64)
    far = np.where(caption_to_image < 10, 0, 100)
    one = np.ones(len(caption_to_image), np.int64)
    near = np.zeros(20, np.int64)
    ranks = Ranks(near, near, np.ones(20, np.int64), first + far, first + far, one)
    cut = parts_of(caption_to_image, 2)
    value = mean_table(ranks, cut)["rsum"]
    (folded,) = bootstrap_rsums([Hits.of(ranks, caption_to_image, folds=2)], resamples=200)
    assert (value, folded.min(), folded.max()) == (450.0, 450.0, 450.0)
    (pooled,) = bootstrap_rsums([Hits.of(ranks, caption_to_image)], resamples=200)
    assert pooled.max() < 400


def test_all_images_are_drawn_and_none_of_another_fold() -> None:
    (counts_RI,) = draws(12, 3, 400, 0)
    assert (counts_RI.reshape(400, 3, 4).sum(axis=2) == 4).all()
    assert (counts_RI.mean(axis=0) > 0.8).all()
    assert (counts_RI.mean(axis=0) < 1.2).all()


class Same:
    """A head that gives every pair the same logit."""

    name, caption_to_image, fitted = "head", "nobody's", ()
    seconds_per_pair = None

    def logits(self, images_P: Any, captions_P: Any) -> Any:
        return np.zeros(len(images_P), np.float32)

    def part(self, images: Any, captions: Any) -> Same:
        return self


@pytest.mark.parametrize("depth", [1, 5, 40])
def test_two_stages_that_tell_nothing_get_chance(depth: int) -> None:
    images = 40
    flat = EmbeddingMethod("flat", "hada", (np.ones((images, 2), "f4"), np.ones((images, 2), "f4")))
    ranks = Reranked(flat, Same(), depth).ranks(np.arange(images))
    table = recalls(ranks)
    before = recalls(rank_positives(*flat.pair, np.arange(images)))
    for name in ("i2t_R@1", "t2i_R@5", "t2i_R@10", "rsum"):
        assert table[name] == pytest.approx(before[name]), name


def test_a_constant_classifier_gets_chance() -> None:
    right = np.zeros((8, 4), bool)
    right[:, 0] = True  # all images are of the first class
    assert expected_hits(np.ones((8, 4)), right).mean() == 0.25
    assert expected_hits(right.astype(float), right).mean() == 1
