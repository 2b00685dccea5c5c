"""A file of a store, open for reading: by calls of the system, or as memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any


class OpenFile:
    """A read-only descriptor that closes with its last user, so that threads may share it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.identity = identity(os.fstat(self.descriptor))
        self._pages: memoryview | None = None

    def pages(self) -> memoryview:
        """The file as memory. Raises `OSError` where it has been cut since it was opened.

        Reading what is cut off would end the process, so this is asked before every batch.
        """
        size = os.fstat(self.descriptor).st_size
        if size < self.identity[1]:
            raise OSError(f"the file was cut to {size} bytes")
        if self._pages is None:
            self._pages = memoryview(mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ))
        return self._pages

    def __del__(self) -> None:
        descriptor = getattr(self, "descriptor", None)
        if descriptor is not None:
            os.close(descriptor)


def identity(status: os.stat_result) -> tuple[int, int, int]:
    """What tells a replaced file from the one that was there: inode, size, time of change."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def read_pieces(file: OpenFile, pieces: list[Any], offset: int) -> None:
    """Fill pieces one after the other; a read of the system may return less than asked.

    Args:
        file: The open file.
        pieces: Writable buffers of bytes.
        offset: Where in the file the first piece begins.

    Raises:
        OSError: The file ends before the pieces are full.
    """
    wanted = sum(map(len, pieces))
    got = os.preadv(file.descriptor, pieces, offset)
    while got < wanted:
        skip = got
        rest: list[Any] = []
        for piece in pieces:
            if skip < len(piece):
                rest.append(piece[skip:])
            skip = max(0, skip - len(piece))
        more = os.preadv(file.descriptor, rest, offset + got)
        if more == 0:
            raise OSError(f"the file ends {wanted - got} bytes early")
        got += more
