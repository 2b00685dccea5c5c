"""The jobs of a pipeline: plain values that any worker understands, wherever it runs.

A job carries names, ids and absolute paths, never weights, pixels or features, and becomes JSON as
it is. An extraction is divided further, into one task a shard; a training and an evaluation are
one task each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from hada.extract.common.errors import UsageError, nearest
from hada.extract.common.shapes import conform
from hada.extract.manifest import ModelEntry
from hada.extract.spec import SideName


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all jobs have. `needs`: keys of the jobs that must be done before."""

    key: str
    device: str
    needs: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        """The key's first word: extract, train or evaluate."""
        return self.key.partition("/")[0]

    @property
    def label(self) -> str:
        """The key without its stage."""
        return self.key.partition("/")[2]


@dataclass(frozen=True, kw_only=True)
class ExtractJob(Job):
    """One store. `dataset` and `model` are entries of the manifest as plain values."""

    store: str
    dataset: dict[str, Any]
    split: str
    model: dict[str, Any]
    precision: str
    dtype: str
    tokens: str
    format: str | None
    rows: dict[SideName, int]
    batch_size: int | None
    view: int
    view_seed: int
    max_errors: int

    def model_entry(self) -> ModelEntry:
        """The manifest's entry."""
        return ModelEntry(**self.model)


@dataclass(frozen=True, kw_only=True)
class TrainJob(Job):
    """One run. `paths`: split -> the stores of `models`, in their order."""

    dataset: str
    train_split: str
    val_split: str
    models: tuple[str, ...]
    recipe: dict[str, Any]
    seed: int
    paths: dict[str, list[str]]
    folder: str


@dataclass(frozen=True, kw_only=True)
class EvaluateJob(Job):
    """One table. `stores` and `runs_root` are the manifest's places."""

    dataset: str
    split: str
    train_split: str
    val_split: str
    quick: bool
    models: tuple[str, ...]
    runs: tuple[str, ...]
    stores: str
    runs_root: str
    output: str


_KINDS: dict[str, type[Job]] = {"extract": ExtractJob, "train": TrainJob, "evaluate": EvaluateJob}
AnyJob = TypeVar("AnyJob", bound=Job)


def to_json(job: Job) -> dict[str, Any]:
    """As plain JSON values."""
    return dataclasses.asdict(job)


def from_json(values: Mapping[str, Any], where: str = "a job", remedy: str = "") -> Job:
    """Back from `to_json`, also after a journey as JSON text, which knows no tuples.

    Raises `UsageError` where the values are no job of this version; `where` and `remedy` are the
    message's.
    """
    stage = str(values.get("key")).partition("/")[0]
    if stage not in _KINDS:
        raise UsageError(f"{where}: {stage!r} is no stage. {nearest(stage, _KINDS)} {remedy}")
    kind = _KINDS[stage]
    if odd := set(values) - {field.name for field in dataclasses.fields(kind)}:
        raise UsageError(f"{where}: unknown {', '.join(sorted(odd))}. {remedy}")
    conform(values, kind, where, UsageError, remedy)
    fixed: dict[str, Any] = {
        k: tuple(v) if k in ("needs", "models", "runs") else v for k, v in values.items()
    }
    return kind(**fixed)


def of_kind(jobs: Iterable[Job], kind: type[AnyJob]) -> list[AnyJob]:
    """The jobs of one kind, in their order."""
    return [job for job in jobs if isinstance(job, kind)]


def find(jobs: Iterable[Job], key: str) -> Job:
    """The job with a key; raises `UsageError`."""
    for job in jobs:
        if job.key == key:
            return job
    raise UsageError(f"no job {key!r} in this pipeline; `hada-pipeline plan` lists them")
