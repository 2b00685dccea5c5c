"""`hada-store export`: a store's embeddings for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hada.extract.cli_options import manifest_options
from hada.extract.common import remote
from hada.extract.common.console import HadaCommand, say, tell

if TYPE_CHECKING:
    from hada.extract.datasets.caption_dataset import CaptionDataset
    from hada.extract.manifest import Manifest
    from hada.extract.store import StoreReader

FORMATS = ("npy", "safetensors", "parquet", "faiss", "lancedb", "qdrant")
_HELP = """Write a store's embeddings for other programs, with ids, captions and files.

\b
FORMAT is one of
  npy          image.npy and caption.npy, and files of ids
  safetensors  the same with safetensors
  parquet      tables with ids, captions, files and vectors of fixed size (extra parquet)
  faiss        exact indexes by inner product (extra faiss)
  lancedb      a LanceDB with two tables (extra lancedb)
  qdrant       a local Qdrant with two collections (extra qdrant)

\b
Examples:
  hada-store export stores/scenes/test/clip clip-test --format parquet
  hada-fuse embed runs/scenes/blip+clip-fast-s0 --split test
  hada-store export stores/scenes/test/blip+clip-fast-s0 fused-test --format faiss

The README in FOLDER says by which metric the rows are compared. FOLDER appears when it is whole;
a shard is in memory at a time (faiss and qdrant keep what they write in memory).
"""


@click.command("export", cls=HadaCommand, help=_HELP)
@click.argument("path", metavar="STORE", type=remote.place)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--format", "form", type=click.Choice(FORMATS), default="npy", show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Of the rows; databases take float32 alone.",
)
@click.option(
    "--as-stored",
    is_flag=True,
    help="Leave rows as the model gives them. [default: unit length, where they are not]",
)
@click.option("--ids-only", is_flag=True, help="Leave captions and files out.")
@click.option("--fresh", is_flag=True, help="Replace another export that is there.")
@manifest_options
def export_command(
    manifest: Manifest,
    path: Path,
    folder: Path,
    form: str,
    dtype: str,
    as_stored: bool,
    ids_only: bool,
    fresh: bool,
) -> None:
    """Export (the text for people is _HELP)."""
    from hada.extract.exporters.write import export_store
    from hada.extract.store import open_store

    store = open_store(path)
    data = None if ids_only else _dataset(manifest, store)
    unit = False if as_stored else None
    made = export_store(store, folder, form, data=data, dtype=dtype, unit=unit, fresh=fresh)
    if not made:
        say(f"{folder}: this export is there already")
    tell(str(folder))


def _dataset(manifest: Manifest, store: StoreReader) -> CaptionDataset | None:
    """Captions and files of a store's items; None where the data set is not on this machine."""
    from hada.extract.common.errors import DatasetError, UnknownNameError
    from hada.extract.datasets.read import read_dataset

    try:
        entry = manifest.dataset(store.spec.dataset)
        return read_dataset(entry, store.spec.split, pictures=False)
    except (DatasetError, UnknownNameError) as error:
        say(f"ids alone: {error}")
        return None
