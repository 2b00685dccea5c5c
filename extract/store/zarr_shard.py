"""The bytes of Zarr v3 chunk files: uncompressed chunks with crc32c, one or many to a file.

A sharded file holds its inner chunks one after the other, each followed by its crc32c, then an
index of (offset, length) as little-endian uint64 and the index's own crc32c. An array whose chunk
is the whole file has neither index nor inner chunks. Everything here is the published layout of
the `bytes`, `crc32c` and `sharding_indexed` codecs; zarr-python reads and writes the same bytes.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import xxhash
from numpy.typing import NDArray

from hada.extract.common import remote
from hada.extract.common.sink import Sink
from hada.extract.store.chunks import MISSING, RawShard
from hada.extract.store.digests import HOT
from hada.extract.store.dtypes import fill_bytes, filled_up, number_type
from hada.extract.store.open_file import identity

CRC_BYTES = 4
# Bytes of a call: a file that was written in larger ones is also read faster (docs/store.md).
TOGETHER = 1 << 21
_NO_CHUNK = 2**64 - 1
_PLAIN = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
_BYTE = [{"name": "bytes"}, {"name": "crc32c"}]


@dataclass(frozen=True)
class ShardLayout:
    """How one array's files are divided: what its zarr.json says, as far as we can read it.

    shape, dtype, fill: of the array. shard_rows: rows of a file. chunk_rows: rows of an inner
    chunk. sharded: whether files have an index.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: float
    shard_rows: int
    chunk_rows: int
    sharded: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def key(self, shard: int) -> str:
        """Path of a shard's file below the array's folder."""
        return chunk_key(shard, len(self.shape))


def chunk_key(shard: int, axes: int) -> str:
    """Path of a file below the folder of an array of so many axes, divided along the first.

    >>> chunk_key(3, 2)
    'c/3/0'
    """
    return "/".join(("c", str(shard), *("0",) * (axes - 1)))


def parse_layout(metadata: dict[str, Any]) -> ShardLayout | None:
    """The layout of an array from its zarr.json, or None where only zarr itself can read it.

    Readable are arrays divided along their first axis alone, stored little-endian with crc32c
    and nothing else.
    """
    try:
        shape = tuple(int(n) for n in metadata["shape"])
        dtype = number_type(metadata["data_type"])
        outer = tuple(int(n) for n in metadata["chunk_grid"]["configuration"]["chunk_shape"])
        fill = float(metadata["fill_value"])
        codecs = [_normal(codec) for codec in metadata["codecs"]]
        plain = (
            metadata["node_type"] == "array"
            and metadata["chunk_grid"]["name"] == "regular"
            and metadata["chunk_key_encoding"]
            == {"name": "default", "configuration": {"separator": "/"}}
            and not metadata.get("storage_transformers")
            and sys.byteorder == "little"
            and outer[1:] == shape[1:]
        )
        inner = outer
        sharded = len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed"
        if sharded:
            sharding = codecs[0]["configuration"]
            inner = tuple(int(n) for n in sharding["chunk_shape"])
            codecs = [_normal(codec) for codec in sharding["codecs"]]
            plain = (
                plain
                and sharding.get("index_location", "end") == "end"
                and [_normal(codec) for codec in sharding["index_codecs"]] == _PLAIN
            )
        plain = plain and inner[1:] == outer[1:] and (codecs == _PLAIN or _is_byte(codecs, dtype))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return None
    if not plain or min((*inner, *shape[1:]), default=0) < 1 or outer[0] % inner[0]:
        return None
    return ShardLayout(shape, dtype, fill, outer[0], inner[0], sharded)


def _is_byte(codecs: list[dict[str, Any]], dtype: np.dtype[Any]) -> bool:
    # One byte has no order, and zarr then leaves it out.
    return dtype.itemsize == 1 and codecs == _BYTE


def _normal(codec: dict[str, Any]) -> dict[str, Any]:
    """A codec's entry without an empty configuration."""
    return {key: value for key, value in codec.items() if key != "configuration" or value}


def read_layout(folder: Path) -> ShardLayout | None:
    """The layout of the array in a folder, or None where only zarr can tell."""
    try:
        metadata = json.loads(remote.read_bytes(folder / "zarr.json"))
    except (OSError, ValueError):
        return None
    return parse_layout(metadata) if isinstance(metadata, dict) else None


