"""The size of a store before extraction, and whether it fits on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hada.extract.common import remote
from hada.extract.common.errors import StoreError
from hada.extract.common.progress import size
from hada.extract.spec import SIDES, SideName, StoreSpec
from hada.extract.store.create import index_arrays, plan_arrays
from hada.extract.store.index import StoreIndex, shard_count, shard_rows

# Of what the arrays hold: checksums, indexes, markers and the file system's own blocks.
OVERHEAD = 1.01
BLOCK_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class SizePlan:
    """What a store will hold and what it needs.

    arrays: name -> bytes. shards, items: per side. present: bytes that lie there already.
    free: bytes that the file system has left; None where nobody knows, behind a URL.
    """

    folder: Path
    items: Mapping[SideName, int]
    shards: Mapping[SideName, int]
    arrays: Mapping[str, int]
    files: int
    present: int
    free: int | None

    @property
    def needed(self) -> int:
        """Bytes that are still to be written, rounded up."""
        total = int(sum(self.arrays.values()) * OVERHEAD) + self.files * BLOCK_BYTES
        return max(0, total - self.present)

    @property
    def fits(self) -> bool:
        """Whether the disk has room for it."""
        return self.free is None or self.needed <= self.free

    def check(self, *, force: bool = False) -> None:
        """Raise `StoreError` where the disk is too small, unless `force`."""
        if not self.fits and not force:
            raise StoreError(
                f"{self.folder}: {size(self.needed)} are to be written, but the disk has "
                f"{size(self.free or 0)} left. Free some space, choose another place "
                "(--root stores=FOLDER), or go on all the same: hada-extract --force."
            )

    def text(self) -> str:
        """For people."""
        lines = [f"{self.folder}"]
        lines += [
            f"  {side + 's':<20} {self.items[side]:>9,} in {self.shards[side]} shards"
            for side in SIDES
        ]
        lines += [f"  {name:<20} {size(n_bytes):>9}" for name, n_bytes in self.arrays.items()]
        lines.append(f"  there already        {size(self.present):>9}")
        lines.append(f"  to be written        {size(self.needed):>9}")
        if self.free is not None:
            lines.append(f"  free on the disk     {size(self.free):>9}")
        return "\n".join(lines)


def plan_size(path: str | Path, spec: StoreSpec, index: StoreIndex) -> SizePlan:
    """What a store will need on disk; nothing is written.

    Args:
        path: The store's folder or URL, for what is there already and the space that is free.
        spec: Of the store.
        index: Its items, and how many tokens each has.
    """
    folder = remote.place(path)
    arrays = {name: values.nbytes for name, values in index_arrays(spec, index).items()}
    files = len(arrays)
    for name, plan in plan_arrays(spec, index).items():
        side: SideName = "image" if name.startswith("image/") else "caption"
        shards = shard_count(spec, index, side)
        files += 2 * shards
        rows = 0
        for shard in range(shards):
            items = shard_rows(spec, index, side, shard)
            ragged = plan.dimensions[0] == "row"
            filled = (
                int(index.lengths[side][items.start : items.stop].sum()) if ragged else len(items)
            )
            # The last chunk of a shard is stored whole.
            rows += -(-filled // plan.chunk_rows) * plan.chunk_rows
        arrays[name] = rows * plan.row_bytes
    return SizePlan(
        folder=folder,
        items={side: index.count(side) for side in SIDES},
        shards={side: shard_count(spec, index, side) for side in SIDES},
        arrays=arrays,
        files=files,
        present=_present(folder),
        free=None if remote.is_remote(folder) else shutil.disk_usage(_existing(folder)).free,
    )


def _present(folder: Path) -> int:
    if not remote.is_remote(folder) and not folder.is_dir():
        return 0
    return sum(
        # The last block of a file is taken whole.
        -(-n_bytes // BLOCK_BYTES) * BLOCK_BYTES
        for name, n_bytes in remote.file_sizes(folder).items()
        if ".tmp-" not in name.rpartition("/")[2]
    )


def _existing(folder: Path) -> Path:
    """The nearest folder that is there already: it lies on the disk that will be written."""
    for path in (folder.absolute(), *folder.absolute().parents):
        if path.is_dir():
            return path
    return Path("/")
