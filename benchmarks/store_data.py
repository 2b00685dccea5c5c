"""What `benchmarks/store.py` measures on: features, and every form in which they lie on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import google_crc32c
import h5py
import numpy as np
import xxhash
from numpy.typing import NDArray

from hada.extract.spec import ModelSpec, StoreSpec, TokenSpec
from hada.extract.store import Block, StoreIndex, StoreWriter
from hada.extract.store.digests import HOT
from hada.extract.store.dtypes import all_finite

TOKENS, WIDTH, BATCH = 577, 768, 64
FORMATS = ("zarr", "hdf5")
CHUNK = 32 * WIDTH * 2  # bytes of a chunk of captions


class Data:
    """The features, and every form in which they lie on disk."""

    def __init__(self, folder: Path, images: int, captions: int) -> None:
        generator = np.random.default_rng(0)
        self.folder, self.images = folder, images
        lengths = generator.integers(5, 41, captions)
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths
        self.tokens = np.empty((images, TOKENS, WIDTH), np.float16)
        for row in self.tokens:
            row[:] = generator.standard_normal((TOKENS, WIDTH), np.float32)
        self.words = generator.standard_normal((int(self.ends[-1]), WIDTH), np.float32).astype("f2")
        model = ModelSpec(
            name="m",
            family="fake",
            weights_digest="0",
            embedding_width=None,
            normalized=False,
            image=TokenSpec(width=WIDTH, count=TOKENS),
            caption=TokenSpec(width=WIDTH, count=None),
        )
        self.spec = StoreSpec(model=model, dataset="b", split="b", dataset_digest="0")
        self.index = StoreIndex(
            ids={
                "image": tuple(map(str, range(images))),
                "caption": tuple(map(str, range(captions))),
            },
            caption_to_image=generator.integers(0, images, captions),
            lengths={"image": np.full(images, TOKENS), "caption": lengths},
        )

    def writer(self, form: str) -> StoreWriter:
        """The empty store, or the one that is there."""
        return StoreWriter.open(self.folder / form, self.spec, self.index, format=form)

    def write_store(self, writer: StoreWriter, side: Any) -> None:
        """One side of the store, as extraction writes it."""
        for shard in range(writer.shards(side)):
            rows = writer.rows(side, shard)
            if side == "image":
                values = self.tokens[rows.start : rows.stop].reshape(-1, WIDTH)
            else:
                values = self.words[self.starts[rows.start] : self.ends[rows.stop - 1]]
            writer.write(side, shard, Block(values=values))

    def write_raw(self, *, hashed: bool = False) -> None:
        """A plain buffered write of the same bytes, with fsync; with checks as a store has them."""
        digest = xxhash.xxh3_128()
        assert not hashed or all_finite(self.tokens, "float16")
        with (self.folder / "images.raw").open("wb") as file:
            for row in self.tokens:
                if hashed:
                    _hash(row.reshape(-1).view(np.uint8), digest)
                file.write(row.data)
            file.flush()
            os.fsync(file.fileno())

    def write_h5py(self, *, fletcher: bool = False, hashed: bool = False) -> None:
        """The same bytes by h5py alone, with fsync; and with checks, also of what is read back."""
        path = self.folder / "images.h5"
        size = self.tokens[0].nbytes
        if hashed:
            assert all_finite(self.tokens, "float16")
            near = np.empty(HOT, np.uint8)
            for row in self.tokens:
                flat, crc = row.reshape(-1).view(np.uint8), 0
                for start in range(0, size, HOT):
                    block = near[: size - start]
                    block[:] = flat[start : start + HOT]
                    crc = google_crc32c.extend(crc, block)
        with h5py.File(path, "w", libver=("v110", "v110")) as file:
            data = file.create_dataset(
                "tokens",
                self.tokens.shape,
                self.tokens.dtype,
                chunks=(1, TOKENS, WIDTH),
                fletcher32=fletcher,
            )
            data.write_direct(self.tokens)
        with path.open("r+b", buffering=0) as raw:
            os.fsync(raw.fileno())
            digest, end = xxhash.xxh3_128(), os.fstat(raw.fileno()).st_size
            for begin in range(0, end if hashed else 0, size):
                _read_hashed(raw.fileno(), near, begin, min(size, end - begin), digest)

    def prepare(self) -> None:
        """Everything that the read tasks need."""
        self.write_raw()
        (self.folder / "words.raw").write_bytes(self.words.tobytes())
        # What two tasks read lies nearer to the processor than what one does.
        for name in ("images", "words"):
            whole = (self.folder / f"{name}.raw").read_bytes()
            for copy in ("bare", "checked"):
                (self.folder / f"{name}-{copy}.raw").write_bytes(whole)
        for form in FORMATS:
            self.write_store(self.writer(form), "image")
            self.write_store(self.writer(form), "caption")
        (self.folder / "npz").mkdir()
        for number, row in enumerate(self.tokens):
            np.savez(self.folder / "npz" / f"{number}.npz", tokens=row)
        for path in self.folder.rglob("*"):
            if path.is_file():
                _read_again(path)


def _read_again(path: Path) -> None:
    """Bring a file into the page cache from the disk, in the large pages of a file read in order.

    A file written in small calls lies there in small pages, which are slower to map; a process
    that opens a store later does not find it so.
    """
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(1 << 22):
            pass


def _hash(flat: NDArray[np.uint8], digest: Any) -> int:
    """crc32c and digest of a chunk, block by block, while a block lies in the processor's cache."""
    crc = 0
    for start in range(0, len(flat), HOT):
        block = flat[start : start + HOT]
        digest.update(block.data)
        crc = google_crc32c.extend(crc, block)
    return crc


def _read_hashed(
    descriptor: int, near: NDArray[np.uint8], begin: int, length: int, digest: Any
) -> None:
    for start in range(begin, begin + length, HOT):
        block = near[: begin + length - start]
        os.preadv(descriptor, [block], start)
        _hash(block, digest)
