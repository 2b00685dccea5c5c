"""The seal of a finished store: one record over the digests of all its markers.

A marker binds a shard to its store and place, but an older marker of the same store, put back with
its older shard, fits as well. So whoever finishes a store writes `commit/seal.json`, always the
same bytes for the same markers, so that it does not matter who does it, or how many at once.

A shard that is written again leaves `commit/SIDE-NUMBER.open` before its new marker, and only
such a shard may differ from the seal, until the store is finished again and sealed anew. A process
that is killed in between leaves a store that is whole but for its seal; readers open it, `verify`
says so, and the next extraction seals it. A marker that differs and has no such file was not
written by us after the sealing: readers refuse it, and extraction writes its shard anew.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hada.extract.common import atomic, remote
from hada.extract.common.errors import StoreError
from hada.extract.spec import SIDES, SideName
from hada.extract.store import digests
from hada.extract.store.commit import COMMIT, Marker
from hada.extract.store.damage import Fault

FILE = "seal.json"
OPEN = ".open"
# A store that nobody may write stays as it is.
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

Markers = Mapping[tuple[SideName, int], Marker | StoreError | None]


@dataclass(frozen=True)
class Seal:
    """root: of the store. markers: per side the digest of each shard's marker."""

    root: str
    markers: dict[SideName, list[str]]

    def of(self, side: SideName, shard: int) -> str | None:
        """What was sealed as the marker of a shard, None where there was no such shard."""
        there = self.markers[side]
        return there[shard] if 0 <= shard < len(there) else None


def read(folder: Path) -> Seal | None:
    """The seal of a store, None where there is none. Raises `StoreError` where it is damaged."""
    path = folder / COMMIT / FILE
    try:
        raw = json.loads(remote.read_bytes(path))
        body = {key: value for key, value in raw.items() if key != "digest"}
        if digests.of_json(body) != raw["digest"]:
            raise ValueError("it was changed: another digest")
        markers = {side: [str(digest) for digest in raw["markers"][side]] for side in SIDES}
        return Seal(str(raw["root"]), markers)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"{path}: cannot be read ({error}). `hada-store repair {folder}` removes it, and "
            "extracting again writes it anew"
        ) from error


def _body(root: str, markers: Markers) -> dict[str, Any]:
    listed: dict[str, list[str]] = {side: [] for side in SIDES}
    for (side, _), marker in sorted(markers.items(), key=lambda item: item[0]):
        assert isinstance(marker, Marker)
        listed[side].append(marker.digest)
    return {"root": root, "markers": listed}


def faults(
    folder: Path, root: str, markers: Markers
) -> tuple[bool, dict[tuple[SideName, int], Fault]]:
    """Whether a store is sealed as it is, and the shards that are not those that were sealed.

    Args:
        folder: The store's.
        root: Of the store, as its record has it.
        markers: Of all its shards, as `read_markers` gives them.

    Returns:
        (sealed as it is, (side, shard) -> what is wrong with its marker).

    Raises:
        StoreError: The seal is damaged, or another store's.
    """
    seal = read(folder)
    if seal is None:
        return False, {}
    _check_root(folder, seal, root)
    sealed = all(
        len(seal.markers[side]) == sum(key[0] == side for key in markers) for side in SIDES
    )
    found = {}
    for (side, shard), marker in markers.items():
        if not isinstance(marker, Marker) or marker.digest == seal.of(side, shard):
            continue
        sealed = False
        if not _open_path(folder, side, shard).exists():
            found[side, shard] = Fault(
                "its marker is not the one that was sealed: edited, or of an older version",
                "foreign",
            )
    return sealed, found


def _check_root(folder: Path, seal: Seal, root: str) -> None:
    if seal.root != root:
        raise StoreError(
            f"{folder / COMMIT / FILE}: it is the seal of another store. "
            f"`hada-store repair {folder}` removes it, and extracting again writes it anew"
        )


def _open_path(folder: Path, side: SideName, shard: int) -> Path:
    return folder / COMMIT / f"{side}-{shard:06d}{OPEN}"


def open_shard(folder: Path, side: SideName, shard: int) -> None:
    """Before a shard of a sealed store is written again: its marker may differ from now on."""
    atomic.write_bytes(_open_path(folder, side, shard), b"")


def write(
    folder: Path, root: str, read_markers: Callable[[], Markers], mine: set[tuple[SideName, int]]
) -> bool:
    """Seal a complete store.

    Args:
        folder: The store's.
        root: Of the store, as its record has it.
        read_markers: Gives the markers of all shards as they are now.
        mine: The shards that this process wrote.

    Returns:
        Whether it is sealed now: not where a shard is missing, or differs from the old seal though
        it is none of `mine` and nobody wrote it again.

    Raises:
        StoreError: The seal is damaged, or a marker cannot be read.
    """
    # Asked for before the markers: a shard that is opened after this stays open.
    opened = _opened(folder)
    markers = read_markers()
    for marker in markers.values():
        if isinstance(marker, StoreError):
            raise marker  # one that cannot be read is not one that is not there yet
    if not root or not all(isinstance(marker, Marker) for marker in markers.values()):
        return False
    sealed, strange = faults(folder, root, markers)
    if strange.keys() - mine:
        return False
    try:
        if not sealed:
            body = _body(root, markers)
            record = body | {"digest": digests.of_json(body)}
            atomic.write_bytes(folder / COMMIT / FILE, digests.canonical(record) + b"\n")
        for path in opened:
            path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        return False
    return True


def _opened(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return [path for path in (folder / COMMIT).iterdir() if path.name.endswith(OPEN)]
    return []


def remove(folder: Path) -> None:
    """Delete a seal that is damaged or another store's."""
    (folder / COMMIT / FILE).unlink(missing_ok=True)
    atomic.sync(folder / COMMIT)
