"""hada-evaluate: what the fusion gained, measured from stores and runs alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hada.extract.console import HadaGroup, manifest_options, say

if TYPE_CHECKING:
    from hada.evaluate.rungs import Gallery, Rung
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
    from hada.evaluate.recall import evaluate as measure
    from hada.evaluate.table import render
    from hada.extract import atomic

    entry = manifest.dataset(dataset)
    entry.split(split)
    found = list(runs) or finished_runs(Path(manifest.runs) / entry.name)
    names = _model_names(manifest, found, models)
    gallery = _gallery(manifest, entry.name, split, names)
    rungs = _ladder(
        manifest, entry.name, split, gallery, found, train_split, val_split, quick, device
    )
    result = measure(gallery, rungs, resamples=resamples, seed=seed)
    target = output or Path(manifest.runs) / entry.name / f"recall-{split}.json"
    atomic.write_json(target, result)
    click.echo(json.dumps(result, indent=2) if as_json else render(result))
    say(f"written to {target}")


def finished_runs(folder: Path) -> list[Path]:
    """Runs in a folder that have weights, by name."""
    from hada.fuse.checkpoint import BEST, CONFIG

    return sorted(
        path.parent for path in folder.glob(f"*/{CONFIG}") if (path.parent / BEST).exists()
    )


def _model_names(manifest: Manifest, runs: list[Path], models: tuple[str, ...]) -> list[str]:
    """The runs' models and those asked for, each once, in order."""
    from hada.fuse.checkpoint import RunFolder

    names = [name for run in runs for name in RunFolder(run).config()["models"]]
    return list(dict.fromkeys([*names, *models])) or list(manifest.defaults.models)


def _gallery(manifest: Manifest, dataset: str, split: str, models: list[str]) -> Gallery:
    from hada.evaluate.rungs import Gallery
    from hada.extract.store import open_store

    paths = [manifest.store_path(dataset, split, model) for model in models]
    return Gallery.of([open_store(path) for path in paths])


def _ladder(
    manifest: Manifest,
    dataset: str,
    split: str,
    gallery: Gallery,
    runs: list[Path],
    train_split: str,
    val_split: str,
    quick: bool,
    device: str,
) -> list[Rung]:
    """All rungs that can be made; those that cannot are named with the reason."""
    from hada.evaluate import rungs as make
    from hada.extract.errors import StoreError

    singles = make.single_models(gallery)
    for store in gallery.stores:
        if store.spec.model.embedding_width is None:
            say(f"{store.spec.model.name}: no joint space, so no dual-encoder score of its own")
    ladder = list(singles)
    if len(singles) > 1:
        ladder.append(make.mean_of_cosines(singles))
    if len(singles) > 1 and not quick:
        names = [store.spec.model.name for store in gallery.stores]
        try:
            val = _gallery(manifest, dataset, val_split, names)
            ladder.append(make.tuned_sum(singles, val, val_split, split))
            train = _gallery(manifest, dataset, train_split, names)
            ladder.append(_linear(gallery, train, val))
        except StoreError as error:
            say(f"left out what needs more stores: {error}")
    ladder += [make.fusion(run, gallery, device) for run in runs]
    if not ladder:
        raise StoreError("nothing to evaluate: no model has a joint space and no run is given")
    return ladder


def _linear(gallery: Gallery, train: Gallery, val: Gallery) -> Any:
    from hada.evaluate.linear import concatenation_linear

    say("training concatenation + linear")
    return concatenation_linear(gallery, train, val)
