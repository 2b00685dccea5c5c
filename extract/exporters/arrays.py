"""Embeddings as plain arrays: .npy and safetensors, row k of which is line k of a file of ids."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hada.extract.common import atomic
from hada.extract.exporters.rows import Piece, Rows

_SAFETENSORS = {"float32": "F32", "float16": "F16"}


def write_npy(folder: Path, rows: Rows) -> None:
    """SIDE.npy, an array (n, E) that NumPy maps, and SIDE_ids.txt."""
    with atomic.writing(folder / f"{rows.side}.npy") as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(rows.dtype)),
            "fortran_order": False,
            "shape": (len(rows), rows.width),
        }
        np.lib.format.write_array_header_1_0(file, header)
        for piece in _with_ids(folder, rows):
            file.write(piece.values_nE.data)


def write_safetensors(folder: Path, rows: Rows) -> None:
    """SIDE.safetensors with one tensor, `embeddings`, and SIDE_ids.txt.

    The library writes a file from tensors in memory; the header is written here so that a shard at
    a time is enough.
    """
    bytes_ = len(rows) * rows.width * np.dtype(rows.dtype).itemsize
    header = {
        "__metadata__": {"format": "pt", "model": rows.store.spec.model.name, "side": rows.side},
        "embeddings": {
            "dtype": _SAFETENSORS[rows.dtype],
            "shape": [len(rows), rows.width],
            "data_offsets": [0, bytes_],
        },
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic.writing(folder / f"{rows.side}.safetensors") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for piece in _with_ids(folder, rows):
            file.write(piece.values_nE.data)


def write_ids(folder: Path, rows: Rows) -> None:
    """SIDE_ids.txt alone, for an index whose rows are numbers."""
    for _ in _with_ids(folder, rows):
        pass


def _with_ids(folder: Path, rows: Rows) -> Iterator[Piece]:
    """The rows; beside them the ids are written, one a line."""
    with atomic.writing(folder / f"{rows.side}_ids.txt") as file:
        for piece in rows.pieces():
            file.write("".join(f"{id_}\n" for id_ in piece.ids).encode())
            yield piece
