"""clip-retrieval's output folder: img_emb/, text_emb/ and metadata/ of equal numbering.

Its rows are pairs. An image is found by its `image_path` (or `key`), as `datasets.matching`
describes; a caption by its image's name and its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.array_files import reason
from hada.extract.common.errors import DatasetError, UsageError
from hada.extract.common.shapes import listed, shown
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.matching import Source
from hada.extract.importers.arrays import ArraySource, read_matrix
from hada.extract.importers.row_ids import rows_of
from hada.extract.importers.source import ImportRequest
from hada.extract.spec import SideName

_REMEDY = (
    "Give clip-retrieval the images' folder itself, so that `image_path` has the folders of each "
    "image, or import the arrays as npy with ids of your own"
)
# Half precision in another batch differs by a hundredth of a vector's length at most.
_SAME = 0.05
_BLOCK = 4096


def clip_retrieval(request: ImportRequest, dataset: CaptionDataset) -> ArraySource:
    """The embeddings of the folder `request.images`; raises `DatasetError`.

    An image that several rows name must have the same embedding in all of them, and so must a
    caption of an image.
    """
    folder = request.images
    parts: dict[SideName, list[NDArray[Any]]] = {"image": [], "caption": []}
    pairs: list[tuple[str, str]] = []
    places: list[tuple[int, int]] = []
    for part, (number, table) in enumerate(_numbered(folder / "metadata", "parquet")):
        for side, kind in (("image", "img"), ("caption", "text")):
            file = folder / f"{kind}_emb" / f"{kind}_emb_{number}.npy"
            parts[side].append(read_matrix(file))  # type: ignore[index]
        rows = list(read_pairs(table))
        if not len(rows) == len(parts["image"][part]) == len(parts["caption"][part]):
            raise DatasetError(f"{table}: {len(rows)} rows, its arrays have other numbers of rows")
        pairs += rows
        places += [(part, row) for row in range(len(rows))]
    names = list(dict.fromkeys(name for name, _ in pairs))
    source = Source(names=names, where=str(folder), remedy=_REMEDY)
    images = [names[row] for row in rows_of(dataset.image_ids, source)]
    captions = [
        (images[owner], " ".join(text.split()))
        for text, owner in zip(dataset.captions, dataset.caption_to_image.tolist(), strict=True)
    ]
    first_image = _first_rows([name for name, _ in pairs], images, parts["image"], places, folder)
    first_caption = _first_rows(pairs, captions, parts["caption"], places, folder)
    missing = [caption for caption in captions if caption not in first_caption]
    if missing:
        raise DatasetError(
            f"{len(missing):,} of {len(captions):,} captions of the dataset are not in {folder}, "
            f"the first is {shown(missing[0][1])} of {shown(missing[0][0])}. Import a folder that "
            "was made from the dataset's own captions"
        )
    found: dict[SideName, list[tuple[int, int]]] = {
        "image": [places[first_image[name]] for name in images],
        "caption": [places[first_caption[caption]] for caption in captions],
    }
    files = [
        file for kind in ("img_emb", "text_emb", "metadata") for file in (folder / kind).iterdir()
    ]
    return ArraySource(files, parts, found)


def _first_rows(
    there: Sequence[Any],
    wanted: Sequence[Any],
    parts: Sequence[NDArray[Any]],
    places: Sequence[tuple[int, int]],
    folder: Path,
) -> dict[Any, int]:
    """The first row of everything that is wanted; `there` says what each row is of.

    Raises `DatasetError` where rows of one thing have different embeddings.
    """
    needed = set(wanted)
    first: dict[Any, int] = {}
    again: list[int] = []
    for row, name in enumerate(there):
        if name in needed and first.setdefault(name, row) != row:
            again.append(row)
    for start in range(0, len(again), _BLOCK):
        rows = again[start : start + _BLOCK]
        one, other = (
            np.stack([parts[part][row] for part, row in (places[at] for at in chosen)])
            for chosen in ([first[there[row]] for row in rows], rows)
        )
        if one.dtype != np.float64:
            one, other = one.astype(np.float32), other.astype(np.float32)
        with np.errstate(all="ignore"):  # what is not finite is told when it is imported
            length = np.maximum(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
            differs = np.linalg.norm(one - other, axis=1) > _SAME * length
        if differs.any():
            row = rows[int(differs.argmax())]
            raise DatasetError(
                f"{folder}: rows {first[there[row]]:,} and {row:,} (counted from 0) are both of "
                f"{shown(there[row])} and have different embeddings: it names two things. {_REMEDY}"
            )
    return first


def _numbered(folder: Path, suffix: str) -> list[tuple[str, Path]]:
    """Files `name_<number>.suffix` by number."""
    found = [
        (match.group(1), file)
        for file in folder.glob(f"*.{suffix}")
        if (match := re.search(r"_(\d+)$", file.stem))
    ]
    if not found:
        raise DatasetError(f"{folder}: no numbered .{suffix} files, as clip-retrieval writes them")
    return sorted(found, key=lambda entry: int(entry[0]))


def read_pairs(table: Path) -> Iterator[tuple[str, str]]:
    """Name of the image and text of the caption, row by row; "" where a row has none."""
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise UsageError("reading .parquet files needs pyarrow: pip install pyarrow") from error
    try:
        read = parquet.read_table(table)
        names = "image_path" if "image_path" in read.column_names else "key"
        for column in (names, "caption"):
            if column not in read.column_names:
                there = listed(read.column_names)
                raise DatasetError(f"{table}: no column {column!r}; its columns are {there}")
        columns = [read.column(name).to_pylist() for name in (names, "caption")]
    except FileNotFoundError as error:
        raise DatasetError(f"{table}: no such file") from error
    except (ArrowException, OSError, ValueError, KeyError, OverflowError, TypeError) as error:
        raise DatasetError(f"{table}: not a parquet file ({reason(error)})") from error
    for name, text in zip(*columns, strict=True):
        yield _text(name), " ".join(_text(text).split())


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)
