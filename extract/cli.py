"""hada-extract: features into stores. hada-store is in `store_cli`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hada.extract.cli_options import device_option, manifest_options, number_or_auto
from hada.extract.common.console import HadaCommand, stopping_on_sigterm, tell
from hada.extract.common.errors import HadaError, StoreError
from hada.extract.common.progress import size
from hada.extract.data_options import data_options
from hada.extract.importers.cli import import_command
from hada.extract.manifest import PRECISIONS, STORE_FORMATS, DatasetEntry, Manifest
from hada.extract.spec import STORE_DTYPES
from hada.extract.store_cli import store

if TYPE_CHECKING:
    from hada.extract.store.size_plan import SizePlan

__all__ = ["extract", "store"]

_EXTRACT_HELP = """Run frozen models once over a dataset and store all their features.

\b
Examples:
  hada-extract --model blip --split test
  hada-extract --model blip --model clip --split train --split val
  hada-extract --dataset flickr8k --root flickr8k=/data/flickr8k \\
               --model checkpoints/my-dual-encoder --split val
  hada-extract --model openai/clip-vit-base-patch32@main --split test
  hada-extract --model b32=clip:ViT-B-32/openai --split test
  hada-extract --data photos/ --captions captions.csv --split-by 0.8,0.1,0.1 --model clip
  hada-extract --data photos/ --captions captions.csv --describe

