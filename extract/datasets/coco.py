"""COCO's own caption files: captions_train2017.json and its kin."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

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

LAYOUT = "COCO's captions (images and annotations in one JSON)"


class _Image(TypedDict):
    id: str | int
    file_name: Annotated[str, Meta(min_length=1)]


class _Annotation(TypedDict):
    image_id: str | int
    caption: str
    id: NotRequired[str | int | None]


def recognises(sample: Sample) -> bool:
    """`annotations` with captions beside `images`: instances and keypoints have no captions."""
    both = sample.text + sample.tail
    return (
        sample.text.lstrip().startswith("{")
        and re.search(r'"file_name"\s*:', both) is not None
        and re.search(r'"image_id"\s*:', both) is not None
        and re.search(r'"caption"\s*:', both) is not None
    )


def read(path: Path, _options: ReadOptions) -> Iterator[Row]:
    """The images in the order of the file, each with its captions in theirs."""
    document = read_document(path)
    for key in ("images", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise DatasetError(f"{path}: expected COCO's layout, a mapping with a list {key!r}")
    images: list[_Image] = conform(
        document["images"], list[_Image], str(path), DatasetError, at="images"
    )
    annotations: list[_Annotation] = conform(
        document["annotations"], list[_Annotation], str(path), DatasetError, at="annotations"
    )
    captions: dict[str | int, tuple[list[str], list[str | None]]] = {
        image["id"]: ([], []) for image in images
    }
    if len(captions) < len(images):
        raise DatasetError(f"{path}: an image id stands twice in 'images'")
    for number, annotation in enumerate(annotations):
        if annotation["image_id"] not in captions:
            raise DatasetError(
                f"{path}: annotations[{number}] is of image {annotation['image_id']!r}, which is "
                "not in 'images'. Fetch the file again, or take the annotation out"
            )
        texts, ids = captions[annotation["image_id"]]
        texts.append(whole_characters(annotation["caption"]))
        id_ = annotation.get("id")
        ids.append(None if id_ is None else str(id_))
    for number, image in enumerate(images):
        texts, ids = captions[image["id"]]
        yield Row(image["file_name"], texts, f"{path}: images[{number}]", caption_ids=ids)
