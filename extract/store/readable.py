"""The items that several models have on a split, without those that failed in any of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import StoreError, UsageError
from hada.extract.spec import SIDES
from hada.extract.store.reader import StoreReader


class Readable(NamedTuple):
    """Rows of stores, and captions to images by their position among these.

    Attributes:
        image_rows: (I,) rows of the images, in order.
        caption_rows: (T,) rows of the captions, in order.
        caption_to_image: (T,) entry j is the position in `image_rows` of caption j's image; -1 for
            texts alone.
    """

    image_rows: NDArray[np.int64]
    caption_rows: NDArray[np.int64]
    caption_to_image: NDArray[np.int64]


def readable_items(stores: Sequence[StoreReader], *, alone: bool = False) -> Readable:
    """The captions whose image and text every store has, and the images that have such a caption.

    Args:
        stores: One store per model, all of the same items.
        alone: Whether images without captions, or texts without images, will do: enough to embed
            and to search them. Whoever trains or measures needs pairs.

    Raises:
        UsageError: The stores hold images or texts alone, and `alone` is False.
        StoreError: Nothing is left.
    """
    first = stores[0]
    if not len(first.image.ids) or not len(first.caption.ids):
        return _items_alone(stores, alone=alone)
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


def _items_alone(stores: Sequence[StoreReader], *, alone: bool) -> Readable:
    first = stores[0]
    here, absent = ("images", "captions") if len(first.image.ids) else ("texts", "images")
    where = f"{first.spec.dataset}/{first.spec.split}"
    if not alone:
        raise UsageError(
            f"{where} has {here} and no {absent}. Recall and training compare images with their "
            f"captions, so both are needed; {here} alone can be embedded (hada-fuse embed) and "
            "searched (hada-evaluate search)"
        )
    good = {
        side: np.flatnonzero(~np.any([store.side(side).failed for store in stores], axis=0))
        for side in SIDES
    }
    if not any(len(rows) for rows in good.values()):
        raise StoreError(
            f"{first.path}: none of its {here} is readable in every store; extract the split "
            "again and look at the failures it reports"
        )
    return Readable(good["image"], good["caption"], np.full(len(good["caption"]), -1, np.int64))
