"""What grows with the data: stores, recall, the correction of hubs and search at 10k to 1M images.

    python benchmarks/million.py                              # 10,000 and 100,000 images
    python benchmarks/million.py --images 1000000 --json DIR/million.json

Five captions an image, embeddings of `--width` numbers, generated: an image lies near one of many
centres and a caption near its image. Every step is a process of its own, so its peak memory is its
own; a step that was interrupted is repeated, those before it are read from `--json`.

    write       a store of embeddings in float16, shard after shard, as an extraction writes it
    verify      `hada-store verify --deep` of it
    recall      exact ranks of a slice of the queries against everything, beside the time that the
                rate of a smaller product foretells, and what the whole would take
    correction  the popularity of every image among a bank of captions
    exact       search: one query against all images, held in memory
    hnsw        faiss's graph of neighbours: 32 links
    ivfpq       faiss's inverted lists of product codes (128 of 4 bits), re-ranked exactly
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PER_IMAGE = 5
ROWS = 65_536
QUERIES = 200
TOP = 10


def side_rows(side: str, part: range, width: int) -> NDArray[np.float32]:
    """Rows of one side. An image is the same in every range; a caption's noise is the range's."""
    if side == "caption":
        first, last = part.start // PER_IMAGE, -(-part.stop // PER_IMAGE)
        images = side_rows("image", range(first, last), width)
        near = images[np.arange(part.start, part.stop) // PER_IMAGE - first]
        noise = np.random.default_rng([1, part.start]).standard_normal(near.shape, np.float32)
        return near + noise * np.float32(0.9 / math.sqrt(width))
    rows = np.arange(part.start, part.stop)
    # A row's noise depends on its block, so that a caption's image is the stored one.
    values = np.empty((len(rows), width), np.float32)
    for block in np.unique(rows // 1024):
        here = rows // 1024 == block
        random = np.random.default_rng([0, int(block)])
        centres = np.random.default_rng([2, int(block) // 8]).standard_normal((64, width))
        picked = random.integers(0, 64, 1024)
        drawn = centres[picked] + 0.8 * random.standard_normal((1024, width))
        values[here] = drawn[rows[here] % 1024]
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def write(folder: Path, images: int, width: int) -> dict[str, float]:
    """Both sides, one shard at a time."""
    from hada.extract.spec import ModelSpec, StoreSpec
    from hada.extract.store import Block, StoreIndex, StoreWriter

    counts = {"image": images, "caption": images * PER_IMAGE}
    model = ModelSpec(
        name="made",
        family="fake",
        weights_digest="0",
        embedding_width=width,
        normalized=False,
        image=None,
        caption=None,
    )
    spec = StoreSpec(
        model=model,
        dataset="made",
        split="all",
        dataset_digest="0",
        rows_per_shard={side: min(count, ROWS) for side, count in counts.items()},
    )
    index = StoreIndex(
        ids={side: tuple(map(str, range(count))) for side, count in counts.items()},
        caption_to_image=np.repeat(np.arange(images), PER_IMAGE),
        lengths={side: np.zeros(count, np.int64) for side, count in counts.items()},
    )
    busy = 0.0
    start = time.monotonic()
    writer = StoreWriter.open(folder / "store", spec, index)
    opened = time.monotonic() - start
    for side in ("image", "caption"):
        for shard in writer.filling(side):
            values = side_rows(side, writer.rows(side, shard), width)
            start = time.monotonic()
            writer.write(side, shard, Block(embeddings=values))
            busy += time.monotonic() - start
    start = time.monotonic()
    writer.finish()
    busy += time.monotonic() - start
    size = sum(p.stat().st_size for p in (folder / "store").rglob("*") if p.is_file())
    return {"open_s": opened, "write_s": busy, "bytes": size}


def verify(folder: Path, images: int, width: int) -> dict[str, float]:
    """Every byte and every binding."""
    from hada.extract.store_cli import store

    start = time.monotonic()
    try:
        store.main(["verify", "--deep", str(folder / "store")], prog_name="hada-store")
    except SystemExit as stop:
        if stop.code:
            raise
    return {"verify_s": time.monotonic() - start}


def stored(folder: Path, side: str, rows: Any = slice(None)) -> NDArray[np.float32]:
    """The embeddings of a side, or of some rows of it, as float32."""
    from hada.extract.store import open_store

    store = open_store(folder / "store")
    reader = store.side(side)
    chosen = np.arange(len(reader.ids))[rows]
    result = np.empty((len(chosen), store.spec.model.embedding_width), np.float32)
    for start in range(0, len(chosen), ROWS):
        result[start : start + ROWS] = reader.embeddings(chosen[start : start + ROWS])
    return result


def recall(folder: Path, images: int, width: int) -> dict[str, float]:
    """Evenly spread images against all captions, and all captions against these images."""
    from hada.fuse.ranking.counting import Thresholds, count_better, pair_scores

    image_IE = stored(folder, "image")
    owner = np.repeat(np.arange(images), PER_IMAGE)

    def of(some: NDArray[np.int64], captions: NDArray[np.int64]) -> float:
        """Processor seconds of ranking images among captions, which are read block by block."""
        own = (some[:, None] * PER_IMAGE + np.arange(PER_IMAGE)).ravel()
        row_of = np.repeat(np.arange(len(some)), PER_IMAGE)
        part_IE = image_IE[some]
        own_TE = stored(folder, "caption", own)
        best = pair_scores(part_IE, own_TE, row_of, np.arange(len(own)))
        best_I = best.reshape(len(some), PER_IMAGE).max(1)
        took = 0.0
        for start in range(0, len(captions), 8 * ROWS):
            block = captions[start : start + 8 * ROWS]
            # A caption of another image is a rival alone: its own threshold is out of reach.
            positive = np.full(len(block), np.inf)
            here = np.isin(own, block)
            positive[np.searchsorted(block, own[here])] = best[here]
            rows = np.minimum(np.searchsorted(some, owner[block]), len(some) - 1)
            caption_TE = stored(folder, "caption", block)
            began = time.process_time()
            count_better(part_IE, caption_TE, Thresholds(best_I, positive, rows, 1e-6))
            took += time.process_time() - began
        return took

    everyone = np.arange(images * PER_IMAGE)
    small = np.arange(0, images, max(1, images // 1000))[:1000]
    few = (small[:, None] * PER_IMAGE + np.arange(PER_IMAGE)).ravel()
    rate = of(small, few) / (len(small) * len(few))
    took = of(small, everyone)
    return {
        "slice_images": len(small),
        "slice_s": took,
        "foretold_s": rate * len(small) * len(everyone),
        "whole_hours": took * images / len(small) / 3600,
    }


def correction(folder: Path, images: int, width: int) -> dict[str, float]:
    """A bank of 10,000 captions, or of all where there are fewer."""
    from hada.fuse.closed_form.correction import popularity

    image_IE = stored(folder, "image")
    bank = stored(folder, "caption", slice(None, None, max(1, images * PER_IMAGE // 10_000)))
    start = time.process_time()
    popularity(image_IE, bank, 16)
    return {"bank": len(bank), "correction_s": time.process_time() - start}


def queries_of(folder: Path, image_IE: NDArray[np.float32]) -> tuple[Any, Any, float]:
    """Captions, the exact first ten images of each, and milliseconds of one exact query."""
    images, width = image_IE.shape
    rows = np.arange(QUERIES) * (images * PER_IMAGE // QUERIES)
    asked = np.concatenate([side_rows("caption", range(row, row + 1), width) for row in rows])
    best, times = [], []
    for query in asked:
        start = time.monotonic()
        scores = image_IE @ query
        first = np.argpartition(-scores, TOP)[:TOP]
        best.append(first[np.argsort(-scores[first])])
        times.append(time.monotonic() - start)
    return asked, np.stack(best), 1000 * float(np.median(times))


def exact(folder: Path, images: int, width: int) -> dict[str, float]:
    """One product and a choice of ten."""
    image_IE = stored(folder, "image")
    return {"query_ms": queries_of(folder, image_IE)[2]}


def _asked(search: Callable[[Any], Any], asked: Any, best: Any) -> dict[str, float]:
    times, hits = [], 0
    for query, expected in zip(asked, best, strict=True):
        start = time.monotonic()
        rows = search(query[None])
        times.append(time.monotonic() - start)
        hits += len(set(rows.tolist()) & set(expected.tolist()))
    return {"query_ms": 1000 * float(np.median(times)), "found": hits / best.size}


def hnsw(folder: Path, images: int, width: int) -> dict[str, float]:
    """As `hada-evaluate search --faiss` builds it."""
    import faiss

    image_IE = stored(folder, "image")
    start = time.process_time()
    graph = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
    graph.add(image_IE)
    took = time.process_time() - start
    graph.hnsw.efSearch = 64
    asked, best, _ = queries_of(folder, image_IE)
    found = _asked(lambda q: graph.search(q, TOP)[1][0], asked, best)
    return {"build_s": took, "bytes": float(faiss.serialize_index(graph).nbytes), **found}


def ivfpq(folder: Path, images: int, width: int) -> dict[str, float]:
    """Trained on at most 40 vectors a list."""
    import faiss

    image_IE = stored(folder, "image")
    lists = max(64, 2 ** round(math.log2(4 * math.sqrt(images))))
    start = time.process_time()
    index = faiss.index_factory(width, f"IVF{lists},PQ128x4fs", faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.niter = 10  # a code of two numbers is found soon
    index.train(image_IE[:: max(1, images // (40 * lists))])
    index.add(image_IE)
    took = time.process_time() - start
    index.nprobe = 32
    asked, best, _ = queries_of(folder, image_IE)

    def search(query: Any) -> Any:
        rows = index.search(query, 20 * TOP)[1][0]
        rows = rows[rows >= 0]
        return rows[np.argsort(-(image_IE[rows] @ query[0]))[:TOP]]

    size = float(faiss.serialize_index(index).nbytes)
    return {"lists": lists, "build_s": took, "bytes": size, **_asked(search, asked, best)}


STEPS = {f.__name__: f for f in (write, verify, recall, correction, exact, hnsw, ivfpq)}


def main() -> None:
    """Run what is asked for, each step in a process, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--folder", type=Path, help="where stores are put [a temporary folder]")
    parser.add_argument("--json", type=Path, help="what was found so far; continued")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        found: dict[str, float] = STEPS[given.child[0]](
            given.folder, int(given.child[1]), given.width
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**found, "peak_GiB": peak}))
        return
    done = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        for images in given.images:
            folder = (given.folder or Path(temporary)) / str(images)
            folder.mkdir(parents=True, exist_ok=True)
            for step in given.steps:
                key = f"{images} {step}"
                if key in done and not (step == "write" and not (folder / "store").exists()):
                    continue
                words = ["--child", step, str(images), "--width", str(given.width)]
                run = subprocess.run(
                    [sys.executable, __file__, *words, "--folder", str(folder)],
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
                done[key] = json.loads(run.stdout.splitlines()[-1])
                rounded = {name: float(f"{value:.3g}") for name, value in done[key].items()}
                print(f"{images:>9,} {step:<10} {rounded}", flush=True)
                if given.json:
                    given.json.write_text(json.dumps(done, indent=2))


if __name__ == "__main__":
    main()
