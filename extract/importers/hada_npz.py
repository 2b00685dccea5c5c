"""The official HADA's feature folders: an npz an image, and an npz for all captions of an image.

ALBEF_Output      feat (N, D) and proj_embed (E,) an image; feat (C, L, D) padded, att (C, L)
                  and proj_embed (C, E) for its C captions (no leading axis where C is 1)
ALBEF_AUG_Output  augmented images `<id>_<k>.npz`: import each k as a model of its own, with
                  the pattern `{stem}_0.npz` and so on
DOT_Output        the same with ragged captions, feat and att as arrays of objects
"""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import DatasetError, UsageError
from hada.extract.datasets.read import CaptionDataset
from hada.extract.importers.write import ImportRequest, Item
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
        stems = [PurePosixPath(id_).stem for id_ in dataset.image_ids]
        self._images = [request.images / _name(request.image_name, stem) for stem in stems]
        self._captions = [request.captions / _name(request.caption_name, stem) for stem in stems]
        owners = dataset.caption_to_image
        # The place of every caption among those of its image; an image's captions are neighbours.
        first = np.searchsorted(owners, owners)
        self._places = np.arange(len(owners)) - first
        self._counts = np.bincount(owners, minlength=len(stems))
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
            arrays = self._load(self._images[row], ("feat", "proj_embed"))
            return Item(arrays["feat"], arrays["proj_embed"].reshape(-1))
        arrays = self._caption_file(row)
        place = int(self._places[row])
        tokens = np.asarray(arrays["feat"][place], np.float32)
        valid = int(np.sum(arrays["att"][place]))
        return Item(tokens[:valid], np.asarray(arrays["proj_embed"][place], np.float32))

    def _image_lengths(self) -> tuple[NDArray[np.int64], int]:
        """Tokens of each image, from the files' headers, and their width."""
        lengths, width = np.ones(len(self._images), np.int64), None
        reason = ""
        for row, file in enumerate(self._images):
            try:
                shape = _shape(file, "feat")
            except DatasetError as error:  # told, with all others, when it is read
                reason = str(error)
                continue
            lengths[row], width = shape[0], width or shape[1]
        if width is None:
            raise DatasetError(f"not one image has features; the last: {reason}")
        return lengths, width

    def _caption_lengths(self) -> NDArray[np.int64]:
        lengths = np.zeros(len(self._places), np.int64)
        for row, place in enumerate(self._places):
            arrays = self._caption_file(row)
            lengths[row] = int(np.sum(arrays["att"][int(place)]))
        return lengths

    def _caption_file(self, row: int) -> dict[str, NDArray[Any]]:
        """The arrays of a caption's file, always with a leading axis of captions."""
        owner = int(self._dataset.caption_to_image[row])
        file, count = self._captions[owner], int(self._counts[owner])
        if self._last is None or self._last[0] != file:  # neighbours share a file
            arrays = self._load(file, ("feat", "att", "proj_embed"))
            if count == 1 and arrays["proj_embed"].ndim == 1:
                arrays = {key: array[None] for key, array in arrays.items()}
            found = {key: len(array) for key, array in arrays.items()}
            if set(found.values()) != {count}:
                raise DatasetError(
                    f"{file}: arrays of {found} captions, but the dataset has {count} captions "
                    f"of {self._dataset.image_ids[owner]!r}"
                )
            self._last = file, arrays
        return self._last[1]

    def _load(self, file: Path, keys: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        try:
            with (
                file.open("rb") as stream,
                np.load(stream, allow_pickle=self._request.allow_pickle) as archive,
            ):
                missing = [key for key in keys if key not in archive.files]
                if missing:
                    raise DatasetError(
                        f"{file}: no array {missing[0]!r}; it holds {', '.join(archive.files)}"
                    )
                return {key: archive[key] for key in keys}
        except FileNotFoundError as error:
            raise DatasetError(f"{file}: no such file") from error
        except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            if "allow_pickle" in str(error):
                raise UsageError(
                    f"{file} holds arrays of objects, which are a pickle, and opening a pickle "
                    "runs what its author put in. Where you trust the files: --allow-pickle"
                ) from error
            raise DatasetError(f"{file}: truncated or not an .npz file ({error})") from error


def _name(pattern: str, stem: str) -> str:
    name = pattern.replace("{stem}", stem)
    if name == pattern or ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
        raise UsageError(f"{pattern!r}: expected a file name with {{stem}} in it")
    return name


def _shape(file: Path, key: str) -> tuple[int, ...]:
    """The shape of a two-dimensional array in an npz, without reading it."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{key}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape: tuple[int, ...] = read(stream)[0]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{file}: cannot be read ({error})") from error
    if len(shape) != 2 or not shape[0]:
        raise DatasetError(f"{file}: {key!r} has shape {shape}, expected (tokens, width)")
    return shape
