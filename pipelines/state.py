"""What a pipeline remembers beside stores and runs: a folder of its own, RUNS/pipelines/NAME.

    lock            who drives it now
    tasks.jsonl     how each task ended, for estimates, `status` and `--retry-failed`
    logs/           what the work said, a file a job
    submitted.json  the batch jobs of `submit`; scripts/ holds their scripts

Stores and runs say what is done. Losing this folder loses no work.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hada.extract.common import atomic
from hada.extract.common.errors import HadaError

BEAT_S = 30.0
# A driver on another machine that has not been heard of for so long is gone.
SILENT_S = 300.0


class BusyError(HadaError):
    """Another process drives the same pipeline. Exit code 4."""

    exit_code = 4


class Folder:
    """The state of one pipeline; nothing is made until something is written."""

    def __init__(self, runs: str | Path, name: str) -> None:
        self.path = Path(runs).absolute() / "pipelines" / name

    @property
    def lock_file(self) -> Path:
        """Who drives the pipeline."""
        return self.path / "lock"

    def log(self, key: str) -> Path:
        """Where the work of a job says what it has to say."""
        return self.path / "logs" / f"{key.replace('/', '-')}.log"

    def record(self, outcome: dict[str, Any]) -> None:
        """Add how a task ended."""
        atomic.make_folder(self.path)
        kept = {k: v for k, v in outcome.items() if v != "" and v != -1 and v is not False}
        # Many processes add to the file.
        line = json.dumps({**kept, "at": round(time.time(), 1)})
        atomic.append_line(self.path / "tasks.jsonl", line)

    def records(self) -> Iterator[dict[str, Any]]:
        """All records, oldest first; a line that was cut short is left out."""
        file = self.path / "tasks.jsonl"
        if not file.exists():
            return
        with file.open("rb") as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    if isinstance(record, dict) and "key" in record:
                        yield record

    def failures(self) -> dict[tuple[str, str, int], dict[str, Any]]:
        """(key, side, shard) -> record, of the tasks that failed when they were last tried."""
        last = {task_id(record): record for record in self.records()}
        return {key: record for key, record in last.items() if record["status"] == "failed"}

    def rates(self) -> dict[str, float]:
        """Median seconds of a task, by `rate_key`, as far as it was ever measured."""
        seconds: dict[str, list[float]] = defaultdict(list)
        for record in self.records():
            if record["status"] == "done" and "seconds" in record:
                seconds[rate_key(record["key"], record.get("side", ""))].append(record["seconds"])
        return {key: statistics.median(values) for key, values in seconds.items()}


def task_id(record: dict[str, Any]) -> tuple[str, str, int]:
    """What names a task in a record or an outcome."""
    return record["key"], record.get("side", ""), record.get("shard", -1)


def rate_key(key: str, side: str) -> str:
    """Tasks of one kind take about as long: shards of a model, trainings, evaluations.

    >>> rate_key("extract/coco/train/blip@view1", "image")
    'extract/blip/image'
    >>> rate_key("train/coco/blip+clip-fast-s0", "")
    'train'
    """
    stage, _, rest = key.partition("/")
    if stage != "extract":
        return stage
    return f"{stage}/{rest.rpartition('/')[2].partition('@')[0]}/{side}"


@contextlib.contextmanager
def driving(folder: Folder) -> Iterator[None]:
    """Be the only one who drives a pipeline.

    The lock names host, process and its start, and is renewed twice a minute: it also works where
    a network file system knows no locks, and one that a killed driver left is recognised.

    Raises `BusyError`, naming the holder.
    """
    atomic.make_folder(folder.path)
    atomic.remove_leftovers(folder.lock_file)
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
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
        if _read(folder.lock_file) == mine:
            folder.lock_file.unlink(missing_ok=True)


def holder(folder: Folder) -> str | None:
    """Who drives the pipeline now, in words; None where nobody does."""
    found = _read(folder.lock_file)
    return None if found is None or _is_stale(folder.lock_file, found) else _words(found)


def _take(file: Path, mine: dict[str, Any]) -> None:
    for _ in range(3):
        # A link is made whole, with its content, or not at all; an empty lock tells nobody who.
        temporary = atomic.temporary_name(file)
        atomic.write_new(temporary, json.dumps(mine).encode())
        try:
            os.link(temporary, file)
        except FileExistsError:
            found = _read(file)
            if found is not None and not _is_stale(file, found):
                raise BusyError(
                    f"{_words(found)} drives this pipeline. Wait for it or stop it; if it is "
                    f"certainly gone, delete {file}"
                ) from None
            # Renamed, not deleted: of two who find a stale lock only one can rename it.
            with contextlib.suppress(FileNotFoundError):
                stale = atomic.temporary_name(file.with_name(f"{file.name}-stale"))
                file.rename(stale)
                if _read(stale) != found:  # somebody was faster, and this is theirs
                    with contextlib.suppress(FileExistsError):
                        os.link(stale, file)
                stale.unlink()
            continue
        finally:
            temporary.unlink(missing_ok=True)
        return
    raise BusyError(f"{file}: cannot be taken; is another process starting?")


def _is_stale(file: Path, found: dict[str, Any]) -> bool:
    if found.get("host") == socket.gethostname():
        return _started(int(found.get("pid", 0))) != found.get("started")
    try:
        return time.time() - file.stat().st_mtime > SILENT_S
    except FileNotFoundError:
        return True


def _words(found: dict[str, Any]) -> str:
    return f"process {found.get('pid')} on {found.get('host')}"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


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
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"
