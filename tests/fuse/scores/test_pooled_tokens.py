"""Pools of an item's tokens: equal to a loop over items, and the same in blocks of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fuse_fakes import make_store

from hada.extract.common.errors import NonFiniteError
from hada.fuse.batch import Layout
from hada.fuse.scores import pooled_tokens
from hada.fuse.scores.pooled_tokens import pooled, pools_of
from hada.fuse.tokens.split import Split


def unit(x):
    return x / np.linalg.norm(x)


def by_loop(split, side):
    """Item by item, model by model."""
    found = []
    for row in split.rows(side):
        parts = []
        for store, source in zip(split.stores, split.sources[side], strict=True):
            reader = store.side(side)
            if not source.has_tokens:
                parts.append(unit(reader.embeddings([row])[0].astype("f8")))
                continue
            tokens = reader.tokens([row]).astype("f8")
            place = len(tokens) - 1 if source.global_last else 0
            others = np.delete(tokens, place, axis=0) if len(tokens) > 1 else tokens
            parts += [unit(tokens[place]), unit(others.mean(0)), unit(others.max(0))]
        found.append(np.concatenate(parts))
    return np.array(found)


@pytest.mark.parametrize("side", ["image", "caption"])
@pytest.mark.parametrize("models", [("left",), ("left", "right", "flat")])
def test_pools_equal_a_loop_over_items(tmp_path, monkeypatch, side, models):
    split = Split([make_store(tmp_path, model, "train", images=12) for model in models])
    monkeypatch.setattr(pooled_tokens, "ITEMS_AT_ONCE", 5)
    np.testing.assert_allclose(pooled(split, side), by_loop(split, side), atol=1e-6)


@pytest.mark.parametrize("global_last", [False, True])
def test_an_item_of_one_token_has_it_in_every_pool(global_last):
    x_SD = torch.arange(18, dtype=torch.float32).reshape(6, 3)
    pools = pools_of(x_SD, Layout.build([1, 3, 2], global_last=global_last))
    global_, mean, most = (pool.tolist() for pool in pools)
    assert global_[0] == mean[0] == most[0] == [0, 1, 2]
    others = x_SD[1:3] if global_last else x_SD[2:4]
    assert mean[1] == others.mean(0).tolist()
    assert most[1] == others.max(0).values.tolist()
    assert global_[2] == x_SD[5 if global_last else 4].tolist()


def test_tokens_that_are_not_finite_are_refused(tmp_path):
    split = Split([make_store(tmp_path, "left", "train", images=4)])
    source = split.sources["image"][0]
    source.load()
    source.held._values[3] = np.nan
    with pytest.raises(NonFiniteError, match=r"image tokens of .*left"):
        pooled(split, "image")


def test_a_side_without_items_has_no_pools(tmp_path):
    split = Split([make_store(tmp_path, "left", "train", images=4)])
    split.caption_rows = split.caption_rows[:0]
    assert pooled(split, "caption").shape == (0, 0)