What is there already is skipped, so the same command continues after an interruption.
A picture that cannot be decoded is recorded in the store and left out later; it does not
stop the run.
"""


@click.command(cls=HadaCommand, help=_EXTRACT_HELP)
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    metavar="NAME",
    help="A model of the manifest, or PATH-OR-ID for one that is not in it: a folder, a file, a "
    "Hugging Face id (ORG/NAME@REVISION) or ARCH/TAG of open_clip. NAME= in front names it, "
    "FAMILY: before the path reads it as that family. May be given several times. "
    "[default: the manifest's models]",
)
@click.option(
    "--split",
    "-s",
    "splits",
    multiple=True,
    help="Split to extract; may be given several times. [default with --data: all]",
)
@click.option("--dataset", "-d", help="Dataset of the manifest. [default: the manifest's]")
@data_options
@click.option(
    "--describe",
    is_flag=True,
    help="Say what was understood of the dataset, with an entry for a manifest, and do nothing.",
)
@device_option
@click.option(
    "--precision", type=click.Choice(PRECISIONS), help="What the model computes in. [default: fp32]"
)
@click.option(
    "--store-dtype", type=click.Choice(STORE_DTYPES), help="What is stored. [default: float16]"
)
@click.option(
    "--tokens",
    default="all",
    show_default=True,
    metavar="all|pool:K|none",
    help="What to keep of the models' tokens: all; of each image its global token and K - 1 "
    "averages of the others; or embeddings alone. docs/store.md says what each costs.",
)
@click.option(
    "--format",
    "store_format",
    type=click.Choice(STORE_FORMATS),
    help="How a new store lies on disk. [default: zarr; what is there stays as it is]",
)
@click.option(
    "--batch-size",
    callback=number_or_auto,
    metavar="N|auto",
    default="auto",
    show_default=True,
    help="Items per forward pass. auto: as the store has it, else 32 on a CPU and on a GPU what "
    "nearly fills its memory.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Processes that decode pictures; 0 decodes in threads. [default: 0 on a CPU, beside a "
    "GPU one a core but one, at most 16]",
)
@click.option("--compile", is_flag=True, help="Run the model through torch.compile.")
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Images per shard, the unit of resuming; captions per shard are eight times that.",
)
@click.option(
    "--max-errors",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Exit with 1 when more pictures than this cannot be decoded.",
)
@click.option(
    "--on-error",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    show_default=True,
    help="skip: leave a picture out that cannot be decoded, and name it in the store's "
    "errors.jsonl. fail: stop at the first.",
)
@click.option(
    "--views",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="K",
    help="Also store K augmented renderings of every picture, as <model>@view1 and so on.",
)
@click.option(
    "--view-seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the augmented views; the stores record it.",
)
@click.option(
    "--crops",
    metavar="wca|lgca",
    help="Also store embeddings of random crops, for hada-evaluate zeroshot: wca, lgca (with "
    "expansions), or e.g. lgca:count=16,rounds=2,low=0.5,high=0.9,expand=1.2,seed=0.",
)
@click.option("--fresh", is_flag=True, help="Delete the stores first and start again.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show counts, bytes, shards and free disk, and write nothing.",
)
@click.option("--force", is_flag=True, help="Begin even where the disk is too small.")
@click.option(
    "--allow-mismatch",
    "allow",
    multiple=True,
    metavar="FIELD",
    help="Go on with a store that differs in FIELD, e.g. model.libraries.pillow; the store "
    "records it. May be given several times.",
)
@manifest_options
def extract(
    manifest: Manifest,
    models: tuple[str, ...],
    splits: tuple[str, ...],
    dataset: str | None,
    data: DatasetEntry | None,
    describe: bool,
    device: str,
    precision: str | None,
    store_dtype: str | None,
    tokens: str,
    store_format: str | None,
    batch_size: int | None,
    workers: int | None,
    compile: bool,  # noqa: A002
    shard_size: int,
    max_errors: int,
    on_error: str,
    views: int,
    view_seed: int,
    crops: str | None,
    fresh: bool,
    dry_run: bool,
    force: bool,
    allow: tuple[str, ...],
) -> int:
    """Run frozen models over a dataset (the text for people is _EXTRACT_HELP)."""
    if describe:
        return _describe(data or manifest.dataset(dataset))
    from hada.extract.common.host import reuse_freed_memory, sleep_while_waiting

    # Before torch is imported, which `job` does: its threads read the policy once.
    reuse_freed_memory()
    sleep_while_waiting()

    from hada.extract import job
    from hada.extract.engine.options import ExtractOptions
    from hada.extract.engine.summary import summary

    asked: dict[str, Any] = {
        "models": models,
        "splits": splits,
        "dataset": data or dataset,
        "manifest": manifest,
        "device": device,
        "precision": precision,
        "options": ExtractOptions(
            dtype=store_dtype or manifest.defaults.store_dtype,
            tokens=tokens,
            batch_size=batch_size,
            rows_per_shard={"image": shard_size, "caption": 8 * shard_size},
            format=store_format,
            allow_mismatch=allow,
            force=force,
            on_error=on_error,
        ),
    }
    if dry_run:
        return _dry_run(job.plan_extraction(**asked), force=force)
    with stopping_on_sigterm():
        reports = job.extract(
            **asked,
            workers=workers,
            compile=compile,
            views=views,
            view_seed=view_seed,
            crops=crops,
            fresh=fresh,
            on_report=lambda model, report: tell(summary(model, report)),
        )
    failures = max(len(report.failures) for report in reports)
    if failures > max_errors:
        raise HadaError(
            f"{failures} pictures could not be decoded, more than --max-errors {max_errors}. "
            "The stores are complete without them; the lines above name them."
        )
    return 0


def _describe(entry: DatasetEntry) -> int:
    from hada.extract.datasets.describe import describe
    from hada.extract.datasets.table import read_table

    tell(describe(read_table(entry)), lines=True)
    return 0


def _dry_run(plans: list[SizePlan], *, force: bool) -> int:
    for plan in plans:
        tell(plan.text(), lines=True)
    free = min((plan.free for plan in plans if plan.free is not None), default=None)
    needed = sum(plan.needed for plan in plans)
    tell(f"together {size(needed)}, nothing was written")
    if free is not None and needed > free and not force:
        raise StoreError(
            f"{size(needed)} are to be written, but the disk has {size(free)} left. "
            "Free some space, or choose another place: --root stores=FOLDER"
        )
    return 0


store.add_command(import_command)
