"""The stores of M models on one split -> batches for training and blocks for encoding.

Shape letters: I images, T captions, M models, D token width, B images of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hada.extract.errors import StoreError, StoreMismatchError
from hada.extract.spec import SIDES, SideName
from hada.extract.store import StoreReader
from hada.fuse.graph import Layout
from hada.fuse.model import Features, ModelShape
from hada.fuse.objective import Batch

Order = Literal["images", "pairs"]
Item = TypeVar("Item")
# Of the memory that is free, tokens may take this share; the rest is for the training itself.
MEMORY_SHARE = 0.5
ITEMS_PER_READ = 2048


class Source:
    """The nodes and embeddings of one model on one side, by store row.

    Without `tokens` each item is one node, its embedding, even where the store keeps tokens.
    """

    def __init__(self, store: StoreReader, side: SideName, *, tokens: bool = True) -> None:
        self._reader = store.image if side == "image" else store.caption
        spec = store.spec.model.tokens(side) if tokens else None
        self.embeddings = self._reader.embeddings()
        self.has_tokens = spec is not None
        self._tokens: NDArray[Any] | None = None
        if spec is not None:
            self.lengths = np.asarray(self._reader.lengths, dtype=np.int64)
            width, self.global_last = spec.width, spec.global_token == "last"
        elif self.embeddings is not None:
            self.lengths = np.ones(len(self._reader.ids), dtype=np.int64)
            width, self.global_last = self.embeddings.shape[1], False
        else:
            raise StoreError(
                f"{store.path}: keeps neither tokens nor embeddings of the {side} side, so there "
                "is nothing to fuse; leave this model out"
            )
        self._starts = np.cumsum(self.lengths) - self.lengths
        self.bytes = int(self.lengths.sum()) * width * self._reader.dtype.itemsize
        self.shape = ModelShape(
            node_width=width,
            embedding_width=None if self.embeddings is None else self.embeddings.shape[1],
            has_tokens=self.has_tokens,
            global_last=self.global_last,
        )

    def load(self) -> None:
        """Take all tokens into memory, in the type they are stored in."""
        if not self.has_tokens or self._tokens is not None:
            return
        total = int(self.lengths.sum())
        for first in range(0, len(self.lengths), ITEMS_PER_READ):
            some = self._reader.tokens(slice(first, first + ITEMS_PER_READ))
            if self._tokens is None:
                self._tokens = np.empty((total, some.shape[1]), some.dtype)
            start = int(self._starts[first])
            self._tokens[start : start + len(some)] = some

    def nodes(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(sum of lengths[rows], D) nodes, item after item."""
        if not self.has_tokens:
            assert self.embeddings is not None
            return self.embeddings[rows]
        if self._tokens is None:
            return self._reader.tokens(rows)
        lengths = self.lengths[rows]
        shift = self._starts[rows] - (np.cumsum(lengths) - lengths)
        return self._tokens.take(np.repeat(shift, lengths) + np.arange(int(lengths.sum())), axis=0)


class Split:
    """One split as M models see it: only items that every model could read.

    Images and captions are counted anew without the failed ones: entry j of `owner` is the image
    of caption j in that count, `image_rows` and `caption_rows` lead back to rows of the stores.
    An image that lost all its captions is left out too.
    """

    def __init__(
        self,
        stores: Sequence[StoreReader],
        *,
        in_memory: bool | None = None,
        first_tokens_only: bool = False,
    ) -> None:
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
        self._keep()
        tokens = sum(source.bytes for side in SIDES for source in self.sources[side])
        if tokens < MEMORY_SHARE * free_memory() if in_memory is None else in_memory:
            for side in SIDES:
                for source in self.sources[side]:
                    source.load()

    def _keep(self) -> None:
        first = self.stores[0]
        bad_image = np.any([s.image.failed for s in self.stores], axis=0)
        bad_caption = np.any([s.caption.failed for s in self.stores], axis=0)
        image_of = np.asarray(first.caption_to_image, dtype=np.int64)
        good_caption = ~bad_caption & ~bad_image[image_of]
        used = np.bincount(image_of[good_caption], minlength=len(bad_image)) > 0
        self.image_rows, self.caption_rows = np.flatnonzero(used), np.flatnonzero(good_caption)
        if not len(self.caption_rows):
            raise StoreError(
                f"{first.path}: no image with a caption is readable in every store; "
                "extract the split again and look at the failures it reports"
            )
        renumbered = np.cumsum(used) - 1
        self.owner = renumbered[image_of[self.caption_rows]]
        self._by_image = np.argsort(self.owner, kind="stable")
        self._bounds = np.searchsorted(self.owner[self._by_image], np.arange(self.images + 1))

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

    def features(self, side: SideName, items: NDArray[np.int64]) -> Features:
        """The features of some images or captions, in the order asked for."""
        rows = (self.image_rows if side == "image" else self.caption_rows)[items]
        sources = self.sources[side]
        return Features(
            tuple(torch.from_numpy(s.nodes(rows)) for s in sources),
            tuple(Layout.build(s.lengths[rows], global_last=s.global_last) for s in sources),
            tuple(_tensor(s.embeddings, rows) for s in sources),
        )

    def captions_of(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """All captions of some images, image after image."""
        return np.concatenate(
            [self._by_image[self._bounds[i] : self._bounds[i + 1]] for i in images]
        )

    def batch(self, order: Order, items: NDArray[np.int64]) -> Batch:
        """Images with all their captions, or (order "pairs") captions with their images."""
        if order == "pairs":
            images, captions, owner = self.owner[items], items, np.arange(len(items))
        else:
            images, captions = items, self.captions_of(items)
            owner = np.repeat(np.arange(len(items)), np.diff(self._bounds)[items])
        return Batch(
            self.features("image", images),
            self.features("caption", captions),
            torch.from_numpy(np.ascontiguousarray(images)),
            torch.from_numpy(owner),
        )

    def steps(self, order: Order, batch_size: int, seed: int, epoch: int) -> list[Any]:
        """The items of each step of an epoch; it depends on seed and epoch alone.

        A last batch of one item joins the one before: BatchNorm and hard negatives need two.
        """
        count = self.images if order == "images" else self.captions
        shuffled = np.random.default_rng([seed, epoch]).permutation(count)
        parts = [shuffled[i : i + batch_size] for i in range(0, count, batch_size)]
        if len(parts) > 1 and len(parts[-1]) == 1:
            parts[-2:] = [np.concatenate(parts[-2:])]
        return parts


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


def free_memory() -> float:
    """Bytes of memory that are free now; infinite where the system does not tell."""
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return float("inf")


def ahead(make: Callable[[Any], Item], items: Sequence[Any], depth: int = 2) -> Iterator[Item]:
    """`make` of each item, in order, made by one thread up to `depth` items ahead."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="hada-batches") as pool:
        waiting: list[Future[Item]] = []
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > depth:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
