"""What the global nodes look at, item by item from the attention itself."""

from __future__ import annotations

from typing import Any

import makers
import numpy as np
import pytest

from hada.evaluate.pages.attention import attention, grid
from hada.extract.spec import TokenSpec
from hada.extract.store import open_store, write_store
from hada.fuse.recipes import RECIPES
from hada.fuse.tokens.split import Split
from hada.fuse.training.trainer import build_objective

LENGTHS = {"a": [2, 4, 1, 3], "b": [3, 1, 1, 2]}


@pytest.fixture
def split() -> Split:
    """Two models; the second one's global token is its last."""
    random, stores = np.random.default_rng(0), []
    for name, lengths in LENGTHS.items():
        place: Any = "last" if name == "b" else "first"
        spec = makers.make_spec(
            name=name,
            image=TokenSpec(width=6, count=5, global_token=place),
            caption=TokenSpec(width=5, count=None, global_token=place),
            dtype="float32",
        )
        write_store(
            name,
            spec,
            ids={"image": ["i0", "i1"], "caption": ["c0", "c1", "c2", "c3"]},
            caption_to_image=np.array([0, 0, 1, 1]),
            embeddings={"image": random.normal(size=(2, 4)), "caption": random.normal(size=(4, 4))},
            tokens={
                "image": [random.normal(size=(5, 6)) for _ in range(2)],
                "caption": [random.normal(size=(n, 5)) for n in lengths],
            },
        )
        stores.append(open_store(name))
    return Split(stores)


@pytest.mark.parametrize("side", ["image", "caption"])
def test_weights_are_the_mean_over_readers_and_heads(split: Split, side: Any) -> None:
    small = {"node_width": 8, "heads": 3, "head_width": 8, "graph_width": 8, "out_width": 8}
    objective = build_objective(RECIPES["pooled"].changed(**small, head_hidden=()), split, 0).eval()
    items = np.arange(2 if side == "image" else 4)
    found = attention(objective.fuser, split, side, items)
    branch = objective.fuser.image if side == "image" else objective.fuser.caption
    for item in items:
        alone = split.features(side, np.array([item])).to("cpu")
        alpha = branch.graph.attention.attend(branch.nodes(alone), alone.layouts)[0]  # type: ignore[union-attr, operator]
        alpha = alpha[0].detach().double().numpy()
        place = 2
        for model, name in enumerate("ab"):
            count = 5 if side == "image" else LENGTHS[name][item]
            own = 0 if name == "a" else count - 1
            weights = found[item][model]
            assert len(weights) == count
            for token in range(count):
                where = model if token == own else place + token
                by_hand = np.mean([alpha[r, h, where] for r in range(2) for h in range(3)])
                assert weights[token] == pytest.approx(by_hand, abs=1e-6)
            place += count if count > 1 else 0
        assert sum(float(w.sum()) for w in found[item]) == pytest.approx(1, abs=1e-6)


def test_patches_are_a_square_without_the_global_token() -> None:
    weights = np.arange(5.0)
    first, last = grid(weights, global_last=False), grid(weights, global_last=True)
    assert first is not None
    assert last is not None
    assert first.tolist() == [[1, 2], [3, 4]]
    assert last.tolist() == [[0, 1], [2, 3]]
    assert grid(np.arange(7.0), global_last=False) is None
