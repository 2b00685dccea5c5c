"""Pooled embeddings in whole arrays, with the ids of their rows: plain .npy, safetensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.array_files import map_npy
from hada.extract.common.errors import DatasetError, UsageError
from hada.extract.common.shapes import listed
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.matching import Source
from hada.extract.importers.row_ids import id_list, read_ids, rows_of
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
        "image": read_matrix(request.images),
        "caption": read_matrix(request.captions),
    }
    ids: dict[SideName, list[str]] = {
        "image": read_ids(request.image_ids),
        "caption": read_ids(request.caption_ids),
    }
    labels: dict[SideName, str] = {
        "image": str(request.image_ids),
        "caption": str(request.caption_ids),
    }
    files = [request.images, request.captions, request.image_ids, request.caption_ids]
    places = _by_id(dataset, arrays, ids, labels)
    return ArraySource(files, {s: [arrays[s]] for s in SIDES}, places)


def from_safetensors(request: ImportRequest, dataset: CaptionDataset) -> ArraySource:
    """`image_embeddings`, `caption_embeddings` and perhaps `image_tokens` (I, N, D).

    The ids are JSON lists in the file's metadata (`image_ids`, `caption_ids`) or in files.
    """
    from hada.extract.common.tensor_files import read_safetensors

    arrays: dict[str, NDArray[Any]] = {}
    metadata: dict[str, str] = {}
    files = [file for file in (request.images, request.captions) if file is not None]
    for file in files:
        tensors, own = read_safetensors(file, DatasetError)
        metadata.update(own)
        for key, tensor in tensors.items():
            # NumPy has no bfloat16.
            plain = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
            arrays[key] = plain.numpy()
    arrays_by_side: dict[SideName, NDArray[Any]] = {}
    ids: dict[SideName, list[str]] = {}
    labels: dict[SideName, str] = {}
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
            labels[side] = str(file_of_ids)
            ids[side] = read_ids(file_of_ids)
        elif f"{side}_ids" in metadata:
            labels[side] = f"{files[0]}: {side}_ids"
            ids[side] = id_list(metadata[f"{side}_ids"], labels[side])
        else:
            raise UsageError(f"{files[0]} has no '{side}_ids' in its metadata: give --{side}-ids")
    tokens = arrays.get("image_tokens")
    if tokens is not None and (tokens.ndim != 3 or len(tokens) != len(arrays_by_side["image"])):
        raise DatasetError(f"{files[0]}: image_tokens {tokens.shape}: expected (images, N, D)")
    places = _by_id(dataset, arrays_by_side, ids, labels)
    return ArraySource(files, {s: [arrays_by_side[s]] for s in SIDES}, places, tokens)


def read_matrix(file: Path) -> NDArray[Any]:
    """A .npy of floats (n, E), mapped; raises `DatasetError` for any other."""
    return _matrix(map_npy(file), str(file))


def _matrix(array: NDArray[Any], label: str) -> NDArray[Any]:
    if array.ndim != 2 or array.dtype.kind != "f":
        raise DatasetError(f"{label}: {array.dtype} of shape {array.shape}, expected floats (n, E)")
    return array


def _by_id(
    dataset: CaptionDataset,
    arrays: Mapping[SideName, NDArray[Any]],
    ids: Mapping[SideName, Sequence[str]],
    labels: Mapping[SideName, str],
) -> dict[SideName, list[tuple[int, int]]]:
    """The place of each item of the dataset; `labels` name the ids in messages."""
    places: dict[SideName, list[tuple[int, int]]] = {}
    for side in SIDES:
        if len(ids[side]) != len(arrays[side]):
            blank = [row for row, id_ in enumerate(ids[side]) if not id_.strip()]
            hint = f"; the id in row {blank[0]:,} (counted from 0) is blank" if blank else ""
            raise DatasetError(
                f"{side}s: {len(ids[side])} ids for {len(arrays[side])} rows of embeddings{hint}"
            )
        source = Source(names=ids[side], where=labels[side], kind=side, files=side == "image")
        wanted = dataset.image_ids if side == "image" else dataset.caption_ids
        places[side] = [(0, row) for row in rows_of(wanted, source).tolist()]
    return places
