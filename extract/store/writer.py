"""Writing a store: shard by shard, each whole or absent, in any order, by many processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common import atomic, remote
from hada.extract.common.errors import StoreError
from hada.extract.spec import SIDES, SideName, StoreSpec
from hada.extract.store import commit, damage, digests, formats, locks, seal
from hada.extract.store.block import Block
from hada.extract.store.create import check_same, create, plan_arrays
from hada.extract.store.index import StoreIndex, shard_count, shard_rows
from hada.extract.store.record import Record

# Between two looks at what another process is writing.
WAIT_S = 0.2


class StoreWriter:
    """A store that is being filled. Make one with `StoreWriter.open`."""

    def __init__(self, record: Record, index: StoreIndex) -> None:
        self.folder, self.spec, self.index = record.folder, record.spec, index
        self.format = record.form.name
        self._form, self._features = record.form, record.features
        self._frame = damage.Frame.of(record)
        self._plans = plan_arrays(record.spec, index)
        # A store that was sealed is being mended, where anything of it is written.
        self._sealed = bool(record.root) and seal.read(record.folder) is not None
        self._mine: set[tuple[SideName, int]] = set()

    @classmethod
    def open(
        cls,
        path: str | Path,
        spec: StoreSpec,
        index: StoreIndex,
        *,
        format: str | None = None,  # noqa: A002
        allow_mismatch: Collection[str] = (),
    ) -> StoreWriter:
        """Create the store, or go on with one of the same spec and ids.

        Args:
            path: Folder of the store.
            spec: What it holds.
            index: Ids, lengths and which caption belongs to which image.
            format: "zarr" or "hdf5"; None goes on with what is there, and makes Zarr otherwise.
            allow_mismatch: Fields of the spec in which a store that is there may differ.

        Raises:
            StoreMismatchError: There is a store of another spec or format; the message names
                the fields.
            StoreError: The path holds something else, or ids and spec contradict each other.
        """
        index.check(spec)
        folder = remote.place(path)
        if (formats.find(folder) is None) if remote.is_remote(folder) else not folder.exists():
            create(folder, spec, index, format or formats.DEFAULT)
        elif not remote.is_remote(folder):
            # Of a process that was killed while another one made the same store.
            atomic.remove_leftovers(folder.with_name(f".{folder.name}"))
        return cls(check_same(folder, spec, index, format, allow_mismatch), index)

    def shards(self, side: SideName) -> int:
        """How many shards a side has."""
        return shard_count(self.spec, self.index, side)

    def rows(self, side: SideName, shard: int) -> range:
        """The items of one shard."""
        return shard_rows(self.spec, self.index, side, shard)

    def pending(self, side: SideName) -> list[int]:
        """The shards that are not committed, or whose files do not match their marker."""
        return self._unfinished([(side, k) for k in range(self.shards(side))], listed=True)

    def is_done(self, side: SideName, shard: int) -> bool:
        """Whether a shard is committed and its files have the recorded sizes."""
        return not self._unfinished([(side, shard)])

    def _unfinished(self, shards: list[tuple[SideName, int]], *, listed: bool = False) -> list[int]:
        markers = commit.read_markers(self.folder, shards)
        sizes = damage.listed_sizes(self._features) if listed else None
        strange: Collection[tuple[SideName, int]] = ()
        if self._sealed:
            root = self._frame.record.root
            strange = seal.faults(self.folder, root, markers)[1].keys() - self._mine
        return [
            key[1]
            for key, marker in markers.items()
            if not isinstance(marker, commit.Marker)
            or key in strange
            or damage.of_shard(marker, self._frame, sizes=sizes) is not None
        ]

    @contextlib.contextmanager
    def claim(self, side: SideName, shard: int) -> Iterator[bool]:
        """Yield whether this process may write the shard now: pending, and nobody else does."""
        with locks.shard_lock(self.folder, side, shard) as mine:
            mine = mine and not self.is_done(side, shard)
            # Behind a URL there are no leftovers: what is there is replaced whole.
            if mine and not remote.is_remote(self.folder):
                for path in self._form.files(self._features, side, shard):
                    path.unlink(missing_ok=True)
                commit.remove_leftovers(self.folder, side, shard)
            yield mine

    def filling(self, side: SideName) -> Iterator[int]:
        """Each shard that is not there yet, claimed for whoever writes it before asking on.

        Waits for those that another process is writing, so in the end all are there.

        Raises:
            StoreError: A shard is not there although it was written.
        """
        while True:
            busy = False
            for shard in self.pending(side):
                with self.claim(side, shard) as mine:
                    if mine:
                        yield shard
                    if remote.is_remote(self.folder) or self.is_done(side, shard):
                        continue  # behind a URL, looking costs requests; the put has said it all
                    if mine:
                        raise StoreError(
                            f"{self.folder}: {side} shard {shard} was written and is not there. "
                            "Is something else at work on that disk? Run it again."
                        )
                    busy = True
            if not busy:
                return
            time.sleep(WAIT_S)

    def write(self, side: SideName, shard: int, block: Block) -> None:
        """Write one shard and commit it.

        Raises:
            StoreError: Shapes do not fit, or values overflow the store's dtype or lie below it.
            NonFiniteError: A feature of an item that did not fail is NaN or infinite.
        """
        rows = self.rows(side, shard)
        block.check(self.spec, self.index, side, rows)
        arrays = {}
        if self.spec.model.tokens(side) is not None and block.values is not None:
            plan = self._plans[f"{side}/tokens"]
            values, steps = block.stored_tokens(self.spec, self.index, side, rows)
            arrays[f"{side}/tokens"] = plan, values.reshape(-1, *plan.shape[1:])
            if steps is not None:
                plan = self._plans[f"{side}/steps"]
                arrays[f"{side}/steps"] = plan, steps.reshape(-1, *plan.shape[1:])
        if block.embeddings is not None:
            values = block.stored_embeddings(self.spec, self.index, side, rows)
            arrays[f"{side}/embeddings"] = self._plans[f"{side}/embeddings"], values
        written = self._form.write_shard(self._features, side, shard, arrays)
        if self._sealed:
            seal.open_shard(self.folder, side, shard)
        self._mine.add((side, shard))
        commit.write_marker(
            self.folder,
            commit.Marker(
                side=side,
                shard=shard,
                spec_digest=self._frame.spec_digest,
                files=dict(written.files),
                failed=dict(block.failed),
                provenance=dict(block.provenance),
                root=self._frame.record.root,
                crcs={name: digests.pack_crcs(table) for name, table in written.crcs.items()},
            ),
        )

    def finish(self) -> None:
        """Seal the store if it is complete, and clear away what killed writers left of it.

        May be called by any number of processes, whenever one has written its last shard.
        Raises `StoreError` where the seal is damaged.
        """
        locks.remove_stale_locks(self.folder)
        shards = [(side, shard) for side in SIDES for shard in range(self.shards(side))]
        seal.write(
            self.folder,
            self._frame.record.root,
            lambda: commit.read_markers(self.folder, shards),
            self._mine,
        )

    def failures(self, side: SideName) -> dict[int, str]:
        """All items without features so far: row -> reason."""
        found: dict[int, str] = {}
        shards = [(side, shard) for shard in range(self.shards(side))]
        for marker in commit.read_markers(self.folder, shards).values():
            if isinstance(marker, StoreError):
                raise marker
            found.update(marker.failed if marker else {})
        return found


def write_store(
    path: str | Path,
    spec: StoreSpec,
    *,
    ids: Mapping[SideName, Sequence[str]],
    caption_to_image: NDArray[np.int64],
    embeddings: Mapping[SideName, NDArray[Any]] | None = None,
    tokens: Mapping[SideName, Sequence[NDArray[Any]]] | None = None,
    format: str | None = None,  # noqa: A002
) -> None:
    """Write a whole store at once, from memory.

    Args:
        path: Folder of the store.
        spec: What it holds; sides without tokens in the spec need none here.
        ids: Image and caption ids.
        caption_to_image: (T,), entry j is the image row of caption j.
        embeddings: Per side (n, E).
        tokens: Per side a list of (N, D), one array an item.
        format: "zarr" or "hdf5"; None goes on with what is there, and makes Zarr otherwise.
    """
    lengths = {
        side: np.array([len(item) for item in (tokens or {}).get(side, [])], np.int64)
        if spec.model.tokens(side)
        else np.zeros(len(ids[side]), np.int64)
        for side in SIDES
    }
    index = StoreIndex(
        ids={side: tuple(ids[side]) for side in SIDES},
        caption_to_image=np.asarray(caption_to_image, np.int64),
        lengths=lengths,
    )
    writer = StoreWriter.open(path, spec, index, format=format)
    for side in SIDES:
        for shard in writer.filling(side):
            rows = writer.rows(side, shard)
            part = slice(rows.start, rows.stop)
            has_tokens = tokens is not None and spec.model.tokens(side) is not None
            writer.write(
                side,
                shard,
                Block(
                    values=np.concatenate(list(tokens[side][part]))
                    if has_tokens and tokens
                    else None,
                    embeddings=embeddings[side][part] if embeddings else None,
                ),
            )
    writer.finish()
