"""Files that exist whole or not at all: written beside, synced, closed, renamed.

Everything that HADA leaves on a disk goes through here. A process that dies at any moment leaves
either the old file or the new one, and at worst a `*.tmp-<pid>-<host>` beside it, which
`remove_leftovers` clears away. Behind a URL a file is written locally and put there in one piece,
which object stores show whole or not at all.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hada.extract.common import remote
from hada.extract.common.errors import UsageError

TEMPORARY = ".tmp-"
# What a process of another machine left: nobody there can be asked whether it still lives.
ABANDONED_AFTER_S = 3600.0
_OWNER = re.compile(r"\.tmp-(\d+)(?:-(.*))?$")
# One call takes at most 2 GiB.
_MOST_BYTES = 1 << 30
_MOST_PIECES = 512


class Sink(io.RawIOBase):
    """A new file that takes all that it is given, or remembers that it could not.

    Libraries write into it as into any file object. What they make of an error (HDF5 loses it
    where a file is closed by its last user) does not matter: `finish` raises the first one, and a
    file that is not finished is never put in its place.

    Args:
        path: Where; a file that is there is cut to nothing.
        silent: Keep errors for `finish` alone. For a library that must not see one: HDF5 cannot
            close a file that it failed to write, and crashes with it when the process ends.
    """

    def __init__(self, path: Path, *, silent: bool = False) -> None:
        super().__init__()
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)
        self._silent, self._error = silent, None
        self._position = self._end = 0

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
            self._error = self._error or error
            raise
        finally:
            self._end = max(self._end, self._position)

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
            self._error = self._error or error
            if not self._silent:
                raise
            return 0
        self._position += done
        return done

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = start + offset
        return self._position

    def truncate(self, size: int | None = None) -> int:
        """Make the file this long."""
        wanted = self._position if size is None else size
        try:
            os.ftruncate(self._descriptor, wanted)
        except BaseException as error:
            self._error = self._error or error
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

    def check(self) -> None:
        """Raise the first error, whoever has swallowed it."""
        if self._error is not None:
            raise self._error

    def sync(self) -> None:
        """Bring everything to the disk, and raise where something did not get there."""
        self.check()
        # Of the descriptor that wrote: another one need not be told what went wrong.
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close; raises where the system tells only now that it could not write (NFS)."""
        descriptor, self._descriptor = self._descriptor, -1
        super().close()
        if descriptor >= 0:
            # Linux has closed it even where a signal came between: a second call would be wrong.
            with contextlib.suppress(InterruptedError):
                os.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self.close()


@contextlib.contextmanager
def writing(path: Path, *, silent: bool = False, tidy: bool = True) -> Iterator[Sink]:
    """Yield a `Sink` that becomes the file `path` if all goes well: synced, closed, renamed.

    On any exception the new file is deleted and `path` stays as it was.

    Args:
        path: The file; missing folders above it are made.
        silent: See `Sink`.
        tidy: Delete what killed processes left beside it; one listing of its folder.
    """
    if remote.is_remote(path):
        with remote.uploading(path) as local, _opened(local, silent) as sink:
            yield sink
            sink.check()
        return
    make_folder(path.parent)
    if tidy:
        remove_leftovers(path)
    temporary = temporary_name(path)
    try:
        with _opened(temporary, silent) as sink:
            yield sink
            sink.sync()
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@contextlib.contextmanager
def _opened(path: Path, silent: bool) -> Iterator[Sink]:
    sink = Sink(path, silent=silent)
    try:
        yield sink
    except BaseException:
        with contextlib.suppress(OSError):
            sink.close()
        raise
    sink.close()


def write_bytes(path: Path, data: bytes, *, tidy: bool = True) -> None:
    """Write `data` to `path` atomically; `tidy` as for `writing`."""
    if remote.is_remote(path):
        remote.put_bytes(path, data)
        return
    with writing(path, tidy=tidy) as sink:
        sink.write(data)


def write_json(path: Path, value: Any, *, tidy: bool = True) -> None:
    """Write `value` as JSON, keys sorted, atomically; `tidy` as for `writing`."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode(), tidy=tidy)


def write_new(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file of a folder that is itself made beside its place and renamed.

    Args:
        path: In a folder that nobody else knows yet.
        data: Its bytes.
        durable: Sync it; False for many files whose sizes are checked before they are used.
    """
    with _opened(path, False) as sink:
        sink.write(data)
        if durable:
            sink.sync()


def append_line(path: Path, line: str) -> None:
    """Add one line to a file that other processes add to as well; synced.

    The line goes out in one call. Where the system took a part of it, or a killed process left
    half a line, the new one starts afresh: readers skip what is no whole line.
    """
    data = line.encode() + b"\n"
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        done = os.write(descriptor, data)
        while done < len(data):
            data = b"\n" + data.lstrip(b"\n")
            done = os.write(descriptor, data)
            if not done:
                raise OSError(f"{path}: takes no more bytes")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are missing.

    Raises `UsageError` where something else has its name: a file, or a link to nowhere.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(not_a_folder(path)) from error


def put_folder(made: Path, folder: Path) -> None:
    """Rename the finished folder `made` to `folder`; what is there goes, or stays if that fails."""
    if not folder.exists():
        os.replace(made, folder)
    else:
        hidden = folder.with_name(f".{folder.name}.old")
        remove_leftovers(hidden)
        old = temporary_name(hidden)
        os.replace(folder, old)
        try:
            os.replace(made, folder)
        except BaseException:
            os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    sync(folder.parent)


def not_a_folder(path: Path) -> str:
    """Why `path` can be no folder: one line that names what is in its way."""
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            return (
                f"{part}: a link to {os.readlink(part)}, which is not there. Make that folder, "
                "or remove the link."
            )
        if part.exists() and not part.is_dir():
            return f"{part}: a file, expected a folder. Move it away, or choose another place."
    return f"{path}: cannot be made a folder. Choose another place."


def temporary_name(path: Path) -> Path:
    """Where this process writes what will be `path`."""
    return path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}-{socket.gethostname()}")


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is not finished, or was left by a killed process."""
    return TEMPORARY in name


def is_left_over(path: Path) -> bool:
    """Whether the process that was writing a temporary file or folder is gone.

    Of another machine nobody knows: it is, where nothing changed for an hour.
    """
    found = _OWNER.search(path.name)
    if found is None:
        return False
    host, here = found.group(2), socket.gethostname()
    if host in (None, here) and not _alive(int(found.group(1))):
        return True
    if host == here:
        return False
    try:
        return time.time() - path.lstat().st_mtime > ABANDONED_AFTER_S
    except OSError:
        return False


def leftovers(path: Path) -> list[Path]:
    """What killed processes left beside `path` that was to become it."""
    prefix = f"{path.name}{TEMPORARY}"
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(prefix)]
    except OSError:
        return []
    return [found for name in sorted(names) if is_left_over(found := path.with_name(name))]


def remove_leftovers(path: Path) -> None:
    """Delete the files and folders of `leftovers`, as far as that is allowed."""
    for found in leftovers(path):
        if found.is_dir() and not found.is_symlink():
            shutil.rmtree(found, ignore_errors=True)
            continue
        with contextlib.suppress(OSError):
            found.unlink()


def _alive(pid: int) -> bool:
    if pid == os.getpid() or os.name != "posix":
        return True  # signal 0 is no harmless question elsewhere
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def sync_all(folder: Path) -> None:
    """Bring a folder to the disk that a library filled, with all that is in it."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def sync(path: Path) -> None:
    """Bring a file, or a folder's entries, to the disk; behind a URL there is none."""
    if remote.is_remote(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
