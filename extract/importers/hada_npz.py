"""The official HADA's feature folders: an npz an image, and an npz for all captions of an image.

ALBEF_Output      feat (N, D) and proj_embed (E,) an image; feat (C, L, D) padded, att (C, L)
                  and proj_embed (C, E) for its C captions (no leading axis where C is 1)
ALBEF_AUG_Output  augmented images `<id>_<k>.npz`: import each k as a model of its own, with
                  the pattern `{stem}_0.npz` and so on
DOT_Output        the same with ragged captions, feat and att as arrays of objects
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common import errors
from hada.extract.common.array_files import PickledError, opened
from hada.extract.common.console import say
from hada.extract.common.errors import DatasetError, UsageError
from hada.extract.common.shapes import listed
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.matching import Source, match
from hada.extract.datasets.name_keys import files_below, without_suffix
from hada.extract.importers.source import ImportRequest, Item
from hada.extract.spec import SideName


class HadaFolders:
    """See the module; captions are matched to the dataset's by their order in an image's file."""

    def __init__(self, request: ImportRequest, dataset: CaptionDataset) -> None:
        if request.captions is None:
            raise UsageError("HADA's features lie in two folders: give --images and --captions")
        for folder in (request.images, request.captions):
            if not folder.is_dir():
                raise DatasetError(f"{folder}: no such folder of .npz files")
        self._request, self._dataset = request, dataset
        self._images = _files(request.images, request.image_name, dataset.image_ids)
        self._captions = _files(request.captions, request.caption_name, dataset.image_ids)
        owners = dataset.caption_to_image
        # The place of every caption among those of its image; an image's captions are neighbours.
        first = np.searchsorted(owners, owners)
        self._places = np.arange(len(owners)) - first
        self._counts = np.bincount(owners, minlength=len(dataset.image_ids))
        self.files = [*self._images, *self._captions]
        self._last: tuple[Path, dict[str, NDArray[Any]]] | None = None
        lengths, width = self._image_lengths()
        self.lengths: dict[SideName, NDArray[np.int64]] = {
            "image": lengths,
            "caption": self._caption_lengths(),
        }
        caption = self.read("caption", 0).tokens
        assert caption is not None
        self.widths: dict[SideName, int | None] = {"image": width, "caption": caption.shape[1]}

    def read(self, side: SideName, row: int) -> Item:
        if side == "image":
            file = self._images[row]
            arrays = self._load(file, ("feat", "proj_embed"))
            embedding = _numbers(arrays["proj_embed"].reshape(-1), file, "proj_embed", 1)
            return Item(_numbers(arrays["feat"], file, "feat", 2), embedding)
        arrays, file = self._caption_file(row)
        position = int(self._places[row])
        tokens = _numbers(arrays["feat"][position], file, "feat", 2).astype(np.float32)
        embedding = _numbers(arrays["proj_embed"][position], file, "proj_embed", 1)
        return Item(tokens[: self._valid(row)], embedding.astype(np.float32))

    def _valid(self, row: int) -> int:
        """How many tokens of a caption count."""
        arrays, file = self._caption_file(row)
        valid = float(_numbers(arrays["att"][int(self._places[row])], file, "att", 1).sum())
        if not (valid.is_integer() and 0 <= valid <= np.iinfo(np.int32).max):
            raise DatasetError(f"{file}: 'att' counts {valid:g} tokens, expected ones and zeros")
        return int(valid)

    def _image_lengths(self) -> tuple[NDArray[np.int64], int]:
        """Tokens of each image, from the files' headers, and their width."""
        lengths, width = np.ones(len(self._images), np.int64), None
        reason = ""
        for row, file in enumerate(self._images):
            try:
                shape = _shape(file, "feat")
            except DatasetError as error:  # told, with all others, when it is read
                if trouble := errors.trouble_behind(error):
                    raise trouble from error
                reason = str(error)
                continue
            lengths[row], width = shape[0], width or shape[1]
        if width is None:
            raise DatasetError(f"not one image has features; the last: {reason}")
        return lengths, width

    def _caption_lengths(self) -> NDArray[np.int64]:
        lengths = np.zeros(len(self._places), np.int64)
        for row in range(len(lengths)):
            lengths[row] = self._valid(row)
        return lengths

    def _caption_file(self, row: int) -> tuple[dict[str, NDArray[Any]], Path]:
        """The arrays of a caption's file and the file, always with a leading axis of captions."""
        owner = int(self._dataset.caption_to_image[row])
        file, count = self._captions[owner], int(self._counts[owner])
        if self._last is None or self._last[0] != file:  # neighbours share a file
            arrays = self._load(file, ("feat", "att", "proj_embed"))
            if count == 1 and arrays["proj_embed"].ndim == 1:
                arrays = {key: array[None] for key, array in arrays.items()}
            if any(array.ndim == 0 for array in arrays.values()):
                raise DatasetError(f"{file}: single values, expected arrays of {count} captions")
            counts = {key: len(array) for key, array in arrays.items()}
            if set(counts.values()) != {count}:
                raise DatasetError(
                    f"{file}: arrays of {counts} captions, but the dataset has {count} captions "
                    f"of {self._dataset.image_ids[owner]!r}"
                )
            self._last = file, arrays
        return self._last[1], file

    def _load(self, file: Path, keys: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        try:
            with opened(file, str(file), DatasetError) as archive:
                missing = [key for key in keys if key not in archive]
                if missing:
                    raise DatasetError(
                        f"{file}: no array {missing[0]!r}; it holds {listed(archive.names)}"
                    )
                allow = self._request.allow_pickle
                return {key: archive.read(key, allow_pickle=allow) for key in keys}
        except PickledError as pickled:
            raise UsageError(
                f"{file} holds arrays of objects, which are a pickle, and opening a pickle "
                "runs what its author put in. Where you trust the files: --allow-pickle"
            ) from pickled


def _numbers(value: Any, file: Path, key: str, ndim: int) -> NDArray[Any]:
    """An array, or what a row of an array of objects holds, as floats of `ndim` dimensions."""
    try:
        array = np.asarray(value)
        array = array if array.dtype.kind == "f" else array.astype(np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise DatasetError(f"{file}: {key!r} holds something other than numbers") from error
    if array.ndim != ndim:
        raise DatasetError(f"{file}: {key!r} has shape {array.shape}, expected {ndim} dimensions")
    return array


def _files(folder: Path, pattern: str, image_ids: Sequence[str]) -> list[Path]:
    """The file of each image, matched by its path below `folder`; one that is absent, too.

    Raises `UsageError` for a pattern that is none, `DatasetError` where an image is ambiguous.
    """
    stems = [without_suffix(id_) for id_ in image_ids]
    expected = [folder / _name(pattern, stem) for stem in stems]
    # Any folders, then the file's name: its first {stem} is anything, a second one is the same.
    first, *others = (re.escape(part) for part in pattern.split("{stem}"))
    top, slash, start = first.rpartition("/")
    shape = re.compile(top + slash + "((?:.*/)?)" + start + "([^/]+)" + r"\2".join(others), re.S)
    found = {
        fitting[1] + fitting[2]: folder / file
        for file in files_below(folder)
        if (fitting := shape.fullmatch(file))
    }
    source = Source(
        names=list(found),
        where=str(folder),
        remedy="Lay the files in folders as the images are, such as cats/001.npz",
    )
    matches = match(image_ids, source, stems)
    if matches.note:
        say(f"note: {matches.note}")
    files = list(found.values())
    return [
        files[row] if row >= 0 else path
        for row, path in zip(matches.rows.tolist(), expected, strict=True)
    ]


def _name(pattern: str, stem: str) -> str:
    name = pattern.replace("{stem}", stem)
    if name == pattern or ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
        raise UsageError(f"{pattern!r}: expected a file name with {{stem}} in it")
    return name


def _shape(file: Path, key: str) -> tuple[int, ...]:
    """The shape of a two-dimensional array in an npz, without reading it."""
    with opened(file, str(file), DatasetError) as archive:
        if key not in archive:
            raise DatasetError(f"{file}: no array {key!r}; it holds {listed(archive.names)}")
        shape = archive.shape(key)
    if len(shape) != 2 or not shape[0]:
        raise DatasetError(f"{file}: {key!r} has shape {shape}, expected (tokens, width)")
    return shape
