"""One split of images and captions: what every layout of captions ends in."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import shown
from hada.extract.datasets.image_files import ImageFile
from hada.extract.manifest_entries import DatasetEntry

_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class CaptionDataset:
    """One split: I images and T captions; either may be 0.

    Attributes:
        name: The dataset's name.
        split: The split's.
        image_ids: Posix paths below the images' folder.
        image_paths: Where each image's bytes lie: a file, or a place within a tar or parquet file.
        caption_ids: The annotations' own ids, else IMAGE#k.
        captions: The texts.
        caption_to_image: (T,) int64: entry j is the row of caption j's image, -1 where the
            dataset is of texts alone. With two images of two captions each it is `[0, 0, 1, 1]`.
    """

    name: str
    split: str
    image_ids: tuple[str, ...]
    image_paths: tuple[ImageFile, ...]
    caption_ids: tuple[str, ...]
    captions: tuple[str, ...]
    caption_to_image: NDArray[np.int64]

    def digest(self) -> str:
        """A hash of ids, captions and their order: what features belong to. Not of the pixels."""
        content = [self.image_ids, self.caption_ids, self.captions, self.caption_to_image.tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def as_stored(self, digest: str) -> Self:
        """The same, with the ids of a store of an earlier version where its digest says so.

        Until version 0.1 an image's id was its bare file name, not its path: in COCO,
        `COCO_val2014_000000000042.jpg` for `val2014/COCO_val2014_000000000042.jpg`.
        """
        if not any("/" in id_ for id_ in self.image_ids) or digest == self.digest():
            return self
        bare = [id_.rpartition("/")[2] for id_ in self.image_ids]
        captions = list(self.caption_ids)
        for row, image in enumerate(self.caption_to_image.tolist()):
            # Captions without an id of their own are named by their image.
            start = f"{self.image_ids[image]}#"
            if captions[row].startswith(start):
                captions[row] = f"{bare[image]}#{captions[row].removeprefix(start)}"
        earlier = replace(self, image_ids=tuple(bare), caption_ids=tuple(captions))
        return earlier if earlier.digest() == digest else self


def check_id(text: str, where: str) -> None:
    """Refuse an id that cannot be one: it is written into stores and given to the system.

    Raises `DatasetError` that names `where`, for control characters and half characters.
    """
    if not text.isprintable() and _UNFIT.search(text):
        raise DatasetError(
            f"{where}: {shown(text)} holds a control character or half of a character, which no "
            "file name or id has"
        )


def published_at(entry: DatasetEntry) -> str:
    """Where to fetch the dataset, as the end of a message; empty where nobody knows."""
    return f" It is published at: {entry.published}." if entry.published else ""
