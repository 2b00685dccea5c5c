"""A store's embeddings in the format of another program: `hada-store export`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hada.extract.common import atomic
from hada.extract.common.documents import read_json
from hada.extract.common.errors import StoreError, UsageError
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.exporters import arrays, databases, tables
from hada.extract.exporters.readme import readme
from hada.extract.exporters.rows import Rows
from hada.extract.spec import SIDES
from hada.extract.store import StoreReader, digests
from hada.extract.store.commit import Marker, read_markers

FORMATS: Mapping[str, Callable[[Path, Rows], None]] = {
    "npy": arrays.write_npy,
    "safetensors": arrays.write_safetensors,
    "parquet": tables.write_parquet,
    "faiss": databases.write_faiss,
    "lancedb": databases.write_lancedb,
    "qdrant": databases.write_qdrant,
}
# What takes float32 alone.
SINGLE = ("faiss", "lancedb", "qdrant")
HEAD = "export.json"


def export_store(
    store: StoreReader,
    folder: Path,
    form: str,
    *,
    data: CaptionDataset | None = None,
    dtype: str = "float32",
    unit: bool | None = None,
    fresh: bool = False,
) -> bool:
    """Write the embeddings of both sides into a folder, a shard at a time.

    The folder appears when it is whole: what is written lies beside it until then.

    Args:
        store: What to export; a run's embeddings are a store, too (`hada.fuse.embed`).
        folder: Where.
        form: One of `FORMATS`.
        data: The data set, for captions and files; None leaves them out.
        dtype: `float32` or `float16`.
        unit: Whether rows are brought to unit length. None: where the store says that the model's
            are not, so that the inner product is the cosine.
        fresh: Whether an export of other features there is replaced.

    Returns:
        Whether anything was written; False where the same export is there.

    Raises:
        UsageError: The folder holds something else, a package is missing, or the store has no
            embeddings.
        StoreError: The store is damaged, or not of the data set's items.
    """
    if dtype == "float16" and form in SINGLE:
        raise UsageError(f"--format {form} holds float32; leave --dtype away")
    unit = not store.spec.model.normalized if unit is None else unit
    sides = [Rows.of(store, side, unit=unit, dtype=dtype, data=data) for side in SIDES]
    head = _head(store, form, dtype, unit, data is not None)
    if _is_there(folder, head, fresh=fresh):
        return False
    atomic.make_folder(folder.parent)
    atomic.remove_leftovers(folder)
    made = atomic.temporary_name(folder)
    made.mkdir()
    try:
        for rows in sides:
            FORMATS[form](made, rows)
        about = readme(store, form, unit=unit, rows={r.side: len(r) for r in sides}, data=data)
        atomic.write_bytes(made / "README.md", about.encode())
        atomic.write_json(made / HEAD, head)
        atomic.sync_all(made)
        atomic.put_folder(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return True


def _head(store: StoreReader, form: str, dtype: str, unit: bool, texts: bool) -> dict[str, Any]:
    """What decides the export's contents."""
    return {
        "holds": "hada export",
        "format": form,
        "dtype": dtype,
        "unit": unit,
        "texts": texts,
        "store": _contents(store),
        "model": store.spec.model.name,
        "dataset": store.spec.dataset,
        "split": store.spec.split,
    }


def _contents(store: StoreReader) -> str:
    """A digest of what a store says of itself and of every shard: another one is another export."""
    shards = [
        (side, shard)
        for side in SIDES
        for shard in range(-(-len(store.side(side)) // store.spec.rows_per_shard[side]))
    ]
    parts: list[Any] = [store.spec.digest()]
    for marker in read_markers(store.path, shards).values():
        if not isinstance(marker, Marker):
            raise StoreError(f"{store.path}: changed while it was read; run the command again")
        parts.append([marker.side, marker.shard, marker.files, marker.failed, marker.digest])
    return digests.of_json(parts)


def _is_there(folder: Path, head: Mapping[str, Any], *, fresh: bool) -> bool:
    """Whether this very export is there; raises `UsageError` for anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / HEAD).is_file():
        raise UsageError(f"{folder}: holds something else; choose another folder")
    there = read_json(folder / HEAD, UsageError)
    if not isinstance(there, dict) or there.get("holds") != head["holds"]:
        raise UsageError(f"{folder}: holds something else; choose another folder")
    differing = [name for name, value in head.items() if there.get(name) != value]
    if not differing and not fresh:
        return True
    if not fresh:
        name = differing[0]
        raise UsageError(
            f"{folder}: an export of other {name}: {there.get(name)!r}, now {head[name]!r}; "
            "choose another folder, or replace it with --fresh"
        )
    return False
