"""The images or the captions of a store: their ids, lengths, tokens and embeddings."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import StoreError
from hada.extract.spec import SideName
from hada.extract.store import dtypes
from hada.extract.store.index import decode_ids
from hada.extract.store.record import (
    Contents,
    Record,
    changed,
    shard_names,
)
from hada.extract.store.remote_row_reader import row_reader
from hada.extract.store.row_reader import RowReader

Rows = slice | NDArray[np.int64]


Items = Rows | NDArray[np.bool_] | Sequence[int]


# Iteration reads this many items together: one by one a store is read ten times slower.
ITEMS_AT_ONCE = 256


class StoredItem(NamedTuple):
    """One image or caption of a store.

    Attributes:
        id: Its id in the dataset.
        tokens: (length, D) its tokens; None where the store keeps none for this side.
        embedding: (E,) its embedding; None where the model has no joint space.
    """

    id: str
    tokens: NDArray[Any] | None
    embedding: NDArray[Any] | None


class SideReader:
    """The n images, or the n captions, of a store, as a sequence of `StoredItem`.

    `len(side)` is n. `side[3]` and `side[-1]` are one item; `side[10:20]`, `side[rows]` with an
    int array and `side[mask]` with a bool array are lists of them, read together. Iterating
    reads `ITEMS_AT_ONCE` items at a time. Items that could not be encoded have NaN features.
    `tokens` and `embeddings` give whole arrays of many items, which is faster than `StoredItem`s.

    Attributes:
        side: "image" or "caption".
        ids: The n ids in row order.
        lengths: (n,) int64 token rows of each item (zeros where the store keeps none).
        failed: (n,) bool, items that could not be encoded: their features are NaN.
        tokens_spec: What is known of the tokens; None where the store keeps none.
        dtype: What `tokens` returns.
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

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, rows: int | np.integer[Any]) -> StoredItem: ...
    @overload
    def __getitem__(self, rows: Items) -> list[StoredItem]: ...
    def __getitem__(self, rows: int | np.integer[Any] | Items) -> StoredItem | list[StoredItem]:
        """The item of a row, or a list of the items of many rows, in the order asked for.

        Args:
            rows: A row as an int (negative ones count from the end); or a slice, an int array of
                rows, or a bool array (n,).

        Returns:
            An `StoredItem`, or a list of them.

        Raises:
            IndexError: A row is not there.
            StoreError: The store is damaged.
        """
        if isinstance(rows, int | np.integer):
            row = int(rows)
            if not -len(self) <= row < len(self):
                raise IndexError(f"{self.side} {row}: the store has rows 0 to {len(self) - 1}")
            return self._items(np.array([row % len(self)], np.int64))[0]
        return self._items(self._rows(rows))

    def __iter__(self) -> Iterator[StoredItem]:
        for start in range(0, len(self), ITEMS_AT_ONCE):
            yield from self[start : start + ITEMS_AT_ONCE]

    def _items(self, rows: NDArray[np.int64]) -> list[StoredItem]:
        """Items of their own memory, so that keeping one does not keep all that were read."""
        embeddings = self.embeddings(rows)
        tokens: list[NDArray[Any]] | None = None
        if self.tokens_spec is not None:
            tokens = np.split(self.tokens(rows), np.cumsum(self.lengths[rows])[:-1])
        return [
            StoredItem(
                self.ids[row],
                None if tokens is None else tokens[position].copy(),
                None if embeddings is None else embeddings[position].copy(),
            )
            for position, row in enumerate(rows.tolist())
        ]

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

    def _rows(self, rows: Items) -> NDArray[np.int64]:
        if isinstance(rows, Sequence):
            rows = np.array(rows, np.int64)
        if isinstance(rows, np.ndarray) and rows.dtype == np.int64 and rows.ndim == 1 and len(rows):
            chosen = np.asarray(rows, np.int64)
            # The usual case: it need not look the rows up among all that are there.
            if chosen.min() >= 0 and chosen.max() < len(self.ids):
                return chosen
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


@dataclass(frozen=True)
class Shards:
    """failed: per side the items without features. crcs: array -> those of each shard's chunks."""

    failed: dict[SideName, set[int]]
    crcs: dict[str, list[str | None]]


def _decode(record: Record, rows: NDArray[np.uint8]) -> tuple[str, ...]:
    try:
        return decode_ids(rows)
    except ValueError as error:
        raise changed(record.folder, f"its ids are no text ({error})") from error
