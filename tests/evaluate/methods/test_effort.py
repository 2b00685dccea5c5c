"""What a method needs to answer a query, and the scores of one that matches nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hada.evaluate.methods.effort import EXHAUSTIVE, ONE_PRODUCT, effort
from hada.evaluate.methods.gallery import EmbeddingMethod
from hada.evaluate.methods.late import NodeMethod
from hada.evaluate.methods.rank_fusion import RankFusion
from hada.fuse.ranking.ranks import rank_matrix
from hada.fuse.scores.embedded import Embedded
from hada.fuse.scores.item_nodes import ItemNodes, score_matrix

IMAGES, T, E, W = 5, 9, 4, 3


def unit(draw: Any, *shape: int) -> Any:
    values = draw.normal(size=shape).astype("f4")
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def nodes(draw: Any, items: int, each: int) -> ItemNodes:
    weights = np.full(items * each, 1 / each, np.float32)
    vectors = unit(draw, items * each, W).astype(np.float16)
    return ItemNodes(vectors, weights, np.full(items, each))


@pytest.fixture
def embedded() -> Embedded:
    draw = np.random.default_rng(0)
    return Embedded(
        fused_image=unit(draw, IMAGES, E),
        fused_caption=unit(draw, T, E),
        own=((unit(draw, IMAGES, 2), unit(draw, T, 2)),),
        shares=(0.3, 0.3),
        image_rows=np.arange(IMAGES),
        caption_rows=np.arange(T),
        caption_to_image=np.array([0, 0, 1, 2, 2, 3, 3, 4, 4]),
        nodes=(nodes(draw, IMAGES, 7), nodes(draw, T, 2)),
        node_share=0.4,
    )


def method(**changes: Any) -> EmbeddingMethod:
    pair = np.eye(IMAGES, E, dtype=np.float32), np.eye(T, E, dtype=np.float32)
    return replace(EmbeddingMethod("x", "mean", pair), **changes)


def test_one_product_costs_its_width_an_item() -> None:
    assert effort(method(), IMAGES, T) == {
        "class": "inductive",
        "stages": [ONE_PRODUCT],
        "multiply_adds_per_query": {"i2t": E * T, "t2i": E * IMAGES},
    }
    both = effort(RankFusion((method(), method())), IMAGES, T)
    assert both["multiply_adds_per_query"] == {"i2t": 2 * E * T, "t2i": 2 * E * IMAGES}


def test_a_correction_needs_a_bank_only_where_it_acts() -> None:
    def of(**alphas: float) -> str:
        pays = {"k_image": 8, "k_caption": 8, "alpha_image": 0, "alpha_caption": 0, **alphas}
        one = method(kind="corrected", details={"correction": pays})
        return str(effort(one, IMAGES, T)["class"])

    assert of() == "inductive"
    assert of(alpha_caption=0.5) == of(alpha_image=0.5) == "bank"
    assert effort(method(kind="hada", details={"corrected": True}), IMAGES, T)["class"] == "bank"
    assert effort(method(kind="transductive"), IMAGES, T)["class"] == "transductive"


def test_late_interaction_costs_every_pair_of_nodes(embedded: Embedded) -> None:
    told = effort(NodeMethod("n", embedded), IMAGES, T)
    assert told["stages"] == [EXHAUSTIVE]
    # A caption's two nodes meet the seven of every image, and an image's seven those of captions.
    cosines = E + 2
    assert told["multiply_adds_per_query"] == {
        "i2t": T * cosines + 7 * (T * 2) * W,
        "t2i": IMAGES * cosines + 2 * (IMAGES * 7) * W,
    }


@pytest.mark.parametrize("paid", [False, True])
def test_ranks_are_those_of_the_whole_matrix(embedded: Embedded, paid: bool) -> None:
    draw = np.random.default_rng(1)
    payments = draw.random(IMAGES).astype("f4"), draw.random(T).astype("f4")
    embedded = replace(embedded, node_penalties=payments if paid else None)
    image, caption = embedded.cosines()
    assert embedded.nodes is not None
    whole = image @ caption.T + 0.4 * score_matrix(*embedded.nodes, embedded.mirror)
    if paid:
        whole -= payments[0][:, None] + payments[1][None]
    scored = NodeMethod("n", embedded)
    found = scored.ranks(embedded.caption_to_image)
    plain = rank_matrix(whole, embedded.caption_to_image)
    for name in vars(plain):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name), err_msg=name)
    # A part of it: images 1 and 3 with their captions.
    images, captions = np.array([1, 3]), np.array([2, 5, 6])
    part = scored.part(images, captions).ranks(np.array([0, 1, 1]))
    plain = rank_matrix(whole[np.ix_(images, captions)], np.array([0, 1, 1]))
    for name in vars(plain):
        np.testing.assert_array_equal(getattr(part, name), getattr(plain, name), err_msg=name)
