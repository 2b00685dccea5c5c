"""Reading a Zarr shard from end to end, to compare every byte with what its marker says."""

from __future__ import annotations

import contextlib
from pathlib import Path

import google_crc32c
import numpy as np
import xxhash
from numpy.typing import NDArray

from hada.extract.common import remote
from hada.extract.store.chunks import MISSING
from hada.extract.store.zarr_shard import CRC_BYTES, ShardLayout, index_bytes, parse_index


def read_file(
    path: Path, layout: ShardLayout, known_bytes: int | None = None
) -> tuple[int, str, NDArray[np.uint32]]:
    """What `zarr_shard.write_file` returned, from the file's bytes, every chunk verified.

    Raises ValueError where the file is damaged or divided otherwise, OSError where it is missing.
    """
    size = layout.chunk_rows * layout.row_bytes
    tail = index_bytes(layout.shard_rows // layout.chunk_rows) if layout.sharded else 0
    file_bytes = remote.file_size(path) if known_bytes is None else known_bytes
    chunks, rest = divmod(file_bytes - tail, size + CRC_BYTES)
    if rest or chunks < 0 or chunks * layout.chunk_rows > layout.shard_rows:
        raise ValueError(f"its {file_bytes} bytes are no whole number of chunks")
    crcs, digest = [], xxhash.xxh3_128()
    with contextlib.closing(_Pieces(path, file_bytes)) as pieces:
        for chunk in range(chunks):
            data = pieces.take(size + CRC_BYTES)
            digest.update(data.data)
            crcs.append(google_crc32c.value(data[:size]))
            stored = int.from_bytes(data[size:].tobytes(), "little")
            if crcs[-1] != stored:
                raise ValueError(
                    f"chunk {chunk} has the crc32c {crcs[-1]:08x}, expected {stored:08x}"
                )
        index = pieces.take(tail)
    if layout.sharded:
        total = layout.shard_rows // layout.chunk_rows
        offsets = parse_index(index.tobytes(), file_bytes, total, size + CRC_BYTES)
        wanted = np.full(total, MISSING, np.int64)
        wanted[:chunks] = np.arange(chunks) * (size + CRC_BYTES)
        if offsets is None or (offsets != wanted).any():
            raise ValueError("its chunks do not lie where HADA puts them")
        digest.update(index.data)
    return file_bytes, digest.hexdigest(), np.array(crcs, np.uint32)


class _Pieces:
    """The bytes of a file in order, in pieces of any length."""

    def __init__(self, path: Path, file_bytes: int) -> None:
        far = remote.is_remote(path)
        self._blocks = remote.blocks(path, file_bytes) if far else None
        self._file = None if far else path.open("rb", buffering=0)
        self._held: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._buffer = self._held

    def take(self, count: int) -> NDArray[np.uint8]:
        """The next `count` bytes; they are valid until the next call."""
        if self._file is not None:
            if len(self._buffer) < count:
                self._buffer = np.empty(count, np.uint8)
            piece, got = self._buffer[:count], 0
            while got < count:
                more = self._file.readinto(piece[got:].data)
                if not more:
                    raise OSError(f"the file ends {count - got} bytes early")
                got += more
            return piece
        assert self._blocks is not None
        parts, missing = [self._held[:count]], count - len(self._held)
        self._held = self._held[count:]
        while missing > 0:
            block = np.frombuffer(next(self._blocks, b""), np.uint8)
            if not len(block):
                raise OSError(f"the file ends {missing} bytes early")
            parts.append(block[:missing])
            self._held = block[missing:]
            missing -= len(parts[-1])
        return np.concatenate(parts)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
