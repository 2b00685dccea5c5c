"""hada-store: what is in feature stores, whether they are whole, and how to mend or move them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hada.extract.common import remote
from hada.extract.common.console import HadaGroup, tell
from hada.extract.common.errors import StoreError
from hada.extract.common.progress import size
from hada.extract.common.terminal import in_line
from hada.extract.exporters.cli import export_command
from hada.extract.manifest import STORE_FORMATS
from hada.extract.spec import STORE_DTYPES


@click.group(cls=HadaGroup)
def store() -> None:
    """Look into feature stores, check, mend and convert them."""


@store.command()
@click.argument("path", type=remote.place)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def info(path: Path, as_json: bool) -> None:
    """What a store holds: model, shapes, progress, bytes, provenance.

    PATH is the store's folder, e.g. stores/flickr8k/val/blip, or its URL.
    """
    from hada.extract.store.maintain import describe

    facts = describe(path)
    tell(json.dumps(facts, indent=2) if as_json else _info_text(facts), lines=True)


def _info_text(facts: dict[str, Any]) -> str:
    spec, model = facts["spec"], facts["spec"]["model"]
    lines = [
        f"{model['name']} ({model['family']}) on {spec['dataset']}/{spec['split']}",
        f"  weights     {model['weights_digest']}",
        f"  stored as   {spec['dtype']} in {facts['format']}, computed in {model['precision']}, "
        f"{size(facts['bytes'])}",
    ]
    for key, label in (("weights", "fetched as"), ("licence", "licence")):
        known = dict.fromkeys(str(each[key]) for each in facts["provenance"] if key in each)
        lines += [f"  {label:<11} {', '.join(known)}"] * bool(known)
    lines.append(f"  parts       {_binding_text(facts)}")
    lines += [_side_text(facts, side) for side in ("image", "caption")]
    width = model["embedding_width"]
    unit = "unit length" if model["normalized"] else "not normalised"
    lines.append(f"  embeddings  {f'{width} wide, {unit}' if width else 'no joint space'}")
    for entry in facts["allowed_mismatches"]:
        lines.append(f"  accepted    {entry['field']}: {entry['store']!r} for {entry['request']!r}")
    return "\n".join(map(in_line, lines))


def _binding_text(facts: dict[str, Any]) -> str:
    if facts["binding"] in ("unbound", "being bound"):
        return f"{facts['binding']}; hada-store upgrade {facts['path']}"
    return f"{facts['binding']}, root {facts['root']}"


def _side_text(facts: dict[str, Any], side: str) -> str:
    tokens, shards = facts["spec"]["model"][side], facts["shards"][side]
    count = "varying" if tokens and tokens["count"] is None else tokens and tokens["count"]
    parts = [f"{count} tokens of width {tokens['width']}" if tokens else "no tokens"]
    if tokens and tokens.get("pooled"):
        parts.append(f"averaged to {tokens['pooled']}")
    parts.append(f"{shards['done']} of {shards['total']} shards")
    parts += [f"{shards['damaged']} damaged"] * bool(shards["damaged"])
    parts += [f"{facts['failed'][side]} failed"] * bool(facts["failed"][side])
    return f"  {side + 's':<11} {facts['items'][side]:,}, {'; '.join(parts)}"


@store.command()
@click.argument("paths", nargs=-1, required=True, type=remote.place)
@click.option("--deep", is_flag=True, help="Read and compare every byte.")
def verify(paths: tuple[Path, ...], deep: bool) -> None:
    """Check that stores are whole. Exit code 1 where one is not.

    Compares what binds a store's parts to each other: record, metadata, ids and spans, markers,
    seal, presence and sizes of files; with --deep every byte of the features, too. Ends with a
    verdict for each store: "whole", or what is missing, damaged or foreign, and what to do.
    """
    from hada.extract.store.check import check

    bad = 0
    for path in paths:
        verdict = check(path, deep=deep)
        for line in (*verdict.findings, *verdict.notes):
            tell(f"{path}: {line}")
        tell(verdict.text())
        bad += not verdict.whole
    if bad:
        raise StoreError(f"{bad} of {len(paths)} stores are not whole; what to do stands above")


@store.command()
@click.argument("split", type=remote.place)
@click.argument("other", type=remote.place)
@click.option("--jsonl", is_flag=True, help="For programs: a JSON object for each pair.")
def duplicates(split: Path, other: Path, jsonl: bool) -> None:
    r"""Find images of one split that are nearly images of another.

    SPLIT and OTHER are folders of stores, such as stores/photos/test and stores/photos/train, or
    single stores. Two images are a pair where all models that both have say so.

    \b
    Example:
      hada-store duplicates stores/photos/test stores/photos/train
    """
    from hada.extract.store.duplicates import near_duplicates, stores_of_both

    pairs = near_duplicates(*stores_of_both(split, other))
    for pair in pairs:
        tell(json.dumps(vars(pair)) if jsonl else f"{pair.ratio:.2f}  {pair.image}  {pair.other}")
    if not jsonl:
        tell(f"{len(pairs):,} images of {split} are nearly images of {other}")


@store.command()
@click.argument("paths", nargs=-1, required=True, type=remote.place)
def upgrade(paths: tuple[Path, ...]) -> None:
    """Bind the parts of stores that an earlier version of HADA made.

    Reads every byte, and refuses a store that is damaged or incomplete. Features stay as they
    are; markers and attributes are written anew. The same command continues after an
    interruption, and the store can be read all the while.
    """
    from hada.extract.common.progress import progress
    from hada.extract.store.upgrade import plan_upgrade

    for path in paths:
        work = plan_upgrade(path)
        with progress(f"{path}: binding", work.shards, "shards") as advance:
            for _ in work.steps():
                advance()
        tell(f"{path}: bound" if work.shards else f"{path}: is bound already")


@store.command()
@click.argument("path", type=remote.place)
@click.option("--fast", is_flag=True, help="Look at markers and sizes alone, not at checksums.")
def repair(path: Path, fast: bool) -> None:
    """Remove damaged shards, so that extracting again writes them anew.

    Says what it removed. Shards that are whole stay as they are.
    """
    from hada.extract.store.maintain import repair as remove_damaged
    from hada.extract.store.reader import read_spec

    found = remove_damaged(path, deep=not fast)
    for entry in found:
        what = "is being written by another process, left alone" if entry.busy else "removed"
        part = f"{entry.side} shard {entry.shard}" if entry.side else "the seal"
        tell(f"{path}: {part}: {what} ({entry.reason})")
    spec = read_spec(path)
    if any(not entry.busy for entry in found):
        tell(
            f"now run: hada-extract --dataset {spec.dataset} --split {spec.split} "
            f"--model {spec.model.name}"
        )
    else:
        tell(f"{path}: nothing to remove")


@store.command()
@click.argument("source", type=remote.place)
@click.argument("target", type=remote.place)
@click.option("--format", "store_format", type=click.Choice(STORE_FORMATS), help="[default: same]")
@click.option("--dtype", type=click.Choice(STORE_DTYPES), help="[default: same]")
@click.option(
    "--tokens",
    default="all",
    metavar="all|pool:K|none",
    help="Which of the tokens to keep; see hada-extract --tokens. [default: all that are there]",
)
@click.option("--force", is_flag=True, help="Begin even where the disk is too small.")
def convert(
    source: Path,
    target: Path,
    store_format: str | None,
    dtype: str | None,
    tokens: str,
    force: bool,
) -> None:
    r"""Write a store again at TARGET, in another format or dtype, or with fewer tokens.

    SOURCE stays as it is. The same command continues after an interruption.

    \b
    Example:
      hada-store convert stores/coco/val/blip stores-h5/coco/val/blip --format hdf5
    """
    from hada.extract.common.progress import progress
    from hada.extract.store import maintain

    plan = maintain.conversion_size(source, target, dtype, tokens)
    plan.check(force=force)
    with progress(f"{source} -> {target}", sum(plan.shards.values()), "shards") as advance:
        for _ in maintain.convert(source, target, format=store_format, dtype=dtype, tokens=tokens):
            advance()
    tell(f"{target}: complete")


store.add_command(export_command)
