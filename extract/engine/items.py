"""The image side of a data set as a backbone reads it: images to decode, or region features.

The runner reads items by row from worker threads, encodes them in batches, and must know before
anything is written how many tokens each item will have.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from hada.extract.backbones.base import Backbone, Encoded, RegionBackbone
from hada.extract.common.errors import DatasetError, trouble_behind
from hada.extract.common.host import cores
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.image_files import ImageFile
from hada.extract.datasets.images import ImageError, open_image, size_of
from hada.extract.datasets.region_sources import open_regions
from hada.extract.engine.model_input import PictureReader, check_aspect
from hada.extract.store.pooling import pooled_lengths

if TYPE_CHECKING:
    from hada.extract.variants.views import View


# Threads that read headers of files.
MOST_READERS = 8
# What `read` gave of several images, one after the other.
Inputs = Sequence[Any] | NDArray[np.float32]


class ImageItems(Protocol):
    """All images of a split.

    lengths: (I,) int64, token rows of each image; an item that cannot be read has its length too,
    since its place is kept (as NaN).
    """

    lengths: NDArray[np.int64]

    def read(self, row: int) -> Any:
        """The input of one image; raises `DatasetError`. Called from worker threads."""
        ...

    def encode(self, items: Inputs) -> Encoded:
        """A batch of what `read` gave."""
        ...


class PictureItems:
    """Picture files, decoded and preprocessed.

    shape: (3, H, W), what the model takes of a picture; empty where that varies.
    portable: whether `reader` can be sent to another process; a backbone says so by having its
        transform as a value of its own, `preprocessor`.
    """

    def __init__(
        self, backbone: Backbone, dataset: CaptionDataset, view: View | None = None
    ) -> None:
        self._backbone, self._paths, self._ids = backbone, dataset.image_paths, dataset.image_ids
        varying = backbone.varying_input
        self.portable = backbone.preprocessor is not None and not varying
        preprocess = backbone.preprocessor or backbone.preprocess
        self.shape = () if varying else preprocess(PIL.Image.new("RGB", (64, 64))).shape
        height, width = self.shape[1:3] if len(self.shape) == 3 else (0, 0)
        self.reader = PictureReader(preprocess, view, (height, width))
        tokens = backbone.spec.image
        count = tokens.count if tokens and tokens.count is not None else 0
        self.lengths = np.full(len(self._paths), count, np.int64)

    def source(self, row: int) -> tuple[ImageFile, str]:
        """Where an image's bytes lie, and its id: what `reader` needs."""
        return self._paths[row], self._ids[row]

    def read(self, row: int) -> NDArray[np.float32]:
        return self.reader.read(*self.source(row))

    def encode(self, items: Inputs) -> Encoded:
        if self._backbone.varying_input:
            return self._backbone.encode_images(list(items))  # type: ignore[arg-type]
        pixels = items if isinstance(items, np.ndarray) else np.stack(items)
        return self._backbone.encode_images(pixels)


class RaggedPictureItems(PictureItems):
    """Picture files of which a model makes different numbers of tokens, told by their sizes.

    The sizes are read before the run, from the files' headers.
    """

    def __init__(self, backbone: Backbone, dataset: CaptionDataset) -> None:
        super().__init__(backbone, dataset)
        self.portable = False  # sizes are compared here
        assert backbone.image_rows is not None, "a spec without a count needs image_rows"
        self._rows = functools.cache(backbone.image_rows)
        with ThreadPoolExecutor(max(1, min(MOST_READERS, cores()))) as pool:
            self._sizes = list(pool.map(_size_or_reason, self._paths))
        counted = np.array([self._counted(row) for row in range(len(self._sizes))], np.int64)
        tokens = backbone.spec.image
        self.lengths = pooled_lengths(counted, tokens.pooled if tokens else None)

    def _counted(self, row: int) -> int:
        """An image's token rows; one that cannot be used keeps a place of one row."""
        size = self._sizes[row]
        if isinstance(size, DatasetError):
            return 1
        try:
            return self._rows(*size)
        except (OSError, ValueError, ArithmeticError, MemoryError) as error:
            reason = f"cannot be preprocessed ({type(error).__name__}: {error})"
            self._sizes[row] = ImageError(str(self._paths[row]), reason)
            return 1

    def read(self, row: int) -> NDArray[np.float32]:
        size, (path, image_id) = self._sizes[row], self.source(row)
        if isinstance(size, DatasetError):
            raise size
        picture = open_image(path)
        if picture.size != size:
            raise ImageError(
                str(path),
                f"is {picture.width} x {picture.height}, though {size[0]} x {size[1]} was read "
                "before; is the file being written?",
            )
        return self.reader.prepared(picture, path, image_id)


def _size_or_reason(path: ImageFile) -> tuple[int, int] | DatasetError:
    try:
        size = size_of(path)
        check_aspect(size, path)
    except DatasetError as error:
        if trouble := trouble_behind(error):
            raise trouble from error
        return error
    return size


class RegionItems:
    """Region features, counted once before the run; the pictures themselves are not needed."""

    def __init__(self, backbone: RegionBackbone, dataset: CaptionDataset) -> None:
        self._backbone, self._ids = backbone, dataset.image_ids
        self._source = open_regions(
            backbone.regions, dataset.name, dataset.split, dataset.image_ids
        )
        self._unreadable: dict[int, DatasetError] = {}
        self._counted = np.zeros(len(self._ids), np.int64)
        for row, image_id in enumerate(self._ids):
            try:
                self._counted[row] = self._source.count(image_id)
            except DatasetError as error:
                if trouble := trouble_behind(error):
                    raise trouble from error
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

    def encode(self, items: Inputs) -> Encoded:
        return self._backbone.encode_regions(list(items))


def image_items(
    backbone: Backbone | RegionBackbone, dataset: CaptionDataset, view: View | None = None
) -> ImageItems:
    """The image side of `dataset` for `backbone`, augmented where a view is asked for.

    Raises `DatasetError` where region features are needed and not there at all.
    """
    if isinstance(backbone, RegionBackbone):
        return RegionItems(backbone, dataset)
    tokens = backbone.spec.image
    if tokens is not None and tokens.count is None:
        return RaggedPictureItems(backbone, dataset)
    return PictureItems(backbone, dataset, view)
