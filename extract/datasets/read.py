"""Caption data sets: their images and captions.

Every reader ends in a `CaptionDataset`: one split, in the order of its file, any number of
captions per image. Reading it checks the annotations and that the pictures exist; it decodes none.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter

import numpy as np

from hada.extract.common.errors import DatasetError, unknown
from hada.extract.datasets.caption_dataset import (
    CaptionDataset,
    CaptionedImage,
    ReadImages,
    published_at,
)
from hada.extract.manifest import READERS, DatasetEntry, SplitEntry


def read_dataset(entry: DatasetEntry, split: str, *, pictures: bool = True) -> CaptionDataset:
    """Read one split of a dataset of the manifest; `pictures` False does not look for the files.

    Raises:
        UnknownNameError: There is no such split, or no such reader.
        DatasetError: A file is missing or broken, a picture is missing, an image has no caption,
            an id appears twice, or the counts are not the manifest's.
    """
    wanted = entry.split(split)
    if not entry.root.is_dir():
        raise DatasetError(
            f"dataset {entry.name!r}: its folder {str(entry.root)!r} does not exist. "
            f"Say where it lies: --root {entry.name}=FOLDER.{published_at(entry)}"
        )
    images = list(_reader(entry)(entry, split, wanted))
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


def _reader(entry: DatasetEntry) -> ReadImages:
    if entry.reader not in READERS:
        raise unknown(f"reader of dataset {entry.name!r}", entry.reader, READERS)
    read_images: ReadImages = importlib.import_module(READERS[entry.reader]).read_images
    return read_images


def _assemble(entry: DatasetEntry, split: str, images: list[CaptionedImage]) -> CaptionDataset:
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
    counts = {"images": len(dataset.image_ids), "captions": len(dataset.captions)}
    for what, number in counts.items():
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
            f"{str(missing[0])!r}.{published_at(entry)}"
        )