def open_shard(path: Path, layout: ShardLayout) -> RawShard | None:
    """The chunks of one file; None where they are not as `layout` says (another writer's).

    Raises ValueError where the index is damaged and OSError where the file is missing.
    """
    chunk_bytes = layout.chunk_rows * layout.row_bytes
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if layout.sharded:
            chunks = layout.shard_rows // layout.chunk_rows
            offsets = _read_index(file.fileno(), status.st_size, chunks, chunk_bytes + CRC_BYTES)
            if offsets is None:
                return None
        elif status.st_size != chunk_bytes + CRC_BYTES:
            raise ValueError(
                f"the file has {status.st_size} bytes, expected {chunk_bytes + CRC_BYTES}"
            )
        else:
            offsets = np.zeros(1, np.int64)
    return RawShard(
        path=path,
        offsets=offsets,
        crcs=None,
        chunk_bytes=chunk_bytes,
        row_bytes=layout.row_bytes,
        fill=fill_bytes(layout.fill, layout.dtype),
        identity=identity(status),
    )


def _read_index(
    descriptor: int, file_bytes: int, chunks: int, stored_bytes: int
) -> NDArray[np.int64] | None:
    size = index_bytes(chunks)
    place, raw = max(0, file_bytes - size), b""
    # One call may return less than it is asked for.
    while len(raw) < size and (more := os.pread(descriptor, size - len(raw), place + len(raw))):
        raw += more
    return parse_index(raw, file_bytes, chunks, stored_bytes)


def index_bytes(chunks: int) -> int:
    """Length of the index of so many chunks, its checksum included."""
    return 16 * chunks + CRC_BYTES


def parse_index(
    raw: bytes, file_bytes: int, chunks: int, stored_bytes: int
) -> NDArray[np.int64] | None:
    """Where each chunk begins, from the end of a file; None for chunks of other sizes.

    Args:
        raw: The last bytes of the file.
        file_bytes: Of the whole file.
        chunks: How many the file has room for.
        stored_bytes: Of a chunk and its checksum.

    Returns:
        (chunks,) offsets, `MISSING` where nothing was written.

    Raises:
        ValueError: The index is damaged.
    """
    size = 16 * chunks
    if len(raw) != size + CRC_BYTES:
        raise ValueError(f"the file has {file_bytes} bytes, too few for its index")
    if google_crc32c.value(raw[:size]) != int.from_bytes(raw[size:], "little"):
        raise ValueError("the index at the end of the file has a wrong crc32c")
    table = np.frombuffer(raw[:size], "<u8").reshape(chunks, 2)
    missing = (table == np.uint64(_NO_CHUNK)).all(axis=1)
    there = table[~missing]
    inside = (there[:, 0] < file_bytes) & (there[:, 1] <= file_bytes)
    if not (inside & (there.sum(axis=1) <= file_bytes - size - CRC_BYTES)).all():
        raise ValueError("the index names bytes outside the file")
    if (there[:, 1] != stored_bytes).any():
        return None
    return np.where(missing, np.int64(MISSING), table[:, 0].view(np.int64))


def write_file(
    sink: Sink, layout: ShardLayout, values: NDArray[Any]
) -> tuple[int, str, NDArray[np.uint32]]:
    """Write the first `len(values)` rows of one file; returns its size, digest and chunks' crc32c.

    Chunks beyond the rows are left out; a chunk that the rows fill in part is filled up.
    """
    flat = np.ascontiguousarray(values, layout.dtype).reshape(-1).view(np.uint8)
    size = layout.chunk_rows * layout.row_bytes
    table = np.full((layout.shard_rows // layout.chunk_rows, 2), _NO_CHUNK, "<u8")
    offset, crcs, digest = 0, [], xxhash.xxh3_128()
    pieces: list[Any] = []
    for chunk, start in enumerate(range(0, len(flat), size)):
        part = filled_up(flat[start : start + size], size, layout.fill, layout.dtype)
        crc = 0
        for first in range(0, size, HOT):
            # The digest comes first: it fetches memory faster, and the crc32c finds it at hand.
            block = part[first : first + HOT]
            digest.update(block.data)
            crc = google_crc32c.extend(crc, block)
        crcs.append(crc)
        check = crc.to_bytes(CRC_BYTES, "little")
        digest.update(check)
        pieces += [part, check]
        table[chunk] = offset, size + CRC_BYTES
        offset += size + CRC_BYTES
        if len(pieces) // 2 * size >= TOGETHER:
            sink.write_all(pieces)
            pieces = []
    if layout.sharded:
        index = table.tobytes()
        index += google_crc32c.value(index).to_bytes(CRC_BYTES, "little")
        digest.update(index)
        pieces.append(index)
        offset += len(index)
    if pieces:
        sink.write_all(pieces)
    return offset, digest.hexdigest(), np.array(crcs, np.uint32)
