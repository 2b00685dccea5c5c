"""Two windows of a split in memory: the one in use and the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hada.extract.spec import SIDES, SideName
from hada.fuse.sources import Held

if TYPE_CHECKING:
    from hada.fuse.data import Split

# The tokens of one window: per side, per model, None where a model keeps no tokens.
Window = dict[SideName, tuple[Held | None, ...]]


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
                    np.empty((rows if source.has_tokens else 0, source.width), source.dtype)
                    for rows, source in zip(
                        _rows(split, side, shards), split.sources[side], strict=True
                    )
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


def window_bytes(split: Split, shards: int) -> int:
    """Most bytes of tokens that a window of so many blocks holds."""
    return sum(
        rows * source.row_bytes
        for side in SIDES
        for rows, source in zip(_rows(split, side, shards), split.sources[side], strict=True)
        if source.has_tokens
    )


def _rows(split: Split, side: SideName, shards: int) -> list[int]:
    """Most token rows of each model that so many blocks have."""
    block = split.blocks if side == "image" else split.blocks[split.owner]
    found = []
    for source in split.sources[side]:
        by_block = np.bincount(block, weights=source.lengths[split.rows(side)])
        found.append(int(np.sort(by_block)[-shards:].sum()))
    return found
