"""Writes features from other programs as a store.

A source says how wide its features are and how many tokens each item has, and reads one item at
a time, so that an import of 25 GB needs the memory of one shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import DatasetError, HadaError, trouble_behind
from hada.extract.common.progress import progress
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.importers.source import FeatureSource, Item
from hada.extract.spec import SIDES, ModelSpec, SideName, StoreSpec, TokenSpec
from hada.extract.store import Block, StoreIndex, StoreWriter

# So many items tell whether embeddings have unit length.
_PROBED = 64


def import_store(
    source: FeatureSource,
    dataset: CaptionDataset,
    path: str | Path,
    *,
    name: str,
    origin: str,
    dtype: str = "float16",
    rows_per_shard: dict[SideName, int] | None = None,
) -> dict[str, str]:
    """Write features of elsewhere as a store; what is there already is skipped.

    Args:
        source: The features.
        dataset: The split that they are of.
        path: The store's folder or URL.
        name: The model's name in the store.
        origin: Where the features come from, for the record.
        dtype: Of the features on disk.
        rows_per_shard: Items per shard and side; None for the defaults.

    Returns:
        Id -> reason of the images that could not be read; they are left out of the store, as
        pictures are that cannot be decoded.

    Raises:
        DatasetError: A caption cannot be read.
        HadaError: Not one image could be read.
    """
    spec = StoreSpec(
        model=_model_spec(source, name, origin),
        dataset=dataset.name,
        split=dataset.split,
        dataset_digest=dataset.digest(),
        dtype=dtype,
    )
    if rows_per_shard is not None:
        spec = StoreSpec(**{**vars(spec), "rows_per_shard": rows_per_shard})
    index = StoreIndex(
        ids={"image": dataset.image_ids, "caption": dataset.caption_ids},
        caption_to_image=dataset.caption_to_image,
        lengths=dict(source.lengths),
    )
    writer = StoreWriter.open(path, spec, index)
    for side in SIDES:
        with progress(f"{name}: {side}s", index.count(side), f"{side}s") as advance:
            for shard in writer.filling(side):
                rows = writer.rows(side, shard)
                writer.write(side, shard, _block(source, spec, side, rows))
                advance(len(rows))
    writer.finish()
    failures = writer.failures("image")
    if failures and len(failures) == len(dataset.image_ids):
        raise HadaError(f"{path}: not one image could be imported; {next(iter(failures.values()))}")
    return {dataset.image_ids[row]: reason for row, reason in sorted(failures.items())}


def _block(source: FeatureSource, spec: StoreSpec, side: SideName, rows: range) -> Block:
    tokens: list[NDArray[Any]] = []
    embeddings: list[NDArray[Any]] = []
    failed: dict[int, str] = {}
    width, joint = source.widths[side], spec.model.embedding_width
    for row in rows:
        try:
            item = _checked(source.read(side, row), source, side, row, joint)
        except DatasetError as error:
            if trouble := trouble_behind(error):
                raise trouble from error
            if side == "caption":
                raise
            failed[row] = str(error)
            item = Item(
                None if width is None else np.full((source.lengths[side][row], width), np.nan),
                None if joint is None else np.full(joint, np.nan),
            )
        if item.tokens is not None:
            tokens.append(item.tokens)
        if item.embedding is not None:
            embeddings.append(item.embedding)
    return Block(
        values=np.concatenate(tokens) if width is not None else None,
        embeddings=np.stack(embeddings) if joint is not None else None,
        failed=failed,
    )


def _checked(
    item: Item, source: FeatureSource, side: SideName, row: int, joint: int | None
) -> Item:
    """`item`, if it has the declared shapes and finite numbers."""
    expected = {
        "tokens": None
        if source.widths[side] is None
        else (int(source.lengths[side][row]), source.widths[side]),
        "embedding": None if joint is None else (joint,),
    }
    for what, shape in expected.items():
        array = getattr(item, what)
        got = None if array is None else array.shape
        if got != shape:
            raise DatasetError(f"{side} {row}: {what} of shape {got}, expected {shape}")
        if array is not None and not np.isfinite(array).all():
            raise DatasetError(f"{side} {row}: {what} hold NaN or infinity")
    return item


def _model_spec(source: FeatureSource, name: str, origin: str) -> ModelSpec:
    probed = {side: _probe(source, side) for side in SIDES}
    joint = {side: None if item is None else len(item[0]) for side, item in probed.items()}
    if joint["image"] != joint["caption"]:
        raise DatasetError(
            f"image embeddings are {joint['image']} wide, caption embeddings {joint['caption']}: "
            "they are not of one joint space"
        )
    unit = [np.linalg.norm(np.asarray(p, np.float64), axis=1) for p in probed.values() if p]
    return ModelSpec(
        name=name,
        family="imported",
        weights_digest=_digest(source.files),
        embedding_width=joint["image"],
        # float16 rounds lengths by about a thousandth.
        normalized=bool(unit) and all(np.allclose(lengths, 1, atol=2e-3) for lengths in unit),
        image=_token_spec(source, "image"),
        caption=_token_spec(source, "caption"),
        preprocessing={"class": "imported", "format": origin},
    )


def _probe(source: FeatureSource, side: SideName) -> list[NDArray[Any]] | None:
    """Some embeddings of a side, None where it has none."""
    probed = []
    for row in range(len(source.lengths[side])):
        try:
            item = source.read(side, row)
        except DatasetError as error:
            if trouble := trouble_behind(error):
                raise trouble from error
            continue
        if item.embedding is None:
            return None
        probed.append(item.embedding)
        if len(probed) == _PROBED:
            break
    return probed or None


def _token_spec(source: FeatureSource, side: SideName) -> TokenSpec | None:
    width, lengths = source.widths[side], source.lengths[side]
    if width is None:
        return None
    same = side == "image" and len(lengths) > 0 and (lengths == lengths[0]).all()
    return TokenSpec(width=width, count=int(lengths[0]) if same else None)


def _digest(files: Iterable[Path]) -> str:
    """Of names and sizes: the contents may be tens of gigabytes, and the store checks its own."""
    listed = sorted((file.name, file.stat().st_size) for file in files if file.is_file())
    return hashlib.sha256(repr(listed).encode()).hexdigest()
