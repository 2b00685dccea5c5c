"""The images and captions of a split, and what a method is.

A method is a way of scoring. Most are a pair of embeddings whose inner product is the score, so one
exact ranking serves them all; the fusion of rankings and re-ranking have ranks of their own. All
methods of a comparison are made from the same stores, on the same images and captions.

Shape letters: I images, T captions, E embedding width, M models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.seen import Fitted
from hada.extract.common.arrays import unit_rows
from hada.extract.common.errors import NonFiniteError, StoreError
from hada.extract.store import StoreReader
from hada.extract.store.readable import readable_items
from hada.fuse.ranking.ranks import Ranks, rank_positives
from hada.fuse.tokens.split import check_together

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Gallery:
    """The images and captions of one split that every model could read.

    Attributes:
        stores: One store per model, all of the same items.
        image_rows: (I,) rows of the images in the stores.
        caption_rows: (T,) rows of the captions in the stores.
        caption_to_image: (T,) entry j is the image of caption j, as a number from 0 to I - 1.
    """

    stores: tuple[StoreReader, ...]
    image_rows: NDArray[np.int64]
    caption_rows: NDArray[np.int64]
    caption_to_image: NDArray[np.int64]

    @classmethod
    def of(cls, stores: Sequence[StoreReader], *, alone: bool = False) -> Gallery:
        """The items that every store has, without those that failed in any of them.

        Args:
            stores: One store per model.
            alone: Whether images or texts alone will do, as for a search.

        Raises:
            StoreMismatchError: The stores are not of the same items.
            StoreError: An id appears twice, or no image with a caption is left.
        """
        check_together(stores)
        first = stores[0]
        for side in (first.image, first.caption):
            if len(set(side.ids)) != len(side.ids):
                twice = next(id_ for id_, count in Counter(side.ids).items() if count > 1)
                raise StoreError(
                    f"{first.path}: {side.side} id {twice!r} appears twice, so queries would be "
                    "counted twice; extract the split again"
                )
        return cls(tuple(stores), *readable_items(stores, alone=alone))

    def own(self, store: StoreReader) -> Pair | None:
        """A model's own embeddings.

        Args:
            store: One of the gallery's stores.

        Returns:
            (I, E) and (T, E) float32 at unit length; None where the model has no joint space.

        Raises:
            NonFiniteError: A row is zero, NaN or infinite.
        """
        image, caption = store.image.embeddings(), store.caption.embeddings()
        if image is None or caption is None:
            return None
        return (
            _unit(image[self.image_rows], f"{store.path}: image embeddings"),
            _unit(caption[self.caption_rows], f"{store.path}: caption embeddings"),
        )


class Method(Protocol):
    """A way of scoring: a name, a kind, and ranks on demand."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def note(self) -> str: ...

    @property
    def details(self) -> dict[str, Any]: ...

    @property
    def fitted(self) -> tuple[Fitted, ...]: ...

    def ranks(self, caption_to_image: NDArray[np.int64], *, device: str = "cpu") -> Ranks:
        """Rank of the best positive of every query, both ways.

        Args:
            caption_to_image: Entry j is the image row of caption j, e.g. `[0, 0, 1, 1]`.
            device: Where scores are computed.
        """
        ...

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Method:
        """The same method on a subset.

        Args:
            images: (i,) rows of images, ascending.
            captions: (t,) rows of captions of these images.
        """
        ...


@dataclass(frozen=True)
class EmbeddingMethod:
    """A method whose score is an inner product of embeddings: `image_IE @ caption_TE.T`.

    Attributes:
        name: Its name in results; unique within a comparison.
        kind: `model`, `mean`, `weighted`, `linear`, `crops` or `hada`.
        pair: (I, E) image and (T, E) caption embeddings, float32.
        note: How it was made, for people.
        details: More keys for its entry in the result.
        fitted: All data that its parameters come from, its models' included.
        uncorrected: The pair before the correction of hubs; None where there is none.
    """

    name: str
    kind: str
    pair: Pair
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    fitted: tuple[Fitted, ...] = ()
    uncorrected: Pair | None = None

    def ranks(self, caption_to_image: NDArray[np.int64], *, device: str = "cpu") -> Ranks:
        """Rank of the best positive of every query; `caption_to_image` as in `rank_positives`."""
        return rank_positives(*self.pair, caption_to_image, device=device)

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> EmbeddingMethod:
        """The same method on a subset: (i,) rows of images and (t,) rows of captions."""
        before = self.uncorrected
        return replace(
            self,
            pair=(self.pair[0][images], self.pair[1][captions]),
            uncorrected=before and (before[0][images], before[1][captions]),
        )


def fitted_of(methods: Sequence[EmbeddingMethod]) -> tuple[Fitted, ...]:
    """All that several methods were fitted on."""
    return tuple(entry for method in methods for entry in method.fitted)


def _unit(values: NDArray[Any], what: str) -> NDArray[np.float32]:
    wide = values.astype(np.float32)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(length[:, 0]) | (length[:, 0] == 0))
    if bad.size:
        raise NonFiniteError(f"{what}: {bad.size} rows are zero or not finite; extract them again")
    return np.asarray(unit_rows(wide), np.float32)
