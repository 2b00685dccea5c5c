"""Repairs, converts and describes stores: `hada-store` without its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common import atomic, remote
from hada.extract.common.errors import StoreError, UnreachableError
from hada.extract.spec import SIDES, SideName, StoreSpec
from hada.extract.store import commit, locks, seal
from hada.extract.store.block import Block
from hada.extract.store.create import ALLOWED
from hada.extract.store.index import StoreIndex
from hada.extract.store.pooling import ALL, pool, pooled_lengths, reduced_spec
from hada.extract.store.reader import StoreReader, open_store, shard_status
from hada.extract.store.record import Record, locate, read_record
from hada.extract.store.size_plan import SizePlan, plan_size
from hada.extract.store.writer import StoreWriter


@dataclass(frozen=True)
class Removed:
    """One shard that `repair` removed, and why; without a side it is the seal.

    busy: another process is writing it now.
    """

    side: SideName | None
    shard: int
    reason: str
    busy: bool = False


def describe(folder: Path, *, deep: bool = False) -> dict[str, Any]:
    """Spec, format, progress, bytes and provenance of a store, as plain JSON values.

    Args:
        folder: The store's folder or URL.
        deep: Whether every byte is read and compared; else presence and sizes are.

    Raises:
        StoreError: There is no store, or its record is damaged.
    """
    record = read_record(folder)
    form, features, spec = record.form, record.features, record.spec
    status = shard_status(folder, deep=deep)
    ids = form.whole(features, [f"{side}/ids" for side in SIDES])
    provenance: list[dict[str, Any]] = []
    failed = dict.fromkeys(SIDES, 0)
    for side, shards in status.items():
        for shard, state in shards.items():
            marker = commit.read_marker(folder, side, shard) if state is None else None
            if marker is not None:
                failed[side] += len(marker.failed)
                if marker.provenance not in provenance:
                    provenance.append(marker.provenance)
    return {
        "path": str(folder),
        "format": form.name,
        "spec": spec.to_json(),
        "digest": spec.digest(),
        "binding": binding(record, status),
        "root": record.root,
        "items": {side: len(ids[f"{side}/ids"]) for side in SIDES},
        "failed": failed,
        "shards": {
            side: {
                "done": sum(state is None for state in shards.values()),
                "damaged": sum(
                    state is not None and not state.unwritten for state in shards.values()
                ),
                "total": len(shards),
            }
            for side, shards in status.items()
        },
        "bytes": sum(remote.file_sizes(folder).values()),
        "allowed_mismatches": record.attributes.get(ALLOWED, []),
        "provenance": provenance,
    }


def binding(record: Record, status: Mapping[SideName, Mapping[int, object]]) -> str:
    """Whether the parts of a store are bound to each other, in words; `status` is of its shards."""
    if not record.root:
        return "unbound"
    if record.upgrading:
        return "being bound"
    keys = [(side, shard) for side, shards in status.items() for shard in shards]
    try:
        markers = commit.read_markers(record.folder, keys)
        sealed = seal.faults(record.folder, record.root, markers)[0]
    except UnreachableError:
        raise
    except StoreError:
        return "bound, seal damaged"
    return "bound and sealed" if sealed else "bound, not sealed yet"


def repair(folder: Path, *, deep: bool = True) -> list[Removed]:
    """Remove damaged and half-written shards, so that extracting again writes them anew.

    A shard that another process is writing is left alone and reported as busy.

    Args:
        folder: The store's folder or URL.
        deep: Whether shards are read to find damage; else presence and sizes are looked at.

    Returns:
        What was removed, and what was left because it is being written.

    Raises:
        StoreError: What the store knew before its first feature is damaged; only a fresh
            extraction helps.
    """
    form, features = locate(folder)
    removed = _remove_bad_seal(folder)
    for side, shards in shard_status(folder, deep=deep).items():
        for shard, state in shards.items():
            if state is None:
                continue
            with locks.shard_lock(folder, side, shard) as mine:
                files = form.files(features, side, shard)
                # A shard that nobody has begun is no damage.
                if state.unwritten and not files:
                    continue
                if not mine:
                    removed.append(Removed(side, shard, state, busy=True))
                    continue
                # First the marker: from then on nothing counts that is about to go.
                commit.marker_path(folder, side, shard).unlink(missing_ok=True)
                atomic.sync(folder / commit.COMMIT)
                commit.remove_leftovers(folder, side, shard)
                for file in files:
                    file.unlink(missing_ok=True)
                reason = "files without a marker" if state.unwritten else state
                removed.append(Removed(side, shard, reason))
    return removed


def _remove_bad_seal(folder: Path) -> list[Removed]:
    root = read_record(folder).root
    try:
        seal.faults(folder, root, {})
    except UnreachableError:
        raise
    except StoreError as error:
        seal.remove(folder)
        return [Removed(None, 0, str(error).partition(". ")[0])]
    return []


def convert(
    source: Path,
    target: Path,
    *,
    format: str | None = None,  # noqa: A002
    dtype: str | None = None,
    tokens: str = ALL,
) -> Iterator[tuple[SideName, int, int]]:
    """Write a store again elsewhere, in another format or dtype.

    Shards that are there already are skipped, so the same call continues after an interruption.
    Averages of tokens are of what `source` holds, so they may differ by its
    rounding from those that an extraction takes before anything is rounded.

    Args:
        source: A whole store: its folder or URL.
        target: The new store's folder or URL.
        format: "zarr" or "hdf5"; None for that of `source`.
        dtype: Of the features on disk; None for that of `source`.
        tokens: Which tokens are kept, as --tokens says it.

    Yields:
        (side, shards done, shards of that side), after each shard.

    Raises:
        StoreError: `source` is incomplete or damaged, or its values do not fit `dtype`.
        StoreMismatchError: `target` holds something else.
    """
    source, target = remote.place(source), remote.place(target)
    if str(source.resolve()) == str(target.resolve()):
        raise StoreError(f"{target}: a store cannot be converted in place; name another folder")
    store = open_store(source)
    spec, index = _wanted(store, dtype, tokens)
    writer = StoreWriter.open(target, spec, index, format=format or store.format)
    for side in SIDES:
        total = writer.shards(side)
        done = total - len(writer.pending(side))
        for number in range(done):
            yield side, number + 1, total
        for shard in writer.filling(side):
            writer.write(side, shard, _block(store, writer, side, shard))
            done += 1
            yield side, done, total
    writer.finish()


def conversion_size(
    source: Path, target: Path, dtype: str | None = None, tokens: str = ALL
) -> SizePlan:
    """Compute what `convert` would write.

    Args:
        source: The store to convert.
        target: Where the copy would lie.
        dtype: Of its tokens; None keeps that of the source.
        tokens: Which tokens it would keep, as `convert` takes it.

    Returns:
        Bytes and room; nothing is written.
    """
    return plan_size(target, *_wanted(open_store(source), dtype, tokens))


def _wanted(store: StoreReader, dtype: str | None, tokens: str) -> tuple[StoreSpec, StoreIndex]:
    model = reduced_spec(store.spec.model, tokens)
    spec = replace(store.spec, model=model, dtype=dtype or store.spec.dtype)
    lengths: dict[SideName, NDArray[np.int64]] = {}
    for side in SIDES:
        kept, there = model.tokens(side), store.side(side).lengths
        lengths[side] = pooled_lengths(there, kept.pooled) if kept else np.zeros_like(there)
    index = StoreIndex(
        ids={side: store.side(side).ids for side in SIDES},
        caption_to_image=store.caption_to_image,
        lengths=lengths,
    )
    return spec, index


def _block(store: StoreReader, writer: StoreWriter, side: SideName, shard: int) -> Block:
    """One shard of `store`, with its failures and provenance."""
    rows = writer.rows(side, shard)
    items = np.arange(rows.start, rows.stop, dtype=np.int64)
    reader = store.side(side)
    marker = commit.read_marker(store.path, side, shard)
    assert marker is not None
    values, kept = None, writer.spec.model.tokens(side)
    if reader.tokens_spec is not None and kept is not None:
        values = reader.tokens(items)
        if kept.pooled != reader.tokens_spec.pooled and kept.pooled is not None:
            last = kept.global_token == "last"
            values = pool(values, reader.lengths[items], kept.pooled, global_last=last)
    return Block(
        values=values,
        embeddings=reader.embeddings(items),
        failed=marker.failed,
        provenance={
            **marker.provenance,
            "converted_from": {"format": store.format, "dtype": store.spec.dtype},
        },
    )
