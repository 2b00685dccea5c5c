"""Finds what of a pipeline is done, from stores, runs and results alone; writes nothing.

Shards are counted from their markers and the sizes of their files, from one listing a store, so
that a hundred thousand of them take seconds.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hada.extract.common import remote
from hada.extract.common.errors import HadaError, StoreError, UnreachableError
from hada.extract.spec import SIDES, SideName, StoreSpec
from hada.pipelines.study.datasets import dataset_of
from hada.pipelines.study.fingerprint import is_evaluated
from hada.pipelines.study.jobs import EvaluateJob, ExtractJob, Job, TrainJob

if TYPE_CHECKING:
    from hada.extract.datasets.caption_dataset import CaptionDataset

Condition = Literal["done", "part", "missing", "other"]


@dataclass
class State:
    """How far a job is.

    done, total: shards of a store; 0 or 1 of 1 for a training or an evaluation.
    pending: per side the shards that are to be written, the `damaged` ones among them.
    unfinished: all shards are there, but not what follows the last one (the seal, say).
    other: what is there belongs to another request; why.
    failed: pictures that could not be decoded.
    """

    job: Job
    done: int = 0
    total: int = 1
    damaged: int = 0
    pending: dict[SideName, list[int]] = field(default_factory=dict)
    items: dict[SideName, int] = field(default_factory=dict)
    bytes: int = 0
    spec: StoreSpec | None = None
    unfinished: bool = False
    other: str = ""
    failed: int = 0

    @property
    def condition(self) -> Condition:
        """In one word."""
        if self.other:
            return "other"
        if self.done == self.total and not self.unfinished:
            return "done"
        return "part" if self.done or self.damaged else "missing"


def survey(jobs: Iterable[Job]) -> dict[str, State]:
    """The state of every job, by key.

    Raises:
        DatasetError: Annotations or pictures are missing.
        UnreachableError: A store behind a URL does not answer.
    """
    states: dict[str, State] = {}
    with _no_garbage():
        for job in jobs:
            if isinstance(job, ExtractJob):
                states[job.key] = survey_store(job)
            elif isinstance(job, TrainJob):
                states[job.key] = _survey_run(job)
            elif isinstance(job, EvaluateJob):
                state = State(job=job)
                settled = all(states[key].condition == "done" for key in job.needs)
                state.done = int(settled and is_evaluated(job))
                states[job.key] = state
    return states


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Many shards are a million objects that stay: Python need not look for those that do not."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def survey_store(job: ExtractJob) -> State:
    """Which shards of a store are there."""
    from hada.extract.store import formats

    data = dataset_of(job)
    items: dict[SideName, int] = {
        "image": len(data.image_ids),
        "caption": 0 if job.view else len(data.caption_ids),
    }
    state = State(job=job, items=items)
    folder = remote.place(job.store)
    layout = formats.find(folder) if folder.exists() else None
    if layout is None:
        if not remote.is_remote(folder) and folder.exists():
            state.other = "the folder holds something that is no store"
        state.pending = {s: list(range(ceil(items[s] / job.rows[s]))) for s in SIDES}
        state.total = sum(map(len, state.pending.values()))
        return state
    try:
        _compare(state, job, data, folder, layout[1])
    except UnreachableError:
        raise
    except StoreError as error:
        state.other = str(error)
        state.total = sum(ceil(items[side] / job.rows[side]) for side in SIDES)
    return state


def _compare(
    state: State, job: ExtractJob, data: CaptionDataset, folder: Path, features: Path
) -> None:
    from hada.extract.engine.extraction import ERRORS
    from hada.extract.store import commit, damage, seal
    from hada.extract.store.record import read_record

    record = read_record(folder)
    spec = state.spec = record.spec
    state.other = _difference(spec, job, data)
    shards = [
        (side, shard)
        for side in SIDES
        for shard in range(ceil(state.items[side] / spec.rows_per_shard[side]))
    ]
    listed = _sizes(folder)
    inside = f"{features.name}/"
    sizes = {k.removeprefix(inside): v for k, v in listed.items() if k.startswith(inside)}
    marked = {k.rpartition("/")[2] for k in listed if k.startswith(f"{commit.COMMIT}/")}
    there = [key for key in shards if commit.marker_name(*key) in marked]
    frame, whole = damage.Frame.of(record), set()
    markers = commit.read_markers(folder, there)
    sealed, strange = seal.faults(folder, record.root, markers) if record.root else (True, {})
    for key, marker in markers.items():
        if marker is None or isinstance(marker, StoreError):
            state.damaged += marker is not None
        elif key in strange or damage.of_shard(marker, frame, sizes=sizes) is not None:
            state.damaged += 1
        else:
            whole.add(key)
            state.failed += len(marker.failed)
    state.pending = {
        s: [k for side, k in shards if side == s and (s, k) not in whole] for s in SIDES
    }
    state.done, state.total = len(whole), len(shards)
    state.bytes = sum(listed.values())
    if state.done == state.total:
        left = any(name.endswith(".lock") for name in marked)
        untold = bool(state.failed) != (ERRORS in listed)
        state.unfinished = left or untold or not sealed or state.failed > job.max_errors


def _difference(spec: StoreSpec, job: ExtractJob, data: CaptionDataset) -> str:
    """What of a store is not as asked for, as far as that is known without the model."""
    from hada.extract.store.pooling import describe

    shown = _pictures_only(data) if job.view else data
    shown = shown.as_stored(spec.dataset_digest)
    wanted: dict[str, tuple[object, object]] = {
        "dtype": (spec.dtype, job.options.dtype),
        "shard_size": (spec.rows_per_shard["image"], job.rows["image"]),
        "precision": (spec.model.precision, job.precision),
        "the dataset": (spec.dataset_digest, shown.digest()),
        "view_seed": (
            spec.model.preprocessing.get("seed") if job.view else None,
            job.view_seed if job.view else None,
        ),
    }
    if (describe(spec.model.image) == "none") != (job.options.tokens == "none"):
        wanted["tokens"] = describe(spec.model.image), job.options.tokens
    for name, (there, asked) in wanted.items():
        if there != asked:
            return f"{name} is {there} there, {asked} here"
    return ""


def _pictures_only(data: CaptionDataset) -> CaptionDataset:
    from hada.extract.variants.views import pictures_only  # loads PyTorch

    return pictures_only(data)


def _sizes(folder: Path) -> dict[str, int]:
    """Path below `folder` -> bytes, faster than `remote.file_sizes` on a local disk."""
    if remote.is_remote(folder):
        return remote.file_sizes(folder)
    sizes: dict[str, int] = {}
    waiting = [("", str(folder))]
    while waiting:
        prefix, folder_path = waiting.pop()
        with os.scandir(folder_path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((f"{prefix}{entry.name}/", entry.path))
                else:
                    sizes[prefix + entry.name] = entry.stat().st_size
    return sizes


def _survey_run(job: TrainJob) -> State:
    from hada.fuse.recipes import Recipe
    from hada.fuse.run_files.checkpoint import LAST
    from hada.fuse.run_files.config import CONFIG, differences
    from hada.fuse.run_folder import RunFolder

    state = State(job=job)
    run = RunFolder(job.plan.folder)
    if not (run.path / CONFIG).exists():
        return state
    try:
        config = run.config()
        asked = json.loads(json.dumps(job.plan.request()))
        config["recipe"] = Recipe.from_json(config["recipe"]).to_json()
        changes = differences({key: config.get(key) for key in asked}, asked)
        if changes:
            name, there, here = changes[0]
            state.other = f"{name} is {there} there, {here} here"
        elif (run.path / LAST).exists():
            state.done = int(bool(run.position().finished))
    except HadaError as error:
        state.other = str(error)
    return state
