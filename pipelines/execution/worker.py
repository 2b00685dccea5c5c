"""Tasks as a worker process runs them: one shard, the end of a store, a training, a table.

Every task may run twice: what is there already is left as it is, and what is written is committed
atomically. A worker keeps one model, and the stores that it fills with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hada.extract.common.errors import HadaError
from hada.extract.spec import SideName
from hada.pipelines.state import private_append, private_folder
from hada.pipelines.study.jobs import EvaluateJob, ExtractJob, Job, TrainJob, from_json

if TYPE_CHECKING:
    from hada.extract.engine.extraction import Extraction

FINISH = "finish"
# Stores of one model kept open: train, val and test, each with a view or two.
MOST_STORES = 8


@dataclasses.dataclass
class Outcome:
    """How a task ended.

    status: "done", "there" (nothing was to do), "busy" (another process is writing it) or
    "failed". items: images or captions that were encoded now. failed: pictures left out.
    host, pid: the worker process; cpu_seconds: of all its threads. wrong: the request itself is
    wrong, so trying again is no use.
    """

    key: str
    status: str
    side: str = ""
    shard: int = -1
    items: int = 0
    failed: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    host: str = ""
    pid: int = 0
    error: str = ""
    wrong: bool = False
    trace: str = ""


def run_task(task: dict[str, Any]) -> dict[str, Any]:
    """Do one task; whatever goes wrong is in the outcome, so that it can be sent anywhere.

    Args:
        task: `job` as `jobs.to_json` gives it, and for extractions `side` ("image", "caption", or
            "finish" after the last shard) and `shard`. `decoders` is the number of processes that
            decode pictures, `threads` that of threads where there are none, `log` a file for what
            the work says, `run` a name of the driver's run, `mark` a file to make when the model
            is loaded and the work begins.
    """
    job = from_json(task["job"])
    outcome = Outcome(
        key=job.key, status="done", side=task.get("side", ""), shard=task.get("shard", -1)
    )
    outcome.host, outcome.pid = socket.gethostname(), os.getpid()
    began, worked = time.monotonic(), time.process_time()
    try:
        with _output_to(task.get("log")):
            _work(job, task, outcome)
    except Exception as error:  # reported with its cause by whoever gave the task
        outcome.status = "failed"
        outcome.error = f"{error}" if isinstance(error, HadaError) else _name(error)
        outcome.wrong = isinstance(error, HadaError) and error.exit_code == 2
        outcome.trace = traceback.format_exc()
    outcome.seconds = time.monotonic() - began
    outcome.cpu_seconds = time.process_time() - worked
    return dataclasses.asdict(outcome)


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _work(job: Job, task: dict[str, Any], outcome: Outcome) -> None:
    if isinstance(job, ExtractJob):
        _EXTRACTOR.extract(job, task, outcome)
    elif isinstance(job, TrainJob):
        _EXTRACTOR.clear()
        _mark(task)
        _train(job)
    elif isinstance(job, EvaluateJob):
        _mark(task)
        _evaluate(job)


def _mark(task: dict[str, Any]) -> None:
    """Say that the work begins; fails where the driver has stopped and does not wait for it."""
    if "mark" in task:
        Path(task["mark"]).touch()


class Extractor:
    """One model at a time, loaded once, and the stores that are filled with it."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._model: Any = None
        self._stores: dict[str, Extraction] = {}
        self._run = ""
        self._lock = threading.Lock()

    def extract(self, job: ExtractJob, task: dict[str, Any], outcome: Outcome) -> None:
        """One shard, or what follows the last."""
        from hada.extract.engine.decode import MOST_THREADS
        from hada.extract.engine.runner import new_report

        with self._lock:
            self._begin(task.get("run", ""))
            extraction = self._open(job, int(task.get("decoders", 0)))
            _mark(task)
            extraction.most_threads = task.get("threads") or MOST_THREADS
            report = new_report(extraction)
            if task["side"] == FINISH:
                extraction.finish(report)
                outcome.failed = len(report.failures)
                if outcome.failed > job.max_errors:
                    raise HadaError(
                        f"{outcome.failed} pictures could not be decoded, more than max_errors "
                        f"{job.max_errors}; {report.store}/errors.jsonl names them. The store is "
                        "complete without them: raise max_errors to go on"
                    )
                return
            side, shard = cast(SideName, task["side"]), int(task["shard"])
            extraction.fill(side, report, [shard], shown=False)
            outcome.items = report.images + report.captions
            if report.busy_shards:
                outcome.status = "busy"
            elif not outcome.items:
                outcome.status = "there"

    def clear(self) -> None:
        """Give the model's memory back."""
        self._close()
        self._key = self._model = None

    def _close(self) -> None:
        for extraction in self._stores.values():
            extraction.close()
        self._stores.clear()

    def _begin(self, run: str) -> None:
        """A worker that outlives a run may find other files, and other jobs of the same keys."""
        if run != self._run:
            from hada.pipelines.study.datasets import forget_datasets

            self._close()
            forget_datasets()
            self._run = run

    def _open(self, job: ExtractJob, decoders: int) -> Extraction:
        from hada.extract.common.host import reuse_freed_memory
        from hada.extract.engine.extraction import Extraction
        from hada.extract.one_model import load_model
        from hada.pipelines.study.datasets import dataset_of

        reuse_freed_memory()
        model, data = job.model, dataset_of(job)
        key = f"{model} {model.weights_for(data.name)} {job.device} {job.precision}"
        if key != self._key:
            self.clear()
            self._model = load_model(model, data.name, job.device, job.precision)
            self._key = key
        if job.key in self._stores:
            return self._stores[job.key]
        while len(self._stores) >= MOST_STORES:
            self._stores.pop(next(iter(self._stores))).close()
        shown, view = self._model, None
        if job.view:
            from hada.extract.variants.views import View, pictures_only, viewed

            view = View(job.view, job.view_seed)
            shown, data = viewed(shown, view), pictures_only(data)
        opened = Extraction.open(
            shown,
            data,
            job.store,
            dataclasses.replace(job.options, workers=decoders),
            view=view,
            keep_reader=decoders > 0,
        )
        self._stores[job.key] = opened
        return opened


_EXTRACTOR = Extractor()


def _train(job: TrainJob) -> None:
    from hada.fuse.job import train_run

    train_run(job.plan, device=job.device)


def _evaluate(job: EvaluateJob) -> None:
    """The table of `hada-evaluate recall`, over this pipeline's runs."""
    from hada.evaluate.methods.build import build
    from hada.evaluate.results.measure import measure
    from hada.extract.common import atomic
    from hada.pipelines.study.fingerprint import evaluation_inputs, inputs_file

    inputs = evaluation_inputs(job)
    result = measure(*build(job.stores, job.request))
    atomic.write_json(job.output, result)
    atomic.write_bytes(inputs_file(job), f"{inputs}\n".encode())


@contextlib.contextmanager
def _output_to(log: str | None) -> Iterator[None]:
    """Lines of the work go to a file: many workers on one terminal are read by nobody."""
    if log is None:
        yield
        return
    private_folder(Path(log).parent)
    with (
        open(private_append(Path(log)), "a", buffering=1) as file,
        contextlib.redirect_stderr(file),
        contextlib.redirect_stdout(file),
    ):
        yield
