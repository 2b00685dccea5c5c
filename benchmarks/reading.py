"""How fast training gets its batches: from memory, from the files, in windows, and by a plain loop.

    python benchmarks/reading.py --images 1024 --repeats 5

One random store of images of (197, 768) float16 with five captions each is read in batches of 64
images with all their captions, as float32 on the CPU, an epoch after the other. The plain loop
reads each batch from the files when it is asked for; the others make theirs ahead. All run in one
process, in a new random order each repeat, on files in the page cache whose checksums have been
verified; the figures are medians of images per second and of the ratio to the plain loop, with
the smallest and the largest. The second table leaves the processor alone for `--step` after every
batch, as a training on a GPU does.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hada.extract.common.host import reuse_freed_memory
from hada.extract.spec import ModelSpec, StoreSpec, TokenSpec
from hada.extract.store import Block, StoreIndex, StoreReader, StoreWriter, open_store
from hada.fuse.batch import Batch
from hada.fuse.tokens.loader import Loader
from hada.fuse.tokens.prefetch import reading_threads
from hada.fuse.tokens.split import Split

TOKENS, WIDTH, CAPTIONS, BATCH = 197, 768, 5, 64
WAYS = ("plain loop", "memory", "mapped", "window")


def make_store(path: Path, images: int, form: str) -> StoreReader:
    """A store of random tokens."""
    generator = np.random.default_rng(0)
    owner = np.repeat(np.arange(images), CAPTIONS)
    lengths = generator.integers(8, 33, len(owner))
    model = ModelSpec(
        name="m",
        family="fake",
        weights_digest="0",
        embedding_width=None,
        normalized=False,
        image=TokenSpec(width=WIDTH, count=TOKENS),
        caption=TokenSpec(width=WIDTH, count=None),
    )
    rows = {"image": 64, "caption": 64 * CAPTIONS}
    spec = StoreSpec(model=model, dataset="b", split="b", dataset_digest="0", rows_per_shard=rows)
    index = StoreIndex(
        ids={
            "image": tuple(map(str, range(images))),
            "caption": tuple(map(str, range(len(owner)))),
        },
        caption_to_image=owner,
        lengths={"image": np.full(images, TOKENS), "caption": lengths},
    )
    writer = StoreWriter.open(path, spec, index, format=form)
    for side in ("image", "caption"):
        for shard in range(writer.shards(side)):
            part = writer.rows(side, shard)
            total = int(index.lengths[side][part.start : part.stop].sum())
            values = generator.standard_normal((total, WIDTH), np.float32).astype(np.float16)
            writer.write(side, shard, Block(values=values))
    return open_store(path)


def loaders(store: StoreReader, shards: int) -> dict[str, Loader]:
    """The same split, as each way reads it."""
    found = {}
    for way in WAYS:
        split, window = Split([store], in_memory=way == "memory"), way == "window"
        found[way] = Loader(
            split, "images", BATCH, 0, shards=shards if window else 0, windows=window
        )
    return found


def epoch(way: str, loader: Loader, number: int, threads: int) -> Iterator[Batch]:
    """The batches of one epoch."""
    steps = loader.epoch(number)
    if way == "plain loop":
        return (loader.split.batch("images", items).to("cpu") for items in steps.steps)
    return loader.batches(steps, threads=threads)


def measure(
    found: dict[str, Loader], repeats: int, threads: int, step: float
) -> dict[str, dict[str, float]]:
    """Images per second of each way, and the ratio to the plain loop in the same repeat."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(-1, repeats):
        ways = list(WAYS)
        random.Random(repeat).shuffle(ways)
        for way in ways:
            start = time.perf_counter()
            for _ in epoch(way, found[way], repeat + 1, threads):
                time.sleep(step)
            if repeat >= 0:  # the one before has verified all checksums
                rates[way].append(found[way].split.images / (time.perf_counter() - start))
    result = {}
    for way, mine in rates.items():
        ratios = [a / b for a, b in zip(mine, rates[WAYS[0]], strict=True)]
        result[way] = {
            "images_per_s": statistics.median(mine),
            "ratio": statistics.median(ratios),
            "low": min(ratios),
            "high": max(ratios),
        }
    return result


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--window", type=int, default=4, help="shards of a window [4 of 64 images]")
    parser.add_argument("--threads", type=int, default=reading_threads())
    parser.add_argument("--step", type=float, default=50.0, help="milliseconds of a step [50]")
    parser.add_argument("--format", choices=("zarr", "hdf5"), default="zarr")
    parser.add_argument("--folder", type=Path, help="where to put the files [a temporary folder]")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    reuse_freed_memory()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        store = make_store(Path(folder) / "store", options.images, options.format)
        found = loaders(store, options.window)
        size = found["memory"].split.bytes / 2**20
        print(
            f"{options.images} images, {size:.0f} MiB of tokens in {options.format}, "
            f"{options.threads} reading thread(s)"
        )
        for title, step in (("reading alone", 0.0), (f"steps of {options.step} ms", options.step)):
            results[title] = measure(found, options.repeats, options.threads, step / 1e3)
            print(title)
            for way, row in results[title].items():
                print(
                    f"  {way:<11} {row['images_per_s']:8.0f} images/s  {row['ratio']:6.2f}"
                    f"  [{row['low']:.2f} - {row['high']:.2f}]"
                )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
