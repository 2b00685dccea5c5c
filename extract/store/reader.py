"""Reading a store: rows of tokens and embeddings, after its markers have been checked."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.errors import StoreError
from hada.extract.spec import SIDES, SideName, StoreSpec
from hada.extract.store import layout, zarr_format
from hada.extract.store.index import StoreIndex, decode_ids, shard_count
from hada.extract.store.zarr_format import RowReader

Rows = slice | NDArray[np.int64]


class SideReader:
    """The images, or the captions, of a store.

    ids: n ids in row order. lengths: (n,) int64 token rows of each item (zeros where the store
    keeps none). failed: (n,) bool, items that could not be encoded: their features are NaN.
    """

    def __init__(self, features: Path, side: SideName, spec: StoreSpec, failed: set[int]) -> None:
        self.side = side
        self._features = features
        self.ids = decode_ids(_whole(features, f"{side}/ids"))
        self.tokens_spec = spec.model.tokens(side)
        self.failed = np.zeros(len(self.ids), bool)
        self.failed[sorted(failed)] = True
        self.lengths = self._lengths()

    def tokens(self, rows: Rows) -> NDArray[Any]:
        """Token rows of the items asked for, item after item: (sum of lengths[rows], D).

        Raises `StoreError` where the store keeps no tokens for this side, or is damaged.
        """
        if self.tokens_spec is None:
            raise StoreError(f"{self._features.parent}: keeps no {self.side} tokens")
        items = self._rows(rows)
        width = self.tokens_spec.width
        if self.tokens_spec.count is not None:
            return self._read(self._token_rows, items).reshape(-1, width)
        return self._read(self._token_rows, _expand(self._spans[items]))

    def embeddings(self, rows: Rows | None = None) -> NDArray[Any] | None:
        """(n, E) embeddings as the backbone gave them; None where the model has no joint space."""
        if self._embedding_rows is None:
            return None
        return self._read(self._embedding_rows, self._rows(slice(None) if rows is None else rows))

    def _rows(self, rows: Rows) -> NDArray[np.int64]:
        return np.arange(len(self.ids), dtype=np.int64)[rows]

    @staticmethod
    def _read(reader: RowReader, rows: NDArray[np.int64]) -> NDArray[Any]:
        if len(rows) and (np.diff(rows) == 1).all():
            return reader.slice(int(rows[0]), int(rows[-1]) + 1)
        return reader.rows(rows)

    def _lengths(self) -> NDArray[np.int64]:
        if self.tokens_spec is None:
            return np.zeros(len(self.ids), np.int64)
        if self.tokens_spec.count is not None:
            return np.full(len(self.ids), self.tokens_spec.count, np.int64)
        return np.asarray(self._spans[:, 1] - self._spans[:, 0])

    @functools.cached_property
    def _spans(self) -> NDArray[np.int64]:
        return _whole(self._features, f"{self.side}/spans")

    @functools.cached_property
    def _token_rows(self) -> RowReader:
        return RowReader(self._features, f"{self.side}/tokens")

    @functools.cached_property
    def _embedding_rows(self) -> RowReader | None:
        name = f"{self.side}/embeddings"
        return RowReader(self._features, name) if zarr_format.has(self._features, name) else None


class StoreReader:
    """A complete store, open for reading. Make one with `open_store`.

    Opened anew in every worker process: it holds no handle that survives a fork.
    """

    def __init__(self, folder: Path, spec: StoreSpec, failed: dict[SideName, set[int]]) -> None:
        self.path, self.spec = folder, spec
        features = folder / layout.FEATURES
        self.image = SideReader(features, "image", spec, failed["image"])
        self.caption = SideReader(features, "caption", spec, failed["caption"])
        self.caption_to_image: NDArray[np.int64] = _whole(features, "caption/image_index")

    def side(self, name: SideName) -> SideReader:
        """`image` or `caption`, by name."""
        return self.image if name == "image" else self.caption

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f"StoreReader({spec.model.name} on {spec.dataset}/{spec.split}: "
            f"{len(self.image.ids)} images, {len(self.caption.ids)} captions)"
        )


def open_store(path: str | Path) -> StoreReader:
    """Open a finished store.

    Raises:
        StoreError: There is none, it is incomplete or damaged; the message says what to do.
    """
    folder = layout.local_folder(path)
    spec = read_spec(folder)
    status = shard_status(folder, spec)
    missing = {side: [k for k, state in status[side].items() if state] for side in SIDES}
    if any(missing.values()):
        total = sum(len(status[side]) for side in SIDES)
        gone = sum(map(len, missing.values()))
        side = next(side for side in SIDES if missing[side])
        first = status[side][missing[side][0]]
        raise StoreError(
            f"{folder}: {gone} of {total} shards are missing or damaged "
            f"({side} shard {missing[side][0]}: {first}). Run again: hada-extract "
            f"--dataset {spec.dataset} --split {spec.split} --model {spec.model.name}"
        )
    failed: dict[SideName, set[int]] = {side: set() for side in SIDES}
    for side in SIDES:
        for shard in status[side]:
            marker = layout.read_marker(folder, side, shard)
            failed[side].update(marker.failed if marker else {})
    return StoreReader(folder, spec, failed)


def read_spec(folder: Path) -> StoreSpec:
    """What a store holds, complete or not. Raises `StoreError` where there is none."""
    features = folder / layout.FEATURES
    if not features.is_dir():
        raise StoreError(
            f"{folder}: there is no feature store. Make it first: hada-extract "
            f"--model {folder.name} --split {folder.parent.name} "
            f"--dataset {folder.parent.parent.name}"
        )
    raw = zarr_format.attributes(features).get("hada")
    if not isinstance(raw, dict):
        raise StoreError(f"{features}: a Zarr group, but not one that HADA wrote")
    return StoreSpec.from_json(raw)


def shard_status(
    folder: Path, spec: StoreSpec, *, deep: bool = False
) -> dict[SideName, dict[int, str | None]]:
    """For every shard of both sides: what is wrong with it, None where nothing is."""
    features = folder / layout.FEATURES
    index_of = {side: decode_ids(_whole(features, f"{side}/ids")) for side in SIDES}
    empty = StoreIndex(ids=index_of, caption_to_image=np.zeros(0, np.int64), lengths={})
    digest = spec.digest()
    return {
        side: {
            shard: _state(folder, side, shard, digest, deep)
            for shard in range(shard_count(spec, empty, side))
        }
        for side in SIDES
    }


def _state(folder: Path, side: SideName, shard: int, digest: str, deep: bool) -> str | None:
    try:
        marker = layout.read_marker(folder, side, shard)
    except StoreError as error:
        return str(error)
    if marker is None:
        return "not written yet"
    return layout.damage(folder, marker, digest, deep=deep)


def _whole(features: Path, name: str) -> NDArray[Any]:
    reader = RowReader(features, name)
    return reader.slice(0, reader.shape[0])


def _expand(spans: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of several spans, one after the other: [[2, 4], [7, 8]] -> [2, 3, 7]."""
    lengths = spans[:, 1] - spans[:, 0]
    ends = np.cumsum(lengths)
    steps = np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64)
    rows: NDArray[np.int64] = steps + np.repeat(spans[:, 0] - (ends - lengths), lengths)
    return rows
