"""The Zarr v3 half of a store: plain arrays with the sharding codec, one shard per file.

This is the only file that imports zarr. Another format answers to the same few functions:
create the arrays, write one shard of one array, read rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from hada.extract.errors import StoreError

# Reading one row costs about as much as reading this share of a shard at once.
WHOLE_SHARD_SHARE = 1 / 16


@dataclass(frozen=True, kw_only=True)
class ArrayPlan:
    """Shape and division of one array: `chunk_rows` are read at once, `shard_rows` are a file."""

    shape: tuple[int, ...]
    dtype: str
    chunk_rows: int
    shard_rows: int
    dimensions: tuple[str, ...]


def create(folder: Path, arrays: Mapping[str, ArrayPlan], attributes: dict[str, Any]) -> None:
    """Create the group with its arrays, empty: every value reads as NaN (or 0 for integers)."""
    group = zarr.create_group(folder, zarr_format=3, attributes=attributes)
    for name, plan in arrays.items():
        rest = plan.shape[1:]
        sharded = plan.chunk_rows != plan.shard_rows
        group.create_array(
            name,
            shape=plan.shape,
            dtype=plan.dtype,
            chunks=(plan.chunk_rows, *rest),
            shards=(plan.shard_rows, *rest) if sharded else None,
            compressors=[{"name": "crc32c"}],
            # An unwritten row must never pass for a feature.
            fill_value=np.nan if np.dtype(plan.dtype).kind == "f" else 0,
            dimension_names=list(plan.dimensions),
        )


def write_rows(folder: Path, name: str, start: int, values: NDArray[Any]) -> list[Path]:
    """Write rows from `start`, which must begin a shard, and return the files they lie in.

    zarr writes each file beside and renames it.
    """
    array = _array(folder, name, "r+")
    step = (array.shards or array.chunks)[0]
    zeros = ("0",) * (array.ndim - 1)
    shards = range(start // step, -(-(start + len(values)) // step))
    paths = [folder / name / "c" / "/".join((str(shard), *zeros)) for shard in shards]
    for path in paths:
        # zarr would merge into what is there, which may be the damage that is being mended.
        path.unlink(missing_ok=True)
    array[start : start + len(values)] = values
    # A chunk that holds nothing but the fill value is not stored at all.
    return [path for path in paths if path.exists()]


def attributes(folder: Path) -> dict[str, Any]:
    """The group's attributes. Raises `StoreError` where this is no Zarr group."""
    try:
        return dict(zarr.open_group(folder, mode="r").attrs)
    except FileNotFoundError as error:
        raise StoreError(f"{folder}: there is no Zarr group") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder}: its zarr.json is damaged ({error})") from error


def has(folder: Path, name: str) -> bool:
    """Whether the group has the array."""
    return (folder / name / "zarr.json").exists()


class RowReader:
    """Rows of one array, checksums verified by zarr's codec."""

    def __init__(self, folder: Path, name: str) -> None:
        self._name = f"{folder / name}"
        self._array = _array(folder, name, "r")
        self.shape: tuple[int, ...] = self._array.shape
        self.dtype: np.dtype[Any] = self._array.dtype
        self._step = (self._array.shards or self._array.chunks)[0]

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start..stop-1."""
        try:
            return np.asarray(self._array[start:stop])
        except (ValueError, OSError) as error:
            raise StoreError(
                f"{self._name}, rows {start} to {stop - 1}: cannot be read ({error}). "
                "`hada-store verify --deep` names the damaged shards; extracting again mends them."
            ) from error

    def rows(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Any rows in any order, each shard touched once."""
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for shard, places in _by_shard(rows, self._step):
            start = shard * self._step
            stop = min(start + self._step, self.shape[0])
            if len(places) >= (stop - start) * WHOLE_SHARD_SHARE:
                out[places] = self.slice(start, stop)[rows[places] - start]
            else:
                for place in places:
                    out[place] = self.slice(int(rows[place]), int(rows[place]) + 1)[0]
        return out


def _by_shard(rows: NDArray[np.int64], step: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Group positions in `rows` by the shard that their row lies in."""
    shards = rows // step
    order = np.argsort(shards, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
        if len(places):
            yield int(shards[places[0]]), places


def _array(folder: Path, name: str, mode: Literal["r", "r+"]) -> Any:
    try:
        return zarr.open_array(folder / name, mode=mode, zarr_format=3)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder / name}: cannot be opened ({error})") from error


def remove_leftovers(folder: Path, side: str, shard: int) -> None:
    """Delete what killed writers left beside a shard's files. Only its owner may."""
    for part in (folder / side).glob(f"*/c/{shard}/**/*.partial"):
        part.unlink(missing_ok=True)
