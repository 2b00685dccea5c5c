"""One part file of an HDF5 store: write it, read it back, and find its chunks."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from hada.extract.common.errors import StoreError
from hada.extract.store import digests
from hada.extract.store.chunks import MISSING
from hada.extract.store.dtypes import filled_up
from hada.extract.store.formats import ArrayPlan
from hada.extract.store.open_file import OpenFile, read_pieces

CRC = "crc32c"
_FLETCHER = 4  # bytes of HDF5's own checksum, behind each chunk
READ_ERRORS = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError)


def chunk_layout(
    plan: ArrayPlan, data: Any, crcs: Any, file_bytes: int
) -> tuple[int, NDArray[np.int64], NDArray[np.uint32]] | None:
    """Where the chunks of an array lie in its part file.

    Args:
        plan: The array as its store planned it.
        data: The HDF5 dataset.
        crcs: The dataset of its chunks' crc32c, or None where there is none.
        file_bytes: Size of the part file.

    Returns:
        Rows of a chunk, offsets in bytes (C,) and crc32c (C,), `MISSING` for a chunk that was never
        written; None where the file is not as HADA writes it and only HDF5 can read it.

    Raises:
        ValueError: The file ends before its last chunk.
    """
    row = plan.shape[1:]
    pipeline = data.id.get_create_plist()
    filters = [pipeline.get_filter(k)[0] for k in range(pipeline.get_nfilters())]
    plain = (
        data.dtype == np.dtype(plan.dtype).newbyteorder("<")
        and data.shape[1:] == row
        and data.chunks is not None
        and data.chunks[1:] == row
        and filters == [h5py.h5z.FILTER_FLETCHER32]
        and crcs is not None
    )
    if not plain:
        return None
    rows = int(data.chunks[0])
    checks = np.asarray(crcs[...], np.uint32)
    offsets = np.full(chunk_count(data), MISSING, np.int64)
    stored: list[Any] = []
    data.id.chunk_iter(stored.append)
    wanted = rows * plan.row_bytes + _FLETCHER
    if stored:
        # Column by column: a loop over the records takes as long as HDF5 takes to list them.
        firsts, masks, places, sizes = zip(*stored, strict=True)
        if any(masks) or set(sizes) != {wanted}:
            return None
        if max(places) + wanted > file_bytes:
            raise ValueError("the file ends before its last chunk")
        offsets[np.array(firsts, np.int64)[:, 0] // rows] = places
    return (rows, offsets, checks) if checks.shape == offsets.shape else None


def chunk_count(data: Any) -> int:
    """How many chunks the rows of a dataset fill."""
    return -(-len(data) // int(data.chunks[0]))


def create_file(sink: io.IOBase) -> h5py.File:
    """Create an HDF5 file in a file object that never fails: HDF5 cannot close one that does.

    Whether the file arrived whole, the owner of `sink` knows.
    """
    # v110: every HDF5 since 2016 reads it, and its metadata carries checksums.
    return h5py.File(sink, "w", libver=("v110", "v110"))


def fill_part(
    sink: io.IOBase, arrays: Mapping[str, tuple[ArrayPlan, NDArray[Any]]]
) -> dict[str, NDArray[np.uint32]]:
    """Write a part; returns the crc32c of each array's chunks."""
    tables = {}
    with create_file(sink) as file:
        for name, (plan, values) in arrays.items():
            crcs = tables[name] = _chunk_crcs(values, plan)
            name = name.partition("/")[2]
            add_dataset(file, name, values, plan.chunk_rows, plan.fill)
            add_dataset(file, f"{CRC}/{name}", crcs, max(1, len(crcs)), 0)
    return tables


def compare_part(
    path: Path, arrays: Mapping[str, tuple[ArrayPlan, NDArray[Any]]]
) -> tuple[int, str]:
    """Read a new part back, as a reader would; its size and digest.

    Raises `StoreError` where it is not as given.
    """
    try:
        damaged, size, digest = _differing(path, arrays)
    except READ_ERRORS as error:
        damaged = f"it cannot be read ({error})"
    if damaged:
        raise StoreError(
            f"{path}: read back otherwise than it was written: {damaged}. Is the disk in order? "
            "Run the same command again, or choose another place for stores."
        )
    return size, digest


