"""Workers on Dask: processes of this machine, jobs of a batch system, or a scheduler that is there.

The driver hands out tasks and counts attempts itself, so Dask is asked for little: to run a
function on some worker, once, and to tell when that worker dies.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
from distributed import Client, KilledWorker, Nanny, Scheduler, SpecCluster, WorkerPlugin

from hada.extract.common.console import say
from hada.extract.common.errors import HadaError, UsageError
from hada.pipelines.execution.driver import Task
from hada.pipelines.execution.worker import Outcome, run_task
from hada.pipelines.study.config import Cluster

LOOPBACK = "127.0.0.1"
BATCH_SYSTEMS = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "htcondor": "HTCondorCluster",
}
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
# What Slurm says where it has no node for a job, and how long that may be so for the moment only.
NO_NODE, NO_NODE_S = "Requested node configuration is not available", 30.0


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
        found: dict[str, Any] = future.result(timeout=60)
    except KilledWorker:
        why = "its worker process died (killed, or out of memory?)"
    except Exception as error:  # a connection that broke, a worker of another version
        why = f"{type(error).__name__}: {error}"
    else:
        return found
    side, shard = task.get("side", ""), task.get("shard", -1)
    return vars(Outcome(key=task["job"]["key"], status="failed", side=side, shard=shard, error=why))


@contextlib.contextmanager
def local_pool(
    workers: int, devices: Sequence[str], *, decoders: int = 0, threads: int = 1
) -> Iterator[DaskPool]:
    """Processes of this machine, or one for each device, which sees no other.

    Each does one task at a time and computes with `threads` threads, unless OMP_NUM_THREADS says
    otherwise.

    Nothing listens on anything but the loopback interface.
    """
    with contextlib.ExitStack() as stack:
        # A daemonic process may have none of its own, and pictures may be decoded in some.
        daemon = {"distributed.worker.daemon": decoders == 0}
        stack.enter_context(dask.config.set({**SETTINGS, **daemon, **_computing(threads)}))
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="hada-dask-"))
        options: dict[str, Any] = {
            "host": LOOPBACK,
            "dashboard_address": f"{LOOPBACK}:0",
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
                scheduler={
                    "cls": Scheduler,
                    "options": {"host": LOOPBACK, "dashboard_address": f"{LOOPBACK}:0"},
                },
                workers={
                    number: {"cls": Nanny, "options": {**options, "env": env}}
                    for number, env in enumerate(envs)
                },
                name="hada",
                silence_logs="CRITICAL",
            )
        )
        yield _connected(stack, cluster)


def _computing(threads: int) -> dict[str, str]:
    """Dask starts its processes with these variables where they are not set already."""
    each = os.environ.get("OMP_NUM_THREADS", str(threads))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {f"distributed.nanny.pre-spawn-environ.{name}": each for name in names}


@contextlib.contextmanager
def batch_pool(system: str, cluster: Cluster, workers: int, logs: Path) -> Iterator[DaskPool]:
    """Jobs of a batch system, each a worker; one that dies is replaced.

    Raises `UsageError` where dask-jobqueue is missing, `HadaError` where Slurm refuses the job.
    """
    made = batch_cluster(system, cluster, logs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set({**SETTINGS, **REPLACING}))
        stack.enter_context(contextlib.closing(made))
        if system == "slurm":
            _test_only(made.job_script())
        # `scale` would not replace a job that died.
        made.adapt(minimum_jobs=workers, maximum_jobs=workers)
        yield _connected(stack, made)


REPLACING = {"distributed.deploy.lost-worker-timeout": "15s"}


def batch_cluster(system: str, cluster: Cluster, logs: Path) -> Any:
    """The Dask cluster of a batch system; nothing is submitted yet."""
    try:
        module = importlib.import_module("dask_jobqueue")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--on {system} needs the package dask-jobqueue: pip install 'hada[jobqueue]'"
        ) from error
    logs.mkdir(parents=True, exist_ok=True)
    # Memory is the batch system's to limit: at 80 % of it Dask would pause a worker, and for ever,
    # since the model stays.
    more = ["--memory-limit", "0", *_lifetime(cluster.walltime)]
    options: dict[str, Any] = {
        "cores": 1,
        "processes": 1,
        "memory": cluster.memory,
        "interface": cluster.interface,
        "local_directory": str(logs),
        "job_script_prologue": [f"export OMP_NUM_THREADS={cluster.cores}", *cluster.setup],
        # Monitoring pages would listen to everybody on a shared node.
        "scheduler_options": {"dashboard_address": f"{LOOPBACK}:0"},
        "worker_extra_args": ["--no-dashboard", "--dashboard-address", f"{LOOPBACK}:0", *more],
    }
    options |= {"log_directory": str(logs), **_own_words(system, cluster)}
    with dask.config.set({**SETTINGS, **REPLACING}):
        return getattr(module, BATCH_SYSTEMS[system])(**options)


def _own_words(system: str, cluster: Cluster) -> dict[str, Any]:
    """What each system calls queue, account, cores and devices."""
    directives = list(cluster.directives)
    if system == "htcondor":
        # No queues and no walltime there; directives are NAME = VALUE.
        pairs = [line.partition("=") for line in directives]
        wanted = {name.strip(): value.strip() for name, _, value in pairs}
        if cluster.gpus:
            wanted["request_gpus"] = str(cluster.gpus)
        if cluster.account:
            wanted["accounting_group"] = cluster.account
        return {"disk": "1GB", "job_extra_directives": wanted}
    if cluster.gpus and system in ("pbs", "sge") and "gpu" not in " ".join(directives):
        raise UsageError(
            f"cluster.gpus: every {system.upper()} site has its own word for these; say it in "
            "cluster.directives, as in -l select=1:ncpus=8:ngpus=1 or -l gpu=1"
        )
    words: dict[str, Any] = {"queue": cluster.queue, "walltime": cluster.walltime}
    if system in ("slurm", "pbs"):
        words["account"] = cluster.account
    else:
        words["project"] = cluster.account
    if system == "slurm":
        words["job_cpu"] = cluster.cores
        # A requeued worker comes back after Dask has replaced it.
        directives.append("--no-requeue")
        if cluster.gpus:
            directives.append(f"--gres=gpu:{cluster.gpus}")
    if system == "lsf":
        words["walltime"] = cluster.walltime.rpartition(":")[0]
        words["ncpus"] = cluster.cores
        if cluster.gpus:
            directives.append(f'-gpu "num={cluster.gpus}"')
    return {**words, "job_extra_directives": directives}


def _lifetime(walltime: str) -> list[str]:
    """A worker leaves between two tasks, before the batch system ends it in one."""
    hours, minutes, seconds = map(int, walltime.split(":"))
    total = 3600 * hours + 60 * minutes + seconds
    if total < 600:
        return []
    return ["--lifetime", f"{int(total * 0.9)}s", "--lifetime-stagger", f"{int(total * 0.03)}s"]


def _test_only(script: str) -> None:
    """Ask Slurm whether it would take the job: a refusal later is only seen as no worker."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        words = ["sbatch", "--test-only", file.name]
        end = time.monotonic() + NO_NODE_S
        while True:
            try:
                done = subprocess.run(words, capture_output=True, text=True, check=False)
            except FileNotFoundError as error:
                raise UsageError("--on slurm: there is no sbatch on this machine") from error
            if not done.returncode:
                return
            # This is also said of nodes that are being drained, or have just come back.
            if NO_NODE not in done.stderr or time.monotonic() > end:
                raise HadaError(f"Slurm refuses the workers' jobs: {done.stderr.strip()}")
            time.sleep(1)


@contextlib.contextmanager
def remote_pool(address: str) -> Iterator[DaskPool]:
    """The workers of a scheduler that is there: tcp://host:port or tls://host:port."""
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(Client(address, timeout="20s", set_as_default=False))
        except (OSError, TimeoutError) as error:
            raise HadaError(f"--on {address}: no Dask scheduler answers there ({error})") from error
        yield DaskPool(client)


def _connected(stack: contextlib.ExitStack, cluster: Any) -> DaskPool:
    client = stack.enter_context(Client(cluster, set_as_default=False))
    if importlib.util.find_spec("bokeh") is not None:
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
    found = [name for name in seen.split(",") if name] if seen is not None else []
    names = found or [str(number) for number in range(torch.cuda.device_count())]
    if not torch.cuda.is_available() or not names:
        raise UsageError("--gpus all: this machine has no CUDA device that torch can use")
    return names
