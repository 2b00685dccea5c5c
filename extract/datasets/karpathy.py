"""Karpathy's JSON, in which COCO, Flickr8k and Flickr30k are published."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import conform
from hada.extract.datasets.annotations import (
    ReadOptions,
    Row,
    Sample,
    read_document,
    whole_characters,
)

LAYOUT = "Karpathy's JSON (dataset_flickr30k.json and its kin)"


def recognises(sample: Sample) -> bool:
    """A mapping with images that have sentences, or what its name says is one."""
    text = sample.text + sample.tail
    return sample.text.lstrip().startswith("{") and (
        re.search(r'"images"\s*:', text) is not None
        and (
            re.search(r'"sentences"\s*:', text) is not None
            or re.search(r'"filename"\s*:', text) is not None
        )
    )


def read(path: Path, _options: ReadOptions) -> Iterator[Row]:
    """One row for each of images[].{filename, filepath?, split, sentences[].{raw, sentid}}."""
    document = read_document(path)
    records = document.get("images") if isinstance(document, dict) else None
    if not isinstance(records, list):
        raise DatasetError(f"{path}: expected Karpathy's layout, a mapping with a list 'images'")
    conform(records, list[_Record], str(path), DatasetError, at="images")
    seen: set[str] = set()
    for number, record in enumerate(records):
        row = _row(f"{path}: images[{number}]", record)
        if row.image in seen:
            raise DatasetError(f"{row.where}: image id {row.image!r} appears twice")
        seen.add(row.image)
        yield row


class _Sentence(TypedDict):
    raw: str
    sentid: NotRequired[str | int | float | None]


class _Record(TypedDict):
    filename: Annotated[str, Meta(min_length=1)]
    filepath: NotRequired[str | None]
    split: NotRequired[str | None]
    sentences: NotRequired[list[_Sentence | str] | None]


def _row(where: str, record: dict[str, Any]) -> Row:
    texts: list[str] = []
    ids: list[str | None] = []
    for given in record.get("sentences") or []:
        sentence = {"raw": given} if isinstance(given, str) else given
        texts.append(whole_characters(sentence["raw"]))
        id_ = sentence.get("sentid")
        ids.append(None if id_ is None else str(id_))
    image = posixpath.join(record.get("filepath") or "", record["filename"])
    return Row(image, texts, where, record.get("split") or "", caption_ids=ids)
