"""A dataset that a command line names, without a manifest."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hada.extract.common.errors import UsageError, unknown
from hada.extract.common.names import is_name
from hada.extract.common.plain_words import parse_columns, parse_shares
from hada.extract.datasets.layouts import OF_FOLDERS, recognised
from hada.extract.datasets.read import own_splits
from hada.extract.datasets.table import Table
from hada.extract.manifest_entries import (
    AUTO,
    DatasetEntry,
    SplitEntry,
    reader_names,
)


def dataset_at(
    data: str | Path,
    *,
    captions: str | Path | None = None,
    images: str | Path | None = None,
    reader: str = AUTO,
    columns: str | Mapping[str, tuple[str, ...]] = "",
    split_by: str = "",
    split_ids: Mapping[str, str] | None = None,
    loose_names: bool = False,
    loose_rows: bool = False,
) -> DatasetEntry:
    """A dataset by its place: a folder of images and captions, or a file of captions.

    Args:
        data: The folder or file, or NAME=PATH; without a name it is called as its folder.
        captions: The file of captions; None finds it in the folder.
        images: The folder that image names are relative to; None takes `data`.
        reader: The layout, a name of `READERS`; "auto" recognises it.
        columns: Columns of a table by meaning, as text (`image=file,caption=text`) or a mapping.
        split_by: Shares of the images by split, e.g. "0.8,0.1,0.1"; empty keeps the data's own.
        split_ids: Split -> file that lists its images.
        loose_names: Take image files whose names differ in case, Unicode form or absent suffix.
        loose_rows: Leave out rows without image, caption or image file instead of refusing them.

    Returns:
        The entry, with absolute paths. Nothing is read but what is needed to tell folder and file.

    Raises:
        UsageError: There is no such folder or file, or a value is wrong.

    Example:
        >>> import tempfile
        >>> from hada.extract import dataset_at
        >>> dataset_at(f"photos={tempfile.gettempdir()}", split_by="0.9,0.1").split_by
        (('train', 0.9), ('val', 0.1))
    """
    name, path = _name_and_path(str(data))
    if not path.exists():
        raise UsageError(f"--data {str(data)!r}: no such folder or file")
    root = path if path.is_dir() else path.parent
    if path.is_file():
        if captions is not None:
            raise UsageError(
                f"--data {str(data)!r} is a file: give the folder of images with --captions"
            )
        captions = path
        # Without a folder of images beside it, a file of lines is what it looks like.
        if reader == AUTO and recognised(path) == "texts":
            reader = "texts"
    if reader not in reader_names():
        raise unknown("reader", reader, reader_names())
    for what, place in (("--captions", captions), ("--images", images)):
        if place is not None and not Path(place).exists():
            raise UsageError(f"{what} {str(place)!r}: no such {what[2:-1]} file or folder")
    if captions is not None and reader in OF_FOLDERS and not Path(captions).is_dir():
        raise UsageError(f"--reader {reader} reads a folder, and --captions names a file")
    return DatasetEntry(
        name=name,
        reader=reader,
        root=root.absolute(),
        annotations="" if captions is None else _below(Path(captions), root),
        images="." if images is None else _below(Path(images), root),
        columns=parse_columns(columns) if isinstance(columns, str) else dict(columns),
        split_by=parse_shares(split_by) if split_by else (),
        splits={
            split: SplitEntry(sources=(split,), ids=_below(Path(file), root))
            for split, file in (split_ids or {}).items()
        },
        loose_names=loose_names,
        loose_rows=loose_rows,
    )


def settled(table: Table) -> DatasetEntry:
    """The entry of a dataset that has been read, with what was found out: layout, file, splits.

    A later command then reads the same, whatever else comes to lie in the folder.
    """
    entry = table.entry
    if len(table.places) == 1 and not entry.annotations:
        (place,) = table.places
        if place.path.is_dir():
            entry = replace(entry, reader=place.reader)
        else:
            entry = replace(entry, reader=place.reader, annotations=_below(place.path, entry.root))
    elif len(table.places) == 1:
        entry = replace(entry, reader=table.places[0].reader)
    if entry.splits:
        return entry
    names = dict(own_splits(table))
    if entry.split_by:
        names = {name: SplitEntry(sources=(name,)) for name, _ in entry.split_by}
    for name, file in table.id_lists.items():
        names[name] = SplitEntry(sources=(name,), ids=_below(file, entry.root))
    return replace(entry, splits=names)


def _name_and_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if equals and is_name(name) and path:
        return name, Path(path).expanduser()
    place = Path(text).expanduser()
    folder = place if place.is_dir() else place.parent
    # `photos/` in the shell's folder, `.` or `..`: the name of the folder that it is.
    name = re.sub(r"[^A-Za-z0-9._+-]+", "-", folder.resolve().name).strip("-._+")
    if not is_name(name):
        raise UsageError(f"--data {text!r}: its folder has no name to use: give --data NAME=PATH")
    return name, place


def _below(path: Path, root: Path) -> str:
    """A path below the root as it is from there, any other as an absolute one."""
    place, base = path.expanduser().absolute(), root.absolute()
    try:
        return place.relative_to(base).as_posix()
    except ValueError:
        return os.path.normpath(place)
