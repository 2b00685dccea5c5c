"""The features of one shard: whether their shapes fit, and what they are in the store's dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import NonFiniteError, StoreError
from hada.extract.spec import SideName, StoreSpec
from hada.extract.store import dtypes
from hada.extract.store.index import StoreIndex
from hada.extract.store.underflow import too_small


@dataclass(frozen=True, kw_only=True)
class Block:
    """The features of one shard.

    values: (sum of lengths, D) token rows, item after item, or None where none are kept.
    embeddings: (n, E), or None.
    failed: row in the store -> reason; such an item's values are NaN.
    provenance: what else decided the bytes, for the marker.
    """

    values: NDArray[Any] | None = None
    embeddings: NDArray[Any] | None = None
    failed: Mapping[int, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def check(self, spec: StoreSpec, index: StoreIndex, side: SideName, rows: range) -> None:
        """Compare the shapes of the arrays with what a store has for some rows.

        Args:
            spec: Of the store.
            index: Of the store.
            side: Whose rows.
            rows: Of a shard.

        Raises:
            StoreError: A shape is another one.
        """
        model = spec.model
        tokens = model.tokens(side)
        expected: dict[str, tuple[tuple[int, ...] | None, NDArray[Any] | None]] = {
            "tokens": (
                (int(index.lengths[side][rows.start : rows.stop].sum()), tokens.width)
                if tokens
                else None,
                self.values,
            ),
            "embeddings": (
                (len(rows), model.embedding_width) if model.embedding_width else None,
                self.embeddings,
            ),
        }
        for name, (shape, array) in expected.items():
            got = None if array is None else array.shape
            if got != shape:
                raise StoreError(
                    f"{model.name} {side} {name}, rows {rows.start} to {rows.stop - 1}: "
                    f"expected shape {shape}, got {got}"
                )

    def stored_tokens(
        self, spec: StoreSpec, index: StoreIndex, side: SideName, rows: range
    ) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Cast `values` to the store's dtype; of int8 the steps come second, (tokens, 1).

        Args:
            spec: Of the store.
            index: Of the store.
            side: Whose rows.
            rows: Of a shard.

        Raises:
            StoreError: Values overflow that dtype, or are so small that it loses their digits.
            NonFiniteError: A value of an item that did not fail is NaN or infinite.
        """
        assert self.values is not None
        # Tokens have as many rows as their item is long, embeddings one.
        lengths = index.lengths[side][rows.start : rows.stop]
        part = _Part(spec.model.name, side, index.ids[side], rows, lengths, self.failed)
        return part.cast(self.values, spec.dtype)

    def stored_embeddings(
        self, spec: StoreSpec, index: StoreIndex, side: SideName, rows: range
    ) -> NDArray[Any]:
        """Cast `embeddings` to their dtype in such a store.

        Args:
            spec: Of the store.
            index: Of the store.
            side: Whose rows.
            rows: Of a shard.

        Raises:
            StoreError: As for `stored_tokens`.
            NonFiniteError: As for `stored_tokens`.
        """
        assert self.embeddings is not None
        lengths = np.ones(len(rows), np.int64)
        part = _Part(spec.model.name, side, index.ids[side], rows, lengths, self.failed)
        return part.cast(self.embeddings, dtypes.of_embeddings(spec.dtype))[0]


class _Part(NamedTuple):
    """Which items the rows of an array belong to: item k of `rows` has `lengths[k]` of them."""

    model: str
    side: SideName
    ids: Sequence[str]
    rows: range
    lengths: NDArray[np.int64]
    failed: Mapping[int, str]

    def cast(
        self, values: NDArray[Any], dtype: str
    ) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """`values` in `dtype`, with their steps if it has some; NaN in items that failed alone."""
        steps = None
        if dtype == "int8":
            stored, steps = dtypes.quantize(values)
            if dtypes.all_finite(steps, "float32"):
                return stored, steps
            bad = np.broadcast_to(~np.isfinite(steps), values.shape)
            overflow = int((np.isinf(steps) & np.isfinite(values).all(axis=1, keepdims=True)).sum())
        else:
            stored = dtypes.encode(values, dtype)
            if dtypes.all_finite(stored, dtype):
                self._check_underflow(values, stored, dtype)
                return stored, None
            bad = ~np.isfinite(dtypes.decode(stored, dtype))
            overflow = int((bad & np.isfinite(values)).sum())
        if overflow:
            raise StoreError(
                f"{self.model} {self.side}: {overflow} values of rows {self.rows.start} to "
                f"{self.rows.stop - 1} do not fit {dtype}. Use --store-dtype float32."
            )
        self._check_finite(bad)
        return stored, steps

    def _check_underflow(self, values: NDArray[Any], stored: NDArray[Any], dtype: str) -> None:
        lost = np.flatnonzero(too_small(values, stored, dtype, self.lengths))
        if len(lost):
            raise StoreError(
                f"{self.model} {self.side}: {len(lost)} items of rows {self.rows.start} to "
                f"{self.rows.stop - 1} are so small that {dtype} loses their digits, the first "
                f"is {self.ids[lost[0] + self.rows.start]!r}. Use --store-dtype float32."
            )

    def _check_finite(self, bad: NDArray[np.bool_]) -> None:
        items = np.repeat(np.arange(len(self.rows)), self.lengths)
        wrong = set((items[bad.any(axis=1)] + self.rows.start).tolist()) - set(self.failed)
        if wrong:
            raise NonFiniteError(
                f"{self.model} {self.side}: features of {len(wrong)} items are NaN or "
                f"infinite, the first is {self.ids[min(wrong)]!r}. "
                "Are the weights whole? With --precision fp16, try bf16 or fp32."
            )
