"""Reading the chunks of one file by byte range, each verified the first time it is read.

Both formats keep uncompressed chunks, one after the other, with a crc32c of each, so a local shard
needs no library: an offset, a length and a checksum are all there is to know. The checksum is
computed right after its chunk has been read, while that still lies in the processor's cache.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

MISSING = -1
_NUMBERS = tuple(f"{kind}{8 * size}" for size in (1, 2, 4, 8) for kind in ("int", "uint"))
_NUMBERS += ("float16", "float32", "float64")
# Bytes between two chunks: a crc32c, or HDF5's fletcher32.
_BETWEEN = 4
# One system call takes at most 1024 pieces, two for each chunk.
_MOST_CHUNKS = 500


class OpenFile:
    """A read-only descriptor that closes with its last user, so that threads may share it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.identity = identity(os.fstat(self.descriptor))

    def __del__(self) -> None:
        descriptor = getattr(self, "descriptor", None)
        if descriptor is not None:
            os.close(descriptor)


def identity(status: os.stat_result) -> tuple[int, int, int]:
    """What tells a replaced file from the one that was there: inode, size, time of change."""
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass
class RawShard:
    """The chunks of one file.

    path: The file. offsets: (chunks,) int64 where each begins, `MISSING` where it was never
    written. crcs: (chunks,) uint32 of each chunk's bytes, or None where the four bytes after a
    chunk hold it. chunk_bytes, row_bytes: sizes; a chunk holds chunk_bytes // row_bytes rows.
    """

    path: Path
    offsets: NDArray[np.int64]
    crcs: NDArray[np.uint32] | None
    chunk_bytes: int
    row_bytes: int
    fill: NDArray[np.uint8]
    identity: tuple[int, int, int]
    verified: bytearray = field(init=False)
    _offsets: list[int] = field(init=False)
    _runs: list[int] = field(init=False)

    def __post_init__(self) -> None:
        # Plain containers: looking one entry up costs a tenth of what it costs in an array.
        self.verified = bytearray(len(self.offsets))
        self._offsets = self.offsets.tolist()
        # Chunks of the same number lie one after the other, with a checksum between them.
        breaks = np.diff(self.offsets) != self.chunk_bytes + _BETWEEN
        self._runs = [0, *np.cumsum(breaks | (self.offsets[1:] == MISSING)).tolist()]

    def read(self, file: OpenFile, first: int, out: NDArray[np.uint8]) -> None:
        """Fill `out`, the flat bytes of consecutive rows, from row `first` of this shard.

        Raises `ValueError` where a checksum is wrong and `OSError` where the file ends early.
        """
        size, offsets, verified = self.chunk_bytes, self._offsets, self.verified
        position, wanted = 0, len(out)
        chunk, inside = divmod(first * self.row_bytes, size)
        last = chunk + (inside + wanted - 1) // size
        if (
            0 < last - chunk < _MOST_CHUNKS
            and last < len(offsets)
            and self._runs[chunk] == self._runs[last]
            and 0 not in verified[chunk : last + 1]
        ):
            self._read_run(file, offsets[chunk] + inside, size - inside, out)
            return
        while position < wanted:
            take = min(size - inside, wanted - position)
            part = out[position : position + take]
            if chunk >= len(offsets) or offsets[chunk] == MISSING:
                part.reshape(-1, len(self.fill))[:] = self.fill
            elif verified[chunk]:
                _read_into(file, part, offsets[chunk] + inside)
            elif take == size:
                self._verify(file, chunk, part)
            else:
                whole = np.empty(size, np.uint8)
                self._verify(file, chunk, whole)
                part[:] = whole[inside : inside + take]
            position, chunk, inside = position + take, chunk + 1, 0

    def _read_run(self, file: OpenFile, offset: int, head: int, out: NDArray[np.uint8]) -> None:
        """Chunks that lie one after the other, in one call; `head` bytes are of the first one."""
        checksum = np.empty(_BETWEEN, np.uint8)
        cuts = [0, *range(head, len(out), self.chunk_bytes), len(out)]
        pieces: list[Any] = []
        for start, stop in itertools.pairwise(cuts):
            pieces += [out[start:stop], checksum]
        _read_pieces(file, pieces[:-1], offset)

    def _verify(self, file: OpenFile, chunk: int, out: NDArray[np.uint8]) -> None:
        """Read a whole chunk and compare its checksum; from then on it is trusted."""
        offset = self._offsets[chunk]
        if self.crcs is None:
            stored = np.empty(4, np.uint8)
            _read_pieces(file, [out, stored], offset)
            expected = int(stored.view("<u4")[0])
        else:
            _read_into(file, out, offset)
            expected = int(self.crcs[chunk])
        found = google_crc32c.value(out)
        if found != expected:
            raise ValueError(f"chunk {chunk} has the crc32c {found:08x}, expected {expected:08x}")
        self.verified[chunk] = 1


def _read_into(file: OpenFile, out: NDArray[np.uint8], offset: int) -> None:
    pieces: list[Any] = [out]
    if os.preadv(file.descriptor, pieces, offset) != len(out):
        _read_pieces(file, pieces, offset)


def _read_pieces(file: OpenFile, pieces: list[Any], offset: int) -> None:
    """Fill `pieces` one after the other from `offset` on; a read may return less than asked."""
    wanted = sum(map(len, pieces))
    got = os.preadv(file.descriptor, pieces, offset)
    while got < wanted:
        skip = got
        rest: list[Any] = []
        for piece in pieces:
            if skip < len(piece):
                rest.append(piece[skip:])
            skip = max(0, skip - len(piece))
        more = os.preadv(file.descriptor, rest, offset + got)
        if more == 0:
            raise OSError(f"the file ends {wanted - got} bytes early")
        got += more


def number_type(name: Any) -> np.dtype[Any]:
    """The type of a plain number by NumPy's and Zarr's name; raises ValueError for other texts.

    `np.dtype` itself takes much more: it runs a parser of Python over what it does not know.
    """
    if name not in _NUMBERS:
        raise ValueError(f"dtype {name!r}")
    found: np.dtype[Any] = np.dtype(name)
    return found


def fill_bytes(fill: float, dtype: np.dtype[Any]) -> NDArray[np.uint8]:
    """One fill value as it lies on disk."""
    return np.frombuffer(np.array(fill).astype(dtype).tobytes(), np.uint8)
