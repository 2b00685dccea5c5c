"""The token ids of all captions of a split, packed: a list of lists weighs ten times as much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hada.extract.backbones.base import Backbone, RegionBackbone

AT_ONCE = 4096


class TokenIds:
    """Row t is what `tokenize` gave for caption t.

    >>> ids = TokenIds([[1, 5, 2], [1, 2]])
    >>> len(ids), ids[1], ids.lengths
    (2, [1, 2], array([3, 2]))
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.lengths = np.array([len(row) for row in rows], np.int64)
        self._ends = np.cumsum(self.lengths)
        total = int(self._ends[-1]) if len(rows) else 0
        self._values = np.fromiter((id_ for row in rows for id_ in row), np.int32, total)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> list[int]:
        end = self._ends[row]
        ids: list[int] = self._values[end - self.lengths[row] : end].tolist()
        return ids

    def length(self, row: int) -> int:
        """How many ids a caption has."""
        return int(self.lengths[row])

    @classmethod
    def joined(cls, parts: Sequence[TokenIds]) -> TokenIds:
        """Several, one after the other."""
        whole = cls([])
        whole.lengths = np.concatenate([whole.lengths, *(part.lengths for part in parts)])
        whole._ends = np.cumsum(whole.lengths)
        whole._values = np.concatenate([whole._values, *(part._values for part in parts)])
        return whole


def tokenize(backbone: Backbone | RegionBackbone, captions: Sequence[str]) -> TokenIds:
    """All captions of a split through the backbone's tokenizer."""
    return TokenIds.joined(
        [
            TokenIds(backbone.tokenize(captions[start : start + AT_ONCE]))
            for start in range(0, len(captions), AT_ONCE)
        ]
    )
