"""What the store of a backbone on a dataset will hold, known before the first picture is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hada.extract.backbones.base import Backbone, RegionBackbone
from hada.extract.datasets.read import CaptionDataset
from hada.extract.engine.items import ImageItems, image_items
from hada.extract.engine.token_ids import TokenIds, tokenize
from hada.extract.spec import SideName, StoreSpec
from hada.extract.store import StoreIndex
from hada.extract.store.size_plan import SizePlan, plan_size
from hada.extract.variants.reduced import ALL, reduced


def store_spec(
    backbone: Backbone | RegionBackbone,
    dataset: CaptionDataset,
    *,
    dtype: str = "float16",
    rows_per_shard: dict[SideName, int] | None = None,
) -> StoreSpec:
    """What the store of a backbone on a dataset will hold."""
    spec = StoreSpec(
        model=backbone.spec,
        dataset=dataset.name,
        split=dataset.split,
        dataset_digest=dataset.digest(),
        dtype=dtype,
    )
    return spec if rows_per_shard is None else replace(spec, rows_per_shard=rows_per_shard)


def store_index(
    backbone: Backbone | RegionBackbone,
    dataset: CaptionDataset,
    ids: TokenIds,
    items: ImageItems | None = None,
) -> StoreIndex:
    """Ids and lengths of a store; `ids` are the tokenised captions, `items` the image side."""
    model = backbone.spec
    extra = 1 if model.caption and model.caption.global_source == "pooled" else 0
    caption_lengths = ids.lengths + extra if model.caption else np.zeros_like(ids.lengths)
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
    *,
    dtype: str = "float16",
    tokens: str = ALL,
    rows_per_shard: dict[SideName, int] | None = None,
) -> SizePlan:
    """What `run` with the same arguments would write; nothing is written."""
    backbone = reduced(backbone, tokens)
    spec = store_spec(backbone, dataset, dtype=dtype, rows_per_shard=rows_per_shard)
    ids = tokenize(backbone, dataset.captions)
    return plan_size(path, spec, store_index(backbone, dataset, ids))
