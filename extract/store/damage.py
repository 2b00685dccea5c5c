"""What is wrong with a committed shard: its marker against its store and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import google_crc32c

from hada.extract.common import remote
from hada.extract.store import digests
from hada.extract.store.commit import Marker
from hada.extract.store.record import Record, shard_names


class Fault(str):
    """What is wrong with a part of a store, in words.

    Attributes:
        kind: "missing", "damaged" or "foreign".
        unwritten: Whether nothing is wrong but that the shard is still to be written.
    """

    kind: str
    unwritten: bool

    def __new__(cls, text: str, kind: str = "damaged", *, unwritten: bool = False) -> Self:
        """A text with its kind."""
        fault = super().__new__(cls, text)
        fault.kind, fault.unwritten = kind, unwritten
        return fault


UNWRITTEN = Fault("not written yet", "missing", unwritten=True)


@dataclass(frozen=True)
class Frame:
    """What the markers of a store must fit: its spec, root and files."""

    record: Record
    spec_digest: str

    @classmethod
    def of(cls, record: Record) -> Self:
        """The frame of a store."""
        return cls(record, record.spec.digest())

    def foreign(self, marker: Marker) -> Fault | None:
        """Why a marker does not belong to this store or place, or None."""
        record, side = self.record, marker.side
        if marker.spec_digest != self.spec_digest:
            return Fault("it was written for another spec", "foreign")
        if marker.root != record.root and (marker.digest or not record.upgrading):
            return Fault("it was written for another store: another root", "foreign")
        size = record.spec.rows_per_shard[side]
        if not all(row // size == marker.shard for row in marker.failed):
            return Fault("its marker calls rows failed that are not its own")
        arrays = shard_names(record.spec, side)
        wanted = record.form.shard_files(side, marker.shard, arrays)
        if marker.files.keys() != wanted:
            name = min(marker.files.keys() ^ wanted)
            if name in wanted:
                return Fault(f"its marker does not name {name}")
            outside = "a file outside the store" if _is_outside(name) else "a file of others"
            return Fault(f"its marker names {outside}: {name!r}")
        if marker.digest and marker.crcs.keys() != arrays.keys():
            return Fault("its marker has not the checksums of its arrays")
        return None


def _is_outside(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")


def of_shard(
    marker: Marker,
    frame: Frame,
    *,
    metadata: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Fault | None:
    """Look for what is wrong with a committed shard.

    Compares the marker with the store it lies in, and looks at presence and size of its files.

    Args:
        marker: Of the shard.
        frame: The store that it lies in.
        metadata: Of the store's arrays: with it every byte is read and compared.
        sizes: Of all files there, where they have been listed (`listed_sizes`).

    Returns:
        The fault, or None.
    """
    fault = frame.foreign(marker)
    if fault is not None:
        return fault
    features = frame.record.features
    for name, (n_bytes, _) in marker.files.items():
        try:
            found = (features / name).stat().st_size if sizes is None else sizes.get(name)
        except FileNotFoundError:
            found = None
        except (OSError, ValueError, RuntimeError) as error:
            return Fault(f"{name!r} cannot be read ({error})")
        if found is None:
            return Fault(f"{name} is missing", "missing")
        if found != n_bytes:
            return Fault(f"{name} has {found} bytes, expected {n_bytes}")
    return None if metadata is None else _difference(marker, frame, metadata)


def _difference(marker: Marker, frame: Frame, metadata: Mapping[str, Any]) -> Fault | None:
    """What of a shard's bytes is not as its marker says."""
    record = frame.record
    arrays = shard_names(record.spec, marker.side)
    mine = {name: metadata[name] for name in arrays}
    try:
        for name, (_, check) in marker.files.items():
            if isinstance(check, int) and checksum(record.features / name) != check:
                return Fault(f"{name} has another checksum than when it was written")
        written = record.form.read_shard(
            record.features,
            marker.side,
            marker.shard,
            mine,
            {name: n_bytes for name, (n_bytes, _) in marker.files.items()},
        )
    except (OSError, ValueError, RuntimeError) as error:
        return Fault(
            f"it has another checksum than when it was written, or cannot be read: {error}"
        )
    for name, (_, check) in marker.files.items():
        if isinstance(check, str) and written.files[name][1] != check:
            return Fault(f"{name} has another checksum than when it was written")
    for name, table in marker.crcs.items():
        if digests.pack_crcs(written.crcs[name]) != table:
            return Fault(f"the chunks of {name} are not those that its marker counts")
    return None


def listed_sizes(features: Path) -> dict[str, int] | None:
    """Name -> bytes of all files, where that is one request and each alone would be one too."""
    return remote.file_sizes(features) if remote.is_remote(features) else None


def checksum(path: Path) -> int:
    """crc32c of a whole file, as the first schema has it."""
    crc = 0
    if remote.is_remote(path):
        for data in remote.blocks(path, remote.file_size(path)):
            crc = google_crc32c.extend(crc, data)
        return crc
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = google_crc32c.extend(crc, block)
    return crc
