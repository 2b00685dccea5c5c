"""One training, from a plan to a run folder: what `hada-fuse train` and the pipelines both do."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hada.extract.common.console import say
from hada.extract.common.errors import RunError
from hada.fuse.plan import Plan

if TYPE_CHECKING:
    from hada.fuse.run_folder import RunFolder
    from hada.fuse.tokens.placement import Mode


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
    from hada.fuse.tokens.placement import choose_reading
    from hada.fuse.training import trainer
    from hada.fuse.training.lock import only_trainer
    from hada.fuse.training.prepare import open_splits, run_config, trainer_job

    reuse_freed_memory()
    chosen = torch.device(choose_device(device))
    splits = open_splits(plan, pinned=chosen.type == "cuda")
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
    config = run_config(plan, splits, way, chosen, init)
    with only_trainer(plan.folder):
        run.claim(config, fresh=fresh)
        position = run.position()
        if position.finished:
            say(f"already finished: {trainer.summary(run, position)}. --fresh trains it again")
            return run
        say(f"reading from {way}")
        way.apply(train_part, val_part)
        job = trainer_job(
            plan, run, train_part, val_part, way, chosen, init=init, report_to=report_to
        )
        say(trainer.summary(run, trainer.train(job)))
        return run


def train_seeds(plans: Sequence[Plan], **options: Any) -> tuple[list[RunFolder], dict[str, float]]:
    """The same training with several seeds: the runs, and mean and deviation of their best epochs.

    The deviation is the sample's (n - 1): what another seed would be expected to differ by.

    Args:
        plans: One for each seed, each with a folder of its own.
        **options: Those of `train_run`.

    Returns:
        (the runs, name -> value): each figure of validation as its mean over the runs, and, as
        NAME_sd, its deviation (0 for a single run).

    Raises:
        RunError: A run's metrics have lost the line of its best epoch; else as for `train_run`.
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
