"""The markers of committed shards: their paths, what they say, and how they are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hada.extract.common import atomic, remote
from hada.extract.common.errors import StoreError
from hada.extract.spec import SideName
from hada.extract.store import digests

COMMIT = "commit"


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


def marker_path(folder: Path, side: SideName, shard: int) -> Path:
    """Where the marker of one shard lies.

    Args:
        folder: The store's.
        side: Whose shard.
        shard: Its number, from 0.
    """
    return folder / COMMIT / marker_name(side, shard)


def marker_name(side: SideName, shard: int) -> str:
    """The name of a shard's marker in the folder of markers.

    Args:
        side: Whose shard.
        shard: Its number, from 0.
    """
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
    """The marker of a shard, or None where there is none.

    Args:
        folder: The store's.
        side: Whose shard.
        shard: Its number, from 0.

    Raises:
        StoreError: The file is no marker, was changed, or is another shard's.
    """
    path = marker_path(folder, side, shard)
    try:
        return parse_marker(remote.read_bytes(path), path, side, shard)
    except FileNotFoundError:
        return None


def read_markers(
    folder: Path, shards: Sequence[tuple[SideName, int]]
) -> dict[tuple[SideName, int], Marker | StoreError | None]:
    """The markers of many shards at once: broken ones as their error, None where there is none.

    Args:
        folder: The store's.
        shards: (side, number) of each.

    Raises:
        UnreachableError: The store's host does not answer.
    """
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
    """A marker from its file's bytes.

    Args:
        data: The bytes.
        path: The file, for messages.
        side: Whose shard.
        shard: Its number, from 0.

    Raises:
        StoreError: The bytes are no marker, were changed, or are another shard's.
    """
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
