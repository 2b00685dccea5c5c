"""Embeddings in vector indexes and databases, by their own libraries: FAISS, LanceDB, Qdrant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hada.extract.exporters.arrays import write_ids
from hada.extract.exporters.rows import Piece, Rows
from hada.extract.exporters.tables import batches, need, schema

# Points in one call; a shard of captions would be one very large request.
POINTS = 256


def write_faiss(folder: Path, rows: Rows) -> None:
    """SIDE.faiss, an exact index by inner product, and SIDE_ids.txt.

    The library keeps the whole index in memory until it is written.
    """
    faiss = need("faiss", "faiss")
    index = faiss.IndexFlatIP(rows.width)
    for piece in rows.pieces():
        index.add(piece.values_nE)
    faiss.write_index(index, str(folder / f"{rows.side}.faiss"))
    write_ids(folder, rows)


def write_lancedb(folder: Path, rows: Rows) -> None:
    """A table `image` or `caption` of the LanceDB in the folder."""
    lancedb = need("lancedb", "lancedb")
    need("pyarrow", "lancedb")
    # It takes no iterator that gives nothing, as the empty side of images or texts alone.
    data = batches(rows) if len(rows) else None
    lancedb.connect(str(folder)).create_table(rows.side, data=data, schema=schema(rows))


def write_qdrant(folder: Path, rows: Rows) -> None:
    """A collection `image` or `caption` of the Qdrant that runs in the process, in the folder.

    The library keeps such a collection in memory; a server's is not limited so.
    """
    qdrant = need("qdrant_client", "qdrant")
    from qdrant_client import models

    client = qdrant.QdrantClient(path=str(folder))
    try:
        distance = models.Distance.DOT if rows.unit else models.Distance.COSINE
        client.create_collection(
            rows.side, vectors_config=models.VectorParams(size=rows.width, distance=distance)
        )
        for piece in rows.pieces():
            for first in range(0, len(piece.ids), POINTS):
                part = range(first, min(first + POINTS, len(piece.ids)))
                points = [
                    models.PointStruct(
                        id=piece.start + k,
                        vector=piece.values_nE[k].tolist(),
                        payload=_payload(piece, k),
                    )
                    for k in part
                ]
                client.upsert(rows.side, points=points)
    finally:
        client.close()


def _payload(piece: Piece, k: int) -> dict[str, Any]:
    """What a point carries beside its vector: the columns of the tables."""
    columns = {"image_id": piece.image_ids, "file": piece.files}
    text = "captions" if piece.image_ids is None else "caption"
    columns[text] = piece.texts  # type: ignore[assignment]
    return {"id": piece.ids[k], **{n: v[k] for n, v in columns.items() if v is not None}}
