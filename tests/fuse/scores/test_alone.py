"""Images alone and texts alone pay for their popularity what they pay beside the other side."""

from __future__ import annotations

import numpy as np
import pytest
from item_node_sets import made

from hada.fuse.scores.embedded import Embedded
from hada.fuse.scores.heads import Bank, node_popularity
from hada.fuse.scores.item_nodes import score_matrix


def embedded(images: int, captions: int) -> Embedded:
    """Items with the nodes of the first of `made`'s; what else they have is not looked at."""
    none = np.zeros((0, 4), np.float32)
    both = made(6, seed=2), made(9, seed=3)
    nodes = both[0].take(np.arange(images)), both[1].take(np.arange(captions))
    rows = np.arange(images), np.arange(captions)
    return Embedded(none, none, (), (1.0,), *rows, rows[1], nodes, 0.4, 0.5)


@pytest.mark.parametrize(("images", "captions"), [(6, 0), (0, 9), (0, 0), (6, 9)])
def test_an_empty_side_changes_nothing_of_the_other(images: int, captions: int) -> None:
    cosines = np.zeros((0, 4), np.float32)
    bank = Bank((cosines, cosines), (made(7, seed=4), made(8, seed=5)))
    ks = [1, 3]
    by_image, by_caption = node_popularity(embedded(images, captions), bank, ks, ks, device="cpu")
    assert bank.nodes is not None
    whole = 0.4 * score_matrix(made(6, seed=2), bank.nodes[1], 0.5)
    other = 0.4 * score_matrix(bank.nodes[0], made(9, seed=3), 0.5)
    for found, scores, count in ((by_image, whole, images), (by_caption, other.T, captions)):
        assert [len(mean) for mean in found] == [count, count]
        for k, mean in zip(ks, found, strict=True):
            slow = [float(np.mean(sorted(row, reverse=True)[:k])) for row in scores[:count]]
            np.testing.assert_allclose(mean, slow, atol=1e-5)
