"""Pooled embeddings in whole arrays: plain .npy, clip-retrieval's folders, safetensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.array_files import map_npy, reason
from hada.extract.common.documents import LARGE_BYTES, decode, parse_json, read_bytes
from hada.extract.common.errors import DatasetError, UsageError
from hada.extract.common.shapes import conform, listed
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.importers.source import ImportRequest, Item
from hada.extract.spec import SIDES, SideName

# One array, or the parts of a long one: (part, row in it) finds an item.
Parts = Sequence[NDArray[Any]]


class ArraySource:
    """Embeddings (and for safetensors image tokens) of both sides, found by row."""

    def __init__(
        self,
        files: Sequence[Path],
        parts: Mapping[SideName, Parts],
        places: Mapping[SideName, Sequence[tuple[int, int]]],
        tokens: NDArray[Any] | None = None,
    ) -> None:
        self.files, self._parts, self._places, self._tokens = files, parts, places, tokens
        count = 0 if tokens is None else tokens.shape[1]
        self.widths: dict[SideName, int | None] = {
            "image": None if tokens is None else tokens.shape[2],
            "caption": None,
        }
        self.lengths: dict[SideName, NDArray[np.int64]] = {
            "image": np.full(len(places["image"]), count, np.int64),
            "caption": np.zeros(len(places["caption"]), np.int64),
        }

    def read(self, side: SideName, row: int) -> Item:
        part, inside = self._places[side][row]
        tokens = self._tokens[inside] if side == "image" and self._tokens is not None else None
        return Item(tokens, np.asarray(self._parts[side][part][inside], np.float32))


def plain_npy(request: ImportRequest, dataset: CaptionDataset) -> ArraySource:
    """Two .npy files of embeddings (n, E) and the ids of their rows, in any order."""
    if request.captions is None or request.image_ids is None or request.caption_ids is None:
        raise UsageError(
            "plain arrays need --images and --captions (.npy) and --image-ids and --caption-ids "
            "(.txt with an id a line, .json with a list, or .npy)"
        )
    arrays: dict[SideName, NDArray[Any]] = {
        "image": _npy(request.images),
        "caption": _npy(request.captions),
    }
    ids: dict[SideName, list[str]] = {
        "image": read_ids(request.image_ids),
        "caption": read_ids(request.caption_ids),
    }
    files = [request.images, request.captions, request.image_ids, request.caption_ids]
    return ArraySource(files, {s: [arrays[s]] for s in SIDES}, _by_id(dataset, arrays, ids))


def from_safetensors(request: ImportRequest, dataset: CaptionDataset) -> ArraySource:
    """`image_embeddings`, `caption_embeddings` and perhaps `image_tokens` (I, N, D).

    The ids are JSON lists in the file's metadata (`image_ids`, `caption_ids`) or in files.
    """
    from hada.extract.common.tensor_files import read_safetensors

    arrays: dict[str, NDArray[Any]] = {}
    metadata: dict[str, str] = {}
    files = [file for file in (request.images, request.captions) if file is not None]
    for file in files:
        tensors, told = read_safetensors(file, DatasetError)
        metadata.update(told)
        for key, tensor in tensors.items():
            # NumPy has no bfloat16.
            plain = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
            arrays[key] = plain.numpy()
    arrays_by_side: dict[SideName, NDArray[Any]] = {}
    ids: dict[SideName, list[str]] = {}
    for side in SIDES:
        if f"{side}_embeddings" not in arrays:
            raise DatasetError(
                f"{files[0]}: no tensor '{side}_embeddings'; it holds {listed(sorted(arrays))}"
            )
        arrays_by_side[side] = _matrix(
            arrays[f"{side}_embeddings"], f"{files[0]}: {side}_embeddings"
        )
        file_of_ids = request.image_ids if side == "image" else request.caption_ids
        if file_of_ids is not None:
            ids[side] = read_ids(file_of_ids)
        elif f"{side}_ids" in metadata:
            ids[side] = _id_list(metadata[f"{side}_ids"], f"{files[0]}: {side}_ids")
        else:
            raise UsageError(f"{files[0]} has no '{side}_ids' in its metadata: give --{side}-ids")
    tokens = arrays.get("image_tokens")
    if tokens is not None and (tokens.ndim != 3 or len(tokens) != len(arrays_by_side["image"])):
        raise DatasetError(f"{files[0]}: image_tokens {tokens.shape}: expected (images, N, D)")
    places = _by_id(dataset, arrays_by_side, ids)
    return ArraySource(files, {s: [arrays_by_side[s]] for s in SIDES}, places, tokens)


def clip_retrieval(request: ImportRequest, dataset: CaptionDataset) -> ArraySource:
    """clip-retrieval's output folder: img_emb/, text_emb/ and metadata/ of equal numbering.

    Its rows are pairs. An image is found by the name in `image_path` (or `key`), a caption by its
    image and text.
    """
    folder = request.images
    parts: dict[SideName, list[NDArray[Any]]] = {"image": [], "caption": []}
    images: dict[str, tuple[int, int]] = {}
    captions: dict[tuple[str, str], tuple[int, int]] = {}
    tables = _numbered(folder / "metadata", "parquet")
    for part, (number, table) in enumerate(tables):
        for side, kind in (("image", "img"), ("caption", "text")):
            parts[side].append(_npy(folder / f"{kind}_emb" / f"{kind}_emb_{number}.npy"))  # type: ignore[index]
        pairs = list(_pairs(table))
        if not len(pairs) == len(parts["image"][part]) == len(parts["caption"][part]):
            raise DatasetError(f"{table}: {len(pairs)} rows, its arrays have other numbers of rows")
        for row, (stem, text) in enumerate(pairs):
            images.setdefault(stem, (part, row))
            captions.setdefault((stem, text), (part, row))
    stems = [PurePosixPath(id_).stem for id_ in dataset.image_ids]
    wanted = [
        (stems[owner], " ".join(text.split()))
        for text, owner in zip(dataset.captions, dataset.caption_to_image, strict=True)
    ]
    places: dict[SideName, list[tuple[int, int]]] = {
        "image": _found(images, stems, dataset.image_ids, "image", folder),
        "caption": _found(captions, wanted, dataset.caption_ids, "caption", folder),
    }
    files = [
        file for kind in ("img_emb", "text_emb", "metadata") for file in (folder / kind).iterdir()
    ]
    return ArraySource(files, parts, places)


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


def _pairs(table: Path) -> Iterator[tuple[str, str]]:
    """Stem of the image and text of the caption, row by row."""
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
        yield PurePosixPath(str(name)).stem, " ".join(str(text).split())


def read_ids(file: Path) -> list[str]:
    """The ids of a .txt (one a line), .json (a list) or .npy file, as text."""
    if file.suffix == ".npy":
        return [str(id_) for id_ in map_npy(file).reshape(-1).tolist()]
    text = decode(read_bytes(file, DatasetError, LARGE_BYTES), str(file), DatasetError)
    return _id_list(text, str(file)) if file.suffix == ".json" else text.splitlines()


def _id_list(text: str, label: str) -> list[str]:
    ids: list[str | int] = conform(
        parse_json(text, label, DatasetError),
        list[str | int],
        label,
        DatasetError,
        "A JSON list of ids",
    )
    return [str(id_) for id_ in ids]


def _npy(file: Path) -> NDArray[Any]:
    return _matrix(map_npy(file), str(file))


def _matrix(array: NDArray[Any], label: str) -> NDArray[Any]:
    if array.ndim != 2 or array.dtype.kind != "f":
        raise DatasetError(f"{label}: {array.dtype} of shape {array.shape}, expected floats (n, E)")
    return array


def _by_id(
    dataset: CaptionDataset,
    arrays: Mapping[SideName, NDArray[Any]],
    ids: Mapping[SideName, Sequence[str]],
) -> dict[SideName, list[tuple[int, int]]]:
    places: dict[SideName, list[tuple[int, int]]] = {}
    for side in SIDES:
        if len(ids[side]) != len(arrays[side]):
            raise DatasetError(
                f"{side}s: {len(ids[side])} ids for {len(arrays[side])} rows of embeddings"
            )
        known = {id_: (0, row) for row, id_ in enumerate(ids[side])}
        if len(known) != len(ids[side]):
            raise DatasetError(f"{side}s: an id appears twice among the {len(ids[side])} ids")
        wanted = dataset.image_ids if side == "image" else dataset.caption_ids
        places[side] = _found(known, wanted, wanted, side, Path(f"the {side} ids"))
    return places


def _found(
    known: Mapping[Any, tuple[int, int]],
    wanted: Sequence[Any],
    ids: Sequence[str],
    side: SideName,
    source: Path,
) -> list[tuple[int, int]]:
    missing = [id_ for key, id_ in zip(wanted, ids, strict=True) if key not in known]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(ids)} {side}s of the dataset are not in {source}, "
            f"the first is {missing[0]!r}"
        )
    return [known[key] for key in wanted]
