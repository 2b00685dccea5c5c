"""The rows of one side of a store, shard after shard: what every format is written from.

Shape letters: n rows of a piece, E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.arrays import unit_rows
from hada.extract.common.errors import StoreError, UsageError
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.spec import SideName
from hada.extract.store import StoreReader


@dataclass(frozen=True)
class Piece:
    """Some rows, one after the other.

    Attributes:
        start: The number of the first row in the export.
        ids: Of the items.
        values_nE: (n, E) their embeddings, C-contiguous.
        image_ids: Of each caption its image, None for a text alone; None for images.
        texts: Of each caption its text, of each image its captions; None without the data set.
        files: Of each image, or each caption's image, the file; None without the data set.
    """

    start: int
    ids: list[str]
    values_nE: NDArray[Any]
    image_ids: list[str | None] | None
    texts: list[str] | list[list[str]] | None
    files: list[str | None] | None


@dataclass(frozen=True)
class Rows:
    """The items of one side that the model could read, in the order of the store.

    Attributes:
        store: What is exported.
        side: `image` or `caption`.
        unit: Whether every row is brought to unit length.
        dtype: `float32` or `float16`: what the rows are given in.
        data: Captions and files; None where the data set is not on this machine.
        take: How many items are read at a time: those of a shard.
    """

    store: StoreReader
    side: SideName
    unit: bool
    dtype: str
    data: CaptionDataset | None
    take: int

    @classmethod
    def of(
        cls,
        store: StoreReader,
        side: SideName,
        *,
        unit: bool,
        dtype: str = "float32",
        data: CaptionDataset | None = None,
    ) -> Rows:
        """The embeddings of one side of a store, shard by shard.

        Args:
            store: The store.
            side: Whose rows.
            unit: Whether rows are brought to unit length where they are not.
            dtype: Of the rows, "float32" or "float16".
            data: The split that the store was made from, for captions and files; None leaves them
                out.

        Raises:
            UsageError: The store has no embeddings.
            StoreError: The items of `data` are not those of the store.
        """
        if store.spec.model.embedding_width is None:
            raise UsageError(
                f"{store.path}: model {store.spec.model.name!r} has no joint space, so there are "
                "no embeddings to export; its tokens are in the store's own Zarr or HDF5 files"
            )
        if data is not None:
            _check_same(store, data)
        return cls(store, side, unit, dtype, data, store.spec.rows_per_shard[side])

    @property
    def width(self) -> int:
        """E."""
        width = self.store.spec.model.embedding_width
        assert width is not None
        return width

    def __len__(self) -> int:
        return int((~self.store.side(self.side).failed).sum())

    def pieces(self) -> Iterator[Piece]:
        """All rows, at most a shard's at a time.

        Raises:
            StoreError: A shard is damaged, or a row is not finite.
        """
        reader, done = self.store.side(self.side), 0
        of_image = _captions_of(self.data) if self.data is not None else {}
        for first in range(0, len(reader.ids), self.take):
            rows = np.arange(first, min(first + self.take, len(reader.ids)))
            rows = rows[~reader.failed[rows]]
            if not len(rows):
                continue
            read = reader.embeddings(rows)
            assert read is not None
            values = np.asarray(read, np.float32)
            if not np.isfinite(values).all():
                raise StoreError(
                    f"{self.store.path}: a row of {self.side} shard {first // self.take} is not "
                    "finite; run hada-store repair, and extract again"
                )
            values = unit_rows(values) if self.unit else values
            yield self._piece(done, rows, np.ascontiguousarray(values, self.dtype), of_image)
            done += len(rows)

    def _piece(
        self,
        start: int,
        rows: NDArray[np.int64],
        values: NDArray[Any],
        of_image: Mapping[int, Sequence[str]],
    ) -> Piece:
        store, data = self.store, self.data
        ids = [store.side(self.side).ids[row] for row in rows]
        image_ids: list[str | None] | None = None
        if self.side == "image":
            images = rows
        else:
            images = store.caption_to_image[rows]
            # A text alone is of no image, its row is -1.
            image_ids = [store.image.ids[row] if row >= 0 else None for row in images]
        if data is None:
            return Piece(start, ids, values, image_ids, None, None)
        files = [str(data.image_paths[row]) if row >= 0 else None for row in images]
        if self.side == "caption":
            return Piece(start, ids, values, image_ids, [data.captions[r] for r in rows], files)
        texts = [list(of_image.get(int(row), ())) for row in rows]
        return Piece(start, ids, values, image_ids, texts, files)


def _captions_of(data: CaptionDataset) -> dict[int, list[str]]:
    """The captions of every image by its row."""
    found: dict[int, list[str]] = {}
    for text, owner in zip(data.captions, data.caption_to_image.tolist(), strict=True):
        found.setdefault(owner, []).append(text)
    return found


def _check_same(store: StoreReader, data: CaptionDataset) -> None:
    """Raise `StoreError` where a data set is not of the store's items, row by row."""
    same = tuple(store.image.ids) == data.image_ids and tuple(store.caption.ids) == data.caption_ids
    if not same:
        raise StoreError(
            f"{store.path}: its items are not those of {data.name}/{data.split} as it is now, so "
            "captions and files would be of others; extract again, or give --ids-only"
        )
