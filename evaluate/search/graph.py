"""Search in a large set: faiss's graph of neighbours, beside the exact index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.search.index import DEPTH, FORMAT, Index, Query, check_copy, first_line
from hada.extract.common import atomic
from hada.extract.common.console import say
from hada.extract.common.errors import UsageError
from hada.fuse.run_files.sealed import FaultError, write_sealed

GRAPH = "faiss graph"


def faiss_top(
    index: Index, query: Query | NDArray[np.float32], count: int, path: Path | None = None
) -> list[tuple[int, float]]:
    """The best by faiss's HNSW.

    Where nodes are matched it is the first of two stages, as in `Index.top`.

    Args:
        index: What is searched.
        query: What it is searched for.
        count: How many results.
        path: Where the graph is kept; another index's is made again. None keeps none.

    Returns:
        (row, score) of each result, best first.

    Raises:
        UsageError: The package is missing.
    """
    graph = hnsw(index, path)
    asked = query if isinstance(query, Query) else Query(np.asarray(query, np.float32))
    again = index.second is not None and asked.matches_nodes(index.side)
    wanted = min(max(count, DEPTH), len(index.ids)) if again else count
    graph.hnsw.efSearch = max(64, 4 * wanted)
    scores, rows = graph.search(asked.against(index.side)[None], wanted)
    # Where fewer are found than asked for, faiss fills up with row -1.
    ranked = [(int(row), float(s)) for row, s in zip(rows[0], scores[0], strict=True) if row >= 0]
    if again:
        return index.again(asked, np.array([row for row, _ in ranked]), count)
    return ranked


def hnsw(index: Index, path: Path | None) -> Any:
    """Faiss's graph of an index, read from beside `path` where it was kept."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise UsageError(
            "--faiss needs the package faiss, which is not installed: pip install 'hada[faiss]'"
        ) from error
    kept = None if path is None else path.with_name(f"{path.stem}-{index.key}.faiss")
    if kept is not None and kept.exists():
        try:
            check_copy(kept, GRAPH, index.key)
            return faiss.read_index(str(kept))
        except (FaultError, RuntimeError) as error:
            say(f"{first_line(error)}. It is made anew")
    graph = faiss.IndexHNSWFlat(index.embeddings.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    graph.add(np.ascontiguousarray(index.embeddings, np.float32))
    if kept is not None and path is not None:
        for old in path.parent.glob(f"{path.stem}-*.faiss"):
            old.unlink()
        with atomic.writing(kept) as file:
            head = {"holds": GRAPH, "format": FORMAT, "key": index.key}
            write_sealed(file, faiss.serialize_index(graph).tobytes(), head)
    return graph
