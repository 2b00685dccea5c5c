"""The driver: the order of tasks, retries, and when to stop.

It knows no engine: it gives tasks to a `Pool` and takes outcomes back. It gives no worker more
than it can do at once, so a task that kills its worker takes no other with it.
"""

from __future__ import annotations

import heapq
import os
import queue
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hada.extract.common.errors import HadaError
from hada.extract.spec import SIDES
from hada.pipelines.execution.worker import FINISH
from hada.pipelines.state import Folder, task_id
from hada.pipelines.study.jobs import ExtractJob, to_json
from hada.pipelines.study.survey import State

Task = dict[str, Any]
TICK_S = 0.5
# How long a shard that another process is writing is left alone.
BUSY_S = 5.0
MOST_BUSY = 60


class Pool(Protocol):
    """Workers that do tasks."""

    def slots(self) -> int:
        """How many tasks they can do at once now; 0 where there is no worker yet."""
        ...

    def submit(self, task: Task, done: Callable[[Task, dict[str, Any]], None]) -> None:
        """Begin a task; `done` is called once, from any thread, with its outcome."""
        ...


class Listener(Protocol):
    """Whoever shows how the work goes."""

    def outcome(self, outcome: Mapping[str, Any], slots: int) -> None: ...
    def tick(self, slots: int) -> None: ...
    def event(self, text: str) -> None: ...


@dataclass
class Limits:
    """How long, and how often.

    retries: further attempts of a task that failed. stop_at: `time.monotonic` after which no task
    is begun. workers_wait_s: without any worker for so long, the driver gives up.
    """

    retries: int = 2
    stop_at: float | None = None
    workers_wait_s: float = 600.0


