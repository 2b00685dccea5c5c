"""Workers that are jobs of a batch system, through dask-jobqueue.

The driver stays on the login node with the scheduler; each job is a worker that takes shard after
shard.
"""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask

from hada.extract.common.errors import HadaError, UsageError
from hada.pipelines.execution import credentials
from hada.pipelines.execution.credentials import PrivateWorker
from hada.pipelines.execution.dask_pools import SETTINGS, DaskPool, connected
from hada.pipelines.state import private_folder
from hada.pipelines.study.config import Cluster

BATCH_SYSTEMS = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "htcondor": "HTCondorCluster",
}
# What Slurm says where it has no node for a job, and how long that may be so for the moment only.
NO_NODE, NO_NODE_S = "Requested node configuration is not available", 30.0


@contextlib.contextmanager
def batch_pool(
    system: str, cluster: Cluster, workers: int, state: Path, *, dashboard: bool = False
) -> Iterator[DaskPool]:
    """Jobs of a batch system, each a worker; one that dies is replaced.

    Args:
        system: A key of `BATCH_SYSTEMS`.
        cluster: The pipeline's settings of it.
        workers: How many jobs.
        state: The pipeline's folder, which all nodes see: logs go there, and the key.
        dashboard: Whether Dask's is served.

    Raises:
        UsageError: dask-jobqueue is missing.
        HadaError: Slurm refuses the job.
    """
    with contextlib.ExitStack() as stack:
        keys = stack.enter_context(credentials.shared_folder(state))
        made = batch_cluster(system, cluster, state / "logs", keys, dashboard=dashboard)
        stack.enter_context(dask.config.set({**SETTINGS, **REPLACING}))
        stack.enter_context(contextlib.closing(made))
        if system == "slurm":
            _test_only(made.job_script())
        # `scale` would not replace a job that died.
        made.adapt(minimum_jobs=workers, maximum_jobs=workers)
        yield connected(stack, made, dashboard)


REPLACING = {"distributed.deploy.lost-worker-timeout": "15s"}


def batch_cluster(
    system: str, cluster: Cluster, logs: Path, keys: Path, *, dashboard: bool = False
) -> Any:
    """The Dask cluster of a batch system; nothing is submitted yet.

    Args:
        system: A key of `BATCH_SYSTEMS`.
        cluster: The pipeline's settings of it.
        logs: The folder of the jobs' logs.
        keys: The folder of the files that hold the cluster's key; nobody else may read it.
        dashboard: Whether Dask's is served.

    Raises:
        UsageError: dask-jobqueue is missing.
    """
    try:
        module = importlib.import_module("dask_jobqueue")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--on {system} needs the package dask-jobqueue: pip install 'hada[jobqueue]'"
        ) from error
    private_folder(logs)
    cls, scheduler = credentials.scheduler(dashboard)
    quiet = f"{PrivateWorker.__module__}.{PrivateWorker.__name__}"
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
        # What is written for the jobs to read are files of mode 0600, gone when the driver ends.
        "security": credentials.temporary(),
        "shared_temp_directory": str(keys),
        "scheduler_cls": cls,
        "scheduler_options": scheduler,
        # Monitoring pages would listen to everybody on a shared node.
        "worker_extra_args": ["--no-dashboard", "--worker-class", quiet, *more],
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
