"""Splits: those of the file, lists of ids, or a share of all images by a hash of their ids."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import listed
from hada.extract.datasets.annotations import read_text
from hada.extract.datasets.discover import CANONICAL_SPLITS

# Of images without any split.
ALL = "all"
_ORDER = ("train", "val", "test")


def share_of(image_id: str, shares: Sequence[tuple[str, float]]) -> str:
    """The split of an image by a hash of its id alone.

    An image stays in its split whatever images are added or taken away. Of n images a share s
    gets n s, give or take sqrt(n s (1 - s)).
    """
    digest = hashlib.sha256(image_id.encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    end = 0.0
    for name, share in shares:
        end += share
        if point < end:
            return name
    return shares[-1][0]  # the sum of the shares is 1 but for rounding


def read_id_lists(lists: dict[str, Path], image_ids: Sequence[str]) -> dict[str, str]:
    """The split of each listed image: image id -> split.

    A line names an image by its id, its file's name or that without suffix.

    Raises:
        DatasetError: A line names no image, names several, or an image is in two lists.
    """
    by_name: dict[str, str | None] = {}
    for id_ in image_ids:
        name = id_.rpartition("/")[2]
        stem = os.path.splitext(name)[0]
        for key in {id_, name, stem, os.path.splitext(id_)[0]}:
            # Two images of one name can only be listed by their ids.
            by_name[key] = id_ if key == id_ or key not in by_name else None
    known = set(image_ids)
    found: dict[str, str] = {}
    for split, file in lists.items():
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            if not (wanted := line.strip()):
                continue
            listed_id = wanted if wanted in known else by_name.get(wanted, "")
            if not listed_id:
                several = "names several images: list it by its path below the images' folder"
                what = several if listed_id is None else "names no image of the dataset"
                raise DatasetError(f"{file}, line {number}: {wanted!r} {what}")
            if found.setdefault(listed_id, split) != split:
                raise DatasetError(
                    f"{file}, line {number}: {listed_id!r} is in split {found[listed_id]!r}, too"
                )
    return found


def canonical(name: str) -> str:
    """A split's name as commands have it: `Valid` and `dev` are `val`."""
    plain = name.strip().lower()
    return CANONICAL_SPLITS.get(plain, plain)


def in_order(names: Sequence[str]) -> list[str]:
    """Train, val and test first, the others as they come."""
    unique = list(dict.fromkeys(names))
    return [name for name in _ORDER if name in unique] + [n for n in unique if n not in _ORDER]


def no_such_split(where: str, split: str, source: str, known: Sequence[str]) -> DatasetError:
    """The error for a split that is made of images of which there are none.

    Args:
        where: The file.
        split: What was asked for.
        source: The mark of the images that it is made of.
        known: The marks that the file's images have.
    """
    return DatasetError(
        f"{where}: split {split!r} needs images marked {source!r}, and there are none. "
        f"The file's splits: {listed(sorted(filter(None, known)))}."
    )
