"""Files that exist whole or not at all: written beside, synced, renamed.

A process that dies at any moment leaves either the old file or the new one, and at worst a
`*.tmp-<pid>` file, which `remove_leftovers` clears away. Behind a URL a file is written locally
and put there in one piece, which object stores show whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hada.extract.common import remote

TEMPORARY = ".tmp-"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed onto `path`.

    On any exception the temporary file is deleted and `path` stays as it was.
    """
    if remote.is_remote(path):
        with remote.uploading(path) as temporary:
            yield temporary
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    if remote.is_remote(path):
        remote.put_bytes(path, data)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, keys sorted, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def sync(path: Path) -> None:
    """Flush a file's data, or a folder's entries, to the disk; behind a URL there is none."""
    if remote.is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
