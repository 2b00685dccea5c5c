"""Two windows of a split in memory: the one in use and the next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hada.extract.spec import SIDES, SideName
from hada.fuse.tokens.sources import Window
from hada.fuse.tokens.split import Split


class Windows:
    """Room for two windows of `shards` blocks each, filled in turn.

    The room is made once, for the largest blocks that could come together, so that it is all
    that reading in windows ever takes.
    """

    def __init__(self, split: Split, shards: int) -> None:
        self._split = split
        self._rooms = [
            {
                side: [
                    np.empty(
                        (rows[:shards][-1] if source.has_tokens else 0, source.width), source.dtype
                    )
                    for rows, source in zip(_rows(split, side), split.sources[side], strict=True)
                ]
                for side in SIDES
            }
            for _ in range(2)
        ]

    def read(self, number: int, images: NDArray[np.int64]) -> Window:
        """Read the tokens of `images`, ascending, and of their captions; window by window.

        What window `number - 2` held is lost.
        """
        split, room = self._split, self._rooms[number % 2]
        items = {"image": images, "caption": np.sort(split.captions_of(images))}
        return {
            side: tuple(
                source.read(split.rows(side)[items[side]], values) if source.has_tokens else None
                for source, values in zip(split.sources[side], room[side], strict=True)
            )
            for side in SIDES
        }


def window_sizes(split: Split) -> NDArray[np.int64]:
    """Most bytes of tokens that a window of one block holds, of two, and so on up to all."""
    count = len(np.unique(split.blocks))
    sizes = np.zeros(count, np.int64)
    for side in SIDES:
        for source, rows in zip(split.sources[side], _rows(split, side), strict=True):
            sizes += rows[:count] * (source.row_bytes if source.has_tokens else 0)
    return sizes


def _rows(split: Split, side: SideName) -> list[NDArray[np.int64]]:
    """Per model: most token rows that one block has, two blocks have, and so on."""
    block = split.blocks if side == "image" else split.blocks[split.caption_to_image]
    found = []
    for source in split.sources[side]:
        by_block = np.bincount(block, weights=source.lengths[split.rows(side)])
        found.append(np.cumsum(np.sort(by_block)[::-1]).astype(np.int64))
    return found
