"""Caption data sets: their images and captions.

Every reader ends in a `CaptionDataset`: one split, in the order of its file, any number of
captions per image. Reading it checks the annotations and that the pictures exist; it decodes none.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from hada.extract.common.documents import LARGE_BYTES, read_json
from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import conform, listed, shown
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


def read_dataset(entry: DatasetEntry, split: str, *, pictures: bool = True) -> CaptionDataset:
    """Read one split of a dataset of the manifest; `pictures` False does not look for the files.

    Raises:
        UnknownNameError: There is no such split.
        DatasetError: A file is missing or broken, a picture is missing, an image has no caption,
            an id appears twice, or the counts are not the manifest's.
    """
    wanted = entry.split(split)
    if not entry.root.is_dir():
        raise DatasetError(
            f"dataset {entry.name!r}: its folder {str(entry.root)!r} does not exist. "
            f"Say where it lies: --root {entry.name}=FOLDER.{_published(entry)}"
        )
    images = list(_karpathy(entry, split, wanted))
    if not images:
        raise DatasetError(
            f"{entry.root / entry.annotations}: no image belongs to split "
            f"{' or '.join(map(repr, wanted.sources))}"
        )
    dataset = _assemble(entry, split, images)
    _check_counts(dataset, wanted, entry)
    if pictures:
        _check_pictures(dataset, entry)
    return dataset


@dataclass(frozen=True)
class _Image:
    id: str
    path: Path
    captions: list[tuple[str, str]]  # (id, text)


def _karpathy(entry: DatasetEntry, split: str, wanted: SplitEntry) -> Iterable[_Image]:
    """Karpathy's JSON: images[].{filename, filepath?, split, sentences[].{raw, sentid}}."""
    file = entry.root / entry.annotations
    if not file.exists():
        raise DatasetError(
            f"dataset {entry.name!r}: the annotations {entry.annotations!r} are not in "
            f"{str(entry.root)!r}.{_published(entry)}"
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


def _karpathy_image(entry: DatasetEntry, where: str, record: dict[str, Any]) -> _Image:
    name = record["filename"]
    relative = posixpath.join(entry.images, record.get("filepath") or "", name)
    if relative.startswith("/") or ".." in relative.split("/"):
        raise DatasetError(f"{where} points outside the dataset's folder: {relative!r}")
    _check_id(relative, f"{where}.filename")
    captions = []
    for position, sentence in enumerate(record.get("sentences") or []):
        text = sentence["raw"]
        if not text.isascii():
            # Half a surrogate pair, as cut-off emoji leave it, is no text to any tokenizer.
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        id_ = sentence.get("sentid")
        id_ = f"{name}#{position}" if id_ is None else str(id_)
        _check_id(id_, f"{where}.sentences[{position}].sentid")
        captions.append((id_, text))
    if not captions:
        raise DatasetError(
            f"{where}: {name!r} has no captions. "
            "Every image needs at least one: add it, or take the image out of the split."
        )
    return _Image(name, entry.root / relative, captions)


def _check_id(text: str, where: str) -> None:
    """Ids are written into stores, and names of files given to the system."""
    if not text.isprintable() and _UNFIT.search(text):
        raise DatasetError(
            f"{where}: {shown(text)} holds a control character or half of a character, which no "
            "file name or id has"
        )


def _assemble(entry: DatasetEntry, split: str, images: list[_Image]) -> CaptionDataset:
    counts = [len(image.captions) for image in images]
    dataset = CaptionDataset(
        name=entry.name,
        split=split,
        image_ids=tuple(image.id for image in images),
        image_paths=tuple(image.path for image in images),
        caption_ids=tuple(id_ for image in images for id_, _ in image.captions),
        captions=tuple(text for image in images for _, text in image.captions),
        caption_to_image=np.repeat(np.arange(len(images), dtype=np.int64), counts),
    )
    for kind, ids in (("image", dataset.image_ids), ("caption", dataset.caption_ids)):
        twice = [id_ for id_, count in Counter(ids).items() if count > 1]
        if twice:
            raise DatasetError(
                f"dataset {entry.name!r}, split {split!r}: {kind} id {twice[0]!r} appears twice"
            )
    return dataset


def _check_counts(dataset: CaptionDataset, wanted: SplitEntry, entry: DatasetEntry) -> None:
    found = {"images": len(dataset.image_ids), "captions": len(dataset.captions)}
    for what, number in found.items():
        expected = getattr(wanted, what)
        if expected is not None and number != expected:
            raise DatasetError(
                f"dataset {entry.name!r}, split {dataset.split!r}: expected {expected} {what}, "
                f"found {number} in {entry.root / entry.annotations}. If the file is right, "
                f"change datasets.{entry.name}.splits.{dataset.split}.{what} in the manifest."
            )


def _check_pictures(dataset: CaptionDataset, entry: DatasetEntry) -> None:
    present: dict[str, set[str]] = {}
    missing = []
    for path in dataset.image_paths:
        folder, name = os.path.split(path)
        if folder not in present:
            # One listing per folder: a stat per picture takes minutes on network file systems.
            present[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in present[folder]:
            missing.append(path)
    if missing:
        raise DatasetError(
            f"dataset {entry.name!r}, split {dataset.split!r}: {len(missing)} of "
            f"{len(dataset.image_paths)} pictures are missing, the first is "
            f"{str(missing[0])!r}.{_published(entry)}"
        )


def _published(entry: DatasetEntry) -> str:
    return f" It is published at: {entry.published}." if entry.published else ""
