"""Rows of one sharded array behind a URL: one byte range for each run of wanted chunks.

A shard's index is fetched once. The chunks that a call wants are then asked for all at once;
chunks that lie beside each other, or nearly so, are one range. Every chunk is verified each time
it comes, because nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from hada.extract.common import remote
from hada.extract.store import zarr_shard
from hada.extract.store.chunks import MISSING, check_bound, check_written
from hada.extract.store.formats import ArraySource
from hada.extract.store.row_reader import RowReader

# Bytes between two wanted chunks that are fetched along, rather than by a request of their own.
MOST_BETWEEN = 1 << 20
# One range, and all that is on its way at a time.
MOST_IN_RANGE = 1 << 26
MOST_IN_FLIGHT = 1 << 28
_CRC = 4
_UNKNOWN_BYTES = 1 << 62


def row_reader(source: ArraySource, crcs: Sequence[str | None] | None = None) -> RowReader:
    """The reader that suits an array: by local ranges, by remote ones, or through its library."""
    describe = getattr(source, "remote", None)
    far = describe is not None and describe() is not None
    return RemoteRows(source, crcs) if far else RowReader(source, crcs)


@dataclass(frozen=True)
class _Need:
    """Bytes inside..inside+size-1 of a chunk go to place.. of the result."""

    shard: int
    chunk: int
    offset: int
    inside: int
    size: int
    place: int


class RemoteRows(RowReader):
    """See `RowReader`."""

    def _reset(self) -> None:
        super()._reset()
        described = self._source.remote()  # type: ignore[attr-defined]
        self._folder: Path = described[0]
        self._layout: zarr_shard.ShardLayout = described[1]
        self._chunk_bytes = self._layout.chunk_rows * self._layout.row_bytes
        self._indexes: dict[int, NDArray[np.int64]] = {}
        self._tables: dict[int, NDArray[np.uint32] | None] = {}

    def ranges(self, spans: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        total = int((spans[:, 1] - spans[:, 0]).sum())
        shape = (total, *self.shape[1:])
        if out is None:
            out = np.empty(shape, self.dtype)
        elif out.shape != shape or out.dtype != self.dtype:
            raise ValueError(f"out: expected {shape} {self.dtype}, got {out.shape} {out.dtype}")
        if not out.size:
            return out
        flat = out.reshape(-1).view(np.uint8)
        pieces = list(self._pieces(spans))
        try:
            self._fetch_indexes({shard for shard, *_ in pieces})
            needs = sorted(self._needs(pieces), key=lambda need: (need.shard, need.offset))
            for group in _in_flight(self._runs(needs)):
                wanted = [
                    (
                        self._file(run[0].shard),
                        run[0].offset,
                        run[-1].offset + self._chunk_bytes + _CRC,
                    )
                    for run in group
                ]
                for run, data in zip(group, remote.read_ranges(wanted), strict=True):
                    self._place(run, data, flat)
        except (OSError, ValueError) as error:
            with self._lock:
                self._indexes.clear()
            raise self._damaged(int(spans[:, 0].min()), int(spans[:, 1].max()), error) from error
        return out

    def _file(self, shard: int) -> Path:
        return self._folder / self._layout.key(shard)

    def _fetch_indexes(self, shards: set[int]) -> None:
        with self._lock:
            new = sorted(shards - self._indexes.keys())
        stored = self._chunk_bytes + _CRC
        if not self._layout.sharded:
            found = {shard: np.zeros(1, np.int64) for shard in new}
        else:
            chunks = self._layout.shard_rows // self._layout.chunk_rows
            size = zarr_shard.index_bytes(chunks)
            raws = remote.read_ranges([(self._file(shard), -size, 0) for shard in new])
            found = {}
            for shard, raw in zip(new, raws, strict=True):
                # Asking how long the file is would be a request more; what lies beyond its end
                # is refused by whoever is asked for it.
                offsets = zarr_shard.parse_index(raw, _UNKNOWN_BYTES, chunks, stored)
                if offsets is None:
                    raise ValueError("its chunks are not of the size that its metadata says")
                found[shard] = offsets
        tables = {shard: self._bound(shard) for shard in new}
        for shard, table in tables.items():
            if table is not None:
                check_written(found[shard], table)
        with self._lock:
            self._tables.update(tables)
            self._indexes.update(found)

    def _needs(self, pieces: list[tuple[int, int, int, int]]) -> Iterator[_Need]:
        """Rows as parts of chunks."""
        row = self._layout.row_bytes
        for shard, start, stop, place in pieces:
            offsets = self._indexes[shard]
            begin, end = (start - shard * self._step) * row, (stop - shard * self._step) * row
            done = place * row
            while begin < end:
                chunk, inside = divmod(begin, self._chunk_bytes)
                size = min(self._chunk_bytes - inside, end - begin)
                yield _Need(shard, chunk, int(offsets[chunk]), inside, size, done)
                begin, done = begin + size, done + size

    def _runs(self, needs: list[_Need]) -> Iterator[list[_Need]]:
        """Needs whose chunks one range can bring."""
        run: list[_Need] = []
        for need in needs:
            if need.offset == MISSING:
                # Nobody asks for rows that were never written.
                raise ValueError(f"chunk {need.chunk} is missing")
            end = need.offset + self._chunk_bytes + _CRC
            if run and not (
                need.shard == run[-1].shard
                and need.offset - run[-1].offset <= self._chunk_bytes + _CRC + MOST_BETWEEN
                and end - run[0].offset <= MOST_IN_RANGE
            ):
                yield run
                run = []
            run.append(need)
        if run:
            yield run

    def _place(self, run: list[_Need], data: bytes, flat: NDArray[np.uint8]) -> None:
        """Verify the chunks of a range and copy what is wanted of them."""
        values, verified = np.frombuffer(data, np.uint8), -1
        for need in run:
            start = need.offset - run[0].offset
            chunk = values[start : start + self._chunk_bytes]
            if need.chunk != verified:
                stored = values[start + self._chunk_bytes : start + self._chunk_bytes + _CRC]
                if len(stored) != _CRC:
                    raise OSError("the file ends early")
                found, expected = google_crc32c.value(chunk), int.from_bytes(stored, "little")
                if found != expected:
                    raise ValueError(
                        f"chunk {need.chunk} has the crc32c {found:08x}, expected {expected:08x}"
                    )
                table = self._tables[need.shard]
                if table is not None:
                    check_bound(need.chunk, found, table)
                verified = need.chunk
            flat[need.place : need.place + need.size] = chunk[need.inside : need.inside + need.size]


def _in_flight(runs: Iterator[list[_Need]]) -> Iterator[list[list[_Need]]]:
    """Runs that are asked for together, so many bytes at a time."""
    group: list[list[_Need]] = []
    n_bytes = 0
    for run in runs:
        size = run[-1].offset - run[0].offset + run[-1].size
        if group and n_bytes + size > MOST_IN_FLIGHT:
            yield group
            group, n_bytes = [], 0
        group.append(run)
        n_bytes += size
    if group:
        yield group
