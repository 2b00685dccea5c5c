"""What every reader of a dataset ends in: one split of images and captions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import shown
from hada.extract.manifest import DatasetEntry, SplitEntry

_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class CaptionDataset:
    """One split: I images and T captions.

    `caption_to_image` is (T,) int64: entry j is the row of caption j's image. With two images of
    two captions each it is `[0, 0, 1, 1]`.
    """

    name: str
    split: str
    image_ids: tuple[str, ...]
    image_paths: tuple[Path, ...]
    caption_ids: tuple[str, ...]
    captions: tuple[str, ...]
    caption_to_image: NDArray[np.int64]

    def digest(self) -> str:
        """A hash of ids, captions and their order: what features belong to. Not of the pixels."""
        content = [self.image_ids, self.caption_ids, self.captions, self.caption_to_image.tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class CaptionedImage:
    """An image as a reader gives it: its id, its file, and (id, text) of each caption."""

    id: str
    path: Path
    captions: list[tuple[str, str]]


class ReadImages(Protocol):
    """What a reader of datasets is: a function `read_images` in a file of its own."""

    def __call__(
        self, entry: DatasetEntry, split: str, wanted: SplitEntry
    ) -> Iterable[CaptionedImage]:
        """The images of one split, in the order of the file.

        Args:
            entry: The manifest's entry; `root` is a folder that exists.
            split: The split, for messages.
            wanted: Which of the file's own splits to take (`sources`).

        Raises:
            DatasetError: A file is missing or broken, or an image has no caption.
        """
        ...


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
