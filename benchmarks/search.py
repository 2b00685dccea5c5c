"""Search in a large set: faiss's HNSW beside an exact search, by its recall and its time.

    python benchmarks/search.py [--items 100000] [--width 128] [--queries 500] [--top 10]

Unit vectors of two kinds: all random, the worst case of a graph of neighbours, and in groups of
like ones, as pictures are. A query is an item with noise. Needs faiss: pip install 'hada[faiss]'.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from hada.evaluate.search.graph import hnsw
from hada.evaluate.search.index import Index


def vectors(items: int, width: int, group: int) -> Any:
    """(items, width) at unit length, `group` of them around one centre each."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((-(-items // group), width), dtype=np.float32)
    values = np.repeat(centres, group, axis=0)[:items]
    if group > 1:
        values += random.standard_normal(values.shape, dtype=np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--top", type=int, default=10)
    arguments = parser.parse_args()
    for kind, group in (("random", 1), ("groups of 50", 50)):
        values = vectors(arguments.items, arguments.width, group)
        index = Index(values, [str(row) for row in range(len(values))], "")
        random = np.random.default_rng(1)
        noise = random.standard_normal((arguments.queries, arguments.width), dtype=np.float32)
        queries = values[random.choice(len(values), arguments.queries)]
        queries = queries + noise / np.float32(arguments.width**0.5)
        began = time.process_time()
        exact = [{row for row, _ in index.top(query, arguments.top)} for query in queries]
        slow = (time.process_time() - began) / len(queries)
        began = time.process_time()
        graph = hnsw(index, None)
        build = time.process_time() - began
        graph.hnsw.efSearch = max(64, 4 * arguments.top)
        began = time.process_time()
        rows = [graph.search(query[None], arguments.top)[1][0] for query in queries]
        fast = (time.process_time() - began) / len(queries)
        same = sum(
            len(best & set(map(int, found))) for best, found in zip(exact, rows, strict=True)
        )
        print(
            f"{kind:13} {len(values):,} x {arguments.width}: recall@{arguments.top} "
            f"{100 * same / (arguments.top * len(queries)):.1f} % of exact; seconds of processor: "
            f"built in {build:.1f}, {1000 * fast:.2f} ms a query, exact {1000 * slow:.2f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
