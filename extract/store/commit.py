"""Where a store's parts lie, and the markers that say which shards are whole."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from hada.extract.common import atomic, remote
from hada.extract.common.errors import StoreError
from hada.extract.spec import SideName

COMMIT = "commit"


@dataclass(frozen=True)
class Marker:
    """The record of one finished shard.

    files: relative path -> (bytes, crc32c) of everything that the shard wrote.
    failed: item row -> why it has no features.
    provenance: what else decided the bytes (batch size), for the record.
    """

    side: SideName
    shard: int
    spec_digest: str
    files: dict[str, tuple[int, int]]
    failed: dict[int, str]
    provenance: dict[str, Any]


def marker_path(folder: Path, side: SideName, shard: int) -> Path:
    """The marker of one shard."""
    return folder / COMMIT / marker_name(side, shard)


def marker_name(side: SideName, shard: int) -> str:
    """The name of a shard's marker in the folder of markers."""
    return f"{side}-{shard:06d}.json"


def write_marker(folder: Path, marker: Marker) -> None:
    """Commit a shard: from now on it counts."""
    atomic.write_json(
        marker_path(folder, marker.side, marker.shard),
        {
            "side": marker.side,
            "shard": marker.shard,
            "spec": marker.spec_digest,
            "files": {name: list(entry) for name, entry in marker.files.items()},
            "failed": {str(row): reason for row, reason in marker.failed.items()},
            "provenance": marker.provenance,
        },
        tidy=False,  # who owns the shard has done it
    )


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
    """A marker from its file's bytes; raises `StoreError` where they are none."""
    try:
        raw = json.loads(data.decode())
        return Marker(
            side=side,
            shard=shard,
            spec_digest=str(raw["spec"]),
            files={
                str(name): (int(entry[0]), int(entry[1])) for name, entry in raw["files"].items()
            },
            failed={int(row): str(reason) for row, reason in raw["failed"].items()},
            provenance=dict(raw["provenance"]),
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


def remove_leftovers(folder: Path, side: SideName, shard: int) -> None:
    """Delete half-written markers of a shard. Only its owner may; behind a URL there are none."""
    if remote.is_remote(folder):
        return
    marker = marker_path(folder, side, shard)
    for path in marker.parent.glob(f"{marker.name}{atomic.TEMPORARY}*"):
        path.unlink(missing_ok=True)


def damage(
    features: Path,
    marker: Marker,
    spec_digest: str,
    *,
    deep: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> str | None:
    """What is wrong with a committed shard, or None; its files lie below `features`.

    Looks at presence and size of its files; `deep` reads them and compares checksums too.
    `sizes` are those of all files there, where they have been listed (`listed_sizes`).
    """
    if marker.spec_digest != spec_digest:
        return "it was written for another spec"
    resolved: Path | None = None
    for name, (n_bytes, crc) in marker.files.items():
        if sizes is not None and not deep:
            # The listing holds files of the store and no others.
            if name not in sizes:
                return f"{name} is missing"
            if sizes[name] != n_bytes:
                return f"{name} has {sizes[name]} bytes, expected {n_bytes}"
            continue
        path = features / name
        try:
            resolved = resolved or features.resolve()
            if not path.resolve().is_relative_to(resolved):
                return f"its marker names a file outside the store: {name!r}"
            found = path.stat().st_size if sizes is None else sizes.get(name)
            if found is None:
                return f"{name} is missing"
            if found != n_bytes:
                return f"{name} has {found} bytes, expected {n_bytes}"
            if deep and _file_checksum(path, n_bytes) != crc:
                return f"{name} has another checksum than when it was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError, RuntimeError) as error:
            return f"{name!r} cannot be read ({error})"
    return None


def listed_sizes(features: Path) -> dict[str, int] | None:
    """Name -> bytes of all files, where that is one request and each alone would be one too."""
    return remote.file_sizes(features) if remote.is_remote(features) else None


def checksum(path: Path) -> int:
    """crc32c of a whole file."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = google_crc32c.extend(crc, block)
    return crc


def _file_checksum(path: Path, n_bytes: int) -> int:
    if not remote.is_remote(path):
        return checksum(path)
    crc = 0
    for data in remote.blocks(path, n_bytes):
        crc = google_crc32c.extend(crc, data)
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
