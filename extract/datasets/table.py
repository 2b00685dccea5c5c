"""All images and captions of a dataset, from the rows of its annotations, before any split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import shown
from hada.extract.datasets.annotations import ReadOptions, Row
from hada.extract.datasets.caption_dataset import check_id, published_at
from hada.extract.datasets.discover import Place, discover, place_of
from hada.extract.datasets.image_files import ImageFile, InTar
from hada.extract.datasets.layouts import OF_FOLDERS, reader
from hada.extract.datasets.places import Folders, NameRule, find_rule, plain_name
from hada.extract.datasets.splits import read_id_lists, share_of
from hada.extract.manifest_entries import AUTO, DatasetEntry


@dataclass
class Image:
    """One image: its captions as (id, text), its split, and where its bytes lie.

    `file` is None where it is the path of the id below the images' folder.
    """

    id: str
    split: str
    where: str
    file: ImageFile | None = None
    captions: list[tuple[str | None, str]] = field(default_factory=list)


@dataclass
class Table:
    """A dataset as its annotations have it.

    Attributes:
        entry: What the manifest or the command says of it.
        places: The files that were read.
        images: In the order of the annotations.
        texts: Captions of no image: (id, text, split).
        left_out: Why rows were left out, and how many.
        notes: What else a user should know, a sentence each.
        id_lists: Split -> the file that lists its images, where such files say the splits.
    """

    entry: DatasetEntry
    places: tuple[Place, ...]
    images: list[Image]
    texts: list[tuple[str, str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    id_lists: dict[str, Path] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where images lie that are files of their own."""
        return self.entry.root / self.entry.images

    @property
    def label(self) -> str:
        """The annotations for messages."""
        first = str(self.places[0].path)
        return first if len(self.places) == 1 else f"{first} and {len(self.places) - 1} more"


def read_table(entry: DatasetEntry) -> Table:
    """Read all annotations of a dataset.

    Raises:
        DatasetError: A file is missing or broken, an image lies outside the folder or is in two
            splits, or the layout is not known.
    """
    if not entry.root.is_dir():
        raise DatasetError(
            f"dataset {entry.name!r}: its folder {str(entry.root)!r} does not exist. "
            f"Say where it lies: --root {entry.name}=FOLDER.{published_at(entry)}"
        )
    places, lists = _places(entry)
    table = Table(entry=entry, places=places, images=[])
    by_id: dict[tuple[str, str], Image] = {}
    for place in places:
        rows = reader(place.reader, entry.name).read(
            place.path, ReadOptions(columns=dict(entry.columns))
        )
        _Collector(table, by_id, place, splits=not (entry.split_by or lists)).add_all(rows)
    table.images = list(by_id.values())
    _note_leaks(table)
    _number_captions(table)
    if entry.split_by:
        for image in table.images:
            image.split = share_of(image.id, entry.split_by)
        table.texts = [(i, text, share_of(i, entry.split_by)) for i, text, _ in table.texts]
    elif lists:
        table.id_lists = lists
        listed = read_id_lists(lists, [image.id for image in table.images])
        unlisted = sum(image.id not in listed for image in table.images)
        if unlisted:
            table.notes.append(f"{unlisted:,} images are in no list of a split: left out")
        table.images = [image for image in table.images if image.id in listed]
        for image in table.images:
            image.split = listed[image.id]
    return table


def _places(entry: DatasetEntry) -> tuple[tuple[Place, ...], dict[str, Path]]:
    """What to read, and the lists of splits."""
    lists = {name: entry.root / split.ids for name, split in entry.splits.items() if split.ids}
    per_split = {
        split.annotations: name for name, split in entry.splits.items() if split.annotations
    }
    named = [(entry.root / file, split) for file, split in per_split.items()]
    if entry.annotations:
        named.insert(0, (entry.root / entry.annotations, ""))
    if not named and entry.reader in OF_FOLDERS:
        return (Place(entry.root / entry.images, entry.reader),), lists
    if not named:
        found = discover(entry.root)
        return found.places, lists or found.id_lists
    places = []
    for file, split in named:
        if not file.exists():
            raise DatasetError(
                f"dataset {entry.name!r}: the annotations {os.path.relpath(file, entry.root)!r} "
                f"are not in {str(entry.root)!r}.{published_at(entry)}"
            )
        if entry.reader in (AUTO, *OF_FOLDERS) or file.is_dir():
            place = place_of(file, entry.reader)
        else:
            place = Place(file, entry.reader)
        places.append(Place(place.path, place.reader, split or place.split, fixed=bool(split)))
    return tuple(places), lists


