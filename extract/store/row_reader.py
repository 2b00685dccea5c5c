"""Rows of one sharded array: by byte range where a shard allows it, else through the library."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import StoreError
from hada.extract.store import digests
from hada.extract.store.chunks import Part, RawShard
from hada.extract.store.formats import ArraySource
from hada.extract.store.open_file import OpenFile

# Files kept open for each array; systems allow a process about a thousand.
OPEN_FILES = 64
# Through a library, reading one row costs about as much as reading this share of a shard at once.
WHOLE_SHARD_SHARE = 1 / 16


class RowReader:
    """Rows of one array. Threads may share it; it pickles without its open files.

    shape, dtype: of the array on disk. Every byte that it returns has been verified, chunk by
    chunk, the first time it was read from its file. `crcs` are those of each shard's chunks as
    its marker counts them, packed; None where nobody counted.
    """

    def __init__(self, source: ArraySource, crcs: Sequence[str | None] | None = None) -> None:
        self._source, self._crcs = source, crcs
        self.shape, self.dtype = source.shape, source.dtype
        self._step = source.shard_rows
        self._reset()

    def _reset(self) -> None:
        self._shards: dict[int, RawShard | None] = {}
        self._open: OrderedDict[int, OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source, "_crcs": self._crcs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_source"], state["_crcs"])  # type: ignore[misc]

    def slice(self, start: int, stop: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Rows start..stop-1."""
        return self.ranges(np.array([[start, stop]]), out)

    def ranges(self, spans: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The rows of `spans` (n, 2), first and one past the last, one span after the other.

        Args:
            spans: First rows and rows after the last; 0 <= first <= last <= shape[0].
            out: Where to put them: C-contiguous, of this dtype, (sum of lengths, ...).

        Raises:
            StoreError: A file is missing or damaged.
        """
        total = int((spans[:, 1] - spans[:, 0]).sum())
        if out is None:
            out = np.empty((total, *self.shape[1:]), self.dtype)
        elif out.shape != (total, *self.shape[1:]) or out.dtype != self.dtype:
            raise ValueError(
                f"out: expected {(total, *self.shape[1:])} {self.dtype}, "
                f"got {out.shape} {out.dtype}"
            )
        if not out.size:
            return out
        flat = out.reshape(-1).view(np.uint8)
        slow: set[int] = set()
        for shard, parts in self._by_shard(spans).items():
            try:
                with self._lock:
                    raw, file = self._shard(shard)
                if raw is None or file is None:
                    slow.add(shard)
                else:
                    raw.read(file, parts, flat)
            except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
                self._forget(shard)
                first = shard * self._step
                start = first + min(start for start, _, _ in parts)
                stop = first + max(stop for _, stop, _ in parts)
                raise self._damaged(start, stop, error) from error
        if slow:
            self._slow([p for p in self._pieces(spans) if p[0] in slow], out)
        return out

    def _pieces(self, spans: NDArray[np.int64]) -> Iterator[tuple[int, int, int, int]]:
        """Spans cut at the ends of shards: (shard, first row, row after the last, place in out)."""
        for shard, parts in self._by_shard(spans).items():
            first = shard * self._step
            for start, stop, place in parts:
                yield shard, first + start, first + stop, place

    def _by_shard(self, spans: NDArray[np.int64]) -> dict[int, list[Part]]:
        """Shard -> its parts of the spans, in rows of the shard and in the order of the spans."""
        step = self._step
        parts: defaultdict[int, list[Part]] = defaultdict(list)
        for start, stop, place in _joined(spans):
            shard = start // step
            first = shard * step
            while stop > first + step:
                parts[shard].append((start - first, step, place))
                place += first + step - start
                shard, start = shard + 1, first + step
                first = start
            parts[shard].append((start - first, stop - first, place))
        return parts

    def _shard(self, shard: int) -> tuple[RawShard | None, OpenFile | None]:
        file = self._open.get(shard)
        if file is not None:
            self._open.move_to_end(shard)
            return self._shards[shard], file
        if shard not in self._shards:
            self._shards[shard] = self._raw(shard)
        raw = self._shards[shard]
        if raw is None:
            return None, None
        file = OpenFile(raw.path)
        if file.identity != raw.identity:
            # Somebody mended the shard since its index was read: nothing known of it holds.
            raw = self._raw(shard)
            self._shards[shard] = raw
            if raw is None or raw.identity != file.identity:
                raise OSError("the file is being replaced by another process")
        self._open[shard] = file
        while len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)
        return raw, file

    def _raw(self, shard: int) -> RawShard | None:
        raw, crcs = self._source.raw(shard), self._bound(shard)
        if crcs is not None:
            if raw is None:
                raise ValueError("its chunks are not as HADA writes them")
            raw.bind(crcs)
        return raw

    def _bound(self, shard: int) -> NDArray[np.uint32] | None:
        table = None if self._crcs is None else self._crcs[shard]
        return None if table is None else digests.unpack_crcs(table)

    def _forget(self, shard: int) -> None:
        """Whoever mends a damaged shard replaces its file: the next read looks again."""
        with self._lock:
            self._open.pop(shard, None)
            self._shards.pop(shard, None)

    def _slow(self, pieces: list[tuple[int, int, int, int]], out: NDArray[Any]) -> None:
        """Through the library, a shard at once where much of it is wanted."""
        by_shard: dict[int, list[tuple[int, int, int]]] = {}
        for number, *piece in pieces:
            by_shard.setdefault(number, []).append((piece[0], piece[1], piece[2]))
        for shard, mine in by_shard.items():
            start = shard * self._step
            stop = min(start + self._step, self.shape[0])
            wanted = sum(last - first for first, last, _ in mine)
            if len(mine) > 1 and wanted >= (stop - start) * WHOLE_SHARD_SHARE:
                whole = self._library(start, stop)
                for first, last, place in mine:
                    out[place : place + last - first] = whole[first - start : last - start]
            else:
                for first, last, place in mine:
                    out[place : place + last - first] = self._library(first, last)

    def _library(self, start: int, stop: int) -> NDArray[Any]:
        try:
            return self._source.library(start, stop)
        except (ValueError, OSError, KeyError, RuntimeError) as error:
            raise self._damaged(start, stop, error) from error

    def _damaged(self, start: int, stop: int, error: Exception) -> StoreError:
        return StoreError(
            f"{self._source.name}, rows {start} to {stop - 1}: cannot be read ({error}). "
            "`hada-store verify --deep` names the damaged shards, `hada-store repair` removes "
            "them, and extracting again writes them anew."
        )


def _joined(spans: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Spans that are not empty, with their places; those that continue each other are one.

    A whole side, asked for item by item, then is a single span.
    """
    starts, stops = spans[:, 0], spans[:, 1]
    apart = starts[1:] != stops[:-1]
    if np.count_nonzero(apart) < len(apart):
        starts, stops = starts[np.append(True, apart)], stops[np.append(apart, True)]
    sizes = stops - starts
    if np.count_nonzero(sizes) < len(sizes):
        starts, stops, sizes = starts[sizes > 0], stops[sizes > 0], sizes[sizes > 0]
    places = np.cumsum(sizes) - sizes
    return list(zip(starts.tolist(), stops.tolist(), places.tolist(), strict=True))
