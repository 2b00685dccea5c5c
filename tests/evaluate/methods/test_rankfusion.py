"""Reciprocal-rank fusion of scores that tie, against a loop over places."""

from __future__ import annotations

import numpy as np
import pytest

from hada.evaluate.methods.rank_fusion import fused_ranks, ranks_of_scores

OWNER = np.array([0, 0, 1, 2, 2, 2, 3])


def scored(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings whose products are small whole numbers, so many tie."""
    random = np.random.default_rng(seed)
    caption = random.integers(0, 3, (7, 4)).astype(np.float32)
    caption[5] = caption[4]  # two captions of image 2, which tie in every model
    return np.eye(4, dtype=np.float32), caption


def test_equal_scores_share_the_best_of_their_places() -> None:
    scores = np.random.default_rng(0).integers(0, 4, (30, 20)).astype(np.float32)
    found = ranks_of_scores(scores)
    for row in range(30):
        for column in range(20):
            assert found[row, column] == 1 + (scores[row] > scores[row, column]).sum()


@pytest.mark.parametrize("constant", [60.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_ranks_equal_a_loop_over_places(seed: int, constant: float) -> None:
    pairs = [scored(10 * seed + k) for k in range(3)]
    found = fused_ranks(pairs, OWNER) if constant == 60 else fused_ranks(pairs, OWNER, constant)
    for way, queries, gallery in (("i2t", 4, 7), ("t2i", 7, 4)):
        for query in range(queries):
            total = np.zeros(gallery)
            for image, caption in pairs:
                own = (image @ caption.T)[query] if way == "i2t" else (image @ caption.T)[:, query]
                for item in range(gallery):
                    total[item] += 1 / (constant + 1 + (own > own[item]).sum())
            right = query == OWNER if way == "i2t" else np.arange(4) == OWNER[query]
            best = total[right].max()
            better = (total[~right] > best + 1e-9).sum()
            level = (np.abs(total[~right] - best) < 1e-9).sum()
            tied = (np.abs(total[right] - best) < 1e-9).sum()
            got = [getattr(found, f"{way}_{name}")[query] for name in ("lo", "hi", "tied")]
            assert got == [better, better + level, tied]


def test_models_vote_with_places_not_with_scores() -> None:
    """Two models against one that is far surer: the two win, by 1 / 61 + 1 / 61 + 1 / 62."""
    images = np.eye(2, dtype=np.float32)
    sure, doubtful = np.array([[0.0, 9.0], [9.0, 0.0]]), np.array([[0.51, 0.5], [0.5, 0.51]])
    pairs = [(images, x.astype(np.float32)) for x in (sure, doubtful, doubtful)]
    assert fused_ranks(pairs, np.array([0, 1])).t2i_lo.tolist() == [0, 0]


def test_the_constant_is_60() -> None:
    """Where nothing ties it decides between one good place and several fair ones."""
    random = np.random.default_rng(2)
    pairs = [
        (np.eye(40, dtype=np.float32), random.normal(size=(40, 40)).astype(np.float32))
        for _ in range(3)
    ]
    found = {c: fused_ranks(pairs, np.arange(40), c).t2i_lo.tolist() for c in (10.0, 60.0, 100.0)}
    assert fused_ranks(pairs, np.arange(40)).t2i_lo.tolist() == found[60.0]
    assert found[60.0] not in (found[10.0], found[100.0])
