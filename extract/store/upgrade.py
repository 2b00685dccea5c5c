"""Binding a store of the first schema in place, after a full check.

Readers must find a store that opens at any moment, so the record comes first and says that it is
being bound: until it no longer does, markers of both schemas count. Then marker after marker is
written anew, the seal, and the record once more. A second call goes on where one was killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hada.extract.common.errors import StoreError
from hada.extract.spec import SIDES, SideName
from hada.extract.store import commit, damage, digests, record, seal
from hada.extract.store.create import plan_arrays
from hada.extract.store.index import StoreIndex, decode_ids, ragged_spans
from hada.extract.store.reader import open_store, shard_status
from hada.extract.store.record import Contents, Record


@dataclass
class Upgrade:
    """What is to be done; no shards where a store is bound already."""

    folder: Path
    shards: int

    def steps(self) -> Iterator[None]:
        """Do it, shard after shard, first checking and then binding.

        Raises `StoreError`: the store is incomplete or damaged; nothing was changed.
        """
        if self.shards:
            yield from _upgrade(self.folder)


def plan_upgrade(folder: Path) -> Upgrade:
    """Whether a store is to be bound, and its number of shards.

    Raises `StoreError` where it cannot be opened: only what is whole is bound.
    """
    known = record.read_record(folder)
    if known.root and not known.upgrading:
        return Upgrade(folder, 0)
    store = open_store(folder)
    size = store.spec.rows_per_shard
    return Upgrade(folder, sum(-(-len(store.side(s).ids) // size[s]) for s in SIDES))


def _upgrade(folder: Path) -> Iterator[None]:
    known = record.read_record(folder)
    contents = record.read_contents(known)
    _check_frame(known, contents)
    fresh, shards = {}, []
    for key, fault in _checked(folder):
        if fault is not None:
            raise StoreError(
                f"{folder}: {key[0]} shard {key[1]}: {fault}. A store that is not whole is not "
                f"bound: hada-store repair {folder}, then extract again"
            )
        shards.append(key)
    for side, shard in shards:
        fresh[side, shard] = _marker(known, contents, side, shard)
        yield
    if not known.root:
        record.bind(known.form, known.features, known.spec, upgrading=True)
        known = record.read_record(folder)
    for marker in fresh.values():
        commit.write_marker(folder, replace(marker, root=known.root))
    if not seal.write(folder, known.root, lambda: commit.read_markers(folder, shards), set(shards)):
        raise StoreError(f"{folder}: its shards were changed meanwhile; run the same command again")
    record.bind(known.form, known.features, known.spec)


def _checked(folder: Path) -> Iterator[tuple[tuple[SideName, int], damage.Fault | None]]:
    for side, states in shard_status(folder, deep=True).items():
        for shard, fault in states.items():
            yield (side, shard), fault


def _marker(known: Record, contents: Contents, side: SideName, shard: int) -> commit.Marker:
    """The marker of a shard as this schema has it, from the bytes that lie there."""
    old = commit.read_marker(known.folder, side, shard)
    assert old is not None
    mine = {name: contents.metadata[name] for name in record.shard_names(known.spec, side)}
    written = known.form.read_shard(known.features, side, shard, mine)
    return replace(
        old,
        files=dict(written.files),
        crcs={name: digests.pack_crcs(table) for name, table in written.crcs.items()},
    )


def _check_frame(known: Record, contents: Contents) -> None:
    """Raise `StoreError` where arrays are not divided as the spec, ids and spans have it.

    A store without a record says nowhere how its arrays should be, but it can be worked out.
    """
    index = contents.index
    lengths = {}
    for side in SIDES:
        tokens, spans = known.spec.model.tokens(side), index.get(f"{side}/spans")
        count = len(index[f"{side}/ids"])
        fixed = tokens.count if tokens is not None else 0
        lengths[side] = (
            np.full(count, fixed or 0, np.int64) if spans is None else spans[:, 1] - spans[:, 0]
        )
    made = StoreIndex(
        ids={side: decode_ids(index[f"{side}/ids"]) for side in SIDES},
        caption_to_image=index["caption/image_index"],
        lengths=lengths,
    )
    made.check(known.spec)
    for side in SIDES:
        spans = index.get(f"{side}/spans")
        if spans is not None and (spans != ragged_spans(known.spec, made, side)).any():
            raise record.changed(known.folder, f"{side}/spans are not those of its lengths")
    wrong = []
    for name, plan in plan_arrays(known.spec, made).items():
        source = known.form.source(known.features, name, contents.metadata[name])
        same_fill = source.fill == plan.fill or (np.isnan(source.fill) and np.isnan(plan.fill))
        if (source.shape, source.dtype.name, source.shard_rows) != (
            plan.shape,
            plan.dtype,
            plan.shard_rows,
        ) or not same_fill:
            wrong.append(name)
    wrong += sorted(known.form.arrays(known.features) - set(record.all_names(known.spec)))
    if wrong:
        raise record.changed(known.folder, f"{', '.join(wrong)}: not as HADA makes them")