@dataclass
class Result:
    """How a run of the driver ended: task -> why it failed, jobs that waited for one, reason."""

    failed: dict[tuple[str, str, int], str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    out_of_time: bool = False
    stopped: bool = False
    done: int = 0


@dataclass
class _Progress:
    """One job under way: tasks that have not begun, and how many have and are not settled."""

    tasks: Iterator[Task]
    open: int = 0
    exhausted: bool = False


class Driver:
    """One run over the jobs of a plan."""

    def __init__(
        self,
        states: Mapping[str, State],
        pool: Pool,
        folder: Folder,
        limits: Limits,
        listener: Listener,
        *,
        decoders: int = 0,
        threads: int = 0,
        marks: Path | None = None,
    ) -> None:
        """Take over what is still to be done; nothing begins before `run`.

        Args:
            states: Key -> how far the job is, needs before what needs them.
            pool: Does the tasks.
            folder: The pipeline's, for records and failures.
            limits: Retries, and when to stop.
            listener: Is told of every outcome and event.
            decoders: Processes that decode pictures for each worker.
            threads: Of a worker's computations; 0 for as many as it likes.
            marks: An empty folder for `worker.run_task`'s marks, where it is on this machine.
        """
        self._states, self._pool, self._folder = states, pool, folder
        self._limits, self._listener, self._marks = limits, listener, marks
        # What each task carries beside its job.
        self._common = {
            "decoders": decoders,
            "threads": threads,
            "run": f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}",
        }
        self._answers: queue.SimpleQueue[tuple[Task, dict[str, Any]]] = queue.SimpleQueue()
        self._jobs: dict[str, _Progress] = {}
        self._ready: deque[str] = deque()
        self._again: list[tuple[float, int, Task]] = []
        self._attempts: Counter[tuple[str, str, int]] = Counter()
        self._finished: set[str] = set()
        self._broken: set[str] = set()
        self._longest = 0.0
        self._flying = self._number = 0
        self._stop = False
        self.result = Result()

    def stop(self) -> None:
        """Begin nothing more; what is being done is waited for, a model's loading is not."""
        self._stop = self.result.stopped = True

    def run(self) -> Result:
        """Do everything that can be done."""
        for key, state in self._states.items():
            if state.condition == "done":
                self._finished.add(key)
            elif state.other:
                self._fail((key, "", -1), f"differs from what is there: {state.other}")
        self._release()
        lonely_since = time.monotonic()
        while True:
            slots = self._pool.slots()
            if slots:
                lonely_since = time.monotonic()
            elif time.monotonic() - lonely_since > self._limits.workers_wait_s:
                raise HadaError(
                    f"no worker for {self._limits.workers_wait_s:.0f} s: did the batch system "
                    "start the workers' jobs? What is done is kept; the same command continues."
                )
            while self._flying < slots and (task := self._next()) is not None:
                self._submit(task)
            if self._stop and self._none_has_begun():
                break
            if not self._flying and (self._closed() or not (self._ready or self._again)):
                break
            self._collect(slots)
        ended = self._finished | self._broken
        self.result.skipped = [key for key in self._states if key not in ended]
        return self.result

    def _closed(self) -> bool:
        """Whether nothing more may begin."""
        limit = self._limits.stop_at
        # The longest task so far, and a half more, must fit.
        if limit is not None and time.monotonic() + 1.5 * self._longest > limit:
            self.result.out_of_time = True
        return self._stop or self.result.out_of_time

    def _next(self) -> Task | None:
        if self._closed():
            return None
        if self._again and self._again[0][0] <= time.monotonic():
            return heapq.heappop(self._again)[2]
        while self._ready:
            key = self._ready[0]
            job = self._jobs[key]
            task = next(job.tasks, None)
            if task is not None:
                job.open += 1
                return task
            job.exhausted = True
            self._ready.popleft()
            self._settle(key)
        return None

    def _submit(self, task: Task) -> None:
        self._flying += 1
        if self._marks is not None:
            self._number += 1
            task = {**task, "mark": str(self._marks / str(self._number))}
        self._pool.submit(task, lambda t, o: self._answers.put((t, o)))

    def _none_has_begun(self) -> bool:
        """Whether all tasks under way can be dropped; from then on none of them begins."""
        if self._marks is None:
            return False
        try:
            self._marks.rmdir()  # only an empty folder goes, and without it no mark can be made
        except OSError:
            return False
        return True

    def _collect(self, slots: int) -> None:
        """Wait for an outcome, a moment at most, and take all that are there."""
        try:
            answer = self._answers.get(timeout=TICK_S)
        except queue.Empty:
            self._listener.tick(slots)
            return
        while True:
            self._flying -= 1
            if "mark" in answer[0]:
                Path(answer[0]["mark"]).unlink(missing_ok=True)
            self._take(*answer, slots)
            try:
                answer = self._answers.get_nowait()
            except queue.Empty:
                return

    def _take(self, task: Task, outcome: dict[str, Any], slots: int) -> None:
        identity = task_id(outcome)
        key = identity[0]
        self._longest = max(self._longest, outcome["seconds"])
        busy = outcome["status"] == "busy"
        if busy or (outcome["status"] == "failed" and not outcome["wrong"]):
            self._attempts[identity] += 1
            if self._attempts[identity] <= (MOST_BUSY if busy else self._limits.retries):
                if not busy:
                    self._listener.event(f"{_named(identity)}: {outcome['error']}; trying again")
                self._number += 1
                pause = time.monotonic() + (BUSY_S if busy else 0.0)
                heapq.heappush(self._again, (pause, self._number, task))
                return
            if busy:
                why = "another process has been writing this shard all the time"
                outcome = {**outcome, "status": "failed", "error": why}
        self._folder.record(outcome)
        if outcome["status"] == "failed":
            self._fail(identity, outcome["error"])
            if outcome["wrong"]:  # the other shards would say the same
                self._jobs[key].tasks = iter(())
        else:
            self.result.done += 1
        self._listener.outcome(outcome, slots)
        self._jobs[key].open -= 1
        self._settle(key)

    def _fail(self, identity: tuple[str, str, int], why: str) -> None:
        self.result.failed[identity] = why
        self._broken.add(identity[0])
        self._listener.event(f"FAILED {_named(identity)}: {why}")

    def _settle(self, key: str) -> None:
        """After the last task of a job: what follows it."""
        job, state = self._jobs[key], self._states[key]
        if job.open or not job.exhausted or key in self._broken or key in self._finished:
            return
        pending = sum(map(len, state.pending.values()))
        if pending and isinstance(state.job, ExtractJob):
            # The task after the last shard; `pending` is not needed any more.
            state.pending, whole = {}, state.done + pending == state.total
            if whole:
                self._queue(key, iter([self._task(state, side=FINISH, shard=-1)]))
            return
        self._finished.add(key)
        self._release()

    def _release(self) -> None:
        """Begin all jobs whose needs are done; what waits for others goes first."""
        for key, state in self._states.items():
            if key in self._jobs or key in self._finished or key in self._broken:
                continue
            if any(need in self._states and need not in self._finished for need in state.job.needs):
                continue
            if not isinstance(state.job, ExtractJob):
                self._queue(key, iter([self._task(state)]))
            elif any(state.pending.values()):
                self._queue(key, self._shards(state), first=False)
            else:
                self._queue(key, iter([self._task(state, side=FINISH, shard=-1)]))

    def _queue(self, key: str, tasks: Iterator[Task], *, first: bool = True) -> None:
        self._jobs[key] = _Progress(tasks)
        if first:
            self._ready.appendleft(key)
        else:
            self._ready.append(key)

    def _shards(self, state: State) -> Iterator[Task]:
        for side in SIDES:
            for shard in state.pending.get(side, []):
                yield self._task(state, side=side, shard=shard)

    def _task(self, state: State, **part: Any) -> Task:
        return {
            "job": to_json(state.job),
            "log": str(self._folder.log(state.job.key)),
            **self._common,
            **part,
        }


def _named(identity: tuple[str, str, int]) -> str:
    key, side, shard = identity
    return f"{key} {side} shard {shard}" if shard >= 0 else f"{key} {side}".strip()
