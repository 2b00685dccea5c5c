"""Making a store's empty frame, whole or not at all, and telling whether one fits."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract import atomic
from hada.extract.errors import StoreError, StoreMismatchError
from hada.extract.spec import SIDES, StoreSpec
from hada.extract.store import layout, zarr_format
from hada.extract.store.index import (
    ROWS_PER_CHUNK,
    StoreIndex,
    encode_ids,
    ragged_capacity,
    ragged_spans,
    shard_count,
)
from hada.extract.store.zarr_format import ArrayPlan

ABANDONED_AFTER_S = 3600.0
# Library versions are recorded, but only a change of these may change the pixels.
_PIXEL_LIBRARIES = ("pillow", "torchvision")


def plan_arrays(spec: StoreSpec, index: StoreIndex) -> dict[str, ArrayPlan]:
    """Every array of a store, before anything is written: names, shapes and division."""
    plans: dict[str, ArrayPlan] = {}
    for side in SIDES:
        n, size = index.count(side), spec.rows_per_shard[side]
        tokens, width = spec.model.tokens(side), spec.model.embedding_width
        if tokens is not None and tokens.count is not None:
            plans[f"{side}/tokens"] = ArrayPlan(
                shape=(n, tokens.count, tokens.width),
                dtype=spec.dtype,
                chunk_rows=1,
                shard_rows=size,
                dimensions=(side, "token", "feature"),
            )
        elif tokens is not None:
            capacity = ragged_capacity(spec, index, side)
            plans[f"{side}/tokens"] = ArrayPlan(
                shape=(shard_count(spec, index, side) * capacity, tokens.width),
                dtype=spec.dtype,
                chunk_rows=ROWS_PER_CHUNK,
                shard_rows=capacity,
                dimensions=("row", "feature"),
            )
        if width is not None:
            plans[f"{side}/embeddings"] = ArrayPlan(
                shape=(n, width),
                dtype=spec.dtype,
                chunk_rows=size,
                shard_rows=size,
                dimensions=(side, "feature"),
            )
    return plans


def create(folder: Path, spec: StoreSpec, index: StoreIndex) -> None:
    """Make the empty store beside its place and rename it there, so that it is whole or absent."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    temporary = folder.with_name(f".{folder.name}{atomic.TEMPORARY}{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        small = _index_arrays(spec, index)
        plans = plan_arrays(spec, index) | {
            name: ArrayPlan(
                shape=values.shape,
                dtype=str(values.dtype),
                chunk_rows=max(1, len(values)),
                shard_rows=max(1, len(values)),
                dimensions=(name.partition("/")[0], *("column",) * (values.ndim - 1)),
            )
            for name, values in small.items()
        }
        features = temporary / layout.FEATURES
        zarr_format.create(features, plans, {"hada": spec.to_json()})
        for name, values in small.items():
            for file in zarr_format.write_rows(features, name, 0, values):
                atomic.sync(file)
        (temporary / layout.COMMIT).mkdir()
        try:
            temporary.rename(folder)
        except OSError:
            # Another process may have been faster; then its store is checked like any other.
            if not folder.exists():
                raise
        atomic.sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Delete what processes killed while creating this store left; making it takes milliseconds."""
    for path in folder.parent.glob(f".{folder.name}{atomic.TEMPORARY}*"):
        if time.time() - path.stat().st_mtime > ABANDONED_AFTER_S:
            shutil.rmtree(path, ignore_errors=True)


def _index_arrays(spec: StoreSpec, index: StoreIndex) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "image/ids": encode_ids(index.ids["image"]),
        "caption/ids": encode_ids(index.ids["caption"]),
        "caption/image_index": np.asarray(index.caption_to_image, np.int64),
    }
    for side in SIDES:
        tokens = spec.model.tokens(side)
        if tokens is not None and tokens.count is None:
            arrays[f"{side}/spans"] = ragged_spans(spec, index, side)
    return arrays


def check_same(folder: Path, spec: StoreSpec, index: StoreIndex) -> StoreSpec:
    """The spec of the store on disk, which must mean the same as `spec`."""
    features = folder / layout.FEATURES
    if not features.is_dir():
        raise StoreError(
            f"{folder}: exists, but is not a feature store (no {layout.FEATURES} in it). "
            "Move it away, or choose another place for stores."
        )
    stored = StoreSpec.from_json(dict(zarr_format.attributes(features).get("hada", {})))
    _refuse_differences(folder, stored, spec)
    for name, values in _index_arrays(spec, index).items():
        found = zarr_format.RowReader(features, name)
        if found.shape != values.shape or (found.slice(0, len(values)) != values).any():
            raise StoreMismatchError(
                f"{folder}: {name} differs from what would be written now, though the dataset is "
                "the same. Was the tokenizer changed? `--fresh` starts the store again."
            )
    return stored


def _refuse_differences(folder: Path, stored: StoreSpec, wanted: StoreSpec) -> None:
    """Raise `StoreMismatchError` where a store holds something other than what is wanted."""
    differences = [
        (name, found, asked)
        for name, found, asked in stored.differences(wanted)
        if not name.startswith("model.libraries.") or name.endswith(_PIXEL_LIBRARIES)
    ]
    if differences:
        listed = "; ".join(
            f"{name}: the store has {found!r}, this call wants {asked!r}"
            for name, found, asked in differences[:4]
        )
        raise StoreMismatchError(
            f"{folder} holds other features than these: {listed}. "
            "Give the store another place (--root stores=FOLDER), or start it again with --fresh."
        )
