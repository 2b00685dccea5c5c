"""Caption datasets: their images and captions, split by split.

Reading checks the annotations and that the images exist; it decodes none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from hada.extract.common.errors import DatasetError, UnknownNameError, nearest
from hada.extract.datasets.caption_dataset import CaptionDataset, published_at
from hada.extract.datasets.splits import ALL, canonical, in_order, no_such_split
from hada.extract.datasets.table import (
    Image,
    Table,
    captionless,
    files_of,
    missing_images,
    read_table,
    refuse_captionless,
)
from hada.extract.manifest_entries import DatasetEntry, SplitEntry


def read_dataset(entry: DatasetEntry, split: str, *, pictures: bool = True) -> CaptionDataset:
    """Read one split of a dataset.

    Args:
        entry: The dataset, as a manifest or a command line declares it.
        split: Its name.
        pictures: Whether the image files must be there; False looks for none.

    Raises:
        UnknownNameError: There is no such split, or no such reader.
        DatasetError: A file is missing or broken, an image is missing or has no caption, an id
            appears twice, or the counts are not the manifest's.
    """
    return read_splits(entry, (split,), pictures=pictures)[0]


def read_splits(
    entry: DatasetEntry, splits: Sequence[str] = (), *, pictures: bool = True
) -> list[CaptionDataset]:
    """Read several splits, none for all of them; the annotations are read once.

    Raises as `read_dataset` does.
    """
    for split in splits:
        entry.split(split)
    table = read_table(entry)
    return [split_of(table, name, pictures=pictures) for name in splits or split_names(table)]


def split_names(table: Table) -> list[str]:
    """The splits of a dataset: the manifest's, else those of the annotations."""
    return list(table.entry.splits) or list(own_splits(table))


def own_splits(table: Table) -> dict[str, SplitEntry]:
    """The splits that the annotations have, by the names that commands use.

    What Karpathy calls `restval` is a part of train, as everybody trains with it.
    """
    marks = list(dict.fromkeys(image.split for image in table.images))
    marks += [split for _, _, split in table.texts if split not in marks]
    named = [mark for mark in marks if mark]
    if not named:
        return {ALL: SplitEntry(sources=("",))}
    sources: dict[str, list[str]] = {}
    for mark in dict.fromkeys(named):
        name = canonical(mark)
        name = "train" if name == "restval" and "train" in map(canonical, named) else name
        sources.setdefault(name, []).append(mark)
    return {name: SplitEntry(sources=tuple(sources[name])) for name in in_order(list(sources))}


def split_of(table: Table, split: str, *, pictures: bool = True) -> CaptionDataset:
    """One split of a table.

    Args:
        table: A dataset that was read whole.
        split: The name of the split.
        pictures: Whether the image files must be there; False looks for none.

    Raises:
        UnknownNameError: There is no such split.
        DatasetError: As for `read_dataset`.
    """
    entry, wanted = table.entry, _wanted(table, split)
    images, texts = split_images(table, split)
    known = _marks(table)
    for source in wanted.sources:
        if source not in known:
            raise no_such_split(table.label, split, source, list(known))
    if entry.loose_rows:
        images = _kept(table, images, pictures)
    elif (bare := captionless(images)) is not None:
        raise refuse_captionless(bare)
    elif pictures:
        _check_pictures(table, split, images)
    dataset = CaptionDataset(
        name=entry.name,
        split=split,
        image_ids=tuple(image.id for image in images),
        image_paths=tuple(files_of(images, table.folder)),
        caption_ids=tuple(str(id_) for image in images for id_, _ in image.captions)
        + tuple(id_ for id_, _ in texts),
        captions=tuple(text for image in images for _, text in image.captions)
        + tuple(text for _, text in texts),
        caption_to_image=np.concatenate(
            [
                np.repeat(
                    np.arange(len(images), dtype=np.int64), [len(i.captions) for i in images]
                ),
                # Texts of no image.
                np.full(len(texts), -1, np.int64),
            ]
        ),
    )
    _check_ids(dataset)
    _check_counts(dataset, wanted, table)
    return dataset


