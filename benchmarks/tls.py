"""What TLS costs between a pipeline's driver and its workers, against plain tcp, in turn.

    python benchmarks/tls.py

Start and stop of a local cluster of one worker, one empty task after the other, and 20 MB in one
task (a pipeline's tasks carry names and paths, some kB each).
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import dask
from distributed import Client, Nanny, SpecCluster

from hada.pipelines.execution import credentials
from hada.pipelines.execution.dask_pools import SETTINGS

REPEATS, TASKS, MEGABYTES = 7, 300, 20


def measure(secure: bool) -> dict[str, float]:
    """Seconds of each part; `secure` is what a pipeline starts."""
    began, worked = time.perf_counter(), time.process_time()
    common: dict[str, Any] = {"host": "127.0.0.1"}
    security = None
    if secure:
        security = credentials.temporary()
        common |= {"protocol": "tls://", "security": security}
    cls, options = credentials.scheduler(False)
    worker = {
        **common,
        "worker_class": credentials.PrivateWorker,
        "dashboard": False,
        "nthreads": 1,
        "memory_limit": 0,
        "silence_logs": "CRITICAL",
    }
    found = {}
    with (
        dask.config.set(SETTINGS),
        SpecCluster(
            scheduler={"cls": cls, "options": {**common, **options}},
            workers={0: {"cls": Nanny, "options": worker}},
            security=security,
            silence_logs="CRITICAL",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(1)
        found["start, s"] = time.perf_counter() - began
        mark = time.perf_counter()
        for number in range(TASKS):
            client.submit(abs, number, pure=False).result()
        found["task, ms"] = 1000 * (time.perf_counter() - mark) / TASKS
        mark = time.perf_counter()
        client.submit(len, os.urandom(MEGABYTES * 1_000_000), pure=False).result()
        found[f"{MEGABYTES} MB, s"] = time.perf_counter() - mark
        mark = time.perf_counter()
    found["stop, s"] = time.perf_counter() - mark
    found["the driver's processor time, s"] = time.process_time() - worked
    return found


def main() -> None:
    """Both in turn, and the medians."""
    runs: dict[str, list[dict[str, float]]] = {"tcp": [], "tls": []}
    for _ in range(REPEATS):
        for name, found in runs.items():
            found.append(measure(name == "tls"))
    mark = time.perf_counter()
    credentials.temporary()
    print(f"making a key: {time.perf_counter() - mark:.3f} s")
    for part in runs["tcp"][0]:
        plain, secure = (statistics.median(run[part] for run in runs[n]) for n in runs)
        print(f"{part:32} tcp {plain:7.3f}   tls {secure:7.3f}")


if __name__ == "__main__":
    main()