class _Collector:
    """The rows of one place, as images of the table.

    An image is one by its id and its split. `splits` False takes no notice of the annotations'
    splits, where others will be made.
    """

    def __init__(
        self, table: Table, by_id: dict[tuple[str, str], Image], place: Place, *, splits: bool
    ) -> None:
        self._table, self._by_id, self._place, self._splits = table, by_id, place, splits
        self._entry = table.entry
        self._by_name: dict[tuple[str, str], Image] = {}
        self._empty = 0

    def add_all(self, rows: Iterable[Row]) -> None:
        """Group rows by image, find where images lie, and add them to the table."""
        for row in rows:
            self._add(row)
        if self._empty:
            self._table.notes.append(f"{self._empty:,} captions of {self._place.path} are empty")
        self._place_images()

    def _add(self, row: Row) -> None:
        captions, ids = row.captions, row.caption_ids
        if not row.image and self._place.reader == "texts":
            (text,), (id_,) = captions, ids or (None,)
            self._table.texts.append((id_ or row.where, text, self._place.split))
            return
        if not row.image:
            self._refuse(row, "names no image")
            return
        name = plain_name(row.image, row.where)
        split = row.split if row.split and not self._place.fixed else self._place.split
        key = name, split if self._splits else ""
        image = self._by_name.get(key)
        if image is None:
            image = self._by_name[key] = Image(name, split, row.where, row.file)
        elif isinstance(row.file, InTar):
            raise DatasetError(f"{row.where}: image id {name!r} appears twice")
        for position, text in enumerate(captions):
            plain = text if self._place.reader == "karpathy" else text.strip()
            if not plain.strip() and ids is None:
                self._refuse(row, "has an empty caption")
                continue
            # Where captions have ids, the published counts include empty ones.
            self._empty += not plain.strip()
            image.captions.append((ids[position] if ids else None, plain))

    def _refuse(self, row: Row, what: str) -> None:
        if not self._entry.loose_rows:
            raise DatasetError(
                f"{row.where}: the row {what}. Mend it, or leave such rows out: --loose-rows"
            )
        self._table.left_out[
            f"rows that {what.replace('names', 'name').replace('has', 'have')}"
        ] += 1

    def _place_images(self) -> None:
        """Names as the annotations have them become ids: paths below the images' folder."""
        loose = [name for (name, _), image in self._by_name.items() if image.file is None]
        folder, path = self._table.folder, self._place.path
        rule = find_rule(folder, path, loose, self._place.split) or NameRule()
        folders = Folders(folder) if self._entry.loose_names else None
        for (name, split), image in self._by_name.items():
            if image.file is not None:
                image.id = f"{_without_suffix(path, self._entry.root)}/{name}"
            else:
                image.id = rule.path(name)
                if folders is not None:
                    image.id = folders.alike(image.id) or image.id
            known = self._by_id.setdefault((image.id, split), image)
            if known is image:
                continue
            if known.file is not None:
                raise DatasetError(f"{image.where}: image id {image.id!r} appears twice")
            known.captions += image.captions


def _note_leaks(table: Table) -> None:
    """Images of two splits: what is trained on one says nothing about the other."""
    splits: dict[str, str] = {}
    shared: Counter[tuple[str, str]] = Counter()
    for image in table.images:
        first = splits.setdefault(image.id, image.split)
        if first != image.split:
            shared[first, image.split] += 1
    for (first, second), count in shared.items():
        table.notes.append(
            f"{count:,} images are in both {first!r} and {second!r}: figures on one after training "
            "on the other mean nothing"
        )


def _without_suffix(path: Path, root: Path) -> str:
    """`train/0.tar` below the root as `train/0`: where its members would lie if unpacked."""
    try:
        below = path.resolve().relative_to(root.resolve())
    except ValueError:  # annotations from elsewhere
        below = Path(path.name)
    return below.with_suffix("").as_posix()


def _number_captions(table: Table) -> None:
    """Captions without an id get IMAGE#k; all of them, where the file's own are not unique."""
    own = [id_ for image in table.images for id_, _ in image.captions if id_ is not None]
    unique = len(set(own)) == len(own)
    if not unique:
        table.notes.append("caption ids are there twice: captions are numbered by image instead")
    for image in table.images:
        image.captions = [
            (id_ if unique and id_ is not None else f"{image.id}#{k}", text)
            for k, (id_, text) in enumerate(image.captions)
        ]
        for id_, _ in image.captions:
            check_id(str(id_), image.where)


def files_of(images: Iterable[Image], folder: Path) -> Iterator[ImageFile]:
    """Where the bytes of each image lie."""
    for image in images:
        yield folder / image.id if image.file is None else image.file


def missing_images(table: Table, images: Iterable[Image]) -> list[tuple[Image, str | None]]:
    """Images that are not in their folder, each with the path that is there under another form."""
    folders = Folders(table.folder)
    return [
        (image, folders.alike(image.id))
        for image in images
        if image.file is None and not folders.holds(image.id)
    ]


def captionless(images: Iterable[Image]) -> Image | None:
    """The first image without captions, where others have some; None of images alone."""
    first, some = None, False
    for image in images:
        if not image.captions:
            first = first or image
        else:
            some = True
    return first if some else None


def refuse_captionless(image: Image) -> DatasetError:
    """The error for an image without captions among others that have some."""
    return DatasetError(
        f"{image.where}: {shown(image.id)[1:-1]!r} has no captions. Every image needs at least "
        "one: add it, take the image out of the split, or leave such images out: --loose-rows"
    )
