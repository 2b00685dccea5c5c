"""Trackers of a training beside `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow.

TensorBoard event files are written wherever the `tensorboard` package is installed; the others
when they are asked for. All of them are extras: `pip install 'hada[tensorboard]'`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hada.extract.common import atomic
from hada.extract.common.console import say
from hada.extract.common.errors import UsageError, nearest
from hada.extract.common.sink import Sink
from hada.fuse.recipes import Recipe
from hada.fuse.run_folder import METRICS, RunFolder

KINDS = ("tensorboard", "wandb", "mlflow", "none")
Report = Callable[[int, Mapping[str, float]], None]


def parse(text: str | None) -> tuple[str, ...]:
    """Names of `--report-to`; None is TensorBoard where it is installed.

    >>> parse("none")
    ()
    """
    if text is None:
        return ("tensorboard",) if importlib.util.find_spec("tensorboard") else ()
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in KINDS:
            raise UsageError(f"--report-to {name!r}: {nearest(name, KINDS)}")
        if name != "none" and importlib.util.find_spec(name) is None:
            raise UsageError(f"--report-to {name}: not installed; pip install 'hada[{name}]'")
    return tuple(name for name in names if name != "none")


def open_reports(
    names: Sequence[str], run: RunFolder, config: Mapping[str, Any], first: int
) -> tuple[list[Report], Callable[[], None]]:
    """Start reporting a run.

    Args:
        names: Trackers, as `parse` gives them.
        run: Its folder.
        config: Its configuration, which the trackers show.
        first: The epoch that it goes on with, from 1.

    Returns:
        (functions of an epoch and its figures, one that closes everything).
    """
    makers = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
    opened: dict[str, Any] = {}

    def guarded(name: str, step: Callable[..., Any], *words: Any) -> Any:
        """What a tracker does; one that fails on the disk or the network is left out from then on.

        It has a copy of `metrics.jsonl`, which is no reason to end a training.
        """
        try:
            return step(*words)
        except OSError as error:
            opened.pop(name, None)
            say(
                f"warning: --report-to {name}: {error}. The training goes on without it; "
                f"{run.path / METRICS} has all figures"
            )
            return None

    for name in names:
        if made := guarded(name, makers[name], run, config, first):
            opened[name] = made

    def report(name: str, epoch: int, values: Mapping[str, float]) -> None:
        if name in opened:
            guarded(name, opened[name][0], epoch, values)

    def close() -> None:
        for name in list(opened):
            guarded(name, opened[name][1])

    return [functools.partial(report, name) for name in opened], close


def figures(line: Mapping[str, Any]) -> dict[str, float]:
    """A line of metrics as flat names and numbers.

    >>> figures({"epoch": 1, "val": {"rsum": 300.0}, "shares": [0.5, 0.5]})
    {'val/rsum': 300.0, 'shares/0': 0.5, 'shares/1': 0.5}
    """
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, Mapping):
            found |= {f"{key}/{k}".replace("@", "_"): float(v) for k, v in value.items()}
        elif isinstance(value, list):
            found |= {f"{key}/{k}": float(v) for k, v in enumerate(value)}
        elif key != "epoch":
            found[key] = float(value)
    return found


def _tensorboard(run: RunFolder, config: Mapping[str, Any], first: int) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.summary.writer.record_writer import RecordWriter
    from torch.utils.tensorboard.summary import scalar

    folder = run.path / "tensorboard"
    atomic.make_folder(folder)
    name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
    free = next(n for n in itertools.count() if not (folder / f"{name}.{n}").exists())
    # TensorBoard's own writer has a thread, which prints a traceback where the disk fails.
    records = RecordWriter(Sink(folder / f"{name}.{free}"))

    def write(**what: Any) -> None:
        records.write(Event(wall_time=time.time(), **what).SerializeToString())

    def report(epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            write(step=epoch, summary=scalar(name, value))  # type: ignore[no-untyped-call]
        records.flush()

    write(file_version="brain.Event:2")
    if first > 1:
        # What a killed process wrote beyond the last checkpoint is hidden from then on.
        write(step=first, session_log=SessionLog(status=SessionLog.START))
    records.flush()
    return report, records.close


def _wandb(run: RunFolder, config: Mapping[str, Any], first: int) -> Any:
    wandb = importlib.import_module("wandb")
    tracked = wandb.init(
        project="hada",
        name=run.name,
        id=f"{config['dataset']}-{run.name}".replace("+", "_"),
        resume="allow",
        dir=str(run.path),
        config=dict(config),
    )
    return (lambda epoch, values: tracked.log(dict(values), step=epoch)), tracked.finish


def _mlflow(run: RunFolder, config: Mapping[str, Any], first: int) -> Any:
    mlflow = importlib.import_module("mlflow")
    mlflow.set_experiment("hada")
    mlflow.start_run(run_name=run.name)
    settings = Recipe.from_json(config["recipe"]).flat()
    mlflow.log_params({k: v for k, v in settings.items() if v != []})
    return (lambda epoch, values: mlflow.log_metrics(dict(values), step=epoch)), mlflow.end_run
