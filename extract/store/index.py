"""The index of a store: ids, lengths, and the rows of each shard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import StoreError
from hada.extract.spec import SideName, StoreSpec

# A ragged shard's capacity is a multiple of this many token rows, the unit zarr reads at once.
ROWS_PER_CHUNK = 32
# Ids are padded so many at a time, which bounds the memory of a mask over their bytes.
_IDS_AT_ONCE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class StoreIndex:
    """The rows of a store.

    ids: image and caption ids, in row order.
    caption_to_image: (T,) int64, entry j is the image row of caption j; -1 for all where the
        store has no images.
    lengths: per side (n,) int64, how many token rows each item has; zeros where none are kept.
    """

    ids: dict[SideName, tuple[str, ...]]
    caption_to_image: NDArray[np.int64]
    lengths: dict[SideName, NDArray[np.int64]]

    def count(self, side: SideName) -> int:
        """Number of items of a side."""
        return len(self.ids[side])

    def check(self, spec: StoreSpec) -> None:
        """Raise `StoreError` where ids, captions and lengths contradict each other or the spec."""
        images, captions = self.count("image"), self.count("caption")
        if self.caption_to_image.shape != (captions,):
            raise StoreError(
                f"caption_to_image: expected shape ({captions},), got {self.caption_to_image.shape}"
            )
        alone = not images and (self.caption_to_image == -1).all()
        if (
            captions
            and not alone
            and not (self.caption_to_image.min() >= 0 and self.caption_to_image.max() < images)
        ):
            raise StoreError(
                f"caption_to_image names image rows outside 0..{images - 1}"
                if images
                else "caption_to_image: expected -1 for every caption of a store without images"
            )
        for side, ids in self.ids.items():
            if self.lengths[side].shape != (len(ids),):
                raise StoreError(f"{side} lengths: expected ({len(ids)},)")
            tokens = spec.model.tokens(side)
            if tokens and tokens.count is not None and (self.lengths[side] != tokens.count).any():
                raise StoreError(f"{side} lengths: the spec says {tokens.count} tokens for each")


def shard_count(spec: StoreSpec, index: StoreIndex, side: SideName) -> int:
    """How many shards a side has."""
    return math.ceil(index.count(side) / spec.rows_per_shard[side])


def shard_rows(spec: StoreSpec, index: StoreIndex, side: SideName, shard: int) -> range:
    """The items of one shard.

    A store of 5 images at 2 per shard: shard 2 holds range(4, 5).

    Args:
        spec: Of the store.
        index: Of the store.
        side: Whose shard.
        shard: Its number, from 0.
    """
    size = spec.rows_per_shard[side]
    return range(shard * size, min((shard + 1) * size, index.count(side)))


def ragged_capacity(spec: StoreSpec, index: StoreIndex, side: SideName) -> int:
    """Token rows set aside for every ragged shard: what the fullest one needs, rounded up."""
    rows = [
        int(index.lengths[side][_as_slice(shard_rows(spec, index, side, shard))].sum())
        for shard in range(shard_count(spec, index, side))
    ]
    return max(1, math.ceil(max(rows, default=1) / ROWS_PER_CHUNK)) * ROWS_PER_CHUNK


def ragged_spans(spec: StoreSpec, index: StoreIndex, side: SideName) -> NDArray[np.int64]:
    """(n, 2) int64: first token row of each item and the row after its last.

    Every shard starts at a multiple of `ragged_capacity`, so that shards are written
    independently; the unused rows at a shard's end are never stored.
    """
    capacity = ragged_capacity(spec, index, side)
    spans = np.zeros((index.count(side), 2), np.int64)
    for shard in range(shard_count(spec, index, side)):
        rows = _as_slice(shard_rows(spec, index, side, shard))
        ends = shard * capacity + np.cumsum(index.lengths[side][rows])
        spans[rows, 1] = ends
        spans[rows, 0] = ends - index.lengths[side][rows]
    return spans


def encode_ids(ids: Sequence[str]) -> NDArray[np.uint8]:
    """Ids as (n, L) uint8, UTF-8, zero-padded to the longest.

    Raises `StoreError` where an id is empty or contains a NUL character.
    """
    # All at once, because millions of ids one by one take seconds.
    data = np.frombuffer("\0".join([*ids, ""]).encode(), np.uint8)
    ends = np.flatnonzero(data == 0)
    lengths = np.diff(ends, prepend=-1) - 1
    if len(ends) != len(ids) or not lengths.all():
        raise StoreError("ids must not be empty and must not contain NUL characters")
    rows = np.zeros((len(ids), int(lengths.max(initial=1))), np.uint8)
    columns = np.arange(rows.shape[1])
    for start in range(0, len(ids), _IDS_AT_ONCE):
        some = lengths[start : start + _IDS_AT_ONCE]
        part = data[ends[start] - some[0] : ends[start + len(some) - 1]]
        rows[start : start + len(some)][columns < some[:, None]] = part[part != 0]
    return rows


def decode_ids(rows: NDArray[np.uint8]) -> tuple[str, ...]:
    """The inverse of `encode_ids`.

    >>> decode_ids(encode_ids(["a.jpg", "béta"]))
    ('a.jpg', 'béta')
    """
    return tuple(row.tobytes().rstrip(b"\0").decode() for row in rows)


def _as_slice(rows: range) -> slice:
    return slice(rows.start, rows.stop)
