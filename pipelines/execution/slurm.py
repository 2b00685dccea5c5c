"""Plain batch scripts for Slurm, without a driver: write, submit, query, cancel.

Every extraction is an array whose elements share its shards, every training and evaluation a job
that waits for what it needs (`afterok`). The scripts only call `hada-pipeline work`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from hada.extract.common import atomic
from hada.extract.common.documents import read_json
from hada.extract.common.errors import HadaError, UsageError
from hada.extract.common.shapes import conform
from hada.pipelines.lock import BusyError
from hada.pipelines.state import Folder, private_folder
from hada.pipelines.study.config import Cluster, Pipeline
from hada.pipelines.study.jobs import ExtractJob, to_json
from hada.pipelines.study.survey import State

# Before the time limit, for the shard that is being written.
WARNING_S = 120
SUBMITTED, JOBS = "submitted.json", "jobs.json"
UNFINISHED = (
    "PENDING",
    "RUNNING",
    "SUSPENDED",
    "COMPLETING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
)


_ID = re.compile(r"[0-9]{1,19}")


class Submission(TypedDict):
    """What `submit` remembers: when, and key -> Slurm's job id."""

    at: float
    jobs: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Script:
    """One batch job: its text without dependencies, and the keys of the jobs it waits for."""

    key: str
    text: str
    needs: tuple[str, ...]


def scripts(
    pipeline: Pipeline, states: Mapping[str, State], folder: Folder, at_once: int | None
) -> list[Script]:
    """The batch jobs of everything that is not done, in an order in which needs come first.

    Args:
        pipeline: With its cluster's settings.
        states: Key -> how far the job is, needs before what needs them.
        folder: The pipeline's.
        at_once: Elements of one array that may run at the same time; None for all.

    Raises:
        HadaError: Something else lies in a job's place.
    """
    made = []
    waiting = {key for key, state in states.items() if state.condition != "done"}
    for key in waiting:
        if states[key].other:
            raise HadaError(f"{key} differs from what is there: {states[key].other}")
    for key, state in states.items():
        if key in waiting:
            needs = tuple(need for need in state.job.needs if need in waiting)
            text = _text(pipeline, state, folder, at_once)
            made.append(Script(key=key, text=text, needs=needs))
    return made


def parts_of(state: State, cluster: Cluster) -> int:
    """Into how many array elements an extraction is divided."""
    return max(1, min(cluster.elements, sum(map(len, state.pending.values()))))


def _text(pipeline: Pipeline, state: State, folder: Folder, at_once: int | None) -> str:
    cluster, job = pipeline.cluster, state.job
    array = isinstance(job, ExtractJob)
    log = folder.path / "logs" / f"{job.key.replace('/', '-')}-{'%A_%a' if array else '%j'}.out"
    lines = [
        f"--job-name=hada-{pipeline.name}-{job.key.replace('/', '-')}",
        f"--chdir={Path.cwd()}",
        f"--output={log}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:TERM@{_warning(cluster.walltime)}",
        f"--time={cluster.walltime}",
        f"--cpus-per-task={cluster.cores}",
        f"--mem={cluster.memory.removesuffix('B')}",
    ]
    if array:
        most = f"%{at_once}" if at_once else ""
        lines.append(f"--array=0-{parts_of(state, cluster) - 1}{most}")
    lines += [f"--partition={cluster.queue}"] if cluster.queue else []
    lines += [f"--account={cluster.account}"] if cluster.account else []
    lines += [f"--gres=gpu:{cluster.gpus}"] if cluster.gpus else []
    lines += cluster.directives
    part = ' --part "$SLURM_ARRAY_TASK_ID"' if array else ""
    command = shlex.join(
        [sys.executable, "-m", "hada.pipelines", "work", str(folder.path / JOBS), job.key]
    )
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {line}" for line in lines),
            f"export OMP_NUM_THREADS={cluster.cores}",
            *cluster.setup,
            # In the shell's place, so that Slurm's signals arrive.
            f"exec {command}{part}",
            "",
        ]
    )


