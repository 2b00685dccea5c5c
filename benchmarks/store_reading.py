"""What `benchmarks/store.py` reads: an epoch in each order, by ours, by others and barely."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from store_data import BATCH, CHUNK, TOKENS, WIDTH, Data

from hada.extract.store import StoreReader
from hada.extract.store.digests import HOT

Tasks = dict[str, Callable[[], Any]]


def _by_calls(
    descriptor: int, rows: NDArray[np.int64], out: NDArray[Any], *, checked: bool
) -> None:
    """Images of the raw file by calls of the system, each into its place, and its crc32c."""
    places = out.reshape(len(out), -1).view(np.uint8)
    size = places.shape[1]
    if not checked and len(rows) > 1 and (np.diff(rows) == 1).all():
        os.preadv(descriptor, [places[: len(rows)].reshape(-1)], int(rows[0]) * size)
        return
    for place, row in zip(places, rows.tolist(), strict=False):
        if not checked:
            os.preadv(descriptor, [place], row * size)
            continue
        crc = 0
        for start in range(0, size, HOT):
            block = place[start : start + HOT]
            os.preadv(descriptor, [block], row * size + start)
            crc = google_crc32c.extend(crc, block)


def _bare(data: Data, parts: list[NDArray[np.int64]], out: NDArray[Any]) -> Tasks:
    def read(name: str, checked: bool) -> None:
        with (data.folder / f"images-{name}.raw").open("rb", buffering=0) as file:
            for part in parts:
                _by_calls(file.fileno(), part, out, checked=checked)

    return {
        "bare calls": lambda: read("bare", False),
        "bare + crc32c": lambda: read("checked", True),
    }


def sequential(data: Data, stores: Callable[[str], StoreReader], out: NDArray[Any]) -> Tasks:
    """Read the whole store, `BATCH` images at a time."""
    raw = np.memmap(data.folder / "images.raw", np.float16, "r", shape=data.tokens.shape)
    array = zarr.open_array(data.folder / "zarr/features.zarr/image/tokens", mode="r")
    parts = [(k, min(k + BATCH, data.images)) for k in range(0, data.images, BATCH)]
    flat = out.reshape(-1, WIDTH)

    def ours(form: str) -> None:
        store = stores(form)
        for a, b in parts:
            store.image.tokens(slice(a, b), out=flat[: (b - a) * TOKENS])

    return {
        "memmap": lambda: [np.copyto(out[: b - a], raw[a:b]) for a, b in parts],
        "zarr, ours": lambda: ours("zarr"),
        "hdf5, ours": lambda: ours("hdf5"),
        "zarr-python": lambda: [array[a:b] for a, b in parts],
        "npz": lambda: [_npz(data, row) for row in range(data.images)],
        **_bare(data, [np.arange(a, b) for a, b in parts], out),
    }


def batches(data: Data, stores: Callable[[str], StoreReader], out: NDArray[Any]) -> Tasks:
    """Random batches of `BATCH` images, an epoch of them."""
    raw = np.memmap(data.folder / "images.raw", np.float16, "r", shape=data.tokens.shape)
    array = zarr.open_array(data.folder / "zarr/features.zarr/image/tokens", mode="r")
    order = np.random.default_rng(1).permutation(data.images)
    parts = [order[k : k + BATCH] for k in range(0, data.images, BATCH)]
    flat = out.reshape(-1, WIDTH)

    def memmap() -> None:
        for part in parts:
            for place, row in enumerate(part.tolist()):
                out[place] = raw[row]

    def ours(form: str) -> None:
        store = stores(form)
        for part in parts:
            store.image.tokens(part, out=flat[: len(part) * TOKENS])

    return {
        "memmap": memmap,
        "zarr, ours": lambda: ours("zarr"),
        "hdf5, ours": lambda: ours("hdf5"),
        "zarr-python": lambda: [array[int(row)] for part in parts for row in part],
        "npz": lambda: [_npz(data, int(row)) for part in parts for row in part],
        **_bare(data, parts, out),
    }


def captions(data: Data, stores: Callable[[str], StoreReader], out: NDArray[Any]) -> Tasks:
    """Random batches of `BATCH` captions, an epoch of them, as rows and offsets."""
    raw = np.memmap(data.folder / "words.raw", np.float16, "r", shape=data.words.shape)
    order = np.random.default_rng(2).permutation(len(data.starts))
    parts = [order[k : k + BATCH] for k in range(0, len(order), BATCH)]
    sizes = [int((data.ends[part] - data.starts[part]).sum()) for part in parts]
    flat = out.reshape(-1, WIDTH)

    def memmap() -> None:
        for part in parts:
            place = 0
            spans = zip(data.starts[part].tolist(), data.ends[part].tolist(), strict=True)
            for a, b in spans:
                flat[place : place + b - a] = raw[a:b]
                place += b - a

    def ours(form: str) -> None:
        store = stores(form)
        for part, size in zip(parts, sizes, strict=True):
            store.caption.tokens(part, out=flat[:size])

    return {
        "memmap": memmap,
        "zarr, ours": lambda: ours("zarr"),
        "hdf5, ours": lambda: ours("hdf5"),
        **_bare_captions(data, parts, flat),
    }


def _bare_captions(data: Data, parts: list[NDArray[np.int64]], flat: NDArray[Any]) -> Tasks:
    """Copies of the pieces that captions have in chunks, planned beforehand, off the clock."""
    batches = [list(_pieces(data, part)) for part in parts]
    out = flat.reshape(-1).view(np.uint8).data

    def pages(name: str) -> memoryview:
        with (data.folder / f"words-{name}.raw").open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def copy(source: memoryview) -> None:
        for pieces in batches:
            for _, begin, end, place, last in pieces:
                out[place:last] = source[begin:end]

    def verify(source: memoryview) -> None:
        """Each chunk as it first comes: a copy, its crc32c, and the piece from the copy."""
        near, done = np.empty(CHUNK, np.uint8), set()
        for pieces in batches:
            for chunk, begin, end, place, last in pieces:
                if chunk in done:
                    out[place:last] = source[begin:end]
                    continue
                whole = source[chunk * CHUNK : (chunk + 1) * CHUNK]
                near.data[: len(whole)] = whole
                google_crc32c.value(near)
                out[place:last] = near.data[begin - chunk * CHUNK : end - chunk * CHUNK]
                done.add(chunk)

    mapped = pages("bare")
    return {
        "bare": lambda: copy(mapped),
        "bare, mapped anew": lambda: copy(pages("bare")),
        "bare + crc32c": lambda: verify(pages("checked")),
    }


def _pieces(data: Data, rows: NDArray[np.int64]) -> Iterator[tuple[int, int, int, int, int]]:
    """Chunk, begin and end in the raw file, begin and end in a batch, in bytes."""
    place = 0
    for start, stop in zip(data.starts[rows].tolist(), data.ends[rows].tolist(), strict=True):
        begin, stop = start * WIDTH * 2, stop * WIDTH * 2
        while begin < stop:
            chunk = begin // CHUNK
            end = min(stop, (chunk + 1) * CHUNK)
            yield chunk, begin, end, place, place + end - begin
            begin, place = end, place + end - begin


def _npz(data: Data, row: int) -> NDArray[Any]:
    with np.load(data.folder / "npz" / f"{row}.npz") as file:
        return np.asarray(file["tokens"])
