"""Paths of a store's parts, and the markers of committed shards."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import google_crc32c

from hada.extract.common import atomic, remote
from hada.extract.common.errors import StoreError
from hada.extract.spec import SideName
from hada.extract.store import digests
from hada.extract.store.record import Record, shard_names

COMMIT = "commit"


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
class Marker:
    """The record of one finished shard.

    files: relative path -> (bytes, digest) of everything that the shard wrote; a number, where a
    digest should be, is the crc32c of the first schema.
    failed: item row -> why it has no features.
    provenance: what else decided the bytes (batch size), for the record.
    root: of the store it was written for. crcs: array -> crc32c of its chunks, packed.
    digest: of all of these, "" in the first schema.
    """

    side: SideName
    shard: int
    spec_digest: str
    files: dict[str, tuple[int, str | int]]
    failed: dict[int, str]
    provenance: dict[str, Any]
    root: str = ""
    crcs: dict[str, str] = field(default_factory=dict)
    digest: str = ""


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


def marker_path(folder: Path, side: SideName, shard: int) -> Path:
    """The marker of one shard."""
    return folder / COMMIT / marker_name(side, shard)


def marker_name(side: SideName, shard: int) -> str:
    """The name of a shard's marker in the folder of markers."""
    return f"{side}-{shard:06d}.json"


def write_marker(folder: Path, marker: Marker) -> None:
    """Commit a shard: from now on it counts."""
    body = marker_body(marker)
    atomic.write_json(
        marker_path(folder, marker.side, marker.shard),
        body | {"digest": digests.of_json(body)},
        tidy=False,  # who owns the shard has done it
    )


def marker_body(marker: Marker) -> dict[str, Any]:
    """What a marker says, but for its own digest, as JSON values."""
    return {
        "side": marker.side,
        "shard": marker.shard,
        "spec": marker.spec_digest,
        "root": marker.root,
        "files": {name: list(entry) for name, entry in marker.files.items()},
        "crcs": dict(marker.crcs),
        "failed": {str(row): reason for row, reason in marker.failed.items()},
        "provenance": marker.provenance,
    }


def read_marker(folder: Path, side: SideName, shard: int) -> Marker | None:
    """The marker of a shard, or None where there is none. A broken one raises `StoreError`."""
    path = marker_path(folder, side, shard)
    try:
        return parse_marker(remote.read_bytes(path), path, side, shard)
    except FileNotFoundError:
        return None


def read_markers(
    folder: Path, shards: Sequence[tuple[SideName, int]]
) -> dict[tuple[SideName, int], Marker | StoreError | None]:
    """The markers of many shards at once: broken ones as their error, None where there is none."""
    place = folder / COMMIT
    names = [marker_name(side, shard) for side, shard in shards]
    found: dict[tuple[SideName, int], Marker | StoreError | None] = {}
    for key, name, data in zip(shards, names, remote.read_many(place, names), strict=True):
        try:
            if isinstance(data, FileNotFoundError):
                found[key] = None
            elif isinstance(data, Exception):
                found[key] = StoreError(f"{place}/{name}: cannot be read ({data})")
            else:
                found[key] = parse_marker(data, f"{place}/{name}", *key)
        except StoreError as error:
            found[key] = error
    return found


def parse_marker(data: bytes, path: Path | str, side: SideName, shard: int) -> Marker:
    """A marker from its file's bytes; raises `StoreError` where they are none of this shard."""
    try:
        raw = json.loads(data.decode())
        digest = raw.get("digest", "")
        if "digest" in raw or "root" in raw:
            body = {key: value for key, value in raw.items() if key != "digest"}
            if digest != digests.of_json(body):
                raise StoreError(f"{path}: not a commit marker (it was changed: another digest)")
        marker = Marker(
            side=side,
            shard=shard,
            spec_digest=str(raw["spec"]),
            files={name: _file(entry, bool(digest)) for name, entry in raw["files"].items()},
            failed={int(row): str(reason) for row, reason in raw["failed"].items()},
            provenance=dict(raw["provenance"]),
            root=str(raw["root"]) if digest else "",
            crcs={name: str(table) for name, table in raw["crcs"].items()} if digest else {},
            digest=digest,
        )
        if (raw["side"], raw["shard"]) != (side, shard):
            raise StoreError(
                f"{path}: it is the marker of {raw['side']} shard {raw['shard']}, put elsewhere"
            )
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise StoreError(f"{path}: not a commit marker ({error})") from error
    return marker


def _file(entry: Any, bound: bool) -> tuple[int, str | int]:
    size, check = entry
    return int(size), str(check) if bound else int(check)


def remove_leftovers(folder: Path, side: SideName, shard: int) -> None:
    """Delete half-written markers of a shard. Only its owner may; behind a URL there are none."""
    if remote.is_remote(folder):
        return
    marker = marker_path(folder, side, shard)
    for path in marker.parent.glob(f"{marker.name}{atomic.TEMPORARY}*"):
        path.unlink(missing_ok=True)


def damage(
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


@contextlib.contextmanager
def shard_lock(folder: Path, side: SideName, shard: int) -> Iterator[bool]:
    """Yield whether this process now owns the shard; another writer's shard yields False.

    The kernel drops the lock with its process, so a killed writer leaves none behind. There are
    no such locks behind a URL: two writers of a shard there both do the work, and the last wins.
    """
    if remote.is_remote(folder):
        yield True
        return
    path = folder / COMMIT / f"{side}-{shard:06d}.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        if not _is_same_file(file.fileno(), path):
            # Its last owner deleted it between our opening and our locking it: a lock on a file
            # without a name keeps nobody out.
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def remove_stale_locks(folder: Path) -> None:
    """Delete the lock files of writers that were killed after they had committed their shard.

    Nobody claims a finished shard again, so nobody else would. Locks of unfinished shards stay:
    another process may be about to take them.
    """
    if remote.is_remote(folder):
        return
    for path in (folder / COMMIT).glob("*.lock"):
        if path.with_suffix(".json").exists():
            with contextlib.suppress(OSError), path.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
