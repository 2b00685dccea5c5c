"""A store of a few items that is never written: what queries pass through a fusion as.

Values are rounded as a store of the same dtype would round them, so an item that is encoded again
is what its split holds. Shape letters: n items, D token width, E embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.spec import SIDES, SideName, StoreSpec
from hada.extract.store import dtypes
from hada.extract.store.reader import StoreReader
from hada.extract.store.side_reader import Rows, SideReader


class MemorySide(SideReader):
    """One side of a `MemoryStore`."""

    def __init__(
        self,
        side: SideName,
        spec: StoreSpec,
        ids: Sequence[str],
        tokens: Sequence[NDArray[Any]] | None,
        embeddings: NDArray[Any] | None,
    ) -> None:
        self.side, self._dtype = side, spec.dtype
        self.ids = tuple(ids)
        self.tokens_spec = spec.model.tokens(side)
        self.failed = np.zeros(len(self.ids), bool)
        self.lengths = np.zeros(len(self.ids), np.int64)
        self._held: list[NDArray[Any]] = []
        if self.tokens_spec is not None:
            assert tokens is not None
            self._held = [_rounded(item, spec.dtype) for item in tokens]
            self.lengths = np.array([len(item) for item in tokens], np.int64)
        self._values = (
            None if embeddings is None else _rounded(embeddings, dtypes.of_embeddings(spec.dtype))
        )

    def tokens(self, rows: Rows, out: NDArray[Any] | None = None) -> NDArray[Any]:
        found = np.concatenate([self._held[row] for row in self._rows(rows)])
        if out is None:
            return found
        out.reshape(found.shape)[...] = found
        return out

    def embeddings(self, rows: Rows | None = None) -> NDArray[Any] | None:
        if self._values is None:
            return None
        return self._values[self._rows(slice(None) if rows is None else rows)]


class MemoryStore(StoreReader):
    """Features of a few items, read as those of a store are.

    Args:
        spec: What it holds; its dtype is what the values are rounded to.
        ids: Image and caption ids.
        caption_to_image: (T,) entry j is the image of caption j.
        tokens: Per side one (N, D) array an item; none for sides without tokens in the spec.
        embeddings: Per side (n, E); none where the model has no joint space.
    """

    def __init__(
        self,
        spec: StoreSpec,
        ids: Mapping[SideName, Sequence[str]],
        caption_to_image: NDArray[np.int64],
        tokens: Mapping[SideName, Sequence[NDArray[Any]]],
        embeddings: Mapping[SideName, NDArray[Any]],
    ) -> None:
        self.path, self.spec, self.format = Path("memory"), spec, "memory"
        sides = {s: MemorySide(s, spec, ids[s], tokens.get(s), embeddings.get(s)) for s in SIDES}
        self.image, self.caption = sides["image"], sides["caption"]
        self.caption_to_image = caption_to_image


def _rounded(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Values as a store of the dtype gives them back."""
    if dtype == "int8":
        codes, steps = dtypes.quantize(np.asarray(values, np.float32))
        return np.multiply(codes, steps, dtype=np.float32)
    return dtypes.decode(dtypes.encode(np.asarray(values, np.float32), dtype), dtype)