def _differing(
    path: Path, arrays: Mapping[str, tuple[ArrayPlan, NDArray[Any]]]
) -> tuple[str, int, str]:
    """What differs, or nothing; the file's size and digest."""
    chunks: list[tuple[int, int, int, str]] = []
    opened = OpenFile(path)
    size = opened.identity[1]
    with h5py.File(path, "r", locking=False) as file:
        for name, (plan, values) in arrays.items():
            if not values.size:
                continue
            name = name.partition("/")[2]
            found = chunk_layout(plan, file[name], file[f"{CRC}/{name}"], size)
            if found is None or len(file[name]) != len(values) or (found[1] == MISSING).any():
                return f"{name} differs", 0, ""
            rows, offsets, crcs = found
            for offset, crc in zip(offsets.tolist(), crcs.tolist(), strict=True):
                chunks.append((offset, rows * plan.row_bytes, crc, name))
    digest, read = read_through(opened, [(offset, length) for offset, length, *_ in chunks])
    for (*_, crc, name), back in zip(chunks, read, strict=True):
        if back != crc:
            return f"{name} differs", 0, ""
    return "", size, digest


def read_through(file: OpenFile, chunks: Sequence[tuple[int, int]]) -> tuple[str, list[int]]:
    """Read a file once, from its first byte to its last.

    Args:
        file: The file.
        chunks: Offset and length of each of its chunks, in any order.

    Returns:
        The digest of the file, and the crc32c of each chunk.

    Raises:
        ValueError: Chunks overlap, or lie outside the file.
        OSError: The file ends early.
    """
    digest, near = xxhash.xxh3_128(), np.empty(digests.HOT, np.uint8)
    crcs, position, end = [0] * len(chunks), 0, file.identity[1]
    order = sorted(range(len(chunks)), key=chunks.__getitem__)
    for chunk in [*order, None]:
        begin, length = (end, 0) if chunk is None else chunks[chunk]
        if not position <= begin <= begin + length <= end:
            raise ValueError("its chunks overlap, or lie outside the file")
        # What lies before the chunk has no crc32c: metadata, and HDF5's own checksums.
        for start, stop, counted in ((position, begin, None), (begin, begin + length, chunk)):
            for place in range(start, stop, digests.HOT):
                block = near[: stop - place]
                read_pieces(file, [block], place)
                digest.update(block.data)
                if counted is not None:
                    crcs[counted] = google_crc32c.extend(crcs[counted], block)
        position = begin + length
    return digest.hexdigest(), crcs


def add_dataset(file: h5py.File, name: str, values: NDArray[Any], rows: int, fill: float) -> None:
    """Write one array, chunk by chunk with fletcher32; an array without rows has no chunks.

    Args:
        file: An open HDF5 file.
        name: The dataset's name in it.
        values: (n, ...).
        rows: Rows of a chunk.
        fill: The value of rows that were never written.
    """
    if not values.size:
        file.create_dataset(name, shape=values.shape, dtype=values.dtype)
        return
    # A chunk larger than the array would need a resizable one.
    chunks = (min(rows, len(values)), *values.shape[1:])
    data = file.create_dataset(
        name, values.shape, values.dtype, chunks=chunks, fletcher32=True, fillvalue=fill
    )
    data.write_direct(np.ascontiguousarray(values))


def _chunk_crcs(values: NDArray[Any], plan: ArrayPlan) -> NDArray[np.uint32]:
    """crc32c of each chunk as it lies on disk, the last one filled up."""
    rows = min(plan.chunk_rows, max(1, len(values)))
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    size, dtype = rows * plan.row_bytes, np.dtype(plan.dtype)
    crcs = []
    for start in range(0, len(flat), size):
        part = filled_up(flat[start : start + size], size, plan.fill, dtype)
        crcs.append(digests.crc32c(part))
    return np.array(crcs, np.uint32)
