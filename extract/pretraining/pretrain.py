"""Train one of the two small models: `python -m hada.extract.pretraining.pretrain --model blip`.

It draws its scenes in memory, trains for a number of steps or minutes, and leaves a folder that the
model's library loads. What one step does is told in `learner`.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hada.extract.cli_options import device_option
from hada.extract.common import atomic
from hada.extract.common.console import HadaCommand, say
from hada.extract.common.device import choose_device
from hada.extract.common.progress import progress
from hada.extract.pretraining.recipes import RECIPES, PretrainingPlan, Recipe

if TYPE_CHECKING:
    from hada.extract.pretraining.corpus import Corpus
    from hada.extract.pretraining.learner import Learner
    from hada.extract.pretraining.towers import Towers

_DEFAULT = PretrainingPlan()


def pretrain(recipe: Recipe, plan: PretrainingPlan, output: Path, device: str = "cpu") -> Towers:
    """Train a model of this recipe and leave it in `output`; also now and then on the way.

    Every save is written beside and swapped in, so an interrupted training leaves the last
    complete save or nothing.

    Args:
        recipe: What is trained.
        plan: For how long, on what, and with which rates.
        output: The model's folder.
        device: Where.

    Returns:
        The trained model.
    """
    import torch

    from hada.extract.pretraining.build import build
    from hada.extract.pretraining.corpus import Corpus
    from hada.extract.pretraining.learner import Learner

    torch.manual_seed(plan.seed)
    towers = build(recipe)
    towers.model.to(device)
    with progress("drawing", plan.scenes, "scenes") as advance:
        corpus = Corpus(recipe, plan.scenes, plan.seed, done=advance)
    _loop(Learner(towers, plan, corpus.tag_share), corpus, output)
    return towers


def _loop(learner: Learner, corpus: Corpus, output: Path) -> None:
    plan, recipe = learner.plan, learner.towers.recipe
    mean: dict[str, float] = {}
    started, before = time.monotonic(), 0
    total, unit = (plan.steps, "steps") if plan.minutes is None else (round(plan.minutes * 60), "s")
    with progress(f"training {recipe.name}", total, unit) as advance:
        for step in range(plan.steps):
            elapsed = time.monotonic() - started
            share = step / plan.steps
            if plan.minutes is not None:
                share = max(share, elapsed / 60 / plan.minutes)
            if share >= 1:
                break
            batch = corpus.batch(recipe.batch, plan.captions, step)
            report = learner.step(batch, share, min(1.0, (step + 1) / plan.warm_up))
            for name, value in report.items():
                mean[name] = 0.98 * mean.get(name, value) + 0.02 * value
            now = step + 1 if plan.minutes is None else min(total, int(elapsed))
            note = ", ".join(f"{name} {value:.3f}" for name, value in mean.items())
            advance(now - before, f"step {step + 1}: {note}")
            before = now
            if (step + 1) % plan.save_every == 0:
                save(learner.towers, output)
    save(learner.towers, output)


def save(towers: Towers, folder: Path) -> None:
    """Write the model beside `folder`, then put it in place of what was there."""
    folder = folder.resolve()
    atomic.make_folder(folder.parent)
    hidden = folder.with_name(f".{folder.name}")
    atomic.remove_leftovers(hidden)
    fresh = atomic.temporary_name(hidden)
    towers.model.eval()
    try:
        towers.save(fresh)
        for file in fresh.iterdir():
            file.chmod(0o644)  # safetensors makes files that only their owner can read
        card = folder / "README.md"
        if card.exists():
            shutil.copy2(card, fresh / card.name)
        atomic.sync_all(fresh)
        atomic.put_folder(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@click.command(cls=HadaCommand)
@click.option("--model", "name", type=click.Choice(sorted(RECIPES)), required=True)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--steps", default=_DEFAULT.steps, show_default=True, type=click.IntRange(1))
@click.option(
    "--minutes", type=click.FloatRange(0.1), help="End by the clock if steps take longer."
)
@click.option("--scenes", default=_DEFAULT.scenes, show_default=True, type=click.IntRange(100))
@click.option("--rate", default=_DEFAULT.rate, show_default=True, help="Peak learning rate.")
@click.option("--seed", default=_DEFAULT.seed, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads. [default: all]")
@device_option
def main(
    name: str,
    output: Path,
    steps: int,
    minutes: float | None,
    scenes: int,
    rate: float,
    seed: int,
    threads: int | None,
    device: str,
) -> None:
    """Train one of the two small models of `scenes` and print its recall on the test split."""
    import torch

    from hada.extract.pretraining.figures import cosines, recalls, table

    if threads is not None:
        torch.set_num_threads(threads)
    plan = PretrainingPlan(steps=steps, minutes=minutes, scenes=scenes, rate=rate, seed=seed)
    began = time.monotonic()
    towers = pretrain(RECIPES[name], plan, output, choose_device(device))
    say(f"trained in {(time.monotonic() - began) / 60:.1f} minutes: {output}")
    say(table([(name, recalls(cosines(towers)))]), lines=True)


if __name__ == "__main__":
    main()
