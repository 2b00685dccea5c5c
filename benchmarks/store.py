"""How fast feature stores are read and written, as ratios to a NumPy memory map of one raw file.

    python benchmarks/store.py --images 384 --repeats 7

All variants run in one process, in a new random order each repeat, on files in the page cache that
were read from the disk; the figures are medians, with the smallest and the largest. Data: images
of (577, 768) float16 in shards of 256 and captions of 5 to 40 tokens, random. Every reader fills
an array that is recycled, except zarr-python and .npz, which cannot.

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

import numpy as np
from store_data import BATCH, FORMATS, TOKENS, WIDTH, Data
from store_reading import Tasks, batches, captions, sequential

from hada.extract.common.host import reuse_freed_memory
from hada.extract.store import StoreReader, StoreWriter, open_store

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
