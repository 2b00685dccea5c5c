"""`hada-pipeline work`: one batch job's share of a pipeline, without a driver.

SIGTERM, which Slurm sends before the time limit, lets the shard that is being written end; then
the job goes back into the queue. A training stops at once: it goes on from its last checkpoint.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, TypedDict

from hada.extract.common.console import say
from hada.extract.common.documents import LARGE_BYTES, read_json
from hada.extract.common.errors import UsageError, unknown
from hada.extract.common.shapes import conform
from hada.extract.spec import SIDES
from hada.pipelines.execution import slurm
from hada.pipelines.execution.worker import FINISH, run_task
from hada.pipelines.state import Folder
from hada.pipelines.study.jobs import ExtractJob, Job, from_json, to_json
from hada.pipelines.study.survey import survey_store

RETRIES = 2
STOPPED = 128 + signal.SIGTERM


class Entry(TypedDict):
    """A job of the file: see `hada.pipelines.execution.slurm.submit`."""

    job: dict[str, Any]
    pending: dict[str, list[int]]
    parts: int
    threads: int


class _StopError(BaseException):
    """SIGTERM in work that cannot be finished soon."""


class _Stop:
    """Whether SIGTERM has come; `at_once` raises where it does."""

    def __init__(self, *, at_once: bool) -> None:
        self.heard, self._at_once = False, at_once
        signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, _number: int, _frame: Any) -> None:
        # Requeuing sends it once more.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.heard = True
        say("SIGTERM: the shard that is being written is finished, no other is begun")
        if self._at_once:
            raise _StopError


def work(file: Path, key: str, part: int) -> int:
    """Do a job, or part `part` of an extraction.

    Args:
        file: The jobs' file that `hada-pipeline submit` wrote.
        key: Of the job.
        part: The number of the array element, from 0; only an extraction has several.

    Returns:
        0 when it is done, 1 when some of it failed, 143 when SIGTERM came.
    """
    remedy = "`hada-pipeline submit` writes it: submit again"
    entries: dict[str, Any] = conform(
        read_json(file, UsageError, most=LARGE_BYTES, remedy=remedy),
        dict[str, Any],
        str(file),
        UsageError,
        remedy,
    )
    if key not in entries:
        raise unknown(f"job of {file}", key, entries)
    where = f"{file}, {key}"
    conform(entries[key], Entry, where, UsageError, remedy)
    job = from_json(entries[key]["job"], where, remedy)
    file = file.absolute()
    if file.parent.parent.name != "pipelines":
        raise UsageError(f"{file}: expected RUNS/pipelines/NAME/{file.name}. {remedy}")
    folder = Folder(file.parent.parent.parent, file.parent.name)
    stop = _Stop(at_once=not isinstance(job, ExtractJob))
    try:
        failed = _do(job, entries[key], part, folder, stop)
    except _StopError:
        failed = False
    if stop.heard:
        again = slurm.requeue()
        say("back into the queue" if again else "stopped; the same command continues")
        return STOPPED
    return int(failed)


def _do(job: Job, entry: dict[str, Any], part: int, folder: Folder, stop: _Stop) -> bool:
    """Whether something failed."""
    if not isinstance(job, ExtractJob):
        return not _attempt({"job": to_json(job)}, folder)
    common = {"job": to_json(job), "threads": entry["threads"]}
    shards = [(side, shard) for side in SIDES for shard in entry["pending"].get(side, [])]
    failed = False
    for side, shard in shards[part :: entry["parts"]]:
        if stop.heard:
            return failed
        failed |= not _attempt({**common, "side": side, "shard": shard}, folder)
    # Whoever finds all shards there does what follows the last one; it may be done twice.
    state = survey_store(job)
    if state.done == state.total and not stop.heard:
        failed |= not _attempt({**common, "side": FINISH, "shard": -1}, folder)
    return failed


def _attempt(task: dict[str, Any], folder: Folder) -> bool:
    outcome: dict[str, Any] = {}
    for _ in range(RETRIES + 1):
        outcome = run_task(task)
        if outcome["status"] != "failed" or outcome["wrong"]:
            break
        say(outcome["trace"], lines=True)
    folder.record(outcome)
    name = " ".join(str(outcome[k]) for k in ("key", "side", "shard") if outcome[k] not in ("", -1))
    say(f"{name}: {outcome['status']} in {outcome['seconds']:.1f} s {outcome['error']}".rstrip())
    # What another process is writing will be there: it is not this job's failure.
    return bool(outcome["status"] != "failed")
