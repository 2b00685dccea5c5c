"""Files that exist whole or not at all: written beside, synced, closed, renamed.

Everything that HADA leaves on a disk goes through here. A process that dies at any moment leaves
either the old file or the new one, and at worst a `*.tmp-<pid>-<host>` beside it, which
`remove_leftovers` clears away. Behind a URL a file is written locally and put there in one piece,
which object stores show whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hada.extract.common import remote
from hada.extract.common.errors import UsageError
from hada.extract.common.sink import Sink, naming

TEMPORARY = ".tmp-"
# What a process of another machine left: nobody there can be asked whether it still lives.
ABANDONED_AFTER_S = 3600.0
_OWNER = re.compile(r"\.tmp-(\d+)(?:-(.*))?$")


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
    """Write `data` to `path` atomically.

    Args:
        path: A local path or a URL; missing folders are made.
        data: All of the new content.
        tidy: As for `writing`.
    """
    if remote.is_remote(path):
        remote.put_bytes(path, data)
        return
    with writing(path, tidy=tidy) as sink:
        sink.write(data)


def write_json(path: Path, value: Any, *, tidy: bool = True) -> None:
    """Write `value` as JSON, keys sorted, atomically.

    Args:
        path: A local path or a URL; missing folders are made.
        value: What `json.dumps` takes.
        tidy: As for `writing`.
    """
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

    Args:
        path: A local file in a folder that is there.
        line: Without its line break.

    Raises:
        OSError: The file takes no more bytes, or cannot be opened.
    """
    data = line.encode() + b"\n"
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        with naming(path):
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
    """Rename the finished folder `made` to `folder`; what is there goes, or stays if that fails.

    Args:
        made: The finished folder, on the same file system as `folder`.
        folder: Its final place.
    """
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
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
