"""How fast feature stores are read and written, as ratios to a NumPy memory map of one raw file.

    python benchmarks/store.py --images 384 --repeats 7

All variants run in one process, in a new random order each repeat, on files in the page cache;
the figures are medians, with the smallest and the largest. Data: images of (577, 768) float16 in
shards of 256 and captions of 5 to 40 tokens, random. Every reader fills an array that is
recycled, except zarr-python and .npz, which cannot.

Lines that begin with "bare" do what no reader or writer can leave out, with the same raw file and
without a store: they are the limit of what ours may reach. Each adds to the one before it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import h5py
import numpy as np
import xxhash
import zarr
from numpy.typing import NDArray

from hada.extract.common.host import reuse_freed_memory
from hada.extract.spec import ModelSpec, StoreSpec, TokenSpec
from hada.extract.store import Block, StoreIndex, StoreReader, StoreWriter, open_store
from hada.extract.store.digests import HOT
from hada.extract.store.dtypes import all_finite

TOKENS, WIDTH, BATCH = 577, 768, 64
FORMATS = ("zarr", "hdf5")
CHUNK = 32 * WIDTH * 2  # bytes of a chunk of captions
Tasks = dict[str, Callable[[], Any]]


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

    def memmap(raw: NDArray[Any], *, checked: bool = False) -> None:
        done, near = set(), np.empty(CHUNK, np.uint8)
        flat_raw = raw.reshape(-1).view(np.uint8)
        for part in parts:
            place = 0
            spans = list(zip(data.starts[part].tolist(), data.ends[part].tolist(), strict=True))
            if checked:
                touched = {k for a, b in spans for k in range(a // 32, -(-b // 32))} - done
                done |= touched
                for chunk in sorted(touched):
                    block = flat_raw[chunk * CHUNK : (chunk + 1) * CHUNK]
                    near[: len(block)] = block
                    google_crc32c.value(near)
            for a, b in spans:
                flat[place : place + b - a] = raw[a:b]
                place += b - a

    def anew(name: str) -> NDArray[Any]:
        """What a reader that was just opened has: a mapping without pages."""
        path = data.folder / f"words-{name}.raw"
        return np.memmap(path, np.float16, "r", shape=data.words.shape)

    def ours(form: str) -> None:
        store = stores(form)
        for part, size in zip(parts, sizes, strict=True):
            store.caption.tokens(part, out=flat[:size])

    return {
        "memmap": lambda: memmap(raw),
        "zarr, ours": lambda: ours("zarr"),
        "hdf5, ours": lambda: ours("hdf5"),
        "bare, mapped anew": lambda: memmap(anew("bare")),
        "bare + crc32c": lambda: memmap(anew("checked"), checked=True),
    }


def _npz(data: Data, row: int) -> NDArray[Any]:
    with np.load(data.folder / "npz" / f"{row}.npz") as file:
        return np.asarray(file["tokens"])


Times = dict[str, dict[str, list[float]]]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def run(tasks: Tasks, repeats: int, before: Callable[[], None]) -> Times:
    """Seconds of each task by each clock, run together in random order."""
    times: Times = {clock: {name: [] for name in tasks} for clock in CLOCKS}
    before()
    for task in tasks.values():
        task()
    for repeat in range(repeats):
        names = list(tasks)
        random.Random(repeat).shuffle(names)
        before()
        for name in names:
            start = {clock: read() for clock, read in CLOCKS.items()}
            tasks[name]()
            for clock, read in CLOCKS.items():
                times[clock][name].append(read() - start[clock])
    return times


def ratios(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median ratio of each task's speed to the first one's in the same repeat."""
    reference = next(iter(times))
    result = {}
    for name, mine in times.items():
        found = [a / b for a, b in zip(times[reference], mine, strict=True)]
        result[name] = {
            "ratio": statistics.median(found),
            "low": min(found),
            "high": max(found),
            "seconds": statistics.median(mine),
        }
    return result


def writes(data: Data, repeats: int) -> Times:
    """The images' side of a store against a plain write of the same bytes, both on the disk."""
    writers: dict[str, StoreWriter] = {}

    def clear() -> None:
        """Remove what the last round wrote and make the empty frames, off the clock."""
        for name in ("images.raw", "images.h5"):
            (data.folder / name).unlink(missing_ok=True)
        for form in FORMATS:
            shutil.rmtree(data.folder / form, ignore_errors=True)
            writers[form] = data.writer(form)
        os.sync()

    clear()
    tasks: Tasks = {
        "plain write": data.write_raw,
        "zarr, ours": lambda: data.write_store(writers["zarr"], "image"),
        "hdf5, ours": lambda: data.write_store(writers["hdf5"], "image"),
        "bare + hashes": lambda: data.write_raw(hashed=True),
        "bare h5py": data.write_h5py,
        "bare + fletcher32": lambda: data.write_h5py(fletcher=True),
        "bare + both": lambda: data.write_h5py(fletcher=True, hashed=True),
    }
    return run(tasks, repeats, clear)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--captions", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to put the files [a temporary folder]")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor time of reading, which other work on the machine disturbs less; "
        "writing is shown by both",
    )
    options = parser.parse_args()
    reuse_freed_memory()
    results = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        data = Data(Path(folder), options.images, options.captions)
        data.prepare()
        out = np.zeros((BATCH, TOKENS, WIDTH), np.float16)
        trusted = {form: open_store(data.folder / form) for form in FORMATS}
        kinds: dict[str, Callable[..., Tasks]] = {
            "sequential": sequential,
            "random batches": batches,
            "captions": captions,
        }
        fresh: dict[str, StoreReader] = {}

        def reopen() -> None:
            """Readers that have verified nothing; opening has a fixed cost, off the clock."""
            fresh.update({form: open_store(data.folder / form) for form in FORMATS})

        for kind, make in kinds.items():
            for way, readers, before in (
                ("verifying", fresh, reopen),
                ("verified", trusted, lambda: None),
            ):
                tasks = make(data, readers.__getitem__, out)
                times = run(tasks, options.repeats, before)
                results[f"{kind}, {way}"] = ratios(times[options.clock])
        tasks = {form: lambda form=form: open_store(data.folder / form) for form in FORMATS}
        times = run(tasks, options.repeats, lambda: None)
        results["opening (seconds alone)"] = ratios(times[options.clock])
        for clock, mine in writes(data, options.repeats).items():
            results[f"writing, with fsync ({clock})"] = ratios(mine)
    for kind, rows in results.items():
        print(kind)
        for name, row in rows.items():
            print(
                f"  {name:<17} {row['ratio']:6.3f}  [{row['low']:.3f} - {row['high']:.3f}]"
                f"  {row['seconds'] * 1e3:9.1f} ms"
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
