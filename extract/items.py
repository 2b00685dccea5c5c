"""The image side of a dataset as a backbone takes it: pictures to decode, or region features.

The runner reads items by row from worker threads, encodes them in batches, and must know before
anything is written how many tokens each item will have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from hada.extract import images
from hada.extract.backbones.base import Backbone, Encoded, RegionBackbone
from hada.extract.captions import CaptionDataset
from hada.extract.errors import DatasetError
from hada.extract.regions import open_regions
from hada.extract.tokens import pooled_lengths

if TYPE_CHECKING:
    from hada.extract.views import View

# A model that resizes the shorter side to S makes S * S times this many pixels of such a picture:
# 340 MB in each decoding thread at S = 336. The same for all models, so that all fail alike.
MAX_ASPECT = 1000


class ImageItems(Protocol):
    """All images of a split.

    lengths: (I,) int64, token rows of each image; an item that cannot be read has its length too,
    since its place is kept (as NaN).
    """

    lengths: NDArray[np.int64]

    def read(self, row: int) -> Any:
        """The input of one image; raises `DatasetError`. Called from worker threads."""
        ...

    def encode(self, items: Sequence[Any]) -> Encoded:
        """A batch of what `read` gave."""
        ...


class PictureItems:
    """Picture files, decoded and preprocessed."""

    def __init__(
        self, backbone: Backbone, dataset: CaptionDataset, view: View | None = None
    ) -> None:
        self._backbone, self._paths, self._ids = backbone, dataset.image_paths, dataset.image_ids
        self._view, self._size = view, (0, 0)
        if view is not None:
            blank = backbone.preprocess(PIL.Image.new("RGB", (64, 64)))
            self._size = blank.shape[1], blank.shape[2]
        tokens = backbone.spec.image
        count = tokens.count if tokens and tokens.count is not None else 0
        self.lengths = np.full(len(self._paths), count, np.int64)

    def read(self, row: int) -> NDArray[np.float32]:
        path = str(self._paths[row])
        picture = images.open_image(path)
        if max(picture.size) > MAX_ASPECT * min(picture.size):
            sides = f"{picture.width} x {picture.height}"
            raise images.ImageError(path, f"too elongated ({sides}, at most {MAX_ASPECT} to 1)")
        try:
            if self._view is not None:
                picture = self._view.render(picture, self._ids[row], self._size)
            return self._backbone.preprocess(picture)
        except (OSError, ValueError, ArithmeticError, MemoryError) as error:
            reason = f"cannot be preprocessed ({type(error).__name__}: {error})"
            raise images.ImageError(path, reason) from error

    def encode(self, items: Sequence[NDArray[np.float32]]) -> Encoded:
        return self._backbone.encode_images(np.stack(items))


class RegionItems:
    """Region features, counted once before the run; the pictures themselves are not needed."""

    def __init__(self, backbone: RegionBackbone, dataset: CaptionDataset) -> None:
        self._backbone, self._ids = backbone, dataset.image_ids
        self._source = open_regions(backbone.regions, dataset.name, dataset.split)
        self._unreadable: dict[int, DatasetError] = {}
        self._counted = np.zeros(len(self._ids), np.int64)
        for row, image_id in enumerate(self._ids):
            try:
                self._counted[row] = self._source.count(image_id)
            except DatasetError as error:
                self._unreadable[row] = error
        # One row beyond the regions: CLS, or the pooled vector that stands in for it.
        tokens = backbone.spec.image
        self.lengths = pooled_lengths(self._counted + 1, tokens.pooled if tokens else None)

    def read(self, row: int) -> Any:
        if row in self._unreadable:
            raise self._unreadable[row]
        regions = self._source.read(self._ids[row])
        if len(regions) != self._counted[row]:
            raise DatasetError(
                f"regions of {self._ids[row]!r}: {len(regions)}, though "
                f"{self._counted[row]} were counted; is the file being written?"
            )
        return regions

    def encode(self, items: Sequence[Any]) -> Encoded:
        return self._backbone.encode_regions(items)


def image_items(
    backbone: Backbone | RegionBackbone, dataset: CaptionDataset, view: View | None = None
) -> ImageItems:
    """The image side of `dataset` for `backbone`, augmented where a view is asked for.

    Raises `DatasetError` where region features are needed and not there at all.
    """
    if isinstance(backbone, RegionBackbone):
        return RegionItems(backbone, dataset)
    return PictureItems(backbone, dataset, view)
