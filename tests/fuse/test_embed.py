"""A fusion applied to a split: item by item the same, and joined as its score says."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fuse_fakes import make_store
from small_trainings import FAST

from hada.extract.common.errors import RunError
from hada.fuse.embedding import embed
from hada.fuse.run_files.features import check_features, features_of
from hada.fuse.tokens.split import Split
from hada.fuse.training.trainer import build_objective

NOISY = FAST.changed(use_embeddings=True, dropout_nodes=0.4, dropout_graph=0.4, dropout_head=0.4,
    score_weights=(0.5, 0.2, 0.3),
)  # fmt: skip


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return Split([make_store(root, m, "val", images=9) for m in ("left", "right")])


def test_every_item_is_encoded_as_it_would_be_alone(split, monkeypatch):
    """In small blocks of like length; in eval mode, which is not left on."""
    monkeypatch.setattr("hada.fuse.embedding.NODES_PER_BLOCK", 12)
    objective = build_objective(NOISY, split, 0).train()
    found = embed(objective.fuser, objective.mix, split, torch.device("cpu"))
    assert objective.fuser.training
    objective.eval()
    for side, values in (("image", found.fused_image), ("caption", found.fused_caption)):
        assert len(set(split.lengths(side))) > (side == "caption")
        with torch.no_grad():
            for item in range(len(values)):
                alone = objective.fuser.encode(side, split.features(side, np.array([item])))
                np.testing.assert_allclose(values[item], alone[0], atol=1e-5)
    monkeypatch.undo()
    whole = embed(objective.fuser, objective.mix, split, torch.device("cpu"))
    np.testing.assert_allclose(found.fused_caption, whole.fused_caption, atol=1e-5)


def test_the_inner_product_of_what_is_joined_is_the_weighted_sum_of_cosines(split):
    objective = build_objective(NOISY, split, 0)
    found = embed(objective.fuser, objective.mix, split, torch.device("cpu"))
    assert found.shares == pytest.approx((0.5, 0.2, 0.3))
    want = 0.5 * found.fused_image @ found.fused_caption.T
    for model, share in enumerate((0.2, 0.3)):
        sides = [split.sources[side][model].embeddings for side in ("image", "caption")]
        image, caption = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in sides)
        want = want + share * image @ caption.T
    image, caption = found
    np.testing.assert_allclose(image @ caption.T, want, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("field", ["family", "weights_digest"])
def test_features_of_another_model_are_named(split, field):
    store = split.stores[0]
    recorded = features_of(store)
    check_features(recorded, store, Path("run"))
    with pytest.raises(RunError, match=f"{field}: the run was trained on 'other'"):
        check_features({**recorded, field: "other"}, store, Path("run"))
    another = copy.copy(store)
    model = store.spec.model
    another.spec = replace(store.spec, model=replace(model, **{field: "other"}))
    with pytest.raises(
        RunError, match=f"{field}: the run was trained on '{getattr(model, field)}'"
    ):
        check_features(recorded, another, Path("run"))
    with pytest.raises(RunError, match="tokens: the run was trained on 'pool:1'"):
        check_features({**recorded, "tokens": "pool:1"}, store, Path("run"))