def split_images(table: Table, split: str) -> tuple[list[Image], list[tuple[str, str]]]:
    """The images of a split, and its texts of no image as (id, text)."""
    sources = _wanted(table, split).sources
    return (
        [image for image in table.images if image.split in sources],
        [(id_, text) for id_, text, mark in table.texts if mark in sources],
    )


def _marks(table: Table) -> set[str]:
    """The splits that images and texts are of, as the annotations call them."""
    return {image.split for image in table.images} | {mark for _, _, mark in table.texts}


def _wanted(table: Table, split: str) -> SplitEntry:
    if table.entry.splits:
        wanted = table.entry.split(split)
        by_name = table.entry.split_by or any(s.ids for s in table.entry.splits.values())
        # Shares and lists know the manifest's names, whatever `from` says of the file's.
        own = any(s.annotations for s in table.entry.splits.values())
        if by_name or own:
            return SplitEntry(sources=(split,), images=wanted.images, captions=wanted.captions)
        if _marks(table) == {""} and len(table.entry.splits) == 1:
            # A file without splits, of which the manifest has one.
            return SplitEntry(sources=("",), images=wanted.images, captions=wanted.captions)
        return wanted
    own_names = own_splits(table)
    if split not in own_names:
        unsplit = (
            " It has no splits: leave --split out, or see --split-by." if ALL in own_names else ""
        )
        raise UnknownNameError(
            f"dataset {table.entry.name!r} has no split {split!r}. "
            f"{nearest(split, own_names)}{unsplit}"
        )
    return own_names[split]


def _kept(table: Table, images: list[Image], pictures: bool) -> list[Image]:
    """Images that are there and have captions; how many are left out is noted."""
    gone = {id(image) for image, _ in missing_images(table, images)} if pictures else set()
    if gone:
        table.left_out["images that are not there"] += len(gone)
    images = [image for image in images if id(image) not in gone]
    if captionless(images) is not None:
        bare = sum(not image.captions for image in images)
        table.left_out["images without captions"] += bare
        images = [image for image in images if image.captions]
    return images


def _check_ids(dataset: CaptionDataset) -> None:
    for kind, ids in (("image", dataset.image_ids), ("caption", dataset.caption_ids)):
        if len(set(ids)) == len(ids):
            continue
        twice = next(id_ for id_, count in Counter(ids).items() if count > 1)
        raise DatasetError(
            f"dataset {dataset.name!r}, split {dataset.split!r}: {kind} id {twice!r} appears twice"
        )


def _check_counts(dataset: CaptionDataset, wanted: SplitEntry, table: Table) -> None:
    if not dataset.image_ids and not dataset.captions:
        raise DatasetError(
            f"{table.label}: no image belongs to split {' or '.join(map(repr, wanted.sources))}"
        )
    counts = {"images": len(dataset.image_ids), "captions": len(dataset.captions)}
    for what, number in counts.items():
        expected = getattr(wanted, what)
        if expected is not None and number != expected:
            raise DatasetError(
                f"dataset {dataset.name!r}, split {dataset.split!r}: expected {expected} {what}, "
                f"found {number} in {table.label}. If the file is right, "
                f"change datasets.{dataset.name}.splits.{dataset.split}.{what} in the manifest."
            )


def _check_pictures(table: Table, split: str, images: list[Image]) -> None:
    missing = missing_images(table, images)
    if not missing:
        return
    first, alike = missing[0]
    others = f" There is {alike!r}: --loose-names takes it." if alike is not None else ""
    raise DatasetError(
        f"dataset {table.entry.name!r}, split {split!r}: {len(missing)} of "
        f"{len(images)} pictures are missing, the first is "
        f"{str(table.folder / first.id)!r}.{others}{published_at(table.entry)}"
    )
