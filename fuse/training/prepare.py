"""Before the first epoch: a plan's splits, the configuration of its run, and the trainer's job."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hada.extract import __version__
from hada.extract.common.console import say
from hada.extract.spec import SIDES
from hada.extract.store import open_store
from hada.fuse import run_folder
from hada.fuse.fitted import fitted_on
from hada.fuse.network.build import branch_config
from hada.fuse.plan import Plan
from hada.fuse.run_files.features import check_features, check_raw, features_of
from hada.fuse.run_folder import RunFolder
from hada.fuse.tokens.loader import Loader
from hada.fuse.tokens.placement import Reading
from hada.fuse.tokens.split import Split
from hada.fuse.training import trainer
from hada.fuse.training.checkpoint import start_from


def open_splits(plan: Plan, *, pinned: bool) -> dict[str, Split]:
    """Open the stores of a plan's splits; their tokens are not read yet.

    Args:
        plan: Whose `paths`.
        pinned: Whether batches are to lie in pinned memory, for copies to a CUDA device.

    Returns:
        Name of the split -> the stores of the plan's models on it, as one split.

    Raises:
        StoreError: A store is missing, incomplete or does not fit the others.
    """
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


def run_config(
    plan: Plan, splits: Mapping[str, Split], way: Reading, device: torch.device, init: Path | None
) -> dict[str, Any]:
    """What a run's config.json says: what the run is, and where and how it was made.

    Args:
        plan: What is trained.
        splits: Name -> split, as `open_splits` gives them.
        way: Where tokens come from.
        device: Where the network trains.
        init: The run whose weights it begins with, None for a fresh network.

    Returns:
        Plain JSON values.

    Raises:
        RunError: A model's features on the two splits differ in kind, or `init` has no weights.
        StoreMismatchError: The recipe takes embeddings as the models give them, and a store holds
            embeddings of unit length.
    """
    config = _resolved(plan, splits)
    config |= {"paths": plan.paths, "environment": _environment(str(device))}
    if way.shards:
        # The order of an epoch depends on it, so the run keeps it.
        config["window_shards"] = way.shards
    if init is not None:
        config["init"] = run_folder.weights_digest(init)
        config["init_fitted"] = fitted_on(RunFolder(init).config())
    return config


def trainer_job(
    plan: Plan,
    run: RunFolder,
    train_part: Split,
    val_part: Split,
    way: Reading,
    device: torch.device,
    *,
    init: Path | None,
    report_to: Sequence[str],
) -> trainer.Job:
    """Make what the trainer needs: the losses with their network, the optimiser, and the batches.

    Args:
        plan: What is trained.
        run: Its folder.
        train_part: The split to learn from.
        val_part: The split to validate with.
        way: Where tokens come from; already applied to both splits.
        device: Where the network trains.
        init: The run whose weights it begins with, None for a fresh network.
        report_to: Trackers of `hada.fuse.training.trackers`.

    Raises:
        RunError: The weights of `init` do not fit the network.
    """
    settings = plan.recipe.training
    objective = trainer.build_objective(plan.recipe, train_part, plan.seed).to(device)
    if init is not None:
        start_from(RunFolder(init), objective)
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


def _resolved(plan: Plan, splits: Mapping[str, Split]) -> dict[str, Any]:
    """What a run's config.json says about what it is, whichever machine it runs on."""
    train_part = splits[plan.train_split]
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
    return {
        "hada": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device,
    }
