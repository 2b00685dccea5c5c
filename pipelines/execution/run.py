"""`hada-pipeline run`: a plan, a pool and a driver, from lock to exit code."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hada.extract.common.console import say
from hada.extract.common.errors import UsageError
from hada.extract.common.progress import duration
from hada.extract.common.terminal import in_line
from hada.extract.manifest import Manifest
from hada.pipelines.execution.display import Display
from hada.pipelines.execution.driver import Driver, Limits, Result
from hada.pipelines.lock import driving
from hada.pipelines.state import Folder
from hada.pipelines.study.config import Pipeline
from hada.pipelines.study.jobs import ExtractJob
from hada.pipelines.study.resolve import build_jobs
from hada.pipelines.study.survey import State, survey

DONE, FAILED, MORE_TO_DO = 0, 1, 3
BATCH_WAIT_S = 24 * 3600.0
LOCAL_WAIT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """How to run: the command's options."""

    on: str = "local"
    workers: int = 1
    gpus: str | None = None
    decoders: int | None = None
    retries: int = 2
    max_hours: float | None = None
    retry_failed: bool = False
    dashboard: bool = False


def run_pipeline(pipeline: Pipeline, manifest: Manifest, request: Request) -> int:
    """Do what a pipeline still needs.

    Args:
        pipeline: What is to be there at the end.
        manifest: Where data sets, stores and runs are.
        request: What the command line asked for: where to run, for how long, what to try again.

    Returns:
        0 when everything is done, 1 when something failed, 3 when `max_hours` left some to do,
        128 + the signal's number when one stopped it.

    Raises:
        BusyError: Another process drives this pipeline.
        HadaError: No worker came, or the scheduler went away.
    """
    began = time.monotonic()
    jobs = build_jobs(pipeline, manifest)
    folder = Folder(manifest.runs, pipeline.name)
    with driving(folder):
        states = survey(jobs)
        if request.retry_failed:
            states = only_failed(states, folder.failures())
        if all(state.condition == "done" for state in states.values()):
            say("nothing failed" if request.retry_failed else "everything is done")
            return DONE
        display = Display(states)
        limits = Limits(
            retries=request.retries,
            stop_at=None if request.max_hours is None else began + 3600 * request.max_hours,
            workers_wait_s=LOCAL_WAIT_S if request.on == "local" else BATCH_WAIT_S,
        )
        say(f"{pipeline.name}: {display.line(0)}; logs in {folder.path / 'logs'}")
        with contextlib.ExitStack() as stack:
            stopper = _Stopper()
            stack.enter_context(stopper.listening())
            pool, details = stack.enter_context(_pool(pipeline, request, folder, states))
            driver = Driver(states, pool, folder, limits, display, **details)
            stopper.driver = driver
            with display.shown():
                result = driver.run()
        say(_summary(result, display, time.monotonic() - began), lines=True)
        return stopper.code or _code(result)


def only_failed(
    states: Mapping[str, State], failures: Iterable[tuple[str, str, int]]
) -> dict[str, State]:
    """Of a plan, the tasks that failed before, what waits for nothing else, and what is done."""
    failed: dict[str, set[tuple[str, int]]] = {}
    for key, side, shard in failures:
        failed.setdefault(key, set()).add((side, shard))
    kept: dict[str, State] = {}
    for key, state in states.items():
        if state.condition == "done":
            kept[key] = state
        elif isinstance(state.job, ExtractJob):
            again = {
                s: [k for k in shards if (s, k) in failed.get(key, ())]
                for s, shards in state.pending.items()
            }
            if any(again.values()) or (key in failed and state.done == state.total):
                kept[key] = replace(state, pending=again)
        elif all(need in kept for need in state.job.needs) and (
            key in failed or any(need in failed for need in state.job.needs)
        ):
            kept[key] = state
            failed.setdefault(key, set())
    return kept


@contextlib.contextmanager
def _pool(
    pipeline: Pipeline, request: Request, folder: Folder, states: dict[str, State]
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The workers, and what else the driver needs to know of them."""
    from hada.extract.common.host import cores
    from hada.pipelines.execution import batch_pools, dask_pools

    if "://" in request.on:
        if request.dashboard:
            raise UsageError("--dashboard: that scheduler has its own, or none")
        with dask_pools.remote_pool(request.on) as pool:
            yield pool, {"decoders": request.decoders or 0}
        return
    if request.on in batch_pools.BATCH_SYSTEMS:
        made = batch_pools.batch_pool(
            request.on,
            pipeline.cluster,
            request.workers,
            folder.path,
            dashboard=request.dashboard,
        )
        with made as pool:
            yield pool, {"decoders": request.decoders or 0, "threads": pipeline.cluster.cores}
        return
    if request.on != "local":
        known = ", ".join(["local", *batch_pools.BATCH_SYSTEMS])
        raise UsageError(f"--on {request.on!r}: expected {known}, or tcp://host:port")
    devices = dask_pools.choose_devices(request.gpus)
    decoders = request.decoders
    if decoders is None:
        # Beside devices the cores decode, shared out; without, they compute.
        decoders = min(16, max(1, cores() // len(devices) - 1)) if devices else 0
    tasks = sum(
        sum(map(len, state.pending.values())) if isinstance(state.job, ExtractJob) else 1
        for state in states.values()
        if state.condition != "done"
    )
    workers = max(1, min(request.workers, tasks))
    # More threads than cores wait for each other.
    threads = max(1, cores() // (len(devices) or workers))
    with (
        tempfile.TemporaryDirectory(prefix="hada-marks-") as marks,
        dask_pools.local_pool(
            workers,
            devices,
            decoders=decoders,
            threads=threads,
            dashboard=request.dashboard,
        ) as pool,
    ):
        yield pool, {"decoders": decoders, "threads": threads, "marks": Path(marks)}


class _Stopper:
    """Ctrl-C and SIGTERM: the first lets what has begun end, the second does not."""

    def __init__(self) -> None:
        self.driver: Driver | None = None
        self.code = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, _frame: Any) -> None:
        again, self.code = bool(self.code), 128 + number
        if again or self.driver is None:
            raise KeyboardInterrupt
        say("stopping: shards that are being written are finished; once more drops them")
        self.driver.stop()


def _summary(result: Result, display: Display, seconds: float) -> str:
    lines = [f"{result.done:,} tasks done in {duration(seconds)}"]
    lines += [
        f"FAILED {' '.join(str(part) for part in name if part not in ('', -1))}: {why}"
        for name, why in list(result.failed.items())[:20]
    ]
    if len(result.failed) > 20:
        lines.append(f"and {len(result.failed) - 20} more")
    if result.failed:
        lines.append("`--retry-failed` tries these again, and nothing else")
    left = "to do still" if result.stopped or result.out_of_time else "waits for what failed"
    lines += [f"{left}: {key}" for key in result.skipped[:20]]
    if result.out_of_time:
        lines.append("the time is up; the same command continues")
    elif result.stopped:
        lines.append("stopped. What is done is kept; the same command continues.")
    return "\n".join(map(in_line, lines))


def _code(result: Result) -> int:
    if result.failed:
        return FAILED
    return MORE_TO_DO if result.out_of_time and result.skipped else DONE
