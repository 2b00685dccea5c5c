"""Reading a store: rows of tokens and embeddings, after its markers have been checked."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common import atomic, remote
from hada.extract.common.errors import StoreError
from hada.extract.spec import SIDES, SideName, StoreSpec
from hada.extract.store import commit, dtypes, formats, seal
from hada.extract.store.index import decode_ids
from hada.extract.store.record import (
    Contents,
    Record,
    changed,
    locate,
    read_contents,
    read_record,
    shard_names,
)
from hada.extract.store.remote_row_reader import row_reader
from hada.extract.store.row_reader import RowReader

__all__ = ["SideReader", "StoreReader", "locate", "open_store", "read_spec", "shard_status"]

Rows = slice | NDArray[np.int64]


class SideReader:
    """The images, or the captions, of a store.

    ids: n ids in row order. lengths: (n,) int64 token rows of each item (zeros where the store
    keeps none). failed: (n,) bool, items that could not be encoded: their features are NaN.
    """

    def __init__(self, side: SideName, record: Record, contents: Contents, shards: Shards) -> None:
        spec = record.spec
        self.side = side
        self._form, self._features, self._dtype = record.form, record.features, spec.dtype
        self._metadata = {name: contents.metadata[name] for name in shard_names(spec, side)}
        self._crcs = shards.crcs
        self._width = spec.model.embedding_width
        self.ids = _decode(record, contents.index[f"{side}/ids"])
        self.tokens_spec = spec.model.tokens(side)
        self.failed = np.zeros(len(self.ids), bool)
        failed = sorted(shards.failed[side])
        if failed and not 0 <= failed[0] <= failed[-1] < len(self.ids):
            raise StoreError(
                f"{record.folder}: a marker calls {side} rows failed that the store has not. "
                "`hada-store repair` does not help here; start the store again with --fresh."
            )
        self.failed[failed] = True
        self._spans = self._checked_spans(contents.index.get(f"{side}/spans"))
        self.lengths = self._lengths()

    def tokens(self, rows: Rows, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Token rows of the items asked for, item after item: (sum of lengths[rows], D).

        Args:
            rows: Items, in any order.
            out: An array of that shape and `dtype` to fill and return; a loop that recycles one
                saves the time that the system takes to hand out fresh memory.

        Raises:
            StoreError: The store keeps no tokens for this side, or is damaged.
        """
        if self.tokens_spec is None:
            raise StoreError(f"{self._features.parent}: keeps no {self.side} tokens")
        items = self._rows(rows)
        if self._dtype == "int8":
            return self._dequantized(items, out)
        if self.tokens_spec.count is None:
            return self._read(self._token_rows, self._spans[items], out)
        spans = np.stack([items, items + 1], axis=1)
        if out is not None:
            out = out.reshape(-1, self.tokens_spec.count, self.tokens_spec.width)
        return self._read(self._token_rows, spans, out).reshape(-1, self.tokens_spec.width)

    def embeddings(self, rows: Rows | None = None) -> NDArray[Any] | None:
        """(n, E) embeddings as the backbone gave them; None where the model has no joint space."""
        if self._embedding_rows is None:
            return None
        items = self._rows(slice(None) if rows is None else rows)
        return self._read(self._embedding_rows, np.stack([items, items + 1], axis=1), None)

    def touch(self) -> None:
        """Open every array. Raises `StoreError` where one is not as the spec says."""
        if self.tokens_spec is not None:
            _ = self._token_rows
            _ = self._step_rows if self._dtype == "int8" else None
        _ = self._embedding_rows

    def _dequantized(self, items: NDArray[np.int64], out: NDArray[Any] | None) -> NDArray[Any]:
        """Codes times steps; see `dtypes`."""
        assert self.tokens_spec is not None
        one = np.stack([items, items + 1], axis=1)
        spans = self._spans[items] if self.tokens_spec.count is None else one
        codes = self._token_rows.ranges(spans).reshape(-1, self.tokens_spec.width)
        steps = self._step_rows.ranges(spans).reshape(-1, 1)
        values: NDArray[np.float32] = np.multiply(codes, steps, out=out, dtype=np.float32)
        return values

    @property
    def dtype(self) -> np.dtype[Any]:
        """What `tokens` returns: as stored, but bfloat16 and int8 are widened to float32."""
        return dtypes.in_memory(self._dtype)

    def _rows(self, rows: Rows) -> NDArray[np.int64]:
        return np.arange(len(self.ids), dtype=np.int64)[rows]

    def _read(
        self, reader: RowReader, spans: NDArray[np.int64], out: NDArray[Any] | None
    ) -> NDArray[Any]:
        if reader.dtype == self.dtype:
            return reader.ranges(spans, out)
        values = dtypes.decode(reader.ranges(spans), dtypes.of_embeddings(self._dtype))
        if out is None:
            return values
        out[...] = values
        return out

    def _lengths(self) -> NDArray[np.int64]:
        if self.tokens_spec is None:
            return np.zeros(len(self.ids), np.int64)
        if self.tokens_spec.count is not None:
            return np.full(len(self.ids), self.tokens_spec.count, np.int64)
        return np.asarray(self._spans[:, 1] - self._spans[:, 0])

    def _checked_spans(self, spans: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """First and last token rows of each item; empty where all have the same number."""
        if spans is None or self.tokens_spec is None:
            return np.zeros((0, 2), np.int64)
        ordered = spans.shape == (len(self.ids), 2) and bool(
            (spans[:, 0] >= 0).all()
            and (spans[:, 0] <= spans[:, 1]).all()
            and (spans[:, 1] <= self._token_rows.shape[0]).all()
        )
        if not ordered:
            raise StoreError(
                f"{self._features}: {self.side}/spans name rows that {self.side}/tokens has not. "
                "Start the store again with --fresh."
            )
        return spans

    @functools.cached_property
    def _token_rows(self) -> RowReader:
        assert self.tokens_spec is not None
        count, width = self.tokens_spec.count, self.tokens_spec.width
        shape = (width,) if count is None else (count, width)
        stored = dtypes.on_disk(self._dtype)
        return self._array("tokens", shape, None if count is None else len(self.ids), stored)

    @functools.cached_property
    def _step_rows(self) -> RowReader:
        """int8's steps, one for each token row."""
        assert self.tokens_spec is not None
        count = self.tokens_spec.count
        shape = (1,) if count is None else (count, 1)
        rows = self._token_rows.shape[0]
        return self._array("steps", shape, rows, "float32")

    @functools.cached_property
    def _embedding_rows(self) -> RowReader | None:
        if self._width is None:
            return None
        stored = dtypes.on_disk(dtypes.of_embeddings(self._dtype))
        return self._array("embeddings", (self._width,), len(self.ids), stored)

    def _array(self, name: str, row: tuple[int, ...], rows: int | None, stored: str) -> RowReader:
        """An array, whose shape must be what the spec says: without a record nothing else tells."""
        name = f"{self.side}/{name}"
        source = self._form.source(self._features, name, self._metadata[name])
        reader = row_reader(source, self._crcs.get(name))
        dtype = np.dtype(stored)
        fits = reader.shape[1:] == row and rows in (None, reader.shape[0]) and reader.dtype == dtype
        if not fits:
            raise StoreError(
                f"{self._features}: {name}: expected ({rows or 'rows'}, "
                f"{', '.join(map(str, row))}) {dtype}, got {reader.shape} {reader.dtype}. "
                "Start the store again with --fresh."
            )
        return reader


class StoreReader:
    """A complete store, open for reading. Make one with `open_store`.

    Threads may share it. It pickles without its open files, so a worker that is sent one opens
    its own.
    """

    def __init__(self, record: Record, contents: Contents, shards: Shards) -> None:
        features = record.features
        self.path, self.spec = record.folder, record.spec
        self.format = record.form.name
        self.image = SideReader("image", record, contents, shards)
        self.caption = SideReader("caption", record, contents, shards)
        self.caption_to_image: NDArray[np.int64] = contents.index["caption/image_index"]
        captions, images = len(self.caption.ids), len(self.image.ids)
        owners = self.caption_to_image
        if owners.shape != (captions,) or ((owners < 0) | (owners >= images)).any():
            raise StoreError(
                f"{features}: caption/image_index names images that the store has not. "
                "Start the store again with --fresh."
            )

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

    What binds its parts is compared here: the record with the spec, metadata, ids and spans, the
    markers with the record, their seal and the sizes of their files. The shards' bytes are
    compared with their markers as they are read.

    Raises:
        StoreError: There is none, it is incomplete or damaged, or holds parts of another store;
            the message says what to do.
    """
    folder = remote.place(path)
    record = read_record(folder)
    contents = read_contents(record)
    spec, markers = record.spec, _markers(record, contents)
    status = _status(record, markers)
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
    return StoreReader(record, contents, _shards(spec, markers))


def stores_below(folder: Path) -> list[Path]:
    """The stores in a folder, by name; what is being made there, or was left by a kill, is none."""
    places = sorted(folder.iterdir()) if folder.exists() else []
    return [
        path
        for path in places
        if path.is_dir()
        and not path.name.startswith(".")
        and not atomic.is_temporary(path.name)
        and formats.find(path) is not None
    ]


def read_spec(folder: Path) -> StoreSpec:
    """What a store holds, complete or not. Raises `StoreError` where there is none."""
    return read_record(folder).spec


def shard_status(
    folder: Path, spec: StoreSpec | None = None, *, deep: bool = False
) -> dict[SideName, dict[int, commit.Fault | None]]:
    """For every shard of both sides: what is wrong with it, None where nothing is.

    Args:
        folder: The store.
        spec: What it must hold, by default what it says itself.
        deep: Read every byte, rather than look at markers and sizes.

    Raises:
        StoreError: What the store knew before its first feature is damaged.
    """
    record = read_record(folder)
    if spec is not None and spec != record.spec:
        raise StoreError(f"{folder}: holds other features than these: {record.spec}")
    contents = read_contents(record)
    return _status(record, _markers(record, contents), contents if deep else None)


@dataclass(frozen=True)
class Shards:
    """failed: per side the items without features. crcs: array -> those of each shard's chunks."""

    failed: dict[SideName, set[int]]
    crcs: dict[str, list[str | None]]


Markers = dict[tuple[SideName, int], commit.Marker | StoreError | None]


def _shards(spec: StoreSpec, markers: Markers) -> Shards:
    failed: dict[SideName, set[int]] = {side: set() for side in SIDES}
    crcs: dict[str, list[str | None]] = {n: [] for side in SIDES for n in shard_names(spec, side)}
    for (side, _), marker in markers.items():
        assert isinstance(marker, commit.Marker)
        failed[side].update(marker.failed)
        for name in shard_names(spec, side):
            crcs[name].append(marker.crcs.get(name))
    return Shards(failed, crcs)


def _decode(record: Record, rows: NDArray[np.uint8]) -> tuple[str, ...]:
    try:
        return decode_ids(rows)
    except ValueError as error:
        raise changed(record.folder, f"its ids are no text ({error})") from error


def _markers(record: Record, contents: Contents) -> Markers:
    counts = {side: len(contents.index[f"{side}/ids"]) for side in SIDES}
    size = record.spec.rows_per_shard
    shards = [(side, k) for side in SIDES for k in range(math.ceil(counts[side] / size[side]))]
    return commit.read_markers(record.folder, shards)


def _status(
    record: Record, markers: Markers, contents: Contents | None = None
) -> dict[SideName, dict[int, commit.Fault | None]]:
    """See `shard_status`; with `contents`, every byte is read."""
    frame, sizes = commit.Frame.of(record), commit.listed_sizes(record.features)
    metadata = contents.metadata if contents is not None else None
    unsealed = seal.faults(record.folder, record.root, markers)[1] if record.root else {}
    status: dict[SideName, dict[int, commit.Fault | None]] = {side: {} for side in SIDES}
    for (side, shard), marker in markers.items():
        if isinstance(marker, StoreError):
            fault: commit.Fault | None = commit.Fault(str(marker))
        elif marker is None:
            fault = commit.UNWRITTEN
        else:
            fault = commit.damage(marker, frame, metadata=metadata, sizes=sizes)
        status[side][shard] = fault or unsealed.get((side, shard))
    return status
