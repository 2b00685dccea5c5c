"""Reading the chunks of one file by byte range, each verified the first time it is read.

Both formats keep uncompressed chunks, one after the other, with a crc32c of each, so a local shard
needs no library: an offset, a length and a checksum are all there is to know. The checksum is
computed right after its chunk has been read, while that still lies in the processor's cache.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from hada.extract.store.digests import HOT
from hada.extract.store.open_file import OpenFile, read_pieces

MISSING = -1
# Bytes between two chunks: a crc32c, or HDF5's fletcher32.
_BETWEEN = 4
# One system call takes at most 1024 pieces, two for each chunk.
_MOST_CHUNKS = 500
# Parts of fewer bytes are copied from the file's pages: a call to the system takes longer.
MAPPED = 1 << 17

# Rows start..stop-1 of a shard go to row `place` of the result: (start, stop, place).
Part = tuple[int, int, int]
# Bytes start..stop-1 of the result come from `offset` on; the first chunk ends at `cut`, and so
# many follow it: (offset, start, cut, stop, count).
Run = tuple[int, int, int, int, int]
# From a row on, chunk by chunk: (row, start, stop).
Slow = tuple[int, int, int]


@dataclass
class RawShard:
    """The chunks of one file.

    path: The file. offsets: (chunks,) int64 where each begins, `MISSING` where it was never
    written. crcs: (chunks,) uint32 of each chunk's bytes, or None where the four bytes after a
    chunk hold it. chunk_bytes, row_bytes: sizes; a chunk holds chunk_bytes // row_bytes rows.
    bound: crc32c that the shard's marker counts, see `bind`; a shard put in another's place is
    whole in itself, but not the one that was committed.
    """

    path: Path
    offsets: NDArray[np.int64]
    crcs: NDArray[np.uint32] | None
    chunk_bytes: int
    row_bytes: int
    fill: NDArray[np.uint8]
    identity: tuple[int, int, int]
    bound: NDArray[np.uint32] | None = None
    verified: bytearray = field(init=False)
    _offsets: list[int] = field(init=False)
    _crcs: list[int] = field(init=False)
    _runs: list[int] = field(init=False)
    _shifts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        # Plain containers: looking one entry up costs a tenth of what it costs in an array.
        # A chunk that was never written is never verified, so whoever asks for it is told.
        self.verified = bytearray(len(self.offsets))
        self._offsets = self.offsets.tolist()
        self._crcs = [] if self.crcs is None else self.crcs.tolist()
        # Chunks of the same number lie one after the other, with a checksum between them.
        breaks = np.diff(self.offsets) != self.chunk_bytes + _BETWEEN
        breaks |= self.offsets[1:] == MISSING
        self._runs = [0, *np.cumsum(breaks).tolist()]
        # So many bytes lie before a chunk's rows, besides the rows before it.
        numbers = np.arange(len(self.offsets))
        self._shifts = (self.offsets - numbers * self.chunk_bytes).tolist()

    def bind(self, crcs: NDArray[np.uint32]) -> None:
        """Compare chunks with these checksums, too; raises ValueError where others were written."""
        check_written(self.offsets, crcs)
        self.bound = crcs

    def read(self, file: OpenFile, parts: list[Part], out: NDArray[np.uint8]) -> None:
        """Fill parts of `out` with rows of this shard.

        Args:
            file: The open shard.
            parts: Rows, and where in `out` they go; no part is empty.
            out: Flat bytes.

        Raises:
            ValueError: A checksum is wrong, or a chunk is missing.
            OSError: The file ends early.
        """
        limit = -(-MAPPED // self.row_bytes)
        large = [part for part in parts if part[1] - part[0] >= limit]
        if large:
            parts = [part for part in parts if part[1] - part[0] < limit]
            runs, rest = self._plan(large)
            for start, place, end in rest:
                self._read_checked(file, start, out[place:end])
            _read_runs(file, self.chunk_bytes, runs, out.data)
        if parts:
            self._copy(file, parts, out.data)

    def _copy(self, file: OpenFile, parts: list[Part], out: memoryview) -> None:
        """Copy small parts from the file's pages, verifying their chunks where that is due.

        A chunk to be verified is copied into a buffer that stays in the processor's cache: there
        a checksum takes a third of the time, and the rows come from there, so memory is passed
        over once. A batch has too few parts for arrays to plan them faster than this loop does.
        """
        size, row_bytes, rows = self.chunk_bytes, self.row_bytes, self.chunk_bytes // self.row_bytes
        known, verified, shifts, crcs = len(self.offsets), self.verified, self._shifts, self._crcs
        pages, crc32c = file.pages(), google_crc32c.value
        near = np.empty(size if 0 in verified else 0, np.uint8)
        block = near.data
        for start, stop, row in parts:
            chunk, place = start // rows, row * row_bytes
            while start < stop:
                cut = (chunk + 1) * rows
                n_bytes = ((stop if stop < cut else cut) - start) * row_bytes
                end = place + n_bytes
                if chunk < known and verified[chunk]:
                    begin = start * row_bytes + shifts[chunk]
                    out[place:end] = pages[begin : begin + n_bytes]
                else:
                    offset = self._offset(chunk)
                    if size < MAPPED:
                        block[:] = pages[offset : offset + size]
                        behind = pages[offset + size : offset + size + _BETWEEN]
                        stored = crcs[chunk] if crcs else int.from_bytes(behind, "little")
                        self._compare(chunk, crc32c(near), stored)
                    else:
                        self._verify(file, chunk, near)
                    begin = (start - chunk * rows) * row_bytes
                    out[place:end] = block[begin : begin + n_bytes]
                start, chunk, place = cut, chunk + 1, end

    def _offset(self, chunk: int) -> int:
        """Where a chunk begins; raises ValueError where it was never written."""
        if chunk >= len(self._offsets) or self._offsets[chunk] == MISSING:
            # Nobody asks for rows that were never written.
            raise ValueError(f"chunk {chunk} is missing")
        return self._offsets[chunk]

    def _plan(self, parts: list[Part]) -> tuple[list[Run], list[Slow]]:
        """Parts that one call reads, and those to be read chunk by chunk."""
        size, row_bytes, offsets = self.chunk_bytes, self.row_bytes, self._offsets
        quick: list[Run] = []
        rest: list[Slow] = []
        for start, stop, row in parts:
            place = row * row_bytes
            chunk, inside = divmod(start * row_bytes, size)
            last = (stop * row_bytes - 1) // size
            end = place + (stop - start) * row_bytes
            if (
                last < min(len(offsets), chunk + _MOST_CHUNKS)
                and offsets[chunk] != MISSING
                and self._runs[chunk] == self._runs[last]
                and 0 not in self.verified[chunk : last + 1]
            ):
                cut = place + size - inside
                quick.append((offsets[chunk] + inside, place, cut, end, last - chunk))
            else:
                rest.append((start, place, end))
        return quick, rest

    def _read_checked(self, file: OpenFile, first: int, out: NDArray[np.uint8]) -> None:
        """Rows from row `first` on, chunk by chunk, each verified if it is not yet."""
        size = self.chunk_bytes
        position, wanted = 0, len(out)
        chunk, inside = divmod(first * self.row_bytes, size)
        while position < wanted:
            take = min(size - inside, wanted - position)
            part = out[position : position + take]
            offset = self._offset(chunk)
            if self.verified[chunk]:
                read_pieces(file, [part], offset + inside)
            elif take == size:
                self._verify(file, chunk, part)
            else:
                whole = np.empty(size, np.uint8)
                self._verify(file, chunk, whole)
                part[:] = whole[inside : inside + take]
            position, chunk, inside = position + take, chunk + 1, 0

    def _verify(self, file: OpenFile, chunk: int, out: NDArray[np.uint8]) -> None:
        """Read a whole chunk and compare its checksum; from then on it is trusted."""
        stored = np.empty(_BETWEEN, np.uint8)
        offset, found = self._offsets[chunk], 0
        for start in range(0, len(out), HOT):
            part = out[start : start + HOT]
            last = start + HOT >= len(out) and self.crcs is None
            read_pieces(file, [part, stored] if last else [part], offset + start)
            found = google_crc32c.extend(found, part)
        expected = int(self.crcs[chunk]) if self.crcs is not None else int(stored.view("<u4")[0])
        self._compare(chunk, found, expected)

    def _compare(self, chunk: int, found: int, expected: int) -> None:
        if found != expected:
            raise ValueError(f"chunk {chunk} has the crc32c {found:08x}, expected {expected:08x}")
        if self.bound is not None:
            check_bound(chunk, found, self.bound)
        self.verified[chunk] = 1


def check_written(offsets: NDArray[np.int64], crcs: NDArray[np.uint32]) -> None:
    """Raise ValueError where other chunks are there than a marker has checksums of."""
    there = offsets != MISSING
    if there.sum() != len(crcs) or not there[: len(crcs)].all():
        raise ValueError(f"{there.sum()} chunks are there, its marker counts {len(crcs)}")


def check_bound(chunk: int, found: int, crcs: NDArray[np.uint32]) -> None:
    """Raise ValueError where a chunk is not the one that its marker counts."""
    if found != crcs[chunk]:
        raise ValueError(
            f"chunk {chunk} has the crc32c {found:08x}, its marker says {int(crcs[chunk]):08x}: "
            "the file is of another shard or store"
        )


def _read_runs(file: OpenFile, size: int, runs: list[Run], out: memoryview) -> None:
    """Read runs of chunks of `size` bytes, with a checksum between them."""
    checksum = bytearray(_BETWEEN)
    descriptor, preadv = file.descriptor, os.preadv
    for offset, start, cut, stop, count in runs:
        pieces: list[Any] = [out[start : min(cut, stop)]]
        for k in range(cut, stop, size):
            pieces += [checksum, out[k : min(k + size, stop)]]
        if preadv(descriptor, pieces, offset) != stop - start + _BETWEEN * count:
            read_pieces(file, pieces, offset)
