"""Workers on Dask: processes of this machine, or a scheduler that is there (`batch_pools`).

The driver hands out tasks and counts attempts itself, so Dask is asked for little: to run a
function on some worker, once, and to tell when that worker dies.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dask
from distributed import Client, KilledWorker, Nanny, SpecCluster, WorkerPlugin

from hada.extract.common.console import say
from hada.extract.common.errors import HadaError, UsageError
from hada.pipelines.execution import credentials
from hada.pipelines.execution.credentials import LOOPBACK, PROTOCOL, PrivateWorker
from hada.pipelines.execution.driver import Task
from hada.pipelines.execution.worker import Outcome, run_task

SETTINGS = {
    # The driver counts attempts, and gives a worker one task: who dies had that one.
    "distributed.scheduler.allowed-failures": 0,
    # With less, Dask forgets a worker process that is starting again, for good.
    "distributed.deploy.lost-worker-timeout": "1h",
    "distributed.comm.timeouts.connect": "60s",
    "distributed.scheduler.worker-ttl": "15 minutes",
    # Models hold the interpreter for long; that is no news here.
    "distributed.admin.tick.limit": "10 minutes",
    # Dask would look at every worker's stack a hundred times a second, for its dashboard.
    "distributed.worker.profile.enabled": False,
}
SLOTS_KEPT_S = 1.0


class IgnoreInterrupts(WorkerPlugin):  # type: ignore[misc]
    """Ctrl-C reaches every process of a terminal; workers leave it to the driver."""

    name = "hada-interrupts"

    def setup(self, worker: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class DaskPool:
    """`hada.pipelines.execution.driver.Pool` on a Dask client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._numbers = itertools.count()
        self._futures: dict[str, Any] = {}
        self._slots = 0
        self._counted = 0.0
        client.register_plugin(IgnoreInterrupts())

    def slots(self) -> int:
        if time.monotonic() - self._counted > SLOTS_KEPT_S or not self._slots:
            if self._client.status != "running":
                raise HadaError(
                    "the Dask scheduler is gone. What is done is kept; the same command continues."
                )
            self._slots = sum(self._client.nthreads().values())
            self._counted = time.monotonic()
        return self._slots

    def submit(self, task: Task, done: Callable[[Task, dict[str, Any]], None]) -> None:
        part = f"{task.get('side', '')}/{task.get('shard', '')}"
        name = f"{task['job']['key']}/{part}/{os.getpid()}-{next(self._numbers)}"
        future = self._client.submit(run_task, task, key=name, pure=False)
        self._futures[name] = future

        def ended(future: Any) -> None:
            outcome = _outcome(task, future)
            self._futures.pop(name, None)
            done(task, outcome)

        future.add_done_callback(ended)


def _outcome(task: Task, future: Any) -> dict[str, Any]:
    try:
        outcome: dict[str, Any] = future.result(timeout=60)
    except KilledWorker:
        why = "its worker process died (killed, or out of memory?)"
    except Exception as error:  # a connection that broke, a worker of another version
        why = f"{type(error).__name__}: {error}"
    else:
        return outcome
    side, shard = task.get("side", ""), task.get("shard", -1)
    return vars(Outcome(key=task["job"]["key"], status="failed", side=side, shard=shard, error=why))


@contextlib.contextmanager
def local_pool(
    workers: int,
    devices: Sequence[str],
    *,
    decoders: int = 0,
    threads: int = 1,
    dashboard: bool = False,
) -> Iterator[DaskPool]:
    """Processes of this machine, or one for each device, which sees no other.

    Each does one task at a time.

    Nothing listens on anything but the loopback interface, and nobody is answered who has not the
    key of this run: not another user of this machine, nor another program of this one.

    Args:
        workers: How many processes, where there are no devices.
        devices: One process for each.
        decoders: Processes that decode pictures for each worker; 0 for threads.
        threads: Of each worker's computations, unless OMP_NUM_THREADS says otherwise.
        dashboard: Whether Dask's is served.
    """
    with contextlib.ExitStack() as stack:
        # A daemonic process may have none of its own, and pictures may be decoded in some.
        daemon = {"distributed.worker.daemon": decoders == 0}
        stack.enter_context(dask.config.set({**SETTINGS, **daemon, **_computing(threads)}))
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="hada-dask-"))
        security = credentials.temporary()
        cls, more = credentials.scheduler(dashboard)
        common = {"host": LOOPBACK, "protocol": PROTOCOL, "security": security}
        options: dict[str, Any] = {
            **common,
            "worker_class": PrivateWorker,
            "dashboard": False,
            "nthreads": 1,
            "memory_limit": 0,
            "local_directory": scratch,
            # A heartbeat that fails while all shuts down is an error to Dask, and none here: the
            # driver tells itself what went wrong.
            "silence_logs": "CRITICAL",
        }
        envs = [{"CUDA_VISIBLE_DEVICES": device} for device in devices] or [{}] * workers
        cluster = stack.enter_context(
            SpecCluster(
                scheduler={"cls": cls, "options": {**common, **more}},
                workers={
                    number: {"cls": Nanny, "options": {**options, "env": env}}
                    for number, env in enumerate(envs)
                },
                name="hada",
                security=security,
                silence_logs="CRITICAL",
            )
        )
        yield connected(stack, cluster, dashboard)


def _computing(threads: int) -> dict[str, str]:
    """Dask starts its processes with these variables where they are not set already."""
    each = os.environ.get("OMP_NUM_THREADS", str(threads))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {f"distributed.nanny.pre-spawn-environ.{name}": each for name in names}


@contextlib.contextmanager
def remote_pool(address: str) -> Iterator[DaskPool]:
    """The workers of a scheduler that is there: tcp://host:port or tls://host:port.

    Raises `UsageError` for an address that is none, `HadaError` where nobody answers.
    """
    credentials.check_address(address)
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(Client(address, timeout="20s", set_as_default=False))
        except ValueError as error:
            raise UsageError(f"--on {address}: no address of a scheduler ({error})") from error
        except (OSError, TimeoutError, TypeError) as error:
            raise credentials.refused(address, error) from error
        yield DaskPool(client)


def connected(stack: contextlib.ExitStack, cluster: Any, dashboard: bool) -> DaskPool:
    """A pool on a Dask cluster that has just started, with the cluster's own key."""
    client = stack.enter_context(Client(cluster, set_as_default=False))
    if dashboard:
        say(f"dashboard: {cluster.dashboard_link}")
    return DaskPool(client)


def choose_devices(text: str | None) -> list[str]:
    """`--gpus`: none, "all", or "0,1": what CUDA_VISIBLE_DEVICES becomes in each worker."""
    if text is None:
        return []
    if text != "all":
        names = [name.strip() for name in text.split(",")]
        if not all(names) or len(set(names)) < len(names):
            raise UsageError(f"--gpus {text!r}: expected all, or numbers as in 0,1")
        return names
    import torch

    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = [name for name in seen.split(",") if name] if seen is not None else []
    names = visible or [str(number) for number in range(torch.cuda.device_count())]
    if not torch.cuda.is_available() or not names:
        raise UsageError("--gpus all: this machine has no CUDA device that torch can use")
    return names
