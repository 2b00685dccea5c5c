"""Re-ranking by a table of logits, with ties, against a loop over the candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hada.evaluate.methods.gallery import EmbeddingMethod
from hada.evaluate.methods.rerank import Reranked


@dataclass(frozen=True)
class Table:
    """A head that looks its logits up."""

    logits_IT: NDArray[np.float32]
    name: str = "table"
    owner: str = "a table"
    seconds_per_pair: float | None = None

    def logits(self, images_P: Any, captions_P: Any) -> NDArray[np.float32]:
        return self.logits_IT[images_P, captions_P]

    def part(self, images: Any, captions: Any) -> Table:
        return Table(self.logits_IT[np.ix_(images, captions)])


def method(scores_IT: NDArray[np.floating[Any]]) -> EmbeddingMethod:
    """A first stage with these scores."""
    return EmbeddingMethod(
        "first", "hada", (np.eye(len(scores_IT), dtype="f4"), scores_IT.T.astype("f4"))
    )


def slow(scores: Any, logits: Any, own: Any, depth: int, before: int) -> tuple[int, int, int]:
    """Best rank, worst rank and tied matches of one query over its gallery."""
    depth = min(depth, len(scores))
    first = sorted(range(len(scores)), key=lambda k: (-scores[k], k))[:depth]
    matches = [k for k in first if own[k]]
    if not matches:
        rank = max(before, depth)
        return rank, rank, 1
    best = max(logits[k] for k in matches)
    others = [k for k in first if not own[k]]
    better = sum(logits[k] > best + 1e-4 for k in others)
    level = sum(abs(logits[k] - best) <= 1e-4 for k in others)
    return better, better + level, sum(abs(logits[k] - best) <= 1e-4 for k in matches)


@pytest.mark.parametrize("depth", [1, 3, 6, 99])
def test_ties_of_logits_are_counted_on_both_sides(depth: int) -> None:
    random = np.random.default_rng(depth)
    owner = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 5])
    scores = random.normal(size=(6, 12))
    # Whole numbers that tie often; the same pair rounds a little differently in another batch.
    logits = random.integers(0, 2, (6, 12)) + 3e-7 * random.uniform(-1, 1, (6, 12))
    second = Reranked(method(scores), Table(logits.astype(np.float32)), depth)
    before, found = second.first.ranks(owner), second.ranks(owner)
    ties = 0
    for image in range(6):
        want = slow(scores[image], logits[image], owner == image, depth, before.i2t_lo[image])
        got = (found.i2t_lo[image], found.i2t_hi[image], found.i2t_tied[image])
        assert got == want
        ties += want[1] > want[0]
    for caption, image in enumerate(owner):
        want = slow(
            scores[:, caption], logits[:, caption], np.arange(6) == image, depth,
            before.t2i_lo[caption],
        )  # fmt: skip
        assert (found.t2i_lo[caption], found.t2i_hi[caption], found.t2i_tied[caption]) == want
    assert ties > 0 or depth == 1


def test_a_constant_head_gets_chance_among_the_first_places() -> None:
    scores = np.eye(4) + 0.1 * np.random.default_rng(0).normal(size=(4, 4))
    found = Reranked(method(scores), Table(np.zeros((4, 4), np.float32)), 3).ranks(np.arange(4))
    assert found.t2i_lo.tolist() == [0] * 4
    assert found.t2i_hi.tolist() == [2] * 4
    assert found.i2t_hits(1).tolist() == pytest.approx([1 / 3] * 4)


def test_a_match_that_was_not_brought_stays_behind_all_that_were() -> None:
    """Caption 0's image stands third and fifth; two places are ordered anew."""
    scores = np.array([[0.1, 0.0], [0.9, 0.9], [0.5, 0.1], [0.3, 0.2], [0.4, 0.3]])
    scores = np.concatenate([scores, np.eye(5)[:, 2:]], axis=1)
    owner = np.array([0, 1, 2, 3, 4])
    logits = np.zeros((5, 5), np.float32)
    found = Reranked(method(scores), Table(logits), 2).ranks(owner)
    assert (found.t2i_lo[0], found.t2i_hi[0]) == (4, 4)
    assert (found.t2i_lo[1], found.t2i_hi[1]) == (0, 1)


def test_some_of_the_items_are_reranked_by_their_own_logits() -> None:
    random = np.random.default_rng(1)
    owner, images = np.repeat(np.arange(4), 2), np.array([1, 3])
    captions = np.flatnonzero(np.isin(owner, images))
    scores, logits = random.normal(size=(4, 8)), random.normal(size=(4, 8)).astype("f4")
    part = Reranked(method(scores), Table(logits), 2).part(images, captions)
    some = np.ix_(images, captions)
    own = np.array([0, 0, 1, 1])
    whole = Reranked(method(scores[some]), Table(logits[some]), 2).ranks(own)
    assert vars(part.ranks(own)).keys() == vars(whole).keys()
    for name, values in vars(part.ranks(own)).items():
        np.testing.assert_array_equal(values, vars(whole)[name])


def test_ties_behind_the_first_places_stay_ties() -> None:
    """Caption 0's image ties with two others for the third place; two places are ordered anew."""
    scores = np.full((5, 5), 0.1)
    scores[[1, 2], 0] = 0.9
    found = Reranked(method(scores), Table(np.zeros((5, 5), np.float32)), 2).ranks(np.arange(5))
    assert (found.t2i_lo[0], found.t2i_hi[0], found.t2i_tied[0]) == (2, 4, 1)
