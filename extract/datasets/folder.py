"""A folder of images, nested as deep as it likes, without captions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hada.extract.common.errors import DatasetError
from hada.extract.datasets.annotations import ReadOptions, Row, Sample

LAYOUT = "a folder of images without captions"
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".ppm")
)


def recognises(_sample: Sample) -> bool:
    """Never: a file is no folder."""
    return False


def read(path: Path, _options: ReadOptions) -> Iterator[Row]:
    """One row for each image below the folder, sorted by path; the name is below the folder."""
    for name in image_names(path):
        yield Row(name, (), f"{path}/{name}")


def image_names(folder: Path) -> list[str]:
    """Posix paths of all images below a folder, sorted; hidden files and folders are passed over.

    Links to folders are followed, each folder once. Raises `DatasetError` where one cannot be
    listed.
    """
    names: list[str] = []
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise DatasetError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = os.path.relpath(place, folder).replace(os.sep, "/")
        start = "" if below == "." else f"{below}/"
        names += [start + name for name in files if is_image_name(name)]
    return sorted(names)


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its name."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
