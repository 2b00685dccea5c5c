"""One training, from names to a run folder: what `hada-fuse train` and the pipelines both do.

The plan is plain names and paths, so it can be printed or sent elsewhere; `train_run` opens the
stores and does the work.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict

from hada.extract.common import remote
from hada.extract.common.console import say
from hada.extract.common.errors import RunError, UsageError
from hada.extract.common.shapes import conform
from hada.extract.spec import SIDES
from hada.fuse.recipes import Recipe

if TYPE_CHECKING:
    import torch

    from hada.extract.manifest import Manifest
    from hada.fuse.run_folder import RunFolder
    from hada.fuse.tokens.placement import Mode, Reading
    from hada.fuse.tokens.split import Split
    from hada.fuse.training.trainer import Job


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to train. `paths`: split -> the stores of `models`, in their order."""

    dataset: str
    train_split: str
    val_split: str
    models: tuple[str, ...]
    recipe: Recipe
    seed: int
    paths: dict[str, list[str]]
    folder: Path

    def request(self) -> dict[str, Any]:
        """The part that makes the run what it is, wherever it runs, as plain JSON values."""
        return {
            "dataset": self.dataset,
            "train_split": self.train_split,
            "val_split": self.val_split,
            "models": list(self.models),
            "recipe": self.recipe.to_json(),
            "seed": self.seed,
        }

    def to_json(self) -> dict[str, Any]:
        """All of the plan as plain JSON values."""
        return {**self.request(), "paths": self.paths, "folder": str(self.folder)}

    @classmethod
    def from_json(cls, values: Any, where: str = "a plan", remedy: str = "") -> Self:
        """Back from `to_json`.

        Args:
            values: What `to_json` gave, also after a journey as JSON text.
            where: What the values are, for messages.
            remedy: The end of messages.

        Raises:
            UsageError: The values are no plan of this version.
        """
        conform(values, _PlanValues, where, UsageError, remedy)
        return cls(
            **{
                **values,
                "models": tuple(values["models"]),
                "recipe": Recipe.from_json(values["recipe"]),
                "folder": Path(values["folder"]),
            }
        )


class _PlanValues(TypedDict):
    dataset: str
    train_split: str
    val_split: str
    models: list[str]
    recipe: dict[str, Any]
    seed: int
    paths: dict[str, list[str]]
    folder: str


def plan_training(
    manifest: Manifest,
    dataset: str,
    models: Sequence[str],
    recipe: Recipe,
    *,
    seed: int = 0,
    train_split: str = "train",
    val_split: str = "val",
    folder: Path | None = None,
    allow_same_split: bool = False,
) -> Plan:
    """Resolve the names of a training to paths.

    Args:
        manifest: Where data sets, stores and runs are.
        dataset: Its name there.
        models: The models to fuse, by name; their stores need not be there yet.
        recipe: What is trained, and how.
        seed: Of the weights and of the order of batches.
        train_split: The split to train on.
        val_split: The split that chooses the epoch and fits the shares of the scores.
        folder: The run's folder; None for RUNS/DATASET/MODELS-RECIPE-sSEED.
        allow_same_split: Allow the two splits to be one, for trying things out.

    Returns:
        The plan; nothing is read or written.

    Raises:
        UnknownNameError: Nobody knows the dataset, a split or a model.
        UsageError: Training and validation are one split, and `allow_same_split` is False.
    """
    entry = manifest.dataset(dataset)
    splits = (train_split, val_split)
    if train_split == val_split and not allow_same_split:
        raise UsageError(
            f"train and val are both {train_split!r}: what is chosen and fitted on the data that "
            "was trained on promises too much. Extract with --split-by 0.8,0.1,0.1, name another "
            "split, or say --allow-same-split"
        )
    for split in splits:
        entry.split(split)
    for name in models:
        # A model that was named on hada-extract's command line has a store and no entry.
        if not remote.place(manifest.store_path(entry.name, train_split, name)).exists():
            manifest.model(name)
    default = Path(manifest.runs) / entry.name / f"{'+'.join(models)}-{recipe.name}-s{seed}"
    return Plan(
        dataset=entry.name,
        train_split=train_split,
        val_split=val_split,
        models=tuple(models),
        recipe=recipe,
        seed=seed,
        paths={
            split: [manifest.store_path(entry.name, split, name) for name in models]
            for split in splits
        },
        folder=folder or default,
    )


def train_run(
    plan: Plan,
    *,
    device: str = "auto",
    fresh: bool = False,
    reading: Mode = "auto",
    memory: float | None = None,
    report_to: Sequence[str] = (),
    init: Path | None = None,
) -> RunFolder:
    """Train, go on with, or just report the run of a plan.

    Args:
        plan: What to train.
        device: Where.
        fresh: Whether to throw away what the run's folder holds.
        reading: Where tokens come from, see `hada.fuse.tokens.placement`.
        memory: Bytes that tokens may take; None for half of what is free.
        report_to: Trackers of `hada.fuse.training.trackers`.
        init: A run whose weights a new one begins with: the published second step.

    Raises:
        UsageError: The tokens do not fit `memory` in the way that was asked for.
        StoreError: A store is missing, incomplete or does not fit the others.
        RunError: The folder holds another run.
        NonFiniteError: The loss is not finite; the last good state is kept.
    """
    import torch

    from hada.extract.common.device import choose_device
    from hada.extract.common.host import reuse_freed_memory
    from hada.fuse import run_folder
    from hada.fuse.fitted import fitted_on
    from hada.fuse.tokens.placement import choose_reading
    from hada.fuse.training import trainer
    from hada.fuse.training.lock import only_trainer

    reuse_freed_memory()
    chosen = torch.device(choose_device(device))
    splits = _open_splits(plan, pinned=chosen.type == "cuda")
    train_part, val_part = splits[plan.train_split], splits[plan.val_split]
    run = run_folder.RunFolder(plan.folder)
    way = choose_reading(
        train_part,
        val_part,
        plan.recipe.training.order,
        plan.recipe.training.batch_size,
        mode=reading,
        memory=memory,
        begun=None if fresh else run.window_shards(),
        device=chosen,
    )
    config = _resolved(plan, train_part, splits)
    config |= {"paths": plan.paths, "environment": _environment(str(chosen))}
    if way.shards:
        # The order of an epoch depends on it, so the run keeps it.
        config["window_shards"] = way.shards
    if init is not None:
        config["init"] = run_folder.weights_digest(init)
        config["init_fitted"] = fitted_on(run_folder.RunFolder(init).config())
    with only_trainer(plan.folder):
        run.claim(config, fresh=fresh)
        position = run.position()
        if position.finished:
            say(f"already finished: {trainer.summary(run, position)}. --fresh trains it again")
            return run
        say(f"reading from {way}")
        way.apply(train_part, val_part)
        job = _trainer_job(
            plan, run, train_part, val_part, way, chosen, init=init, report_to=report_to
        )
        say(trainer.summary(run, trainer.train(job)))
        return run


