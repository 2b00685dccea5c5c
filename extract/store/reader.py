"""Reading a store: rows of tokens and embeddings, after its markers have been checked."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hada.extract.common import atomic, remote
from hada.extract.common.errors import StoreError
from hada.extract.spec import SIDES, SideName, StoreSpec
from hada.extract.store import commit, damage, formats, seal
from hada.extract.store.record import (
    Contents,
    Record,
    locate,
    read_contents,
    read_record,
    shard_names,
)
from hada.extract.store.side_reader import Shards, SideReader

__all__ = ["SideReader", "StoreReader", "locate", "open_store", "read_spec", "shard_status"]


class StoreReader:
    """A complete store, open for reading. Make one with `open_store`.

    Threads may share it. It pickles without its open files, so a worker that is sent one opens
    its own.

    Attributes:
        path: The store's folder or URL.
        spec: What it holds: model, dataset, split, widths and dtype (`hada.extract.spec`).
        format: "zarr" or "hdf5".
        image: Its I images, a `SideReader`.
        caption: Its T captions, a `SideReader`.
        caption_to_image: (T,) int64: entry j is the row of caption j's image. With two images of
            two captions each it is `[0, 0, 1, 1]`; -1 for all of a store of texts alone.
    """

    def __init__(self, record: Record, contents: Contents, shards: Shards) -> None:
        features = record.features
        self.path, self.spec = record.folder, record.spec
        self.format = record.form.name
        self.image = SideReader("image", record, contents, shards)
        self.caption = SideReader("caption", record, contents, shards)
        self.caption_to_image: NDArray[np.int64] = contents.index["caption/image_index"]
        captions, images = len(self.caption.ids), len(self.image.ids)
        owners = self.caption_to_image
        # Texts alone are of no image.
        fits = (owners >= 0) & (owners < images) if images else owners == -1
        if owners.shape != (captions,) or not fits.all():
            raise StoreError(
                f"{features}: caption/image_index names images that the store has not. "
                "Start the store again with --fresh."
            )

    def side(self, name: SideName) -> SideReader:
        """`image` or `caption`, by name."""
        return self.image if name == "image" else self.caption

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f"StoreReader({spec.model.name} on {spec.dataset}/{spec.split}: "
            f"{len(self.image.ids)} images, {len(self.caption.ids)} captions)"
        )


def open_store(path: str | Path) -> StoreReader:
    """Open a finished store for reading.

    What binds its parts is compared here: the record with the spec, metadata, ids and spans, the
    markers with the record, their seal and the sizes of their files. The shards' bytes are
    compared with their markers as they are read, so opening costs the same for any size of
    features.

    Args:
        path: The store's folder, `STORES/DATASET/SPLIT/MODEL`, or a URL of one.

    Returns:
        The store's images, captions, and which caption belongs to which image.

    Raises:
        StoreError: There is none, it is incomplete or damaged, or holds parts of another store;
            the message says what to do.
        UnreachableError: A store behind a URL does not answer.

    Example:
        An example that runs is in `hada.extract.extract`. Reading goes like this::

            store = open_store("stores/scenes/test/clip")
            store.image.embeddings()        # (I, E) of all images
            store.caption.tokens(rows)      # (sum of lengths[rows], D), caption after caption
            item = store.image[0]           # item.id, item.tokens (N, D), item.embedding (E,)
    """
    folder = remote.place(path)
    record = read_record(folder)
    contents = read_contents(record)
    spec, markers = record.spec, _markers(record, contents)
    status = _status(record, markers)
    missing = {side: [k for k, state in status[side].items() if state] for side in SIDES}
    if any(missing.values()):
        total = sum(len(status[side]) for side in SIDES)
        gone = sum(map(len, missing.values()))
        side = next(side for side in SIDES if missing[side])
        first = status[side][missing[side][0]]
        raise StoreError(
            f"{folder}: {gone} of {total} shards are missing or damaged "
            f"({side} shard {missing[side][0]}: {first}). Run again: hada-extract "
            f"--dataset {spec.dataset} --split {spec.split} --model {spec.model.name}"
        )
    return StoreReader(record, contents, _shards(spec, markers))


def stores_below(folder: Path) -> list[Path]:
    """The stores in a folder, by name; what is being made there, or was left by a kill, is none."""
    places = sorted(folder.iterdir()) if folder.exists() else []
    return [
        path
        for path in places
        if path.is_dir()
        and not path.name.startswith(".")
        and not atomic.is_temporary(path.name)
        and formats.find(path) is not None
    ]


def read_spec(folder: Path) -> StoreSpec:
    """What a store holds, complete or not. Raises `StoreError` where there is none."""
    return read_record(folder).spec


def shard_status(
    folder: Path, spec: StoreSpec | None = None, *, deep: bool = False
) -> dict[SideName, dict[int, damage.Fault | None]]:
    """For every shard of both sides: what is wrong with it, None where nothing is.

    Args:
        folder: The store.
        spec: What it must hold, by default what it says itself.
        deep: Read every byte, rather than look at markers and sizes.

    Raises:
        StoreError: What the store knew before its first feature is damaged.
    """
    record = read_record(folder)
    if spec is not None and spec != record.spec:
        raise StoreError(f"{folder}: holds other features than these: {record.spec}")
    contents = read_contents(record)
    return _status(record, _markers(record, contents), contents if deep else None)


Markers = dict[tuple[SideName, int], commit.Marker | StoreError | None]


def _shards(spec: StoreSpec, markers: Markers) -> Shards:
    failed: dict[SideName, set[int]] = {side: set() for side in SIDES}
    crcs: dict[str, list[str | None]] = {n: [] for side in SIDES for n in shard_names(spec, side)}
    for (side, _), marker in markers.items():
        assert isinstance(marker, commit.Marker)
        failed[side].update(marker.failed)
        for name in shard_names(spec, side):
            crcs[name].append(marker.crcs.get(name))
    return Shards(failed, crcs)


def _markers(record: Record, contents: Contents) -> Markers:
    counts = {side: len(contents.index[f"{side}/ids"]) for side in SIDES}
    size = record.spec.rows_per_shard
    shards = [(side, k) for side in SIDES for k in range(math.ceil(counts[side] / size[side]))]
    return commit.read_markers(record.folder, shards)


def _status(
    record: Record, markers: Markers, contents: Contents | None = None
) -> dict[SideName, dict[int, damage.Fault | None]]:
    """See `shard_status`; with `contents`, every byte is read."""
    frame, sizes = damage.Frame.of(record), damage.listed_sizes(record.features)
    metadata = contents.metadata if contents is not None else None
    unsealed = seal.faults(record.folder, record.root, markers)[1] if record.root else {}
    status: dict[SideName, dict[int, damage.Fault | None]] = {side: {} for side in SIDES}
    for (side, shard), marker in markers.items():
        if isinstance(marker, StoreError):
            fault: damage.Fault | None = damage.Fault(str(marker))
        elif marker is None:
            fault = damage.UNWRITTEN
        else:
            fault = damage.of_shard(marker, frame, metadata=metadata, sizes=sizes)
        status[side][shard] = fault or unsealed.get((side, shard))
    return status
