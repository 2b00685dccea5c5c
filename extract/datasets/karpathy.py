"""Karpathy's JSON, in which COCO, Flickr8k and Flickr30k are published."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from hada.extract.common.documents import LARGE_BYTES, read_json
from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import conform, listed
from hada.extract.datasets.caption_dataset import (
    CaptionedImage,
    check_id,
    published_at,
)
from hada.extract.manifest import DatasetEntry, SplitEntry


def read_images(entry: DatasetEntry, split: str, wanted: SplitEntry) -> Iterable[CaptionedImage]:
    """Karpathy's JSON: images[].{filename, filepath?, split, sentences[].{raw, sentid}}."""
    file = entry.root / entry.annotations
    if not file.exists():
        raise DatasetError(
            f"dataset {entry.name!r}: the annotations {entry.annotations!r} are not in "
            f"{str(entry.root)!r}.{published_at(entry)}"
        )
    # Strangers' files: what is not used may be NaN or there twice, captions may end in half a
    # character.
    document = read_json(
        file,
        DatasetError,
        most=LARGE_BYTES,
        finite=False,
        unique=False,
        halves=True,
        digits=100,
        remedy="Perhaps the download was cut short: fetch the file again",
    )
    records = document.get("images") if isinstance(document, dict) else None
    if not isinstance(records, list):
        raise DatasetError(f"{file}: expected Karpathy's layout, a mapping with a list 'images'")
    conform(records, list[_Marked], str(file), DatasetError, at="images")
    known = {record.get("split") for record in records}
    for source in wanted.sources:
        if source not in known:
            names = listed(sorted(name for name in known if name))
            raise DatasetError(
                f"{file}: split {split!r} needs images marked {source!r}, and there are none. "
                f"The file's splits: {names}."
            )
    for number, record in enumerate(records):
        if record.get("split") in wanted.sources:
            conform(record, _Record, str(file), DatasetError, at=f"images[{number}]")
            yield _karpathy_image(entry, f"{file}: images[{number}]", record)


class _Marked(TypedDict):
    split: NotRequired[str | None]


class _Sentence(TypedDict):
    raw: str
    sentid: NotRequired[str | int | float | None]


class _Record(TypedDict):
    filename: Annotated[str, Meta(min_length=1)]
    filepath: NotRequired[str | None]
    sentences: NotRequired[list[_Sentence] | None]


def _karpathy_image(entry: DatasetEntry, where: str, record: dict[str, Any]) -> CaptionedImage:
    name = record["filename"]
    relative = posixpath.join(entry.images, record.get("filepath") or "", name)
    if relative.startswith("/") or ".." in relative.split("/"):
        raise DatasetError(f"{where} points outside the dataset's folder: {relative!r}")
    check_id(relative, f"{where}.filename")
    captions = []
    for position, sentence in enumerate(record.get("sentences") or []):
        text = sentence["raw"]
        if not text.isascii():
            # Half a surrogate pair, as cut-off emoji leave it, is no text to any tokenizer.
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        id_ = sentence.get("sentid")
        id_ = f"{name}#{position}" if id_ is None else str(id_)
        check_id(id_, f"{where}.sentences[{position}].sentid")
        captions.append((id_, text))
    if not captions:
        raise DatasetError(
            f"{where}: {name!r} has no captions. "
            "Every image needs at least one: add it, or take the image out of the split."
        )
    return CaptionedImage(name, entry.root / relative, captions)
