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
# Up to so many parts are planned one by one, more of them all at once.
_FEW = 16
# Parts of fewer bytes are copied from the file's pages: a call to the system takes longer.
_MAPPED = 1 << 17

RowArray = NDArray[np.int64]
# Bytes start..stop-1 of the result come from `offset` on; the first chunk ends at `cut`, and so
# many follow it: (offset, start, cut, stop, count).
Part = tuple[int, int, int, int, int]
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
    _runs: list[int] = field(init=False)
    _run_of: NDArray[np.int64] = field(init=False)
    _written: int = field(init=False)

    def __post_init__(self) -> None:
        # Plain containers: looking one entry up costs a tenth of what it costs in an array.
        # Where nothing was written there is nothing to verify.
        self.verified = bytearray((self.offsets == MISSING).tobytes())
        self._offsets = self.offsets.tolist()
        # Chunks of the same number lie one after the other, with a checksum between them.
        breaks = np.diff(self.offsets) != self.chunk_bytes + _BETWEEN
        breaks |= self.offsets[1:] == MISSING
        self._run_of = np.concatenate([[0], np.cumsum(breaks)])
        self._runs = self._run_of.tolist()
        # So many chunks from the first one on are there: usually all.
        missing = np.flatnonzero(self.offsets == MISSING)
        self._written = int(missing[0]) if len(missing) else len(self._offsets)

    def bind(self, crcs: NDArray[np.uint32]) -> None:
        """Compare chunks with these checksums, too; raises ValueError where others were written."""
        check_written(self.offsets, crcs)
        self.bound = crcs

    def read(
        self,
        file: OpenFile,
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        places: NDArray[np.int64],
        out: NDArray[np.uint8],
    ) -> None:
        """Fill parts of `out` with rows of this shard.

        Args:
            file: The open shard.
            starts: (n,) first row of each part.
            stops: (n,) row after its last; no part is empty.
            places: (n,) where each part begins in `out`, in bytes.
            out: Flat bytes.

        Raises:
            ValueError: A checksum is wrong.
            OSError: The file ends early.
        """
        if 0 in self.verified:
            self._verify_pages(file, starts, stops)
        plan = self._plan_few if len(starts) < _FEW else self._plan_many
        quick, rest = plan(starts, stops, places)
        for start, place, end in rest:
            self._read_checked(file, start, out[place:end])
        _read_parts(file, self.chunk_bytes, quick, out.data)

    def _plan_few(
        self, starts: RowArray, stops: RowArray, places: RowArray
    ) -> tuple[list[Part], list[Slow]]:
        """Parts that one call reads, and those to be read chunk by chunk."""
        size, row_bytes, offsets = self.chunk_bytes, self.row_bytes, self._offsets
        quick: list[Part] = []
        rest: list[Slow] = []
        for start, stop, place in zip(
            starts.tolist(), stops.tolist(), places.tolist(), strict=True
        ):
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

    def _plan_many(
        self, starts: RowArray, stops: RowArray, places: RowArray
    ) -> tuple[list[Part], list[Slow]]:
        """`_plan_few` for all parts at once: one by one it takes longer than reading them."""
        size = self.chunk_bytes
        begins, ends = starts * self.row_bytes, stops * self.row_bytes
        chunks, lasts = begins // size, (ends - 1) // size
        counts = lasts - chunks
        if (
            0 not in self.verified
            and lasts.max() < self._written
            and counts.max() < _MOST_CHUNKS
            and (self._run_of[chunks] == self._run_of[lasts]).all()
        ):
            # The usual case: nothing is left over, and planning takes half the time.
            inside = begins - chunks * size
            offsets, cuts = self.offsets[chunks] + inside, places + size - inside
            all_parts = (offsets, places, cuts, places + (ends - begins), counts)
            return list(zip(*(values.tolist() for values in all_parts), strict=True)), []
        quick = self._in_one_call(chunks, lasts)
        slow = ~quick
        rest = (starts[slow], places[slow], (places + ends - begins)[slow])
        chunks, begins, places = chunks[quick], begins[quick], places[quick]
        inside = begins - chunks * size
        parts = (
            self.offsets[chunks] + inside,
            places,
            places + size - inside,
            places + ends[quick] - begins,
            lasts[quick] - chunks,
        )
        return (
            list(zip(*(values.tolist() for values in parts), strict=True)),
            list(zip(*(values.tolist() for values in rest), strict=True)),
        )

    def _in_one_call(
        self, chunks: NDArray[np.int64], lasts: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Which runs of chunks are verified, lie one after the other and are not too many."""
        known = len(self._offsets)
        ends = np.minimum(lasts, known - 1)
        begins = np.minimum(chunks, ends)
        quick = (lasts < known) & (lasts - chunks < _MOST_CHUNKS)
        quick &= (self._run_of[begins] == self._run_of[ends]) & (self.offsets[begins] != MISSING)
        if 0 in self.verified:
            before = np.zeros(known + 1, np.int64)
            np.cumsum(np.frombuffer(self.verified, np.uint8) == 0, out=before[1:])
            quick &= before[ends + 1] == before[begins]
        return quick

    def _read_checked(self, file: OpenFile, first: int, out: NDArray[np.uint8]) -> None:
        """Rows from row `first` on, chunk by chunk, each verified if it is not yet."""
        size, offsets = self.chunk_bytes, self._offsets
        position, wanted = 0, len(out)
        chunk, inside = divmod(first * self.row_bytes, size)
        while position < wanted:
            take = min(size - inside, wanted - position)
            part = out[position : position + take]
            if chunk >= len(offsets) or offsets[chunk] == MISSING:
                # Nobody asks for rows that were never written.
                raise ValueError(f"chunk {chunk} is missing")
            if self.verified[chunk]:
                read_pieces(file, [part], offsets[chunk] + inside)
            elif take == size:
                self._verify(file, chunk, part)
            else:
                whole = np.empty(size, np.uint8)
                self._verify(file, chunk, whole)
                part[:] = whole[inside : inside + take]
            position, chunk, inside = position + take, chunk + 1, 0

    def _verify_pages(self, file: OpenFile, starts: RowArray, stops: RowArray) -> None:
        """Verify the small chunks of small parts where they lie, before these are copied."""
        if self.chunk_bytes >= _MAPPED:
            return
        small = (stops - starts) * self.row_bytes < _MAPPED
        chunks = starts[small] * self.row_bytes // self.chunk_bytes
        lasts = (stops[small] * self.row_bytes - 1) // self.chunk_bytes
        touched = np.zeros(len(self._offsets) + 1, np.int64)
        np.add.at(touched, np.minimum(chunks, len(self._offsets)), 1)
        np.add.at(touched, np.minimum(lasts + 1, len(self._offsets)), -1)
        wanted = np.cumsum(touched[:-1]) > 0
        wanted &= (np.frombuffer(self.verified, np.uint8) == 0) & (self.offsets != MISSING)
        numbers = np.flatnonzero(wanted)
        begins = self.offsets[numbers]
        pages, near, found = file.pages(), np.empty(self.chunk_bytes, np.uint8), []
        block, size, crc32c = near.data, self.chunk_bytes, google_crc32c.value
        for begin in begins.tolist():
            block[:] = pages[begin : begin + size]
            found.append(crc32c(near))
        if self.crcs is None:
            places = (begins + size)[:, None] + np.arange(_BETWEEN)
            stored = np.frombuffer(pages, np.uint8)[places].view("<u4")[:, 0]
        else:
            stored = self.crcs[numbers]
        good = stored == found
        if self.bound is not None:
            good &= self.bound[numbers] == found
        np.frombuffer(self.verified, np.uint8)[numbers[good]] = 1
        for place in np.flatnonzero(~good)[:1].tolist():
            self._compare(int(numbers[place]), found[place], int(stored[place]))

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


def _read_parts(file: OpenFile, size: int, parts: list[Part], out: memoryview) -> None:
    """Read parts whose chunks of `size` bytes follow each other, with a checksum between them."""
    checksum = bytearray(_BETWEEN)
    descriptor, preadv, pages = file.descriptor, os.preadv, file.pages()
    for offset, start, cut, stop, count in parts:
        if stop - start < _MAPPED:
            if not count:
                out[start:stop] = pages[offset : offset + stop - start]
                continue
            while start < stop:
                end = min(cut, stop)
                after = offset + end - start
                out[start:end] = pages[offset:after]
                offset, start, cut = after + _BETWEEN, end, end + size
            continue
        pieces: list[Any] = [out[start : min(cut, stop)]]
        for k in range(cut, stop, size):
            pieces += [checksum, out[k : min(k + size, stop)]]
        if preadv(descriptor, pieces, offset) != stop - start + _BETWEEN * count:
            read_pieces(file, pieces, offset)
