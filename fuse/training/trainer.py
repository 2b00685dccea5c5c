"""Training: stores in, a run folder out. The loop is `train`; everything it needs is a `Job`.

A run goes on where it stopped and, on a CPU with as many threads, ends bit for bit as if nothing
had happened: the order of an epoch depends on seed and epoch (and on the run's windows, where it
reads in windows), rates on the step alone, and `last.pt` holds everything else.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from hada.extract.common.errors import NonFiniteError
from hada.extract.common.progress import duration, progress
from hada.extract.spec import SIDES
from hada.fuse.batch import Batch
from hada.fuse.embedding import embed
from hada.fuse.network.build import build_fuser
from hada.fuse.network.score_mix import mixable_models
from hada.fuse.ranking.ranks import rank_matrix, rank_positives, recalls
from hada.fuse.recipes import Recipe
from hada.fuse.run_files.checkpoint import Position
from hada.fuse.run_files.weights import BEST
from hada.fuse.run_folder import RunFolder
from hada.fuse.scores.shares import (
    MOST_IMAGES_OF_NODES,
    ScoreTable,
    score_loss,
    spread,
    tuned_shares,
)
from hada.fuse.tokens.loader import Loader
from hada.fuse.tokens.split import Split
from hada.fuse.training import checkpoint
from hada.fuse.training.closing import fit_heads
from hada.fuse.training.losses import distillation_weight
from hada.fuse.training.objective import Objective
from hada.fuse.training.schedule import learning_rate_cosine, learning_rate_restarts
from hada.fuse.training.trackers import Report, figures, open_reports


@dataclass
class Job:
    """One training and all its parts."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    loader: Loader
    val: Split
    recipe: Recipe
    run: RunFolder
    device: torch.device
    report: Callable[[str], None]
    report_to: Sequence[str] = ()
    reports: list[Report] = field(default_factory=list)


def train(job: Job) -> Position:
    """Train until the recipe's end or until validation stops rising; returns where it ended."""
    recipe = job.recipe
    job.run.path.mkdir(parents=True, exist_ok=True)
    with deterministic(), contextlib.ExitStack() as stack:
        position = checkpoint.load_last(
            job.run, job.objective, job.optimizer, job.device, job.report
        )
        if position.epoch or position.step:
            job.report(f"continuing {job.run.path} at epoch {position.epoch + 1}")
        if job.report_to and not position.finished:
            job.reports, close = open_reports(
                job.report_to, job.run, job.run.config(), position.epoch + 1
            )
            stack.callback(close)
        while not position.finished:
            if ending := _ending(recipe, position):
                finish(job, position)
                position.finished = ending
                checkpoint.save_last(job.run, job.objective, job.optimizer, position)
                break
            train_epoch(job, position)
            table = validate(job)
            first = position.best_epoch < 0
            if recipe.training.choose == "likelihood":
                gained = first or table["loss"] < position.best_loss
            else:
                gain = table["rsum"] - position.best_rsum
                gained = first or (gain > 0 and gain >= recipe.training.min_gain)
            if gained:
                position.best_epoch = position.epoch
                position.best_rsum, position.best_loss = table["rsum"], table["loss"]
                checkpoint.save_best(job.run, job.objective, position.epoch)
            position.stale = 0 if gained else position.stale + 1
            log_epoch(job, position, table)
            position.epoch, position.step = position.epoch + 1, 0
            position.sums, position.seconds = {}, 0.0
            if not recipe.scores.finish and recipe.training.epochs:
                position.finished = _ending(recipe, position)
            checkpoint.save_last(job.run, job.objective, job.optimizer, position)
    return position


def _ending(recipe: Recipe, position: Position) -> str:
    """Why no epoch follows, or nothing where one does."""
    if recipe.training.epochs == 0:
        return "fitted in closed form"
    if position.epoch >= recipe.training.epochs:
        return f"all {recipe.training.epochs} epochs are done"
    if position.stale >= recipe.training.patience:
        return f"no gain for {recipe.training.patience} epochs"
    return ""


