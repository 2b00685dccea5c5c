"""`hada-fuse suggest`, `export` and `import`.

Nothing heavy is imported until a command runs.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hada.extract.cli_options import manifest_options, parse_assignments
from hada.extract.common import atomic
from hada.extract.common.console import HadaCommand, tell

if TYPE_CHECKING:
    from hada.extract.manifest import Manifest


@click.command(cls=HadaCommand)
@click.option("--model", "models", multiple=True, metavar="NAME",
              help="Models to look at. [default: all that have a store of the split]")  # fmt: skip
@click.option("--dataset", metavar="NAME", help="[default: the manifest's]")
@click.option("--split", default="val", show_default=True, metavar="NAME")
@click.option("--train-split", default="train", show_default=True, metavar="NAME",
              help="Fits what is in closed form: the correction and a CCA head.")  # fmt: skip
@click.option("--images", type=click.IntRange(min=2), default=1000, show_default=True,
              help="Look at this many images at most, evenly spread.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@manifest_options
def suggest(
    manifest: Manifest,
    models: tuple[str, ...],
    dataset: str | None,
    split: str,
    train_split: str,
    images: int,
    as_json: bool,
) -> None:
    r"""Say which models are worth fusing, from their stores, before any training.

    \b
    For every model, pair and triple:
      mean       RSum of the mean of their cosines, and its gain over the best of them
      union      RSum if for each query the model that ranks it best were known
      overlap    queries that all of them miss at R@1, of those that any misses
      alike      correlation of their scores within a query
      corrected, with CCA, both
                 RSum of the mean without any training: hubs corrected, a closed-form head
      hubs       of one model: skewness of how often its images come first
    \b
    Examples:
      hada-fuse suggest
      hada-fuse suggest --dataset flickr30k --split val --json
    """
    from hada.fuse.suggest import look, render

    name = manifest.dataset(dataset).name
    manifest.dataset(name).split(split)
    found = look(manifest, name, split, models, most_images=images, train_split=train_split)
    tell(json.dumps(found, indent=2) if as_json else render(found), lines=True)


@click.command(cls=HadaCommand)
@click.argument("run_path", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path, file_okay=False))
@click.option("--licence", "licences", multiple=True, metavar="MODEL=LICENCE",
              help="The licence of a frozen model's weights, for the card.")  # fmt: skip
@click.option("--push-to-hub", "repository", metavar="ORG/NAME",
              help="Upload it too, as the user that `hf auth login` has signed in.")  # fmt: skip
def export(run_path: Path, folder: Path, licences: tuple[str, ...], repository: str | None) -> None:
    r"""Write a run as a model for the Hugging Face Hub: safetensors, config and a card.

    \b
    Examples:
      hada-fuse export runs/flickr8k/blip+clip-fast-s0 blip-clip --licence blip=BSD-3-Clause
      hada-fuse export runs/flickr8k/blip+clip-fast-s0 blip-clip --push-to-hub me/blip-clip
    """
    from hada.fuse.exchange.hub import HadaModel

    model = HadaModel.from_run(run_path, parse_assignments(licences, "--licence"))
    # By the library beside, then file by file to its place, each whole.
    with tempfile.TemporaryDirectory(prefix="hada-") as made:
        model.save_pretrained(made)
        for file in sorted(Path(made).iterdir()):
            atomic.write_bytes(folder / file.name, file.read_bytes())
    if repository is not None:
        model.push_to_hub(repository)
    tell(str(folder))


@click.command("import", cls=HadaCommand)
@click.argument("checkpoint_path", metavar="BEST.PTH.TAR", type=click.Path(path_type=Path))
@click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    metavar="NAME",
    help="The models it fuses, in its order: ALBEF then LightningDOT, BLIP then CLIP.",
)
@click.option("--dataset", metavar="NAME", help="[default: the manifest's]")
@click.option(
    "--split",
    default="test",
    show_default=True,
    metavar="NAME",
    help="A split whose stores exist; they tell the models' widths.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting that the weights do not tell, e.g. inputs=as-is.",
)
@click.option(
    "--run",
    "run_path",
    type=click.Path(path_type=Path, file_okay=False),
    help="The run's folder. [default: RUNS/DATASET/MODELS-imported]",
)
@manifest_options
def import_official(
    manifest: Manifest,
    checkpoint_path: Path,
    models: tuple[str, ...],
    dataset: str | None,
    split: str,
    settings: tuple[str, ...],
    run_path: Path | None,
) -> None:
    r"""Make a run of the authors' weights (HADA_m, HADA_m_extend, Baseline_m, HADA-LAVIS).

    The file is read without running anything it contains.

    \b
    Examples:
      hada-fuse import best.pth.tar --model albef --model lightningdot --dataset flickr30k
      hada-evaluate recall --dataset flickr30k --split test
    """
    from hada.extract.store import open_store
    from hada.fuse.exchange.import_official import import_checkpoint

    name = manifest.dataset(dataset).name
    folder = run_path or Path(manifest.runs) / name / f"{'+'.join(models)}-imported"
    stores = [open_store(manifest.store_path(name, split, model)) for model in models]
    import_checkpoint(
        checkpoint_path, stores, folder, settings=parse_assignments(settings, "--set")
    )
    tell(str(folder))
