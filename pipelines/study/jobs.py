"""The jobs of a pipeline: plain values that any worker understands, wherever it runs.

A job carries what the stage's own function takes: names, ids and absolute paths, never weights,
pixels or features. An extraction is divided further, into one task a shard; a training and an
evaluation are one task each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hada.evaluate.methods.request import Request
from hada.extract.common.errors import UsageError, nearest
from hada.extract.common.shapes import conform, converted
from hada.extract.engine.options import ExtractOptions
from hada.extract.manifest import DatasetEntry, ModelEntry, StoreRoot
from hada.extract.spec import SideName
from hada.fuse.plan import Plan


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
    """One store.

    Attributes:
        store: Its folder or URL.
        dataset: The manifest's entry, with this split alone.
        split: The split.
        model: The manifest's entry.
        precision: What the model computes in.
        options: How the store is filled.
        view: Number of the augmented view; 0 for the images as they are.
        view_seed: Seed of augmented views.
        max_errors: Images that may fail.
    """

    store: str
    dataset: DatasetEntry
    split: str
    model: ModelEntry
    precision: str
    options: ExtractOptions
    view: int
    view_seed: int
    max_errors: int

    @property
    def rows(self) -> Mapping[SideName, int]:
        """Items per shard, for each side."""
        assert self.options.rows_per_shard is not None
        return self.options.rows_per_shard


@dataclass(frozen=True, kw_only=True)
class TrainJob(Job):
    """One run, as `hada.fuse.job.train_run` takes it."""

    plan: Plan


@dataclass(frozen=True, kw_only=True)
class EvaluateJob(Job):
    """One table, as `hada.evaluate.methods.build.build` takes it.

    Attributes:
        stores: The folder or URL above all stores.
        request: What to compare.
        output: The file of the table.
    """

    stores: StoreRoot
    request: Request
    output: Path


_KINDS: dict[str, type[Job]] = {"extract": ExtractJob, "train": TrainJob, "evaluate": EvaluateJob}
AnyJob = TypeVar("AnyJob", bound=Job)


def to_json(job: Job) -> dict[str, Any]:
    """As plain JSON values."""
    import msgspec

    values = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    if isinstance(job, TrainJob):
        values["plan"] = job.plan.to_json()
    plain: dict[str, Any] = msgspec.to_builtins(values, enc_hook=_plain)
    return plain


def _plain(value: Any) -> Any:
    """Msgspec's hook for types that it does not know."""
    return str(value) if isinstance(value, Path) else dict(value)


def from_json(values: Mapping[str, Any], where: str = "a job", remedy: str = "") -> Job:
    """Back from `to_json`, also after a journey as JSON text, which knows no tuples.

    Args:
        values: What `to_json` gave.
        where: What the values are, for messages.
        remedy: The end of messages.

    Raises:
        UsageError: The values are no job of this version.
    """
    stage = str(values.get("key")).partition("/")[0]
    if stage not in _KINDS:
        raise UsageError(f"{where}: {stage!r} is no stage. {nearest(stage, _KINDS)} {remedy}")
    kind = _KINDS[stage]
    if odd := set(values) - {field.name for field in dataclasses.fields(kind)}:
        raise UsageError(f"{where}: unknown {', '.join(sorted(odd))}. {remedy}")
    if kind is not TrainJob:
        return converted(values, kind, where, UsageError, remedy)
    # A recipe checks its own values, so a plan is built by its own reader.
    frame = {name: value for name, value in values.items() if name != "plan"}
    conform(frame, Job, where, UsageError, remedy)
    plan = Plan.from_json(values.get("plan"), f"{where}: plan", remedy)
    return TrainJob(**{**frame, "needs": tuple(frame.get("needs", ())), "plan": plan})


def of_kind(jobs: Iterable[Job], kind: type[AnyJob]) -> list[AnyJob]:
    """The jobs of one kind, in their order."""
    return [job for job in jobs if isinstance(job, kind)]
