"""The lock of a pipeline: its driver, and when a lock has expired.

A lock is stale, and is taken over, when

* its host is this machine and no process of its number and start runs here, or
* its host is another one and it has not been renewed for five minutes, by the clock of the file
  system it lies on; a driver renews it twice a minute. A time of more than five minutes in the
  future is no driver's renewal either, and stale too;
* it is no lock at all (damaged, or another program's) and has not been touched for five minutes.

Every other lock is left alone, and the error names the holder and what to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from hada.extract.common import atomic
from hada.extract.common.documents import read_json
from hada.extract.common.errors import HadaError
from hada.extract.common.shapes import conform
from hada.pipelines.state import Folder, private_folder

BEAT_S = 30.0
# A driver on another machine that has not been heard of for so long is gone.
SILENT_S = 300.0
MOST_BYTES = 4096


class BusyError(HadaError):
    """Another process drives the same pipeline. Exit code 4."""

    exit_code = 4


class Holder(TypedDict):
    """A lock's content. `started` tells a process from a later one of the same number."""

    host: str
    pid: int
    started: str | None


class _DamagedError(HadaError):
    """No lock that a driver wrote."""


@contextlib.contextmanager
def driving(folder: Folder) -> Iterator[None]:
    """Be the only one who drives a pipeline.

    The lock names host, process and its start, and is renewed twice a minute: it also works where
    a network file system knows no locks, and one that a killed driver left is recognised.

    Raises `BusyError`, naming the holder.
    """
    private_folder(folder.path)
    atomic.remove_leftovers(folder.lock_file)
    mine: Holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }
    _take(folder.lock_file, mine)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(folder.lock_file)

    thread = threading.Thread(target=beat, daemon=True, name="lock")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(_DamagedError):
            if _read(folder.lock_file) == mine:
                folder.lock_file.unlink(missing_ok=True)


def holder(folder: Folder) -> str | None:
    """Who drives the pipeline now, in words; None where nobody does."""
    try:
        record = _read(folder.lock_file)
    except _DamagedError:
        return f"somebody whose lock is damaged: {folder.lock_file}"
    if record is None or _is_stale(folder.lock_file, record, time.time()):
        return None
    return _words(record)


def _take(file: Path, mine: Holder) -> None:
    for _ in range(3):
        # A link is made whole, with its content, or not at all; an empty lock tells nobody who.
        temporary = atomic.temporary_name(file)
        atomic.write_new(temporary, json.dumps(mine).encode())
        temporary.chmod(0o600)
        # The file system's own clock: that of another machine may be wrong.
        now = temporary.stat().st_mtime
        try:
            os.link(temporary, file)
        except FileExistsError:
            _clear(file, now)
            continue
        finally:
            temporary.unlink(missing_ok=True)
        return
    raise BusyError(
        f"{file}: cannot be taken; is another process starting? If none is, delete {file}"
    )


def _clear(file: Path, now: float) -> None:
    """Take a stale lock away; raises `BusyError` where it is not stale."""
    try:
        record = _read(file)
    except _DamagedError as damage:
        if not _silent(file, now):
            raise BusyError(
                f"{damage}. If no process drives this pipeline, delete {file}"
            ) from None
        record = None
    else:
        if record is None:
            return
        if not _is_stale(file, record, now):
            raise BusyError(
                f"{_words(record)} drives this pipeline. Wait for it or stop it; if it is "
                f"certainly gone, delete {file}"
            )
    # Renamed, not deleted: of two who find a stale lock only one can rename it.
    with contextlib.suppress(FileNotFoundError):
        stale = atomic.temporary_name(file.with_name(f"{file.name}-stale"))
        file.rename(stale)
        with contextlib.suppress(_DamagedError):
            if _read(stale) != record:  # somebody was faster, and this is theirs
                with contextlib.suppress(FileExistsError):
                    os.link(stale, file)
        stale.unlink()


def _is_stale(file: Path, record: Holder, now: float) -> bool:
    if record["host"] == socket.gethostname():
        began = _started(record["pid"])
        return began is None or began != record["started"]
    return _silent(file, now)


def _silent(file: Path, now: float) -> bool:
    try:
        return abs(now - file.lstat().st_mtime) > SILENT_S
    except FileNotFoundError:
        return True


def _words(record: Holder) -> str:
    return f"process {record['pid']} on {record['host']}"


def _read(file: Path) -> Holder | None:
    """Who holds a lock; None where there is none. Raises `_DamagedError`."""
    if not os.path.lexists(file):
        return None
    if not file.is_file() or file.is_symlink():
        raise _DamagedError(f"{file}: expected a file, this is none")
    try:
        value: Any = read_json(file, _DamagedError, most=MOST_BYTES)
    except _DamagedError:
        if not file.exists():  # gone meanwhile
            return None
        raise
    return conform(value, Holder, str(file), _DamagedError)


def _started(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks; None where it is gone.

    A process number is used again, number and start together are not.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc/self").exists() else _running(pid)
    return None if fields[0] == "Z" else fields[19]


def _running(pid: int) -> str | None:
    """Where there is no /proc: whether a process with this number runs."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    return "running"
