"""The nodes of a split: taken, stored and scored block by block as they would be at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from item_node_sets import made, nodes_of

from hada.fuse.network.maxsim import NodeSet, node_scores
from hada.fuse.ranking.blocks import rank_blocks
from hada.fuse.ranking.ranks import rank_matrix
from hada.fuse.scores import item_nodes
from hada.fuse.scores.item_nodes import ItemNodes, pair_node_scores, score_matrix


@pytest.mark.parametrize("numbers", [1, 50, 1 << 22])
def test_blocks_make_the_whole_matrix(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_nodes, "BLOCK_NUMBERS", numbers)
    image, caption = made(7), made(11, seed=1)
    whole = node_scores(image.tensors(), caption.tensors(), 0.5).numpy()
    np.testing.assert_allclose(score_matrix(image, caption, 0.5), whole, atol=1e-6)
    images, captions = np.array([6, 0, 6, 3]), np.array([1, 10, 0, 4])
    pairs = pair_node_scores(image, caption, images, captions, 0.5)
    np.testing.assert_allclose(pairs, whole[images, captions], atol=1e-6)
    assert pair_node_scores(image, caption, images[:0], captions[:0], 0.5).shape == (0,)


def test_taken_items_are_those_asked_for() -> None:
    nodes = made(6)
    starts = np.cumsum(nodes.lengths) - nodes.lengths
    part = nodes.take(np.array([4, 1]))
    rows = [*range(starts[4], starts[4] + nodes.lengths[4])]
    rows += range(starts[1], starts[1] + nodes.lengths[1])
    np.testing.assert_array_equal(part.vectors_SW, nodes.vectors_SW[rows])
    np.testing.assert_array_equal(part.weights_S, nodes.weights_S[rows])
    assert part.lengths.tolist() == nodes.lengths[[4, 1]].tolist()


def test_blocks_of_items_in_any_order_are_joined_in_theirs() -> None:
    nodes = made(5)
    blocks = (np.array([3, 0]), np.array([4, 2, 1]))
    sets = [(items, nodes.take(items).tensors()) for items in blocks]
    joined = ItemNodes.joined(sets, 5, nodes.vectors_SW.shape[1])
    np.testing.assert_array_equal(joined.vectors_SW, nodes.vectors_SW)
    np.testing.assert_array_equal(joined.lengths, nodes.lengths)
    # A side without items, as images alone have it.
    none = ItemNodes.joined([], 0, 7)
    assert none.vectors_SW.shape == (0, 7)
    assert len(none) == 0
    assert none.weighted() == []


def test_weights_survive_as_lengths_of_vectors() -> None:
    nodes = made(9)
    rows = np.concatenate(nodes.weighted())
    back = nodes_of(rows, nodes.lengths)
    np.testing.assert_allclose(back.weights_S, nodes.weights_S, rtol=2e-3)
    before, after = (score_matrix(x, x, 0.5) for x in (nodes, back))
    np.testing.assert_allclose(after, before, atol=2e-3)


def test_ranks_of_blocks_are_those_of_the_matrix() -> None:
    draw = np.random.default_rng(0)
    owner = np.array([2, 0, 1, 1, 2, 0, 3])
    scores: Any = draw.normal(size=(4, 7)).round(1).astype("f4")  # rounded, so that some tie
    blocks = [(slice(a, b), scores[:, a:b]) for a, b in ((0, 3), (3, 4), (4, 7))]
    found = rank_blocks(blocks, scores[owner, np.arange(7)], owner, 4)
    plain = rank_matrix(scores, owner)
    for name in vars(plain):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name), err_msg=name)


def test_a_set_of_one_item_needs_no_padding() -> None:
    one = NodeSet(torch.eye(3), torch.full((3,), 1 / 3), (3,))
    vectors, weights = one.padded()
    assert vectors.shape == (1, 3, 3)
    assert weights.shape == (1, 3)
