"""Stores of drawn features for `benchmarks/gpu_steps.py`: real files, of one model on one split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hada.extract.spec import ModelSpec, StoreSpec, TokenSpec
from hada.extract.store import Block, StoreIndex, StoreReader, StoreWriter, open_store

PER_IMAGE = 5
CAPTION_LENGTHS = (9, 20)
IMAGES_PER_SHARD = 64


def make_store(
    path: Path, name: str, images: int, count: int, widths: tuple[int, int, int]
) -> StoreReader:
    """A store of `images` images with five captions each.

    Args:
        path: Where it is written.
        name: Of the model.
        images: Number of images.
        count: Tokens of an image.
        widths: Of image tokens, of caption tokens, of embeddings.
    """
    generator = np.random.default_rng(0)
    owner = np.repeat(np.arange(images), PER_IMAGE)
    wide = dict(zip(("image", "caption"), widths, strict=False))
    model = ModelSpec(
        name=name,
        family="fake",
        weights_digest="0",
        embedding_width=widths[2],
        normalized=False,
        image=TokenSpec(width=widths[0], count=count),
        caption=TokenSpec(width=widths[1], count=None),
    )
    step = min(IMAGES_PER_SHARD, max(1, images // 8))
    rows = {"image": step, "caption": step * PER_IMAGE}
    spec = StoreSpec(model=model, dataset="b", split="b", dataset_digest="0", rows_per_shard=rows)
    lengths = {
        "image": np.full(images, count),
        "caption": generator.integers(*CAPTION_LENGTHS, len(owner)),
    }
    index = StoreIndex(
        ids={side: tuple(map(str, range(len(lengths[side])))) for side in lengths},
        caption_to_image=owner,
        lengths=lengths,
    )
    writer = StoreWriter.open(path, spec, index)
    for side in ("image", "caption"):
        for shard in range(writer.shards(side)):
            part = writer.rows(side, shard)
            taken = slice(part.start, part.stop)
            shape = (int(lengths[side][taken].sum()), wide[side])
            embeddings = generator.standard_normal((part.stop - part.start, widths[2]), np.float32)
            values = generator.standard_normal(shape, np.float32).astype(np.float16)
            writer.write(side, shard, Block(values=values, embeddings=embeddings))
    return open_store(path)
