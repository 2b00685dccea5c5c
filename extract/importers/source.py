"""What a source of features that exist already is, and where one lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hada.extract.spec import SideName


@dataclass(frozen=True)
class Item:
    """One image or caption: (N, D) tokens and (E,) embedding, None where there are none."""

    tokens: NDArray[Any] | None
    embedding: NDArray[Any] | None


class FeatureSource(Protocol):
    """Existing features of one split.

    widths: D per side, None where a side has no tokens. lengths: per side (n,) tokens an item.
    files: what the features lie in, for the digest.
    """

    @property
    def widths(self) -> Mapping[SideName, int | None]: ...

    @property
    def lengths(self) -> Mapping[SideName, NDArray[np.int64]]: ...

    @property
    def files(self) -> Sequence[Path]: ...

    def read(self, side: SideName, row: int) -> Item:
        """One item by its row in the dataset; raises `DatasetError`."""
        ...


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """Where existing features lie.

    images, captions: Folder or file of each side (`captions` None where one holds both).
    image_ids, caption_ids: Files that name the rows, where the format does not.
    image_name, caption_name: Patterns of file names in folders; `{stem}` of the image's name.
    """

    format: str
    images: Path
    captions: Path | None = None
    image_ids: Path | None = None
    caption_ids: Path | None = None
    image_name: str = "{stem}.npz"
    caption_name: str = "{stem}.npz"
    allow_pickle: bool = False
