"""A new file that takes all that it is given, or remembers that it could not."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# One call takes at most 2 GiB.
_MOST_BYTES = 1 << 30
_MOST_PIECES = 512
# After so many bytes the disk is told to begin, and works while the next ones are made.
_BEGIN_BYTES = 1 << 23
_START = 2  # SYNC_FILE_RANGE_WRITE


def _starter() -> Callable[[int, int, int, int], object] | None:
    """Linux's sync_file_range, which Python lacks; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        start: Any = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    start.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return start  # type: ignore[no-any-return]


_start_writing = _starter()


def named(error: BaseException, path: Path) -> None:
    """Give a system call's error the file's name, which calls on descriptors do not know."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = str(path)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of what is done to the file `path` by its descriptor have its name."""
    try:
        yield
    except OSError as error:
        named(error, path)
        raise


class Sink(io.RawIOBase):
    """A new file that takes all that it is given, or remembers that it could not.

    Libraries write into it as into any file object. What they make of an error (HDF5 loses it
    where a file is closed by its last user) does not matter: `check` and `sync` raise the first
    one, and `hada.extract.common.atomic` renames no file before that.

    Args:
        path: Where; a file that is there is cut to nothing.
        silent: Keep errors for `check` and `sync` alone. For a library that must not see one:
            HDF5 cannot close a file that it failed to write, and crashes when the process ends.
    """

    def __init__(self, path: Path, *, silent: bool = False) -> None:
        super().__init__()
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)
        self._path, self._silent, self._error = path, silent, None
        self._position = self._end = self._begun = 0

    _error: BaseException | None

    def write_all(self, pieces: Sequence[Any]) -> None:
        """Write pieces of bytes, one after the other. Raises `OSError`."""
        rest = [memoryview(piece).cast("B") for piece in pieces]
        try:
            while rest:
                # One call may take less than it is given.
                done = os.pwritev(self._descriptor, rest[:_MOST_PIECES], self._position)
                self._position += done
                while rest and done >= len(rest[0]):
                    done -= len(rest.pop(0))
                if rest:
                    rest[0] = rest[0][done:]
        except BaseException as error:
            self._keep(error)
            raise
        finally:
            self._end = max(self._end, self._position)
        self._begin()

    def _begin(self) -> None:
        """Let the disk begin with what it was not told of yet, which `sync` then need not wait for.

        This is a hint: what it returns does not matter, and errors of the disk are kept for `sync`.
        """
        fresh = self._end - self._begun
        if _start_writing is not None and fresh >= _BEGIN_BYTES:
            _start_writing(self._descriptor, self._begun, fresh, _START)
            self._begun = self._end

    def write(self, data: Any) -> int:
        """All of `data`, at the file's position."""
        whole = memoryview(data).cast("B")
        place = self._position
        try:
            if self._error is None:
                for start in range(0, len(whole), _MOST_BYTES):
                    self.write_all([whole[start : start + _MOST_BYTES]])
        except BaseException:
            if not self._silent:
                raise
        self._position = place + len(whole)
        self._end = max(self._end, self._position)
        return len(whole)

    def readinto(self, buffer: Any) -> int:
        """Read back what was written, which HDF5 may ask for; 0 at the end."""
        try:
            done = os.preadv(self._descriptor, [buffer], self._position)
        except BaseException as error:
            self._keep(error)
            if not self._silent:
                raise
            return 0
        self._position += done
        return done

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position.

        Args:
            offset: Bytes from where `whence` says.
            whence: One of `os.SEEK_SET`, `SEEK_CUR` and `SEEK_END`.

        Returns:
            The new position.
        """
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = start + offset
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Make the file this long."""
        wanted = self._position if size is None else size
        try:
            os.ftruncate(self._descriptor, wanted)
        except BaseException as error:
            self._keep(error)
            if not self._silent:
                raise
        self._end = wanted
        return wanted

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def _keep(self, error: BaseException) -> None:
        named(error, self._path)
        self._error = self._error or error

    def check(self) -> None:
        """Raise the first error, whoever has swallowed it."""
        if self._error is not None:
            raise self._error

    def sync(self) -> None:
        """Bring everything to the disk, and raise where something did not get there."""
        self.check()
        # Of the descriptor that wrote: another one need not be told what went wrong.
        with naming(self._path):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close; raises where the system tells only now that it could not write (NFS)."""
        descriptor, self._descriptor = self._descriptor, -1
        super().close()
        if descriptor >= 0:
            # Linux has closed it even where a signal came between: a second call would be wrong.
            with contextlib.suppress(InterruptedError), naming(self._path):
                os.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self.close()
