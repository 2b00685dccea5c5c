"""Creates a store without shards, whole or not at all, and compares it with one that exists."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common import atomic, remote
from hada.extract.common.errors import StoreError, StoreMismatchError, UsageError
from hada.extract.spec import SIDES, StoreSpec
from hada.extract.store import commit, dtypes, formats, record
from hada.extract.store.formats import ArrayPlan
from hada.extract.store.index import (
    ROWS_PER_CHUNK,
    StoreIndex,
    encode_ids,
    ragged_capacity,
    ragged_spans,
    shard_count,
)

# The attribute that lists the differences somebody accepted.
ALLOWED = "hada_allowed_mismatches"
# Fields that `--allow-mismatch` may name.
ALLOWABLE = (
    "dataset_digest",
    "model.family",
    "model.libraries",
    "model.name",
    "model.normalized",
    "model.precision",
    "model.preprocessing",
    "model.weights_digest",
)
# Library versions are recorded, but only a change of these may change the pixels.
_PIXEL_LIBRARIES = ("pillow", "torchvision")


def plan_arrays(spec: StoreSpec, index: StoreIndex) -> dict[str, ArrayPlan]:
    """Every array of a store, before anything is written: names, shapes and division."""
    plans: dict[str, ArrayPlan] = {}
    for side in SIDES:
        count, size = index.count(side), spec.rows_per_shard[side]
        tokens, width = spec.model.tokens(side), spec.model.embedding_width
        if tokens is not None and tokens.count is not None:
            plans[f"{side}/tokens"] = ArrayPlan(
                shape=(count, tokens.count, tokens.width),
                dtype=dtypes.on_disk(spec.dtype),
                fill=dtypes.fill_value(spec.dtype),
                chunk_rows=1,
                shard_rows=size,
                dimensions=(side, "token", "feature"),
            )
        elif tokens is not None:
            capacity = ragged_capacity(spec, index, side)
            plans[f"{side}/tokens"] = ArrayPlan(
                shape=(shard_count(spec, index, side) * capacity, tokens.width),
                dtype=dtypes.on_disk(spec.dtype),
                fill=dtypes.fill_value(spec.dtype),
                chunk_rows=ROWS_PER_CHUNK,
                shard_rows=capacity,
                dimensions=("row", "feature"),
            )
        if tokens is not None and spec.dtype == "int8":
            codes = plans[f"{side}/tokens"]
            plans[f"{side}/steps"] = replace(
                codes,
                shape=(*codes.shape[:-1], 1),
                dtype="float32",
                fill=np.nan,
                # Steps are small: a file of them is one chunk.
                chunk_rows=codes.shard_rows,
                dimensions=(*codes.dimensions[:-1], "one"),
            )
        if width is not None:
            stored = dtypes.of_embeddings(spec.dtype)
            plans[f"{side}/embeddings"] = ArrayPlan(
                shape=(count, width),
                dtype=dtypes.on_disk(stored),
                fill=dtypes.fill_value(stored),
                chunk_rows=size,
                shard_rows=size,
                dimensions=(side, "feature"),
            )
    return plans


def create(folder: Path, spec: StoreSpec, index: StoreIndex, format_name: str) -> None:
    """Make the empty store beside its place and rename it there, so that it is whole or absent.

    Behind a URL it is made locally and put there, what makes it a store last.

    Args:
        folder: The store's folder or URL.
        spec: What the store is to hold.
        index: Its items.
        format_name: "zarr" or "hdf5".

    Raises:
        UsageError: The folder lies in another store, or is a link to nowhere.
    """
    if remote.is_remote(folder):
        _create_remote(folder, spec, index, format_name)
        return
    _refuse_place(folder)
    atomic.make_folder(folder.parent)
    # Its name begins with a dot: nobody who looks for stores takes it for one.
    hidden = folder.with_name(f".{folder.name}")
    atomic.remove_leftovers(hidden)
    temporary = atomic.temporary_name(hidden)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        features = temporary / formats.features_folder(format_name)
        formats.get(format_name).create(
            features,
            plan_arrays(spec, index),
            index_arrays(spec, index),
            {record.SPEC: spec.to_json()},
        )
        record.bind(formats.get(format_name), features, spec)
        (temporary / commit.COMMIT).mkdir()
        atomic.sync(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            # Another process may have been faster; then its store is checked like any other.
            if not folder.exists():
                raise
        atomic.sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _create_remote(folder: Path, spec: StoreSpec, index: StoreIndex, format_name: str) -> None:
    if format_name != "zarr":
        raise UsageError(
            f"{folder}: a store behind a URL is Zarr; HDF5 needs a file system that it can seek "
            "and lock in. Leave out --format, or choose a local place"
        )
    with tempfile.TemporaryDirectory(prefix="hada-") as temporary:
        local = Path(temporary) / folder.name
        create(local, spec, index, format_name)
        name = formats.features_folder(format_name)
        remote.upload_folder(local / name, folder / name, last="zarr.json")


def _refuse_place(folder: Path) -> None:
    """Raise `UsageError` where no store can be: in another one, or behind a link to nowhere."""
    if folder.is_symlink():
        raise UsageError(atomic.not_a_folder(folder))
    for above in folder.resolve().parents:
        if formats.find(above) is not None:
            raise UsageError(
                f"{folder}: lies in the store {above}, which `--fresh` or `repair` would take it "
                "for a part of. Choose a place outside of it."
            )


def index_arrays(spec: StoreSpec, index: StoreIndex) -> dict[str, NDArray[Any]]:
    """What is known before the first feature: name -> values."""
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


def check_same(
    folder: Path,
    spec: StoreSpec,
    index: StoreIndex,
    format_name: str | None = None,
    allow: Collection[str] = (),
) -> record.Record:
    """Check that the store on disk is the one that is to be written.

    Args:
        folder: Where the store is.
        spec: What it must hold.
        index: The ids and lengths that it must have.
        format_name: The format that it must have; None for any.
        allow: Fields of the spec that may differ; that is then noted in its attributes.

    Returns:
        The store's record.

    Raises:
        StoreError: The folder holds something else.
        StoreMismatchError: The store is another one; the message names the fields.
    """
    found = formats.find(folder)
    if found is None:
        places = " or ".join(sorted(formats.folders()))
        raise StoreError(
            f"{folder}: exists, but is not a feature store (no {places} in it). "
            "Move it away, or choose another place for stores."
        )
    form, _ = found
    if format_name is not None and format_name != form.name:
        raise StoreMismatchError(
            f"{folder}: format: the store has {form.name!r}, this call wants {format_name!r}. "
            f"Leave out --format, or: hada-store convert {folder} PLACE --format {format_name}"
        )
    known = record.read_record(folder)
    allowed = _refuse_differences(folder, known.spec, spec, allow)
    contents = record.read_contents(known)
    for name, values in index_arrays(spec, index).items():
        there = contents.index[name]
        if there.shape != values.shape or (there != values).any():
            raise StoreMismatchError(
                f"{folder}: {name} differs from what would be written now, though the dataset is "
                "the same. Was the tokenizer changed? `--fresh` starts the store again."
            )
    listed = known.attributes.get(ALLOWED, [])
    fresh = [entry for entry in allowed if entry not in listed]
    if fresh:
        _accept(known, listed + fresh)
    return known


def _accept(known: record.Record, allowed: list[Any]) -> None:
    attributes = known.attributes | {ALLOWED: allowed}
    if known.root:
        attributes = record.with_record(
            attributes, known.root, known.parts, upgrading=known.upgrading
        )
    known.form.set_attributes(known.features, attributes)


def _refuse_differences(
    folder: Path, stored: StoreSpec, wanted: StoreSpec, allow: Collection[str]
) -> list[dict[str, Any]]:
    """Raise `StoreMismatchError` where a store holds something other than what is wanted.

    Returns the differences that `allow` lets pass, for the record.
    """
    for name in allow:
        if not name.startswith(ALLOWABLE):
            raise UsageError(
                f"--allow-mismatch {name}: not one of the fields that may differ "
                f"({', '.join(ALLOWABLE)}): the others decide shapes and bytes"
            )
    differences = [
        (name, found, asked)
        for name, found, asked in stored.differences(wanted)
        if not name.startswith("model.libraries.") or name.endswith(_PIXEL_LIBRARIES)
    ]
    refused = [entry for entry in differences if not _is_allowed(entry[0], allow)]
    if refused:
        listed = "; ".join(
            f"{name}: the store has {found!r}, this call wants {asked!r}"
            for name, found, asked in refused[:4]
        )
        raise StoreMismatchError(
            f"{folder} holds other features than these: {listed}. "
            "Give the store another place (--root stores=FOLDER), start it again with --fresh, "
            f"or accept the difference: --allow-mismatch {refused[0][0]}"
        )
    return [{"field": name, "store": found, "request": asked} for name, found, asked in differences]


def _is_allowed(name: str, allow: Collection[str]) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in allow)