def finish(job: Job, position: Position) -> None:
    """Fit what stands behind the network with the best epoch's weights, and keep it with them."""
    trained = position.best_epoch >= 0
    if not trained:
        checkpoint.save_best(job.run, job.objective, position.epoch)
    tensors = job.run.load_tensors()
    fuser, mix = checkpoint.best_of(job.objective, tensors)
    which = f"of epoch {position.best_epoch + 1}, the best" if trained else "in closed form"
    job.report(f"fitting the scores {which}")
    names = [job.loader.split.stores[m].spec.model.name for m in mixable_models(fuser)]
    heads = fit_heads(
        fuser,
        mix,
        job.loader.split,
        job.val,
        job.recipe.scores,
        names=names,
        device=job.device,
        report=job.report,
        trained=trained,
    )
    # They count as the epoch's that would follow: a process that dies before the checkpoint knows
    # of them fits them again.
    job.run.save_tensors({**tensors, **heads.tensors()}, position.epoch)


def train_epoch(job: Job, position: Position) -> None:
    """The rest of one epoch, with a checkpoint every few minutes."""
    recipe, run = job.recipe, job.run
    epoch = job.loader.epoch(position.epoch)
    steps = len(epoch)
    started = saved = time.monotonic()
    before = position.seconds
    job.objective.train()

    group = recipe.training.accumulate
    label = f"epoch {position.epoch + 1}/{recipe.training.epochs}"
    with progress(label, steps, "steps", done=position.step) as advance:
        for batch in job.loader.batches(epoch, position.step, job.device):
            for name, value in train_step(job, batch, position, steps).items():
                position.sums[name] = position.sums.get(name, 0.0) + value
            position.step += 1
            now = time.monotonic()
            position.seconds = before + now - started
            advance(1, note=f"loss {position.sums['total'] / position.step:.3f}")
            whole = position.step % group == 0  # gradients of part of a group are not saved
            late = now - saved >= 60 * recipe.training.save_minutes
            if late and whole and position.step < steps:
                checkpoint.save_last(run, job.objective, job.optimizer, position)
                saved = time.monotonic()


def train_step(job: Job, batch: Batch, position: Position, steps: int) -> dict[str, float]:
    """One batch, and a step of the weights after each `accumulate` of them.

    Args:
        job: The training.
        batch: On the training's device.
        position: Where the training is, this step not counted.
        steps: Of an epoch.

    Returns:
        Name -> value of each loss, `total` among them.

    Raises:
        NonFiniteError: A loss or gradient is not finite; the weights have not moved.
    """
    recipe = job.recipe
    first = position.step - position.step % recipe.training.accumulate
    together = min(recipe.training.accumulate, steps - first)
    if position.step == first:
        job.optimizer.zero_grad(set_to_none=True)
    rate = learning_rate(recipe, position.epoch * steps + position.step, steps)
    for group in job.optimizer.param_groups:
        group["lr"] = rate
    share = distillation_weight(recipe.loss.distill, position.epoch, position.step, steps)
    losses = job.objective(batch, distill=share)
    (losses["total"] / together).backward()
    job.objective.remember()
    values = {name: float(value.detach()) for name, value in losses.items()}
    if torch.isfinite(losses["total"]) and position.step + 1 < first + together:
        return values
    parameters = [p for group in job.optimizer.param_groups for p in group["params"]]
    limit = recipe.training.clip_norm or float("inf")
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    if not torch.isfinite(losses["total"]) or not torch.isfinite(norm):
        raise NonFiniteError(
            f"loss {values['total']}, gradient norm {float(norm)} at epoch {position.epoch + 1}, "
            f"step {position.step + 1}. {job.run.path} keeps the last good state; the same "
            "command would meet this again: use another --run with a lower --set learning_rate"
        )
    job.optimizer.step()
    return values