def _warning(walltime: str) -> int:
    hours, minutes, seconds = map(int, walltime.split(":"))
    return min(WARNING_S, (3600 * hours + 60 * minutes + seconds) // 4)


def submit(
    pipeline: Pipeline, states: Mapping[str, State], folder: Folder, found: Sequence[Script]
) -> dict[str, str]:
    """Write and submit the scripts; returns key -> Slurm's job id.

    Args:
        pipeline: With its cluster's settings.
        states: Key -> how far the job is.
        folder: The pipeline's; scripts and logs are kept there.
        found: What `scripts` gave.

    Raises:
        BusyError: Jobs of an earlier submission are still in the queue.
        HadaError: Slurm refuses one; those before it are cancelled again.
    """
    if running := [key for key, counts in queue(folder).items() if counts]:
        raise BusyError(
            f"{len(running)} batch jobs of this pipeline are in the queue, {running[0]} for one. "
            "Wait for them, or end them: hada-pipeline cancel"
        )
    place = folder.path / "scripts"
    for private in (folder.path, folder.path / "logs", place):
        private_folder(private)
    _write_json(
        folder.path / JOBS,
        {
            key: {
                "job": to_json(state.job),
                "pending": state.pending,
                "parts": parts_of(state, pipeline.cluster),
                "threads": pipeline.cluster.cores,
            }
            for key, state in states.items()
        },
    )
    ids: dict[str, str] = {}
    try:
        for script in found:
            file = place / f"{script.key.replace('/', '-')}.sh"
            atomic.write_bytes(file, script.text.encode())
            file.chmod(0o600)
            ids[script.key] = _sbatch(file, [ids[need] for need in script.needs])
    except BaseException:
        _call("scancel", *ids.values())
        raise
    _write_json(folder.path / SUBMITTED, {"at": time.time(), "jobs": ids})
    return ids


def _write_json(file: Path, value: Any) -> None:
    """For the user alone: batch jobs do what it says."""
    atomic.write_json(file, value)
    file.chmod(0o600)


def _sbatch(file: Path, needs: Sequence[str]) -> str:
    words = ["--parsable"]
    if needs:
        # Without the second, a job whose needs failed would wait for ever.
        words += [f"--dependency=afterok:{':'.join(needs)}", "--kill-on-invalid-dep=yes"]
    done = _call("sbatch", *words, str(file))
    if done.returncode:
        raise HadaError(f"{file}: Slurm refuses it: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]


def submitted(folder: Folder) -> dict[str, str]:
    """Key -> job id of the last submission; empty where there was none.

    Raises `UsageError` where the file is not what `submit` writes.
    """
    file = folder.path / SUBMITTED
    if not os.path.lexists(file):
        return {}
    remedy = "Delete it if none of its jobs are in the queue (squeue --me), then submit again"
    value = read_json(file, UsageError, remedy=remedy)
    found: Submission = conform(value, Submission, str(file), UsageError, remedy)
    jobs = found["jobs"]
    for key, id_ in jobs.items():
        # They become words of Slurm's commands.
        if not _ID.fullmatch(id_):
            raise UsageError(f"{file}: {key!r}: {id_!r} is no number of a job. {remedy}")
    return jobs


def queue(folder: Folder) -> dict[str, Counter[str]]:
    """Key -> how many of a submitted job's elements are in which of Slurm's states."""
    ids = submitted(folder)
    if not ids:
        return {}
    done = _call("squeue", "--noheader", "--me", "--array", "--format=%F|%T")
    if done.returncode:
        raise HadaError(f"squeue: {done.stderr.strip()}")
    counts: dict[str, Counter[str]] = {key: Counter() for key in ids}
    keys = {id_: key for key, id_ in ids.items()}
    for line in done.stdout.splitlines():
        id_, _, state = line.partition("|")
        if id_ in keys and state in UNFINISHED:
            counts[keys[id_]][state] += 1
    return counts


def cancel(folder: Folder) -> list[str]:
    """End all batch jobs of the last submission that are in the queue; returns their keys."""
    queued = [key for key, counts in queue(folder).items() if counts]
    ids = submitted(folder)
    if queued:
        done = _call("scancel", *(ids[key] for key in queued))
        if done.returncode:
            raise HadaError(f"scancel: {done.stderr.strip()}")
    return queued


def requeue() -> bool:
    """Put this batch job back into the queue, unless it is being cancelled.

    Slurm does so by itself when a node fails or a job is pre-empted, not at its time limit.
    """
    id_ = os.environ.get("SLURM_JOB_ID")
    if id_ is None:
        return False
    state = _call("squeue", "--noheader", "--jobs", id_, "--format=%T").stdout.strip()
    return state == "RUNNING" and _call("scontrol", "requeue", id_).returncode == 0


def _call(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UsageError(f"there is no {words[0]} on this machine: is it part of Slurm?") from error
