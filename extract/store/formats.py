"""The protocol of store formats, and the list of formats.

A format lays the arrays of a store into files: small arrays that are known before the first
feature (ids, spans), and arrays in shards that are written one by one. Everything else (which
shards count, what fits together, who may write) is the same for all formats.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from hada.extract.common import remote
from hada.extract.common.errors import StoreError, unknown
from hada.extract.store.chunks import RawShard

DEFAULT = "zarr"
# Name -> (folder inside a store, class). Looked up late: each needs its own library.
_FORMATS = {
    "zarr": ("features.zarr", "hada.extract.store.zarr_format:ZarrFormat"),
    "hdf5": ("features.hdf5", "hada.extract.store.hdf5_format:Hdf5Format"),
}
NAMES = tuple(_FORMATS)
# The arrays of a side that lie in shards.
SHARDED = ("tokens", "steps", "embeddings")


@dataclass(frozen=True, kw_only=True)
class ArrayPlan:
    """Shape and division of one array: `chunk_rows` are read at once, `shard_rows` are a file.

    `dtype` is NumPy's name of what lies on disk, `fill` what an unwritten value reads as: a
    float array says NaN, because an unwritten row must never pass for a feature.
    """

    shape: tuple[int, ...]
    dtype: str
    chunk_rows: int
    shard_rows: int
    dimensions: tuple[str, ...]
    fill: float = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Written:
    """What lies on disk of one shard.

    files: path relative to the format's folder -> (bytes, digest) of every file.
    crcs: name of an array ("image/tokens") -> crc32c of each of its chunks, in order.
    """

    files: dict[str, tuple[int, str]]
    crcs: dict[str, NDArray[np.uint32]]


class ArraySource(Protocol):
    """One array in shards, as a format sees it: raw bytes where it can, its library where not."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    shard_rows: int
    fill: float

    def raw(self, shard: int) -> RawShard | None:
        """The chunks of a shard for reading by byte range; None where only the library can.

        Raises OSError or ValueError where the shard is missing or its own index is damaged.
        """
        ...

    def library(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start..stop-1 through the format's library, its checksums verified."""
        ...


class Format(Protocol):
    """The files of one format. `features` is the format's folder inside a store."""

    name: str

    def create(
        self,
        features: Path,
        plans: Mapping[str, ArrayPlan],
        small: Mapping[str, NDArray[Any]],
        attributes: Mapping[str, Any],
    ) -> None:
        """Make the empty arrays and write the small ones; synced when it returns.

        Args:
            features: The folder of the arrays.
            plans: Name -> shape and division of an array in shards.
            small: Name -> values of an array that is written whole.
            attributes: Of the store, as JSON values.
        """
        ...

    def write_shard(
        self,
        features: Path,
        side: str,
        shard: int,
        arrays: Mapping[str, tuple[ArrayPlan, NDArray[Any]]],
    ) -> Written:
        """Write the arrays of one shard, whole or not at all.

        Args:
            features: The format's folder.
            side: Which side the shard belongs to.
            shard: Its number.
            arrays: Name ("image/tokens") -> plan and the rows that are there; the rest of the
                shard stays unwritten.
        """
        ...

    def read_shard(
        self,
        features: Path,
        side: str,
        shard: int,
        metadata: Mapping[str, Any],
        sizes: Mapping[str, int] | None = None,
    ) -> Written:
        """What `write_shard` returned, from the bytes on disk: each is read, each chunk verified.

        Args:
            features: The folder of the arrays.
            side: Whose shard.
            shard: Its number, from 0.
            metadata: Name -> what the method of that name said of the side's arrays.
            sizes: Name -> bytes of files, where they have been listed.

        Raises:
            OSError: A file is missing or cannot be read.
            ValueError: A file is damaged or not divided as `write_shard` does it.
        """
        ...

    def shard_files(self, side: str, shard: int, arrays: Mapping[str, int]) -> set[str]:
        """The files of a shard, relative to `features`; `arrays` are names and axes."""
        ...

    def attributes(self, features: Path) -> dict[str, Any]:
        """What `create` or `set_attributes` stored. Raises `StoreError` where it is damaged."""
        ...

    def set_attributes(self, features: Path, attributes: Mapping[str, Any]) -> None:
        """Replace the attributes atomically."""
        ...

    def arrays(self, features: Path) -> set[str]:
        """The names of all arrays that are there, whoever made them."""
        ...

    def metadata(self, features: Path, names: Collection[str]) -> dict[str, Any]:
        """What describes each array, as JSON values; "" describes what holds them.

        Raises `StoreError` where one is missing or damaged.
        """
        ...

    def whole(
        self, features: Path, names: Collection[str], metadata: Mapping[str, Any] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Small arrays, verified; `metadata` is what the method of that name said.

        Raises `StoreError` where one is missing or damaged.
        """
        ...

    def source(self, features: Path, name: str, metadata: Any = None) -> ArraySource:
        """An array in shards; `metadata` is what `metadata` said of it, where it is known.

        Raises `StoreError` where it is missing or damaged.
        """
        ...

    def index_files(self, features: Path, names: Mapping[str, int]) -> set[str]:
        """The files of attributes, metadata and small arrays; `names` are all arrays and axes.

        An array in shards has its metadata there alone.
        """
        ...

    def files(self, features: Path, side: str, shard: int) -> list[Path]:
        """Every file that belongs to a shard, finished or left over by killed writers."""
        ...


def get(name: str) -> Format:
    """A format by name; raises `UnknownNameError`."""
    if name not in _FORMATS:
        raise unknown("store format", name, NAMES)
    module, _, attribute = _FORMATS[name][1].partition(":")
    return cast("Format", getattr(importlib.import_module(module), attribute)())


def features_folder(name: str) -> str:
    """The folder of a format inside a store."""
    return _FORMATS[name][0]


def folders() -> set[str]:
    """The folders of all formats."""
    return {folder for folder, _ in _FORMATS.values()}


def find(folder: Path) -> tuple[Format, Path] | None:
    """The format of the store in `folder` and where its features lie, or None.

    Raises `StoreError` where there are two: then nobody knows which one is meant. Behind a URL
    there are no folders and there is Zarr alone, whose root metadata is put there last.
    """
    if remote.is_remote(folder):
        features = folder / features_folder("zarr")
        with remote.reaching(features):
            return (get("zarr"), features) if (features / "zarr.json").exists() else None
    present = [name for name in NAMES if (folder / features_folder(name)).is_dir()]
    if len(present) > 1:
        raise StoreError(
            f"{folder}: holds features in two formats ({', '.join(present)}); move one away"
        )
    return (get(present[0]), folder / features_folder(present[0])) if present else None
