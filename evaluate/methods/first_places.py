"""For how many captions each image comes first, counted while scores are made.

Shape letters: I images, T captions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Block = tuple[slice, NDArray[np.float32]]


@dataclass
class FirstPlaces:
    """Counts of one pass over all scores, (I,): without the correction of hubs, and with it.

    Where several images tie for a caption's first place, each has its share of it. Both are None
    before the pass.
    """

    before: NDArray[np.float64] | None = None
    after: NDArray[np.float64] | None = None

    def counted(
        self, blocks: Iterable[Block], paid_I: NDArray[np.float32] | None = None
    ) -> Iterator[Block]:
        """The same blocks, counted once the last one is taken.

        Args:
            blocks: Which captions, and (I, that many) scores, corrected.
            paid_I: What each image paid in them; None where they are not corrected. What a caption
                pays is the same for all images.
        """
        before: NDArray[np.float64] | None = None
        after: NDArray[np.float64] | None = None
        for some, block in blocks:
            with_it = shares(block)
            without = with_it if paid_I is None else shares(block + paid_I[:, None])
            after = with_it if after is None else after + with_it
            before = without if before is None else before + without
            yield some, block
        self.before, self.after = before, after


def shares(block_IT: NDArray[np.float32]) -> NDArray[np.float64]:
    """(I,) for how many of the block's captions each image comes first.

    >>> shares(np.array([[1.0, 0.5], [1.0, 0.9]])).tolist()
    [0.5, 1.5]
    """
    top = block_IT == block_IT.max(axis=0)
    return np.asarray((top / top.sum(axis=0)).sum(axis=1), np.float64)
