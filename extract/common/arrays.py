"""Rows of unit length, captions grouped by image, and some rows of many.

Shape letters: I images, T captions, E width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def unit_rows(values: NDArray[Any]) -> NDArray[Any]:
    """Rows scaled to an L2 norm of 1.

    Args:
        values: (..., E) float32 or float64. Widen half precision first: its squares overflow.

    Returns:
        A new array of the same shape and dtype. A row of zeros has no direction and stays zero, so
        its inner product with every row is 0. A row with NaN or infinity has no meaning and is not
        refused here; check for such rows before.

    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    length[length == 0] = 1
    return np.asarray(values / length)


def group_by_image(
    caption_to_image: NDArray[np.int64], images: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The captions of every image, for captions in any order and any number per image.

    Args:
        caption_to_image: (T,) entry j is the image of caption j, from 0 to `images` - 1.
        images: I, the number of images. Images without a caption have an empty group.

    Returns:
        `order` (T,) and `bounds` (I + 1,): the captions of image i are
        `order[bounds[i] : bounds[i + 1]]`, in ascending order. The captions of several images in
        a row are one slice too.

    >>> order, bounds = group_by_image(np.array([1, 0, 1]), 3)
    >>> [order[bounds[i] : bounds[i + 1]].tolist() for i in range(3)]
    [[1], [0, 2], []]
    """
    order = np.argsort(caption_to_image, kind="stable")
    return order, np.searchsorted(caption_to_image[order], np.arange(images + 1))


def evenly_spread(count: int, most: int) -> NDArray[np.int64]:
    """Some of many rows, from the first to the last at distances that differ by one at most.

    Args:
        count: How many rows there are.
        most: How many are wanted; all where there are fewer.

    Returns:
        (min(count, most),) rows, ascending.

    >>> evenly_spread(10, 4).tolist(), evenly_spread(2, 4).tolist()
    ([0, 3, 6, 9], [0, 1])
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