def validate(job: Job) -> dict[str, float]:
    """Recalls on the validation split, by the run's score; `fused_rsum` is the network alone.

    `loss` is how unlikely the right matches are (see `hada.fuse.scores.shares`). Where nodes are
    matched all figures but `fused_rsum` are of the images that the shares are fitted on, at most
    `hada.fuse.scores.shares.MOST_IMAGES_OF_NODES` of them.
    """
    fuser, mix = job.objective.fuser, job.objective.mix
    found = embed(fuser, mix, job.val, job.device, nodes=False)
    few = job.val.subset(spread(job.val.images, MOST_IMAGES_OF_NODES))
    scores = ScoreTable.of(
        found if fuser.nodes is None else embed(fuser, mix, few, job.device),
        device=str(job.device),
    )
    if job.recipe.scores.tune and len(scores.scores_KIT) > 1:
        shares, loss = tuned_shares(scores)
        mix.set(shares)
    else:
        shares = tuple(mix.shares().tolist())
        loss = score_loss(scores, shares)
    if mix.nodes:
        caption_to_image = scores.caption_to_image_T.numpy()
        table = recalls(rank_matrix(scores.total(shares), caption_to_image))
    else:
        found = replace(found, shares=shares)
        table = recalls(rank_positives(found.image_IE, found.caption_TE, found.caption_to_image))
    table["loss"] = loss
    alone = replace(found, shares=(1.0,), own=())
    if shares[0] < 1:
        ranks = rank_positives(alone.image_IE, alone.caption_TE, alone.caption_to_image)
        table["fused_rsum"] = recalls(ranks)["rsum"]
    return table


def log_epoch(job: Job, position: Position, table: dict[str, float]) -> None:
    """One line for people, one for programs."""
    steps = max(position.step, 1)
    mean = {name: total / steps for name, total in position.sums.items()}
    images = job.loader.split.images
    line = {
        "epoch": position.epoch + 1,
        "steps": position.step,
        "learning_rate": job.optimizer.param_groups[0]["lr"],
        "temperature": float(job.objective.temperature.detach()),
        "shares": job.objective.mix.shares().tolist(),
        "loss": mean,
        "val": table,
        "best_epoch": position.best_epoch + 1,
        "seconds": round(position.seconds, 3),
    }
    job.run.append(line)
    for report in job.reports:
        report(position.epoch + 1, figures(line))
    recall = " ".join(f"{table[f'{way}_R@{k}']:.1f}" for way in ("i2t", "t2i") for k in (1, 5, 10))
    fused = f" (fused alone {table['fused_rsum']:.1f})" if "fused_rsum" in table else ""
    star = " *" if position.best_epoch == position.epoch else ""
    job.report(
        f"epoch {position.epoch + 1}/{job.recipe.training.epochs}  loss {mean['total']:.3f}  "
        f"val {recall}  RSum {table['rsum']:.1f}{fused}  {duration(position.seconds)} "
        f"({images / max(position.seconds, 1e-9):.0f} images/s){star}"
    )


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate of one step, counted over all epochs."""
    base, low = recipe.training.learning_rate, recipe.training.learning_rate_low
    if recipe.training.schedule == "restarts":
        return learning_rate_restarts(step, steps, base, low, recipe.training.restart_epochs)
    warmup = round(recipe.training.warmup_epochs * steps)
    return learning_rate_cosine(step, recipe.training.epochs * steps, base, low, warmup)


def build_objective(recipe: Recipe, split: Split, seed: int) -> Objective:
    """A fresh objective; its weights depend on the seed alone."""
    torch.manual_seed(seed)
    fuser = build_fuser(recipe, {side: split.shapes(side) for side in SIDES})
    return Objective(fuser, recipe.loss, recipe.scores, precision=recipe.training.precision)


def build_optimizer(recipe: Recipe, objective: Objective) -> torch.optim.Optimizer:
    """AdamW; weights of matrices decay, and everything else only if `decay_all`."""
    parameters = list(objective.trainable().values())
    decayed = [p for p in parameters if recipe.training.decay_all or p.ndim > 1]
    rest = [p for p in parameters if not recipe.training.decay_all and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.training.weight_decay}]
    if rest:
        groups.append({"params": rest, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=recipe.training.learning_rate)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Algorithms that give the same bits each time, as far as the device has them."""
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Filling fresh memory with NaN finds reads of it in one's own code, at the price of time.
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    memory.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before, warn_only=warned)


def summary(run: RunFolder, position: Position) -> str:
    """What a finished run has to say.

    Args:
        run: The run.
        position: Where its training ended.
    """
    if position.best_epoch < 0:
        return f"{run.path}: {position.finished}; weights in {BEST}"
    return (
        f"{run.path}: {position.finished}. The best is epoch {position.best_epoch + 1}, RSum "
        f"{position.best_rsum:.1f} on the split it was chosen by; weights in {BEST}"
    )
