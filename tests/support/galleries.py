"""Galleries of made-up embeddings: models that see one truth, each through its own noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import makers
import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.gallery import Gallery
from hada.extract.spec import SideName
from hada.extract.store import Block, StoreIndex, StoreReader, StoreWriter, open_store

WIDTH = 6


def make_store(
    path: str | Path,
    name: str,
    *,
    images: int = 12,
    per: int = 2,
    noise: float = 0.5,
    split: str = "val",
    failed: Mapping[SideName, Sequence[int]] | None = None,
) -> StoreReader:
    """Embeddings of a split's truth, which is the same for every model; `failed` rows are NaN."""
    truth = np.random.default_rng(sum(map(ord, split))).normal(size=(images, WIDTH))
    owner = np.repeat(np.arange(images), per)
    random = np.random.default_rng(sum(map(ord, name + split)))
    values: dict[SideName, NDArray[Any]] = {
        "image": truth + noise * random.normal(size=truth.shape),
        "caption": truth[owner] + noise * random.normal(size=(len(owner), WIDTH)),
    }
    spec = makers.make_spec(
        name=name, image=None, caption=None, embedding_width=WIDTH, dtype="float32", split=split,
        rows_per_shard={"image": 1000, "caption": 1000},
    )  # fmt: skip
    index = StoreIndex(
        ids={
            "image": tuple(f"i{k}" for k in range(images)),
            "caption": tuple(f"c{k}" for k in range(len(owner))),
        },
        caption_to_image=owner,
        lengths={side: np.zeros(len(values[side]), np.int64) for side in values},
    )
    writer = StoreWriter.open(path, spec, index)
    for side, embeddings in values.items():
        rows = list((failed or {}).get(side, []))
        embeddings[rows] = np.nan
        writer.write(side, 0, Block(embeddings=embeddings, failed=dict.fromkeys(rows, "broken")))
    return open_store(path)


def make_gallery(root: str | Path, models: Mapping[str, float], **options: Any) -> Gallery:
    """Models by name and noise, below `root`/tiny/<split>."""
    split = options.get("split", "val")
    return Gallery.of(
        [
            make_store(Path(root) / "tiny" / split / name, name, noise=noise, **options)
            for name, noise in models.items()
        ]
    )
