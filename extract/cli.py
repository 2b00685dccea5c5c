"""hada-extract and hada-store: features into stores, and a look at what is in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hada.extract.console import HadaCommand, HadaGroup, manifest_options, say
from hada.extract.errors import HadaError, StoreError, UsageError
from hada.extract.manifest import PRECISIONS, STORE_DTYPES, Manifest, ModelEntry
from hada.extract.progress import duration, size

if TYPE_CHECKING:
    from hada.extract.captions import CaptionDataset
    from hada.extract.runner import Report
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
    fresh: bool,
) -> int:
    """Run frozen models over a dataset (the text for people is _EXTRACT_HELP)."""
    from hada.extract.allocator import reuse_freed_memory
    from hada.extract.captions import read_dataset

    reuse_freed_memory()
    entry = manifest.dataset(dataset)
    chosen = [model_entry(manifest, text) for text in models or manifest.defaults.models]
    data = [read_dataset(entry, split) for split in dict.fromkeys(splits)]
    rows: dict[SideName, int] = {"image": shard_size, "caption": 8 * shard_size}
    failures = 0
    for model in chosen:
        for report in _extract_model(
            manifest,
            model,
            data,
            device=device,
            precision=precision or model.precision or manifest.defaults.precision,
            dtype=store_dtype or manifest.defaults.store_dtype,
            batch_size=batch_size,
            decoders=decoders,
            rows_per_shard=rows,
            fresh=fresh,
        ):
            failures = max(failures, len(report.failures))
    if failures > max_errors:
        raise HadaError(
            f"{failures} pictures could not be decoded, more than --max-errors {max_errors}. "
            "The stores are complete without them; the lines above name them."
        )
    return 0


def model_entry(manifest: Manifest, text: str) -> ModelEntry:
    """A model of the manifest by name, or one described as NAME=FAMILY:WEIGHTS."""
    name, equals, described = text.partition("=")
    if not equals:
        return manifest.model(name)
    family, colon, weights = described.partition(":")
    if not colon or not family or not weights:
        raise UsageError(
            f"--model {text!r}: expected NAME=FAMILY:WEIGHTS, e.g. mine=dual:folder/of/weights"
        )
    return ModelEntry(name=name, family=family, weights={"default": weights}, precision=None)


def _extract_model(
    manifest: Manifest,
    model: ModelEntry,
    data: list[CaptionDataset],
    *,
    device: str,
    precision: str,
    fresh: bool,
    **options: Any,
) -> list[Report]:
    """One model over several splits: loaded once, then shard after shard."""
    from hada.extract.backbones import load_backbone
    from hada.extract.backbones.base import BackboneRequest
    from hada.extract.runner import run

    request = BackboneRequest(
        name=model.name,
        family=model.family,
        weights=model.weights_for(data[0].name),
        device=pick_device(device),
        precision=precision,
        options=dict(model.options),
    )
    backbone = load_backbone(request)
    reports = []
    for dataset in data:
        path = manifest.store_path(dataset.name, dataset.split, model.name)
        if fresh:
            _remove_store(path)
        report = run(backbone, dataset, path, **options)
        _tell(model.name, dataset, report, getattr(backbone, "truncated", 0))
        reports.append(report)
    return reports


def pick_device(device: str) -> str:
    """`auto` to what this machine has; anything else as it is, if torch knows it."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"--device {device!r}: expected auto, cpu, cuda or cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {device}: this machine has no CUDA device that torch can use")
    return device


def _remove_store(path: str) -> None:
    import shutil

    from hada.extract.store.layout import COMMIT, FEATURES, local_folder

    folder = local_folder(path)
    if not folder.exists():
        return
    strangers = {item.name for item in folder.iterdir()} - {COMMIT, FEATURES}
    if strangers:
        raise UsageError(
            f"--fresh: {folder} holds more than a store ({min(strangers)}); not deleted"
        )
    shutil.rmtree(folder)


def _tell(name: str, dataset: CaptionDataset, report: Report, truncated: int) -> None:
    where = f"{name} on {dataset.name}/{dataset.split}"
    for id_, reason in list(report.failures.items())[:10]:
        say(f"{where}: could not decode {id_}: {reason}")
    if len(report.failures) > 10:
        say(f"{where}: and {len(report.failures) - 10} more")
    if truncated:
        say(f"{where}: {truncated} captions were longer than the model takes and were cut")
    if report.busy_shards:
        raise StoreError(
            f"{where}: {report.busy_shards} shards are being written by another process. "
            "Wait for it, then run the same command again."
        )
    parts = [
        f"{len(dataset.image_ids)} images, {len(dataset.captions)} captions",
        size(report.bytes),
    ]
    if report.images:
        parts.append(f"{report.images / report.side_seconds['image']:.1f} images/s")
    if report.captions:
        parts.append(f"{report.captions / report.side_seconds['caption']:.0f} captions/s")
    if report.images or report.captions:
        binding = max(report.seconds, key=report.seconds.__getitem__)
        share = report.seconds[binding] / max(sum(report.seconds.values()), 1e-9)
        parts.append(f"{duration(report.wall_seconds)}, {share:.0%} of it {binding}")
    else:
        parts.append("complete already")
    click.echo(f"{where}: {'; '.join(parts)}; {report.store}")


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
