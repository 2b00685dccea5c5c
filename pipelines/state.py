"""The state of a pipeline beside stores and runs: the folder RUNS/pipelines/NAME.

    lock            who drives it now
    tasks.jsonl     how each task ended, for estimates, `status` and `--retry-failed`
    logs/           what the work said, a file a job
    submitted.json  the batch jobs of `submit`; scripts/ holds their scripts
    credentials/    while batch jobs work: the keys of this run's scheduler

Stores and runs say what is done. Losing this folder loses no work. Nobody but its user may enter
it: what lies in it says what workers run.
"""

from __future__ import annotations

import json
import math
import os
import stat
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hada.extract.common import atomic
from hada.extract.common.console import say
from hada.extract.common.errors import HadaError

RECORDS = "tasks.jsonl"
# Longer lines are no records: an error's text is cut before.
MOST_LINE = 2**16
MOST_ERROR = 4096


def private_folder(path: Path) -> None:
    """Make a folder that only its user may enter, or take others' rights away.

    Raises `HadaError` where it belongs to somebody else, who could change what is run from it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.stat()
    except FileExistsError as error:
        raise HadaError(f"{path}: expected a folder; take away what lies there") from error
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid != os.geteuid() and os.geteuid() != 0:
        raise HadaError(
            f"{path}: belongs to another user (uid {status.st_uid}). Give the pipeline another "
            "name, or other runs: --root runs=FOLDER"
        )
    if not stat.S_IMODE(status.st_mode) & 0o077:
        return
    try:
        path.chmod(0o700)
    except OSError as error:
        say(f"warning: {path}: other users may enter it, and that cannot be changed ({error})")


def private_append(path: Path) -> int:
    """Open a file, made for its user alone, to add to it; returns the descriptor."""
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


class Folder:
    """The state of one pipeline; nothing is made until something is written."""

    def __init__(self, runs: str | Path, name: str) -> None:
        self.path = Path(runs).absolute() / "pipelines" / name
        self._told = False

    @property
    def lock_file(self) -> Path:
        """Who drives the pipeline."""
        return self.path / "lock"

    def log(self, key: str) -> Path:
        """Where the work of a job says what it has to say."""
        return self.path / "logs" / f"{key.replace('/', '-')}.log"

    def record(self, outcome: dict[str, Any]) -> None:
        """Add how a task ended."""
        private_folder(self.path)
        kept = {k: v for k, v in outcome.items() if v != "" and v != -1 and v is not False}
        for name in ("error", "trace"):
            if name in kept:
                kept[name] = str(kept[name])[:MOST_ERROR]
        line = json.dumps({**kept, "at": round(time.time(), 1)})
        os.close(private_append(self.path / RECORDS))  # which makes it
        # Many processes add to the file.
        atomic.append_line(self.path / RECORDS, line)

    def records(self) -> Iterator[dict[str, Any]]:
        """All records, oldest first; lines that are none are left out, and told of once."""
        file = self.path / RECORDS
        if not os.path.lexists(file):
            return
        if not file.is_file():
            raise HadaError(f"{file}: expected a file. Take it away: only estimates are lost")
        odd, first = 0, 0
        with file.open("rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MOST_LINE), b""), start=1):
                record = _record(line)
                if record is not None:
                    yield record
                elif line.endswith(b"\n") and line.strip():  # not one that was cut short
                    odd, first = odd + 1, first or number
        if odd and not self._told:
            self._told = True
            say(
                f"{file}: {odd} of its lines are no records of tasks (line {first} for one) and "
                "are left out. Only estimates and --retry-failed read it: delete it to be rid of "
                "them"
            )

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


def _record(line: bytes) -> dict[str, Any] | None:
    """A line of the file, where it is what `Folder.record` writes."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    texts = (value.get("key"), value.get("status"), value.get("side", ""), value.get("error", ""))
    seconds, shard = value.get("seconds", 0.0), value.get("shard", -1)
    fine = all(isinstance(text, str) for text in texts) and type(shard) is int
    # NaN is not below infinity, either.
    return value if fine and type(seconds) in (int, float) and 0 <= seconds < math.inf else None


def task_id(record: dict[str, Any]) -> tuple[str, str, int]:
    """What names a task in a record or an outcome."""
    return record["key"], record.get("side", ""), record.get("shard", -1)


def rate_key(key: str, side: str) -> str:
    """Tasks of one kind take about as long: shards of a model, trainings, evaluations.

    >>> rate_key("extract/coco/train/blip@view1", "image")
    'extract/blip/image'
    >>> rate_key("train/coco/blip+clip-fast-s0", "")
    'train'

    Args:
        key: Of the job.
        side: "image" or "caption" for shards, "" for other jobs.
    """
    stage, _, rest = key.partition("/")
    if stage != "extract":
        return stage
    return f"{stage}/{rest.rpartition('/')[2].partition('@')[0]}/{side}"
