"""Stores to batches: right rows, right order, and stores that do not belong together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fuse_fakes import make_store

from hada.extract.common.errors import StoreError, StoreMismatchError
from hada.fuse.tokens.loader import Loader
from hada.fuse.tokens.prefetch import ahead
from hada.fuse.tokens.split import Split


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return [make_store(root, model, "train") for model in ("left", "right", "flat")]


@pytest.mark.parametrize("in_memory", [True, False])
def test_features_are_the_stored_rows(stores, in_memory):
    split = Split(stores, in_memory=in_memory)
    assert (split.images, split.captions) == (40, 80)
    items = np.array([7, 3, 60, 7])
    features = split.features("caption", items)
    for m, store in enumerate(stores):
        parts = [
            store.caption.tokens(np.array([i]))
            if store.spec.model.caption
            else store.caption.embeddings()[[i]]
            for i in items
        ]
        assert np.array_equal(features.nodes[m], np.concatenate(parts))
        assert features.layouts[m].lengths_B.tolist() == [len(p) for p in parts]
        assert np.array_equal(features.embeddings[m], store.caption.embeddings()[items])
    # "right" has its global token last.
    assert features.layouts[1].rows_B[0] == features.layouts[1].lengths_B[0] - 1
    assert [s.global_last for s in split.shapes("image")] == [False, True, False]


def test_batches_of_images_hold_all_captions_and_batches_of_pairs_one(stores):
    split = Split(stores[:1])
    batch = split.batch("images", np.array([5, 0]))
    assert batch.ids_B.tolist() == [5, 0]
    assert batch.caption_to_image_T.tolist() == [0, 0, 1, 1]
    assert np.array_equal(
        batch.caption.embeddings[0], stores[0].caption.embeddings()[[10, 11, 0, 1]]
    )
    pairs = split.batch("pairs", np.array([11, 0, 10]))
    assert pairs.ids_B.tolist() == [5, 0, 5]
    assert pairs.caption_to_image_T.tolist() == [0, 1, 2]


def test_the_order_depends_on_seed_and_epoch_alone(stores):
    split = Split(stores[:1])
    loader = Loader(split, "images", 16, seed=1)
    first = loader.epoch(2).steps
    assert [p.tolist() for p in first] == [p.tolist() for p in loader.epoch(2).steps]
    assert sorted(np.concatenate(first).tolist()) == list(range(40))
    assert first[0].tolist() != loader.epoch(3).steps[0].tolist()
    assert first[0].tolist() != Loader(split, "images", 16, 2).epoch(2).steps[0].tolist()
    # 40 = 13 * 3 + 1: the last one joins the others.
    assert [len(p) for p in Loader(split, "images", 13, 0).epoch(0).steps] == [13, 13, 14]
    assert sum(len(p) for p in Loader(split, "pairs", 20, 0).epoch(0).steps) == 80


class Blind:
    """A store some of whose items could not be read."""

    def __init__(self, store, image=(), caption=()):
        self._store = store
        self.image, self.caption = Side(store.image, image), Side(store.caption, caption)

    def __getattr__(self, name):
        return getattr(self._store, name)


class Side:
    def __init__(self, side, failed):
        self._side = side
        self.failed = np.isin(np.arange(len(side.ids)), failed)

    def __getattr__(self, name):
        return getattr(self._side, name)


def test_failed_items_are_left_out_with_what_hangs_on_them(stores):
    left = Blind(stores[0], image=[0], caption=[5])
    right = Blind(stores[1], caption=[4, 20])
    split = Split([left, right])
    assert split.images == 38  # image 0 failed, image 2 lost both captions
    assert not np.isin([0, 2], split.image_rows).any()
    assert not np.isin([0, 1, 4, 5, 20], split.caption_rows).any()
    assert np.array_equal(
        split.image_rows[split.caption_to_image], stores[0].caption_to_image[split.caption_rows]
    )
    batch = split.batch("images", np.arange(split.images))
    assert len(batch.caption) == split.captions == 80 - 5
    assert torch.equal(
        batch.ids_B[batch.caption_to_image_T], torch.from_numpy(split.caption_to_image)
    )
    with pytest.raises(StoreError, match="no image with a caption"):
        Split([Blind(stores[0], image=range(40))])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"split": "val"}, "split is 'train' .* and 'val'"),
        ({"digest": "other"}, "dataset_digest is"),
        ({"images": 39}, "number of images is 40 .* and 39"),
        ({"image": [f"x{n}" for n in range(40)]}, "image id of row 0 is 'i0' .* and 'x0'"),
        ({"per": 1}, "number of captions"),
    ],
)
def test_stores_that_do_not_fit_are_refused(stores, tmp_path, changes, says):
    split = changes.pop("split", "train")
    other = make_store(tmp_path, "right", split, **changes)
    with pytest.raises(StoreMismatchError, match=says):
        Split([stores[0], other])


def test_a_model_twice_is_refused(stores):
    with pytest.raises(StoreMismatchError, match="given twice"):
        Split([stores[0], stores[0]])


def test_ahead_keeps_order_and_passes_errors_on():
    assert list(ahead(lambda x: x * x, range(10))) == [x * x for x in range(10)]
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda x: 1 / x, [1, 0]))
