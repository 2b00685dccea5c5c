"""A pipeline and a manifest resolved to jobs, with all paths absolute."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from hada.evaluate.methods.request import Request
from hada.extract.common import remote
from hada.extract.common.errors import ManifestError
from hada.extract.engine.options import ExtractOptions
from hada.extract.manifest import Manifest, StoreRoot
from hada.pipelines.study.config import Extract, Fuse, Pipeline
from hada.pipelines.study.jobs import EvaluateJob, ExtractJob, Job, TrainJob, of_kind


def build_jobs(pipeline: Pipeline, manifest: Manifest) -> list[Job]:
    """All jobs in an order in which they can be done, those of one model together.

    Args:
        pipeline: What is to be made.
        manifest: Where data sets, stores and runs are.

    Raises:
        ManifestError: Two entries want one store or run to be different things, or a fusion needs a
            store that nobody makes.
    """
    # A store's own folder is only known to the worker's file system, so it must be absolute.
    manifest = dataclasses.replace(
        manifest, stores=_absolute(manifest.stores), runs=_absolute(manifest.runs)
    )
    jobs: dict[str, Job] = {}
    for entry in pipeline.extract:
        for job in _extractions(entry, manifest, pipeline.device):
            _add(jobs, job, entry.where)
    jobs = dict(sorted(jobs.items(), key=lambda item: _model_of(item[1])))
    for fusion in pipeline.fuse:
        for training in _trainings(fusion, manifest, pipeline.device, jobs):
            _add(jobs, training, fusion.where)
    for evaluation in _evaluations(pipeline, manifest, jobs):
        _add(jobs, *evaluation)
    return list(jobs.values())


def _add(jobs: dict[str, Job], job: Job, where: str) -> None:
    if jobs.setdefault(job.key, job) != job:
        remedy = " Give one of them a `name`." if isinstance(job, TrainJob) else ""
        raise ManifestError(
            f"{where}: {job.key} is asked for twice, with different settings.{remedy}"
        )


def _model_of(job: Job) -> str:
    return cast(ExtractJob, job).model.name


def _extractions(entry: Extract, manifest: Manifest, device: str) -> Iterable[ExtractJob]:
    dataset = manifest.dataset(entry.dataset)
    for name in entry.models:
        model = manifest.model(name, entry.dataset)
        for split in entry.splits:
            wanted = dataset.split(split)
            path = manifest.store_path(entry.dataset, split, name)
            for view in range(entry.views + 1):
                suffix = f"@view{view}" if view else ""
                yield ExtractJob(
                    key=f"extract/{entry.dataset}/{split}/{name}{suffix}",
                    device=device,
                    store=path + suffix,
                    dataset=dataclasses.replace(
                        dataset,
                        root=dataset.root.absolute(),
                        splits={split: wanted} if dataset.splits else {},
                    ),
                    split=split,
                    model=dataclasses.replace(
                        model,
                        weights={k: _located(v) for k, v in model.weights.items()},
                        options={k: _located(v) for k, v in model.options.items()},
                    ),
                    precision=entry.precision or model.precision or manifest.defaults.precision,
                    options=ExtractOptions(
                        dtype=entry.store_dtype or manifest.defaults.store_dtype,
                        tokens=entry.tokens,
                        format=entry.store_format,
                        rows_per_shard={"image": entry.shard_size, "caption": 8 * entry.shard_size},
                        batch_size=entry.batch_size,
                    ),
                    view=view,
                    view_seed=entry.view_seed,
                    max_errors=entry.max_errors,
                )


def _trainings(
    entry: Fuse, manifest: Manifest, device: str, jobs: Mapping[str, Job]
) -> Iterable[TrainJob]:
    from hada.fuse.plan import plan_training

    for models in entry.models:
        splits = (entry.train_split, entry.val_split)
        needs = _needed(entry.dataset, splits, models, manifest, jobs, entry.where)
        for seed in entry.seeds:
            folder = None
            if entry.name is not None:
                folder = Path(manifest.runs) / entry.dataset / f"{entry.name}-s{seed}"
            plan = plan_training(
                manifest,
                entry.dataset,
                models,
                entry.recipe,
                seed=seed,
                train_split=entry.train_split,
                val_split=entry.val_split,
                folder=folder,
            )
            yield TrainJob(
                key=f"train/{entry.dataset}/{plan.folder.name}",
                device=device,
                needs=needs,
                plan=plan,
            )


def _evaluations(
    pipeline: Pipeline, manifest: Manifest, jobs: Mapping[str, Job]
) -> Iterable[tuple[EvaluateJob, str]]:
    for entry in pipeline.evaluate:
        trained = [
            job for job in of_kind(jobs.values(), TrainJob) if job.plan.dataset == entry.dataset
        ]
        fused = [name for job in trained for name in job.plan.models]
        models = list(dict.fromkeys([*fused, *entry.models])) or list(manifest.defaults.models)
        splits = [entry.split] if entry.quick else [entry.split, entry.train_split, entry.val_split]
        needs = _needed(entry.dataset, splits, models, manifest, jobs, entry.where)
        folder = Path(manifest.runs) / entry.dataset
        job = EvaluateJob(
            key=f"evaluate/{entry.dataset}/{entry.split}",
            device=pipeline.device,
            needs=(*needs, *(job.key for job in trained)),
            stores=StoreRoot(manifest.stores),
            request=Request(
                dataset=entry.dataset,
                split=entry.split,
                runs=tuple(Path(run) for run in sorted(str(job.plan.folder) for job in trained)),
                models=tuple(models),
                train_split=entry.train_split,
                val_split=entry.val_split,
                quick=entry.quick,
                device=pipeline.device,
            ),
            output=folder / f"recall-{entry.split}.json",
        )
        yield job, entry.where


def _needed(
    dataset: str,
    splits: Iterable[str],
    models: Iterable[str],
    manifest: Manifest,
    jobs: Mapping[str, Job],
    where: str,
) -> tuple[str, ...]:
    """The extractions that make these stores; a store that is there already needs none."""
    needs = []
    models = list(models)
    for split in dict.fromkeys(splits):
        for model in models:
            key = f"extract/{dataset}/{split}/{model}"
            if key in jobs:
                needs.append(key)
            elif not remote.place(manifest.store_path(dataset, split, model)).exists():
                raise ManifestError(
                    f"{where}: needs the features of {model!r} on {dataset}/{split}, and nothing "
                    "makes them. Add them to `extract`, or: "
                    f"hada-extract --dataset {dataset} --split {split} --model {model}"
                )
    return tuple(needs)


def _absolute(location: str) -> str:
    return location if "://" in location else os.path.abspath(os.path.expanduser(location))


def _located(value: Any) -> Any:
    """A relative path that lies here, made absolute: a worker may start in another folder."""
    if isinstance(value, str) and "://" not in value and os.path.exists(value):
        return os.path.abspath(value)
    return value
