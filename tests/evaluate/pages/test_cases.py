"""First places, hubs and maps of a page, compared with whole score matrices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from hada.evaluate.methods.gallery import EmbeddingMethod
from hada.evaluate.methods.late import NodeMethod
from hada.evaluate.pages.cases import first_place, scores_of
from hada.evaluate.pages.hubs import bins, first_places, hubs
from hada.evaluate.pages.space import fused_space, project
from hada.fuse.scores.embedded import Embedded
from hada.fuse.scores.item_nodes import ItemNodes, score_matrix
from hada.fuse.untrained import skewness

IMAGES, PER = 9, 3
OWNER = np.repeat(np.arange(IMAGES), PER)


def drawn(rows: int, width: int, seed: int) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(size=(rows, width)).astype("f4")
    return np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float32)


def nodes(items: int, seed: int) -> ItemNodes:
    return ItemNodes(
        drawn(items * 2, 5, seed).astype(np.float16),
        np.full(items * 2, 0.5, np.float32),
        np.full(items, 2),
    )


@pytest.fixture
def matched() -> NodeMethod:
    random = np.random.default_rng(5)
    embedded = Embedded(
        drawn(IMAGES, 4, 0),
        drawn(IMAGES * PER, 4, 1),
        (),
        (0.6,),
        np.arange(IMAGES),
        np.arange(IMAGES * PER),
        OWNER,
        nodes=(nodes(IMAGES, 2), nodes(IMAGES * PER, 3)),
        node_share=0.4,
        node_penalties=(
            random.random(IMAGES).astype("f4"),
            random.random(IMAGES * PER).astype("f4"),
        ),
    )
    return NodeMethod("n", embedded)


def whole(method: NodeMethod, *, paid: bool) -> NDArray[np.float32]:
    embedded = method.embedded
    assert embedded.nodes is not None
    assert embedded.node_penalties is not None
    image, caption = embedded.cosines()
    scores = image @ caption.T + 0.4 * score_matrix(*embedded.nodes, embedded.mirror)
    by_image, by_caption = embedded.node_penalties
    return scores - (by_image[:, None] + by_caption[None] if paid else 0)


def test_scores_of_some_queries_are_rows_of_the_whole_matrix(matched: NodeMethod) -> None:
    plain = EmbeddingMethod("e", "model", (drawn(IMAGES, 4, 7), drawn(IMAGES * PER, 4, 8)))
    some = np.array([4, 0, 7])
    for method, scores in (
        (matched, whole(matched, paid=True)),
        (plain, plain.pair[0] @ plain.pair[1].T),
    ):
        np.testing.assert_allclose(scores_of(method, "i2t", some), scores[some], atol=1e-6)
        np.testing.assert_allclose(scores_of(method, "t2i", some), scores.T[some], atol=1e-6)
        for way, width in (("i2t", IMAGES * PER), ("t2i", IMAGES)):
            assert scores_of(method, way, some[:0]).shape == (0, width)


def test_the_first_place_agrees_with_the_exact_rank() -> None:
    scores = np.array([0.5, 0.9, 0.7, 0.9], np.float32)
    assert first_place(scores, np.array([1]), 0, 1) in (1, 3)  # a tie may fall either way
    assert first_place(scores, np.array([2]), 2, 2) == 1
    # By these numbers 1 and 3 tie; the exact ranks say which is before the other.
    assert first_place(scores, np.array([3]), 0, 0) == 3
    assert first_place(scores, np.array([1]), 1, 1) == 3


@pytest.mark.parametrize("paid", [False, True])
def test_hubs_are_counted_over_all_captions(matched: NodeMethod, paid: bool) -> None:
    found = hubs(matched)
    assert found is not None
    assert matched.part(np.arange(2), np.arange(6)).first_places.after is None
    first = whole(matched, paid=paid).argmax(axis=0)
    by_hand = [(first == image).sum() for image in range(IMAGES)]
    assert (found.after if paid else found.before).tolist() == by_hand
    assert found.before.tolist() != found.after.tolist()
    assert hubs(NodeMethod("n", replace(matched.embedded, node_penalties=None))) is None


def test_hubs_of_one_inner_product_with_and_without_its_correction() -> None:
    before = drawn(IMAGES, 4, 0), drawn(IMAGES * PER, 4, 1)
    after = drawn(IMAGES, 4, 2), drawn(IMAGES * PER, 4, 3)
    method = EmbeddingMethod("e", "corrected", after, uncorrected=before)
    found = hubs(method)
    assert found is not None
    for pair, counts in ((before, found.before), (after, found.after)):
        first = (pair[0] @ pair[1].T).argmax(axis=0)
        assert counts.tolist() == np.bincount(first, minlength=IMAGES).tolist()
    assert hubs(replace(method, uncorrected=None)) is None
    part = method.part(np.array([1, 2]), np.array([3, 4, 6]))
    assert part.uncorrected is not None
    np.testing.assert_array_equal(part.uncorrected[0], before[0][[1, 2]])
    np.testing.assert_array_equal(part.uncorrected[1], before[1][[3, 4, 6]])


def test_a_tie_makes_no_hub() -> None:
    """A score that returns a constant prefers no image."""
    counts = first_places((np.ones((4, 2), np.float32), np.ones((6, 2), np.float32)))
    assert counts.tolist() == [1.5] * 4
    assert skewness(counts) == 0


def test_bins_have_every_image_once() -> None:
    counts = np.random.default_rng(0).integers(0, 70, 500).astype(float)
    found = bins(counts)
    assert sum(count for _, count in found) == 500
    assert found[-1][0] == "65 to 128"
    for name, count in found[3:]:
        low, high = map(int, name.split(" to "))
        assert count == ((counts >= low) & (counts <= high)).sum()
    assert bins(np.zeros(3)) == [("0", 3), ("1", 0), ("2", 0)]


def test_the_axes_of_the_map_are_the_principal_components(matched: NodeMethod) -> None:
    values = fused_space(matched)[1]
    found = project(values)
    centred = values - values.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred.astype(float), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.points), np.abs(left[:, :2] * sizes[:2]), atol=1e-6)
    assert found.kept == pytest.approx((sizes[:2] ** 2).sum() / (sizes**2).sum())
    some = project(values, points=10, seed=1)
    assert len(some.items) == 10
    np.testing.assert_allclose(some.points, found.points[some.items])
    alone = project(np.ones((3, 4), np.float32))
    assert (alone.kept, alone.points.tolist()) == (0.0, [[0.0, 0.0]] * 3)


def test_a_map_is_of_the_sum_of_cosines(matched: NodeMethod) -> None:
    image, caption = fused_space(matched)
    embedded = matched.embedded
    cosines = 0.6 * embedded.fused_image @ embedded.fused_caption.T
    np.testing.assert_allclose(image @ caption.T, cosines, atol=1e-6)


def test_a_map_leaves_out_what_items_pay() -> None:
    pair, paid = (drawn(3, 4, 0), drawn(3, 4, 1)), (drawn(3, 6, 2), drawn(3, 6, 3))
    assert fused_space(EmbeddingMethod("e", "hada", paid, uncorrected=pair)) is pair
    assert fused_space(EmbeddingMethod("e", "hada", pair)) is pair