def _open_splits(plan: Plan, *, pinned: bool) -> dict[str, Split]:
    """The plan's splits, their tokens not read yet; `pinned` for copies to a CUDA device."""
    from hada.extract.store import open_store
    from hada.fuse.tokens.split import Split

    stores = {
        split: [open_store(path) for path in folders] for split, folders in plan.paths.items()
    }
    say(f"reading {' and '.join(stores)} of {', '.join(plan.models)}")
    return {
        split: Split(
            opened,
            in_memory=False,
            first_tokens_only=plan.recipe.features.first_tokens_only,
            pinned=pinned,
        )
        for split, opened in stores.items()
    }


def _trainer_job(
    plan: Plan,
    run: RunFolder,
    train_part: Split,
    val_part: Split,
    way: Reading,
    device: torch.device,
    *,
    init: Path | None,
    report_to: Sequence[str],
) -> Job:
    """What the trainer needs: the losses with their network, the optimiser, and the batches."""
    from hada.fuse import run_folder
    from hada.fuse.tokens.loader import Loader
    from hada.fuse.training import trainer
    from hada.fuse.training.checkpoint import start_from

    settings = plan.recipe.training
    objective = trainer.build_objective(plan.recipe, train_part, plan.seed).to(device)
    if init is not None:
        start_from(run_folder.RunFolder(init), objective)
    count = sum(parameter.numel() for parameter in objective.trainable().values())
    say(
        f"training {plan.folder}: {train_part.images} images, {train_part.captions} captions, "
        f"{count:,} parameters, {device}"
    )
    return trainer.Job(
        objective=objective,
        optimizer=trainer.build_optimizer(plan.recipe, objective),
        loader=Loader(
            train_part,
            settings.order,
            settings.batch_size,
            plan.seed,
            shards=way.shards,
            windows=way.mode == "window",
        ),
        val=val_part,
        recipe=plan.recipe,
        run=run,
        device=device,
        report=say,
        report_to=report_to,
    )


def train_seeds(plans: Sequence[Plan], **options: Any) -> tuple[list[RunFolder], dict[str, float]]:
    """The same training with several seeds: the runs, and mean and deviation of their best epochs.

    The deviation is the sample's (n - 1): what another seed would be expected to differ by.
    """
    runs = [train_run(plan, **options) for plan in plans]
    tables = []
    for run in runs:
        lines = run.metrics()
        best = [line["val"] for line in lines if line["epoch"] == lines[-1]["best_epoch"]]
        if len(best) != 1:
            raise RunError(
                f"{run.path}: metrics.jsonl has {len(best)} lines of the best epoch, expected one; "
                "put the file back from a copy, or start over with --fresh"
            )
        tables += best
    figures: dict[str, float] = {}
    for name in sorted(set.intersection(*(set(table) for table in tables))):
        values = [float(table[name]) for table in tables]
        figures[name] = statistics.fmean(values)
        figures[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return runs, figures


def _resolved(plan: Plan, train_part: Split, splits: dict[str, Split]) -> dict[str, Any]:
    """What a run's config.json says about what it is, whichever machine it runs on."""
    from hada.fuse import run_folder
    from hada.fuse.network.build import branch_config
    from hada.fuse.run_files.features import check_features, check_raw, features_of

    features = {s.spec.model.name: features_of(s) for s in train_part.stores}
    for store in (store for part in splits.values() for store in part.stores):
        check_features(
            features[store.spec.model.name], store, plan.folder, inputs=plan.recipe.network.inputs
        )
        if plan.recipe.features.raw_embeddings:
            check_raw(store)
    image, caption = (branch_config(plan.recipe, train_part.shapes(side)) for side in SIDES)
    return {
        **plan.request(),
        "format": run_folder.FORMAT,
        "branches": {
            "image": run_folder.branch_to_json(image),
            "caption": run_folder.branch_to_json(caption),
        },
        "features": features,
        "stores": {split: _identity(part) for split, part in splits.items()},
    }


def _identity(split: Split) -> dict[str, Any]:
    """What a split's stores are, wherever they lie."""
    return {
        "digests": {s.spec.model.name: s.spec.digest() for s in split.stores},
        "dataset_digest": split.stores[0].spec.dataset_digest,
        "images": split.images,
        "captions": split.captions,
    }


def _environment(device: str) -> dict[str, Any]:
    """What the numbers may depend on besides the request."""
    import numpy as np
    import torch

    from hada.extract import __version__

    return {
        "hada": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device,
    }
