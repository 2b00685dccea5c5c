"""The stores of M models on one split -> batches for training and blocks for encoding.

Shape letters: I images, T captions, M models, D token width, B images of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hada.extract.common.arrays import group_by_image
from hada.extract.common.errors import StoreError, StoreMismatchError
from hada.extract.common.host import free_memory
from hada.extract.spec import SIDES, SideName
from hada.extract.store import StoreReader
from hada.extract.store.readable import readable_items
from hada.fuse.batch import Batch, Features, Layout, ModelShape
from hada.fuse.tokens.order import Order
from hada.fuse.tokens.sources import Source, Window

# Of the memory that is free, tokens may take this share; the rest is for the training itself.
MEMORY_SHARE = 0.5


class Split:
    """One split as M models see it: only items that every model could read.

    Images and captions are counted anew without the failed ones: entry j of `caption_to_image` is
    the image of caption j in that count, `image_rows` and `caption_rows` lead back to rows of the
    stores.
    An image that lost all its captions is left out too.

    bytes: of all tokens in memory. blocks: (I,) which block of shards each image lies in.
    """

    def __init__(
        self,
        stores: Sequence[StoreReader],
        *,
        in_memory: bool | None = None,
        first_tokens_only: bool = False,
        pinned: bool = False,
        alone: bool = False,
    ) -> None:
        """Open a split.

        Args:
            stores: One store a model, of the same items.
            in_memory: Whether to take all tokens into memory; None does so where they fit easily.
            first_tokens_only: Whether every model but the first is one node, its embedding.
            pinned: Whether batches are put where a GPU fetches them by itself.
            alone: Whether images or texts alone will do, as for embedding them.

        Raises:
            UsageError: The stores hold images or texts alone, and `alone` is False.
            StoreError: There are no stores, or no image with a caption is readable in all.
            StoreMismatchError: The stores hold different items.
        """
        if not stores:
            raise StoreError("no stores: a fusion needs the store of one model at least")
        check_together(stores)
        self.stores = tuple(stores)
        self.sources: dict[SideName, tuple[Source, ...]] = {
            side: tuple(
                Source(store, side, tokens=model == 0 or not first_tokens_only)
                for model, store in enumerate(stores)
            )
            for side in SIDES
        }
        self._keep(alone=alone)
        self.bytes = sum(source.bytes for side in SIDES for source in self.sources[side])
        # Stores that agree on the rows of a shard have whole shards as blocks.
        step = max(store.spec.rows_per_shard["image"] for store in stores)
        self.blocks = self.image_rows // step
        self._pinned = pinned
        if self.bytes < MEMORY_SHARE * free_memory() if in_memory is None else in_memory:
            self.load()

    def load(self) -> None:
        """Take all tokens into memory."""
        for side in SIDES:
            for source in self.sources[side]:
                source.load()

    def reside(self, device: torch.device) -> None:
        """Take all tokens to a device; batches are gathered there from then on."""
        for side in SIDES:
            for source in self.sources[side]:
                source.reside(device)

    def subset(self, images: NDArray[np.int64]) -> Self:
        """Some images with all their captions, image after image, as a split of their own."""
        part = copy.copy(self)
        captions = self.captions_of(images)
        part.image_rows, part.caption_rows = self.image_rows[images], self.caption_rows[captions]
        part.caption_to_image = np.repeat(np.arange(len(images)), np.diff(self._bounds)[images])
        part.blocks = self.blocks[images]
        part._by_image, part._bounds = group_by_image(part.caption_to_image, len(images))
        return part

    def _keep(self, *, alone: bool) -> None:
        items = readable_items(self.stores, alone=alone)
        self.image_rows, self.caption_rows, self.caption_to_image = items
        self._by_image, self._bounds = group_by_image(self.caption_to_image, self.images)

    @property
    def resident(self) -> bool:
        """Whether all tokens are on a device."""
        sources = [source for side in SIDES for source in self.sources[side] if source.has_tokens]
        return bool(sources) and all(source.resident is not None for source in sources)

    @property
    def remote(self) -> bool:
        """Whether any of the stores is reached over a network by its URL."""
        return any("://" in str(store.path) for store in self.stores)

    @property
    def images(self) -> int:
        """I, images that are used."""
        return len(self.image_rows)

    @property
    def captions(self) -> int:
        """T, captions that are used."""
        return len(self.caption_rows)

    def shapes(self, side: SideName) -> tuple[ModelShape, ...]:
        """What each model brings to a side."""
        return tuple(source.shape for source in self.sources[side])

    def lengths(self, side: SideName) -> NDArray[np.int64]:
        """(I,) or (T,) nodes of each item, all models together: what encoding it costs."""
        rows = self.image_rows if side == "image" else self.caption_rows
        total: NDArray[np.int64] = np.sum([s.lengths[rows] for s in self.sources[side]], axis=0)
        return total

    def rows(self, side: SideName) -> NDArray[np.int64]:
        """The rows of the stores that a side's items are."""
        return self.image_rows if side == "image" else self.caption_rows

    def features(
        self, side: SideName, items: NDArray[np.int64], windows: Sequence[Window] = ()
    ) -> Features:
        """Read the features of some items.

        Args:
            side: Which side.
            items: (n,) rows of images or captions of the split.
            windows: What was read ahead; the rest is read from the stores.

        Returns:
            Their features, in the order of `items`.
        """
        rows = self.rows(side)[items]
        sources = self.sources[side]
        nodes = []
        for model, source in enumerate(sources):
            parts = [window[side][model] for window in windows]
            in_memory = tuple(part for part in parts if part is not None)
            nodes.append(source.nodes(rows, in_memory, pinned=self._pinned))
        return Features(
            tuple(nodes),
            tuple(Layout.build(s.lengths[rows], global_last=s.global_last) for s in sources),
            tuple(_tensor(s.embeddings, rows) for s in sources),
        )

    def captions_of(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """All captions of some images, image after image."""
        return np.concatenate(
            [self._by_image[self._bounds[i] : self._bounds[i + 1]] for i in images]
        )

    def batch(
        self, order: Order, items: NDArray[np.int64], windows: Sequence[Window] = ()
    ) -> Batch:
        """Images with all their captions, or (order "pairs") captions with their images.

        Args:
            order: Of the recipe: what an item is.
            items: (B,) rows of images, or of captions for "pairs".
            windows: Tokens that are in memory: the first of `items` are in the first one, and so
                on; without any, tokens are read from the stores.
        """
        if order == "pairs":
            images, captions, caption_to_image = (
                self.caption_to_image[items],
                items,
                np.arange(len(items)),
            )
        else:
            images, captions = items, self.captions_of(items)
            caption_to_image = np.repeat(np.arange(len(items)), np.diff(self._bounds)[items])
        return Batch(
            self.features("image", images, windows),
            self.features("caption", captions, windows),
            torch.from_numpy(np.ascontiguousarray(images)),
            torch.from_numpy(caption_to_image),
        )


def check_together(stores: Sequence[StoreReader]) -> None:
    """Raise `StoreMismatchError` unless all stores hold the same items of the same split."""
    first = stores[0]
    names = [store.spec.model.name for store in stores]
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise StoreMismatchError(f"model {min(twice)!r} is given twice; give each model once")
    for other in stores[1:]:
        for field in ("dataset", "split", "dataset_digest"):
            a, b = getattr(first.spec, field), getattr(other.spec, field)
            if a != b:
                raise _mismatch(field, first, a, other, b)
        for side in SIDES:
            a_ids = (first.image if side == "image" else first.caption).ids
            b_ids = (other.image if side == "image" else other.caption).ids
            if len(a_ids) != len(b_ids):
                raise _mismatch(f"number of {side}s", first, len(a_ids), other, len(b_ids))
            if tuple(a_ids) != tuple(b_ids):
                row = next(i for i, (a, b) in enumerate(zip(a_ids, b_ids, strict=True)) if a != b)
                raise _mismatch(f"{side} id of row {row}", first, a_ids[row], other, b_ids[row])
        if not np.array_equal(first.caption_to_image, other.caption_to_image):
            row = int(np.flatnonzero(first.caption_to_image != other.caption_to_image)[0])
            a, b = first.caption_to_image[row], other.caption_to_image[row]
            raise _mismatch(f"image of caption {row}", first, a, other, b)


def _mismatch(field: str, a: StoreReader, mine: Any, b: StoreReader, other: Any) -> Exception:
    return StoreMismatchError(
        f"stores do not fit together: {field} is {mine!r} in {a.path} and {other!r} in {b.path}; "
        f"extract {b.spec.model.name!r} again on the same dataset and split"
    )


def _tensor(values: NDArray[Any] | None, rows: NDArray[np.int64]) -> Tensor | None:
    return None if values is None else torch.from_numpy(values[rows])
