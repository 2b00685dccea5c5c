"""Embeddings as tables: Arrow's batches, for parquet and for LanceDB."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hada.extract.common import atomic
from hada.extract.common.errors import UsageError
from hada.extract.exporters.rows import Piece, Rows


def need(package: str, extra: str) -> Any:
    """The package; raises `UsageError` that names the extra where it is not installed."""
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--format {extra} needs the package {package}, which is not installed: "
            f"pip install 'hada[{extra}]'"
        ) from error


def schema(rows: Rows) -> Any:
    """id, then image_id of captions, captions or text, file, and `embedding` of fixed size.

    A text that is of no image has null as image_id and file.
    """
    pa = need("pyarrow", "parquet")
    value = pa.float16() if rows.dtype == "float16" else pa.float32()
    fields = [pa.field("id", pa.string(), nullable=False)]
    if rows.side == "caption":
        fields.append(pa.field("image_id", pa.string()))
    if rows.data is not None:
        text = pa.string() if rows.side == "caption" else pa.list_(pa.string())
        name = "caption" if rows.side == "caption" else "captions"
        fields += [pa.field(name, text), pa.field("file", pa.string())]
    fields.append(pa.field("embedding", pa.list_(value, rows.width), nullable=False))
    model = rows.store.spec.model
    about = {"hada.model": model.name, "hada.weights": model.weights_digest}
    return pa.schema(fields, metadata=about)


def batches(rows: Rows) -> Iterator[Any]:
    """One record batch a shard."""
    layout = schema(rows)
    for piece in rows.pieces():
        yield _batch(piece, layout)


def _batch(piece: Piece, layout: Any) -> Any:
    import pyarrow as pa

    values = pa.array(piece.values_nE.reshape(-1))
    columns: dict[str, Any] = {
        "id": piece.ids,
        "image_id": piece.image_ids,
        "caption": piece.texts,
        "captions": piece.texts,
        "file": piece.files,
        "embedding": pa.FixedSizeListArray.from_arrays(values, piece.values_nE.shape[1]),
    }
    arrays = [
        columns[field.name]
        if field.name == "embedding"
        else pa.array(columns[field.name], field.type)
        for field in layout
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=layout)


def write_parquet(folder: Path, rows: Rows) -> None:
    """SIDE.parquet, one row group a shard."""
    need("pyarrow", "parquet")
    import pyarrow.parquet as pq

    with (
        atomic.writing(folder / f"{rows.side}.parquet") as file,
        pq.ParquetWriter(file, schema(rows), compression="zstd") as writer,
    ):
        for batch in batches(rows):
            writer.write_batch(batch)
