"""The items that several models have on a split, without those that failed in any of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import StoreError
from hada.extract.store.reader import StoreReader


class Readable(NamedTuple):
    """Rows of stores, and captions to images by their position among these.

    Attributes:
        image_rows: (I,) rows of the images, in order.
        caption_rows: (T,) rows of the captions, in order.
        caption_to_image: (T,) entry j is the position in `image_rows` of caption j's image.
    """

    image_rows: NDArray[np.int64]
    caption_rows: NDArray[np.int64]
    caption_to_image: NDArray[np.int64]


def readable_items(stores: Sequence[StoreReader]) -> Readable:
    """The captions whose image and text every store has, and the images that have such a caption.

    Args:
        stores: One store per model, all of the same items.

    Raises:
        StoreError: Nothing is left.
    """
    first = stores[0]
    image_of = np.asarray(first.caption_to_image, np.int64)
    bad_image = np.any([store.image.failed for store in stores], axis=0)
    good = ~np.any([store.caption.failed for store in stores], axis=0) & ~bad_image[image_of]
    if not good.any():
        raise StoreError(
            f"{first.path}: no image with a caption is readable in every store; "
            "extract the split again and look at the failures it reports"
        )
    used = np.bincount(image_of[good], minlength=len(bad_image)) > 0
    return Readable(
        np.flatnonzero(used), np.flatnonzero(good), (np.cumsum(used) - 1)[image_of[good]]
    )
