"""`hada-fuse`: train a fusion on feature stores, and apply it.

Nothing heavy is imported until a command runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hada.extract.cli_options import device_option, manifest_options, parse_assignments
from hada.extract.common.console import HadaGroup, say, tell
from hada.extract.common.errors import HadaError, UsageError
from hada.fuse.models_cli import export, import_official, suggest
from hada.fuse.recipes import DEFAULT_RECIPE, RECIPES
from hada.fuse.recipes import recipe as named_recipe

if TYPE_CHECKING:
    from hada.extract.manifest import Manifest
    from hada.fuse.tokens.placement import Mode


@click.group(cls=HadaGroup)
def fuse() -> None:
    r"""Train a small graph network on the stored features of frozen models.

    \b
    Extract first, then train, then look:
      hada-extract --dataset flickr8k --split train --split val
      hada-fuse train --dataset flickr8k
      hada-evaluate recall --dataset flickr8k --split val
    """


_WHAT = (
    click.option("--model", "models", multiple=True, metavar="NAME", help="A frozen model to fuse; "
                 "give one to eight. [default: the manifest's]"),
    click.option("--dataset", metavar="NAME", help="[default: the manifest's]"),
    click.option("--train-split", default="train", show_default=True, metavar="NAME"),
    click.option("--val-split", default="val", show_default=True, metavar="NAME"),
    click.option("--allow-same-split", is_flag=True, help="Train and validate on one split, though "
                 "what is chosen there is flattered."),
    click.option("--fresh", is_flag=True, help="Throw away what the run's folder holds and start "
                 "over."),
)  # fmt: skip


def what_to_fuse(command: Any) -> Any:
    """Add the options that `train` and `fit` share: models, dataset, splits, --fresh."""
    for option in reversed(_WHAT):
        command = option(command)
    return command


@fuse.command()
@what_to_fuse
@click.option("--recipe", "recipe_name", default=DEFAULT_RECIPE, show_default=True, metavar="NAME",
              help=f"A named configuration: {', '.join(RECIPES)}.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Change one setting of the recipe; --print-config lists them.")  # fmt: skip
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    help="What encoders compute in while training; the same as --set precision=bf16.",
)
@click.option(
    "--init",
    "init_path",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="A run whose weights to begin with: the paper's second step.",
)
@click.option(
    "--report-to",
    metavar="NAME,...",
    help="tensorboard, wandb, mlflow or none. [default: tensorboard, where it is installed]",
)
@click.option("--epochs", type=int, help="At most this many; the same as --set epochs=N.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--seeds", metavar="N,N,...", help="Train once with each seed and print mean and "
              "deviation, e.g. --seeds 0,1,2.")  # fmt: skip
@device_option
@click.option("--reading", default="auto", show_default=True,
              type=click.Choice(["auto", "device", "memory", "mapped", "window"]),
              help="Where tokens come from. device: all on the GPU; memory: all in memory; mapped: "
              "the files, as they are needed; window: two windows of some shards, for stores that "
              "are larger than memory. auto says which it chose and why.")  # fmt: skip
@click.option("--memory", type=click.FloatRange(min=0, min_open=True), metavar="GIB",
              help="Memory that tokens may take. [default: half of what is free]")  # fmt: skip
@click.option("--run", "run_path", type=click.Path(path_type=Path, file_okay=False),
              help="The run's folder. [default: RUNS/DATASET/MODELS-RECIPE-sSEED]")  # fmt: skip
@click.option("--print-config", is_flag=True, help="Print the resolved request and stop.")
@manifest_options
def train(
    manifest: Manifest,
    models: tuple[str, ...],
    dataset: str | None,
    train_split: str,
    val_split: str,
    allow_same_split: bool,
    recipe_name: str,
    settings: tuple[str, ...],
    precision: str | None,
    init_path: Path | None,
    report_to: str | None,
    epochs: int | None,
    seed: int,
    seeds: str | None,
    device: str,
    reading: Mode,
    memory: float | None,
    run_path: Path | None,
    fresh: bool,
    print_config: bool,
) -> None:
    r"""Train a fusion of frozen models on their feature stores.

    The same command goes on with an interrupted run, and reports a finished one.

    \b
    Examples:
      hada-fuse train
      hada-fuse train --model blip --model clip --dataset flickr30k --recipe hada
      hada-fuse train --epochs 5 --set learning_rate=5e-4 --seed 1
      hada-fuse train --seeds 0,1,2
      hada-fuse train --recipe hada-lavis-weighted --init runs/flickr30k/blip+clip-hada-lavis-s0
      hada-fuse train --print-config
    """
    from hada.fuse import commands
    from hada.fuse.job import train_seeds
    from hada.fuse.plan import plan_training

    changes = parse_assignments(settings, "--set")
    if epochs is not None:
        changes["epochs"] = str(epochs)
    if precision is not None:
        changes["precision"] = precision
    recipe = named_recipe(recipe_name).with_settings(changes)
    several = _seeds(seeds) if seeds is not None else [seed]
    plans = [
        plan_training(
            manifest,
            manifest.dataset(dataset).name,
            manifest.chosen_models(models),
            recipe,
            seed=one,
            train_split=train_split,
            val_split=val_split,
            allow_same_split=allow_same_split,
            folder=run_path and (run_path if seeds is None else Path(f"{run_path}-s{one}")),
        )
        for one in several
    ]
    if print_config:
        tell(json.dumps(plans[0].request(), indent=2), lines=True)
        return
    from hada.fuse.training.trackers import parse

    options: dict[str, Any] = {
        "device": device,
        "fresh": fresh,
        "reading": reading,
        "memory": None if memory is None else memory * 2**30,
        "report_to": parse(report_to),
        "init": init_path,
    }
    if seeds is None:
        run = commands.train(
            models,
            dataset=dataset,
            manifest=manifest,
            recipe=recipe,
            seed=seed,
            train_split=train_split,
            val_split=val_split,
            allow_same_split=allow_same_split,
            run=run_path,
            **options,
        )
        tell(str(run.path))
        return
    _, table = train_seeds(plans, **options)
    for plan in plans:
        tell(str(plan.folder))
    say(
        f"{len(plans)} seeds: RSum {table['rsum']:.1f} ± {table['rsum_sd']:.1f} on "
        f"{plans[0].val_split}, which chose their epochs: flattered"
    )


@fuse.command()
@what_to_fuse
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Change one setting, such as cca=false, correct=none or bank=500.")  # fmt: skip
@device_option
@click.option("--run", "run_path", type=click.Path(path_type=Path, file_okay=False),
              help="The run's folder. [default: RUNS/DATASET/MODELS-closed-form-s0]")  # fmt: skip
@manifest_options
def fit(
    manifest: Manifest,
    models: tuple[str, ...],
    dataset: str | None,
    train_split: str,
    val_split: str,
    allow_same_split: bool,
    settings: tuple[str, ...],
    device: str,
    run_path: Path | None,
    fresh: bool,
) -> None:
    r"""Make a fusion in closed form, in a minute: no gradient descent.

    \b
    Four parts, each kept only where it helps on images that did not fit it:
      shares       of the models' own cosines
      cca          canonical correlation analysis of all models' embeddings
      kernel_cca   the same of their pooled tokens, which hold more, by a kernel
      correction   images and captions pay for being near to everything (NNN)
    The result is a run like any other, for recall, search, embed and export. It is what a trained
    fusion has to beat; the command is short for hada-fuse train --recipe closed-form.

    \b
    Examples:
      hada-fuse fit
      hada-fuse fit --dataset flickr30k --model blip --model clip --set cca=false
    """
    from hada.fuse import commands

    run = commands.train(
        models,
        dataset=dataset,
        manifest=manifest,
        recipe=named_recipe("closed-form").with_settings(parse_assignments(settings, "--set")),
        train_split=train_split,
        val_split=val_split,
        allow_same_split=allow_same_split,
        run=run_path,
        device=device,
        fresh=fresh,
    )
    tell(str(run.path))


def _seeds(text: str) -> list[int]:
    """`0,1,2` or `0 1 2` to numbers; raises `UsageError`."""
    try:
        found = [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        found = []
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise UsageError(f"--seeds {text!r}: expected different numbers like 0,1,2")
    return found


@fuse.command()
@click.argument("run_path", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--dataset", metavar="NAME", help="[default: the run's]")
@click.option("--split", "splits", multiple=True, required=True, metavar="NAME",
              help="A split whose stores exist; may be given several times.")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), help="Where the store goes. "
              "[default: among the manifest's stores, under the run's name]")  # fmt: skip
@device_option
@manifest_options
def embed(
    manifest: Manifest,
    run_path: Path,
    dataset: str | None,
    splits: tuple[str, ...],
    output: Path | None,
    device: str,
) -> None:
    r"""Write a run's fused embeddings of a split as a feature store.

    RUN is a run's folder, one of hada-fuse export, or hf-hub:ORG/NAME.

    \b
    Examples:
      hada-fuse embed runs/flickr8k/blip+clip-fast-s0 --split val
      hada-fuse embed runs/flickr8k/blip+clip-fast-s0 --split test --output fused-test
      hada-fuse embed runs/flickr8k/blip+clip-fast-s0 --dataset photos --split all
      hada-fuse embed hf-hub:me/blip-clip --dataset holidays --split all
    """
    from hada.fuse import commands

    for path in commands.embed(
        run_path, splits, dataset=dataset, manifest=manifest, device=device, output=output
    ):
        tell(path)


@fuse.command()
@click.argument("run_paths", metavar="RUN...", nargs=-1, required=True,
                type=click.Path(path_type=Path))  # fmt: skip
@click.option("--bind", is_flag=True, help="Give the files of runs of before there were checksums "
              "theirs, after a check of all that can be checked.")  # fmt: skip
def verify(run_paths: tuple[Path, ...], bind: bool) -> None:
    r"""Check that runs, or exported models, are whole. Exit code 1 where one is not.

    RUN is a run's folder, one of hada-fuse export, or hf-hub:ORG/NAME.

    \b
    Every byte is looked at. What is not whole is
      missing    a file that was there
      damaged    not what was written
      foreign    whole, but of another run or epoch
      stale      a search's index of other weights; the next search makes it anew
      unbound    of before there were checksums
    \b
    Examples:
      hada-fuse verify runs/flickr8k/*
      hada-fuse verify --bind runs/flickr8k/blip+clip-fast-s0
    """
    from hada.fuse.verify import bind as bind_run
    from hada.fuse.verify import examine

    bad = 0
    for path in run_paths:
        if bind:
            changed = bind_run(path)
            say(f"{path}: {', '.join(changed) or 'nothing'} bound")
        faults = examine(path)
        bad += bool(faults)
        for fault in faults:
            tell(str(fault))
        kinds = ", ".join(dict.fromkeys(fault.kind for fault in faults))
        tell(f"{path}: {f'not whole: {kinds}' if faults else 'whole'}")
    if bad:
        raise HadaError(f"{bad} of {len(run_paths)} not whole; the lines above say what to do")


for command in (suggest, import_official, export):
    fuse.add_command(command)

if __name__ == "__main__":
    fuse()
