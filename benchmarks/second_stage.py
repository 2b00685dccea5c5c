"""Node matching as a second stage: recall against an exhaustive search, and its time a query.

    python benchmarks/second_stage.py RUN [--split test] [--depths 10 50 100 200]
        [--galleries 1000 10000 100000] [--queries 50]

Recall is of the split as it is, both ways: the first stage (one inner product) keeps the best items
of a query, the whole score orders them. For larger galleries the split's images are repeated, so
times are those of that many images, and recall is not measured. Processor time of one thread.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hada.evaluate.methods.build import open_stores
from hada.evaluate.search.index import Index, Query, SecondStage
from hada.extract import load_manifest
from hada.fuse.embedding import embed_split
from hada.fuse.run_folder import RunFolder
from hada.fuse.scores.embedded import Embedded


def recalls(scores_IT: Any, owner_T: Any) -> list[float]:
    """R@1, R@5, R@10 image -> caption and caption -> image, in percent; -inf is never found."""
    found = []
    positive_IT = np.arange(len(scores_IT))[:, None] == owner_T[None]
    for scores, positives in ((scores_IT, positive_IT), (scores_IT.T, positive_IT.T)):
        best = np.where(positives, scores, -np.inf).max(1)
        ranks = (np.where(positives, -np.inf, scores) > best[:, None]).sum(1)
        ranks[np.isneginf(best)] = scores.shape[1]
        found += [100 * float((ranks < k).mean()) for k in (1, 5, 10)]
    return found


def shortlisted(whole_IT: Any, first_IT: Any, depth: int) -> tuple[Any, Any]:
    """The whole score where the first stage has an item among a query's best, -inf elsewhere."""
    both = []
    for whole, first in ((whole_IT, first_IT), (whole_IT.T, first_IT.T)):
        kept = np.argpartition(-first, min(depth, first.shape[1]) - 1, axis=1)[:, :depth]
        part = np.full_like(whole, -np.inf)
        np.put_along_axis(part, kept, np.take_along_axis(whole, kept, 1), 1)
        both.append(part)
    return both[0], both[1].T


def compare(embedded: Embedded, depths: list[int]) -> None:
    """Print recall by depth."""
    first_IT = embedded.image_IE @ embedded.caption_TE.T
    whole_IT = np.empty_like(first_IT)
    for captions, block in embedded.scores():
        whole_IT[:, captions] = block
    owner = embedded.caption_to_image
    print("depth       i2t R@1   R@5  R@10  t2i R@1   R@5  R@10   RSum")
    for name, depth in [*((str(d), d) for d in depths), ("exhaustive", whole_IT.size)]:
        by_image, by_caption = shortlisted(whole_IT, first_IT, depth)
        found = recalls(by_image, owner)[:3] + recalls(by_caption, owner)[3:]
        print(f"{name:10} " + " ".join(f"{x:7.1f}" for x in found) + f" {sum(found):7.1f}")


def timed(embedded: Embedded, sizes: list[int], depths: list[int], queries: int) -> None:
    """Print milliseconds a query by size of the gallery and depth."""
    stage = SecondStage.of(embedded, "image")
    assert stage is not None
    asked = [
        Query(embedded.caption_TE[j], embedded.part(np.array([0]), np.array([j])))
        for j in range(queries)
    ]
    for size in sizes:
        rows = np.arange(size) % len(embedded.image_IE)
        second = replace(
            stage, cosines=stage.cosines[rows], nodes=stage.nodes.take(rows), paid=stage.paid[rows]
        )
        index = Index(embedded.image_IE[rows], [str(row) for row in range(size)], "", second)
        line = []
        for depth in (0, *depths):
            used = index if depth else replace(index, second=None)
            used.top(asked[0], 10, max(1, depth))
            spent = []
            for query in asked:
                began = time.process_time()
                used.top(query, 10, depth)
                spent.append(1000 * (time.process_time() - began))
            line.append(f"{depth or 'first stage alone'}: {np.median(spent):.1f} ms")
        print(f"{size:,} images: " + ", ".join(line), flush=True)


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--depths", type=int, nargs="+", default=[10, 50, 100, 200])
    parser.add_argument("--galleries", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--queries", type=int, default=50)
    arguments = parser.parse_args()
    folder = RunFolder(arguments.run)
    config = folder.config()
    stores = open_stores(load_manifest(), config["dataset"], arguments.split, config["models"])
    embedded = embed_split(folder, stores)
    if embedded.nodes is None or not embedded.node_share:
        parser.error(f"{arguments.run} matches no nodes: it has one stage")
    compare(embedded, arguments.depths)
    timed(embedded, arguments.galleries, arguments.depths, arguments.queries)


if __name__ == "__main__":
    main()
