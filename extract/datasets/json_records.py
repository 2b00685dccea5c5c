"""Lists of records, as LAVIS, BLIP and ALBEF write them, and mappings of image to captions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import listed, shown
from hada.extract.datasets.annotations import (
    ReadOptions,
    Row,
    Sample,
    captions_of,
    read_document,
    whole_characters,
)
from hada.extract.datasets.columns import find_columns, looks_like_an_image

LAYOUT = "a JSON list of records (LAVIS, BLIP, ALBEF) or a JSON mapping of image to captions"
_FIRST_KEY = re.compile(r'\s*\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*["\[]')


def recognises(sample: Sample) -> bool:
    """A list that begins with a record, or a mapping whose first key is the name of an image."""
    text = sample.text.lstrip()
    if text.startswith("["):
        # A key in single quotes is Python's repr, which no parser of JSON takes.
        return re.match(r"\[\s*\{\s*[\"}]", text) is not None
    first = _FIRST_KEY.match(text)
    return first is not None and looks_like_an_image(first[1])


def read(path: Path, options: ReadOptions) -> Iterator[Row]:
    """One row for each record or key, in the order of the file."""
    document = read_document(path)
    if isinstance(document, Mapping):
        for name, value in document.items():
            where = f"{path}: {shown(name)}"
            yield Row(name, _clean(captions_of(value, where)), where)
    elif isinstance(document, list):
        yield from rows_of(((f"{path}: [{n}]", r) for n, r in enumerate(document)), options)
    else:
        raise DatasetError(f"{path}: expected a list of records, got {shown(document)}")


def rows_of(numbered: Iterable[tuple[str, Any]], options: ReadOptions) -> Iterator[Row]:
    """Rows of records, with the keys of the image and the captions found by their names.

    Args:
        numbered: (place for messages, record) of each.
        options: The keys, where the user said them.

    Raises:
        DatasetError: A record is no mapping, or has not the keys of the first.
    """
    keys: _Keys | None = None
    for where, record in numbered:
        if not isinstance(record, Mapping):
            raise DatasetError(f"{where}: expected a record {{key: value}}, got {shown(record)}")
        if keys is None:
            keys = _Keys.of(record, options, where)
        yield keys.row(record, where)


@dataclass(frozen=True)
class _Keys:
    image: str
    captions: tuple[str, ...]
    split: str | None
    folder: str | None

    @classmethod
    def of(cls, record: Mapping[str, Any], options: ReadOptions, where: str) -> _Keys:
        names = list(record)
        columns = find_columns(names, options.columns, where)
        if columns is None:
            raise DatasetError(
                f"{where}: no key looks like the image or the captions; the keys are "
                f"{listed(names)}. Say which they are: --columns image=KEY,caption=KEY"
            )
        return cls(
            image=names[columns.image],
            captions=tuple(names[column] for column in columns.captions),
            split=None if columns.split is None else names[columns.split],
            # Karpathy's records name the folder apart.
            folder="filepath" if names[columns.image] == "filename" else None,
        )

    def row(self, record: Mapping[str, Any], where: str) -> Row:
        """One record as a row."""
        image = record.get(self.image)
        if image is None and self.image not in record:
            raise DatasetError(
                f"{where}: {self.image!r} is missing, which the records before it have; its keys "
                f"are {listed(record)}"
            )
        if isinstance(image, Mapping):  # Hugging Face's images: {"bytes": ..., "path": ...}
            image = image.get("path")
        if isinstance(image, int) and not isinstance(image, bool):
            image = str(image)
        if image is not None and not isinstance(image, str):
            raise DatasetError(f"{where}: {self.image!r}: expected text, got {shown(image)}")
        folder = record.get(self.folder) if self.folder else None
        if isinstance(folder, str) and folder and image:
            image = f"{folder}/{image}"
        captions: list[str] = []
        for key in self.captions:
            captions += captions_of(record.get(key), f"{where}: {key!r}")
        split = record.get(self.split) if self.split else None
        return Row(image or "", _clean(captions), where, split if isinstance(split, str) else "")


def _clean(captions: list[str]) -> list[str]:
    return [whole_characters(text) for text in captions]
