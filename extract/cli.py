"""hada-extract and hada-store: features into stores, and a look at what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hada.extract.console import HadaCommand, HadaGroup, manifest_options
from hada.extract.errors import HadaError, StoreError
from hada.extract.import_cli import import_command
from hada.extract.manifest import PRECISIONS, STORE_DTYPES, Manifest
from hada.extract.progress import size

if TYPE_CHECKING:
    from hada.extract.spec import SideName

_EXTRACT_HELP = """Run frozen models once over a dataset and store all their features.

\b
Examples:
  hada-extract --model blip --split test
  hada-extract --model blip --model clip --split train --split val
  hada-extract --dataset flickr8k --root flickr8k=/data/flickr8k \\
               --model tiny=dual:checkpoints/my-dual-encoder --split val

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
    help="A model of the manifest, or NAME=FAMILY:WEIGHTS for one that is not in it. "
    "May be given several times. [default: the manifest's models]",
)
@click.option(
    "--split",
    "-s",
    "splits",
    multiple=True,
    required=True,
    help="Split to extract; may be given several times.",
)
@click.option("--dataset", "-d", help="Dataset of the manifest. [default: the manifest's]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--precision", type=click.Choice(PRECISIONS), help="What the model computes in. [default: fp32]"
)
@click.option(
    "--store-dtype", type=click.Choice(STORE_DTYPES), help="What is stored. [default: float16]"
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Items per forward pass.",
)
@click.option(
    "--decoders",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Threads that decode pictures.",
)
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
@click.option("--fresh", is_flag=True, help="Delete the stores first and start again.")
@manifest_options
def extract(
    manifest: Manifest,
    models: tuple[str, ...],
    splits: tuple[str, ...],
    dataset: str | None,
    device: str,
    precision: str | None,
    store_dtype: str | None,
    batch_size: int,
    decoders: int,
    shard_size: int,
    max_errors: int,
    on_error: str,
    views: int,
    view_seed: int,
    fresh: bool,
) -> int:
    """Run frozen models over a dataset (the text for people is _EXTRACT_HELP)."""
    from hada.extract import job
    from hada.extract.allocator import reuse_freed_memory
    from hada.extract.backbones import REGION_FAMILIES
    from hada.extract.captions import read_dataset

    reuse_freed_memory()
    entry = manifest.dataset(dataset)
    chosen = [job.model_entry(manifest, text) for text in models or manifest.defaults.models]
    pictures = any(model.family not in REGION_FAMILIES for model in chosen)
    data = [read_dataset(entry, split, pictures=pictures) for split in dict.fromkeys(splits)]
    rows: dict[SideName, int] = {"image": shard_size, "caption": 8 * shard_size}
    failures = 0
    for model in chosen:
        reports = job.extract_model(
            manifest,
            model,
            data,
            device=device,
            precision=precision or model.precision or manifest.defaults.precision,
            dtype=store_dtype or manifest.defaults.store_dtype,
            batch_size=batch_size,
            decoders=decoders,
            rows_per_shard=rows,
            on_error=on_error,
            views=views,
            view_seed=view_seed,
            fresh=fresh,
        )
        for report in reports:
            click.echo(job.summary(model.name, report))
            failures = max(failures, len(report.failures))
    if failures > max_errors:
        raise HadaError(
            f"{failures} pictures could not be decoded, more than --max-errors {max_errors}. "
            "The stores are complete without them; the lines above name them."
        )
    return 0


@click.group(cls=HadaGroup)
def store() -> None:
    """Look into feature stores, and check them."""


@store.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def info(path: Path, as_json: bool) -> None:
    """What a store holds: model, shapes, progress, bytes.

    PATH is the store's folder, e.g. stores/flickr8k/val/blip.
    """
    from hada.extract.store.reader import read_spec, shard_status

    spec = read_spec(path)
    status = shard_status(path, spec)
    facts = {
        "path": str(path),
        "spec": spec.to_json(),
        "shards": {
            side: {"done": sum(state is None for state in shards.values()), "total": len(shards)}
            for side, shards in status.items()
        },
        "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
    }
    click.echo(json.dumps(facts, indent=2) if as_json else _info_text(facts))


def _info_text(facts: dict[str, Any]) -> str:
    spec, model = facts["spec"], facts["spec"]["model"]
    lines = [
        f"{model['name']} ({model['family']}) on {spec['dataset']}/{spec['split']}",
        f"  weights     {model['weights_digest']}",
        f"  stored as   {spec['dtype']}, computed in {model['precision']}, {size(facts['bytes'])}",
    ]
    for side in ("image", "caption"):
        tokens, shards = model[side], facts["shards"][side]
        count = "varying" if tokens and tokens["count"] is None else tokens and tokens["count"]
        kept = f"{count} tokens of width {tokens['width']}" if tokens else "no tokens"
        lines.append(f"  {side + 's':<11} {kept}; {shards['done']} of {shards['total']} shards")
    width = model["embedding_width"]
    unit = "unit length" if model["normalized"] else "not normalised"
    lines.append(f"  embeddings  {f'{width} wide, {unit}' if width else 'no joint space'}")
    return "\n".join(lines)


@store.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Read every file and compare checksums.")
def verify(paths: tuple[Path, ...], deep: bool) -> None:
    """Check that stores are complete and undamaged. Exit code 1 where one is not.

    Without --deep: markers, presence and sizes. With it: every checksum.
    """
    from hada.extract.store.reader import read_spec, shard_status

    bad = 0
    for path in paths:
        status = shard_status(path, read_spec(path), deep=deep)
        for side, shards in status.items():
            for shard, state in shards.items():
                if state is not None:
                    bad += 1
                    click.echo(f"{path}: {side} shard {shard}: {state}")
        click.echo(f"{path}: {sum(map(len, status.values()))} shards looked at")
    if bad:
        raise StoreError(f"{bad} shards are missing or damaged; extracting again mends them")


store.add_command(import_command)
