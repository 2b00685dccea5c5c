"""The contents of a store before extraction, from the backbone and the data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hada.extract.backbones.base import Backbone, RegionBackbone
from hada.extract.common import remote
from hada.extract.common.errors import StoreError
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.engine.items import ImageItems, image_items
from hada.extract.engine.options import ExtractOptions
from hada.extract.engine.token_ids import TokenIds, tokenize
from hada.extract.spec import StoreSpec
from hada.extract.store import StoreIndex
from hada.extract.store.reader import read_spec
from hada.extract.store.size_plan import SizePlan, plan_size
from hada.extract.variants.reduced import reduced


def as_stored(dataset: CaptionDataset, path: str | Path) -> CaptionDataset:
    """The dataset with the ids of the store at `path`, where that is of an earlier version."""
    folder = remote.place(path)
    if not any("/" in id_ for id_ in dataset.image_ids) or not folder.exists():
        return dataset
    try:
        return dataset.as_stored(read_spec(folder).dataset_digest)
    except StoreError:  # opening it says what is wrong
        return dataset


def store_spec(
    backbone: Backbone | RegionBackbone,
    dataset: CaptionDataset,
    options: ExtractOptions,
) -> StoreSpec:
    """What the store of a backbone on a dataset will hold."""
    spec = StoreSpec(
        model=backbone.spec,
        dataset=dataset.name,
        split=dataset.split,
        dataset_digest=dataset.digest(),
        dtype=options.dtype,
    )
    rows = options.rows_per_shard
    return spec if rows is None else replace(spec, rows_per_shard=dict(rows))


def store_index(
    backbone: Backbone | RegionBackbone,
    dataset: CaptionDataset,
    ids: TokenIds,
    items: ImageItems | None = None,
) -> StoreIndex:
    """Ids and lengths of a store.

    Args:
        backbone: The model.
        dataset: The split.
        ids: Its tokenised captions.
        items: Its image side; None makes it.
    """
    model = backbone.spec
    if model.caption is None:
        caption_lengths = np.zeros_like(ids.lengths)
    elif backbone.caption_rows is not None:
        caption_lengths = np.asarray(
            backbone.caption_rows([ids[row] for row in range(len(ids))]), np.int64
        )
    else:
        caption_lengths = ids.lengths + (model.caption.global_source == "pooled")
    return StoreIndex(
        ids={"image": dataset.image_ids, "caption": dataset.caption_ids},
        caption_to_image=dataset.caption_to_image,
        lengths={
            "image": (items or image_items(backbone, dataset)).lengths,
            "caption": caption_lengths,
        },
    )


def plan(
    backbone: Backbone | RegionBackbone,
    dataset: CaptionDataset,
    path: str | Path,
    options: ExtractOptions | None = None,
) -> SizePlan:
    """What `run` with the same arguments would write; nothing is written.

    Args:
        backbone: The model; its captions are tokenized, but no image is encoded.
        dataset: The split.
        path: The store's folder or URL.
        options: As for `run`; None for the defaults.
    """
    options = options or ExtractOptions()
    backbone = reduced(backbone, options.tokens)
    dataset = as_stored(dataset, path)
    spec = store_spec(backbone, dataset, options)
    ids = tokenize(backbone, dataset.captions)
    return plan_size(path, spec, store_index(backbone, dataset, ids))
