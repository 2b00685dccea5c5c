"""One writer per shard: a lock that ends with its process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from hada.extract.common import remote
from hada.extract.spec import SideName
from hada.extract.store.commit import COMMIT


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
