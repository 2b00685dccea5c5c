"""Images with a .txt of the same name beside them: img2dataset's layout `files`, and others'."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from hada.extract.common.documents import decode, parse_json, read_bytes
from hada.extract.common.errors import DatasetError
from hada.extract.datasets.annotations import ReadOptions, Row, Sample, captions_of
from hada.extract.datasets.folder import image_names

LAYOUT = "images with a .txt or .json of the same name beside them"
_LARGEST_TEXT = 2**22


def recognises(_sample: Sample) -> bool:
    """Never: a file is no folder."""
    return False


def read(path: Path, _options: ReadOptions) -> Iterator[Row]:
    """One row for each image below the folder: the lines of its .txt, or its .json's caption."""
    present: dict[str, frozenset[str]] = {}
    for name in image_names(path):
        place = PurePosixPath(name)
        folder = str(place.parent)
        if folder not in present:
            present = {folder: frozenset(os.listdir(path / folder))}
        yield Row(name, _captions(path / folder, place.stem, present[folder]), f"{path}/{name}")


def _captions(folder: Path, stem: str, present: frozenset[str]) -> list[str]:
    if (name := f"{stem}.json") in present:
        record = parse_json(
            read_bytes(folder / name, DatasetError, _LARGEST_TEXT),
            str(folder / name),
            DatasetError,
            finite=False,
            unique=False,
            digits=100,
        )
        if isinstance(record, dict):
            for key in ("captions", "caption", "text"):
                if record.get(key) is not None:
                    return captions_of(record[key], f"{folder / name}: {key!r}")
    if (name := f"{stem}.txt") in present:
        text = decode(
            read_bytes(folder / name, DatasetError, _LARGEST_TEXT), str(folder / name), DatasetError
        )
        return [line for line in text.splitlines() if line.strip()]
    return []
