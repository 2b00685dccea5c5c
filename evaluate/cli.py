"""hada-evaluate: what the fusion gained, measured from stores and runs alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hada.extract.console import HadaGroup, manifest_options, say

if TYPE_CHECKING:
    from hada.extract.manifest import Manifest


@click.group(cls=HadaGroup)
def evaluate() -> None:
    """Measure frozen models and their fusions, side by side."""


@evaluate.command()
@click.option("--dataset", "-d", help="Dataset of the manifest. [default: the manifest's]")
@click.option("--split", "-s", default="test", show_default=True, help="Split to evaluate.")
@click.option(
    "--run",
    "-r",
    "runs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A trained run; may be given several times. [default: all runs of the dataset]",
)
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    metavar="NAME",
    help="Models to show beside the runs'. [default: the manifest's where there is no run]",
)
@click.option(
    "--train-split", default="train", show_default=True, help="Trains concatenation + linear."
)
@click.option(
    "--val-split",
    default="val",
    show_default=True,
    help="Tunes the weighted sum, stops the linear.",
)
@click.option("--quick", is_flag=True, help="Only the models, their mean, and the runs.")
@click.option("--resamples", default=10_000, show_default=True, type=click.IntRange(min=100))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The result as JSON. [default: RUNS/DATASET/recall-SPLIT.json]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the JSON instead of the table.")
@manifest_options
def recall(
    manifest: Manifest,
    dataset: str | None,
    split: str,
    runs: tuple[Path, ...],
    models: tuple[str, ...],
    train_split: str,
    val_split: str,
    quick: bool,
    resamples: int,
    seed: int,
    device: str,
    output: Path | None,
    as_json: bool,
) -> None:
    r"""R@1/5/10 both ways and RSum: each model, simple combinations, every fusion.

    \b
    Examples:
      hada-evaluate recall
      hada-evaluate recall --dataset flickr8k --split val
      hada-evaluate recall --split val --run runs/scenes/blip+clip-fast-s0 --quick
    """
    from hada.evaluate.ladder import Request, build, finished_runs
    from hada.evaluate.recall import evaluate as measure
    from hada.evaluate.table import render
    from hada.extract import atomic

    entry = manifest.dataset(dataset)
    entry.split(split)
    request = Request(
        dataset=entry.name,
        split=split,
        runs=runs or finished_runs(Path(manifest.runs) / entry.name),
        models=models,
        train_split=train_split,
        val_split=val_split,
        quick=quick,
        device=device,
    )
    gallery, rungs = build(manifest, request)
    result = measure(gallery, rungs, resamples=resamples, seed=seed)
    target = output or Path(manifest.runs) / entry.name / f"recall-{split}.json"
    atomic.write_json(target, result)
    click.echo(json.dumps(result, indent=2) if as_json else render(result))
    say(f"written to {target}")
