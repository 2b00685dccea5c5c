"""The Zarr v3 half of the store: plain arrays with the sharding codec, one shard per file.

This is the only file that imports zarr, and only where zarr itself is needed: to make a store,
and to read what other writers or other codecs wrote. Shards are written and read by
`zarr_shard`, byte for byte as zarr-python does.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common import atomic, remote
from hada.extract.common.errors import StoreError, UnreachableError
from hada.extract.store import zarr_check, zarr_shard
from hada.extract.store.chunks import RawShard
from hada.extract.store.formats import SHARDED, ArrayPlan, Written
from hada.extract.store.remote_row_reader import row_reader

_META = "zarr.json"
# What zarr-python raises where metadata is not what it expects.
_ZARR_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


class ZarrFormat:
    """See `formats.Format`."""

    name = "zarr"

    def create(
        self,
        features: Path,
        plans: Mapping[str, ArrayPlan],
        small: Mapping[str, NDArray[Any]],
        attributes: Mapping[str, Any],
    ) -> None:
        import zarr

        # Sorted, so that equal stores are equal byte for byte, whoever made their spec.
        ordered = json.loads(json.dumps(dict(attributes), sort_keys=True))
        # In memory, where no write fails: the library looks for no errors after its last one.
        files: dict[str, Any] = {}
        memory = zarr.storage.MemoryStore(files)
        group = zarr.create_group(memory, zarr_format=3, attributes=ordered)
        for name, plan in plans.items():
            _create_array(group, name, plan)
        for name, values in small.items():
            rows = max(1, len(values))
            plan = ArrayPlan(
                shape=values.shape,
                dtype=str(values.dtype),
                chunk_rows=rows,
                shard_rows=rows,
                dimensions=(name.partition("/")[0], *("column",) * (values.ndim - 1)),
            )
            _create_array(group, name, plan)[:] = values
        for name, data in files.items():
            (features / name).parent.mkdir(parents=True, exist_ok=True)
            atomic.write_new(features / name, data.to_bytes())
        for path in (features, *features.rglob("*")):
            if path.is_dir():
                atomic.sync(path)

    def write_shard(
        self,
        features: Path,
        side: str,
        shard: int,
        arrays: Mapping[str, tuple[ArrayPlan, NDArray[Any]]],
    ) -> Written:
        files, crcs = {}, {}
        for name, (plan, values) in arrays.items():
            layout = zarr_shard.ShardLayout(
                shape=plan.shape,
                dtype=np.dtype(plan.dtype),
                fill=plan.fill,
                shard_rows=plan.shard_rows,
                chunk_rows=plan.chunk_rows,
                sharded=_is_sharded(plan),
            )
            relative = f"{name}/{layout.key(shard)}"
            with atomic.writing(features / relative, tidy=False) as sink:
                size, digest, crcs[name] = zarr_shard.write_file(sink, layout, values)
            files[relative] = size, digest
        return Written(files=files, crcs=crcs)

    def read_shard(
        self,
        features: Path,
        side: str,
        shard: int,
        metadata: Mapping[str, Any],
        sizes: Mapping[str, int] | None = None,
    ) -> Written:
        files, crcs = {}, {}
        for name, described in metadata.items():
            layout = zarr_shard.parse_layout(described)
            if layout is None:
                raise ValueError(f"{name} is not divided as HADA does it")
            relative = f"{name}/{layout.key(shard)}"
            try:
                known = (sizes or {}).get(relative)
                size, digest, crcs[name] = zarr_check.read_file(features / relative, layout, known)
            except ValueError as error:
                raise ValueError(f"{relative}: {error}") from error
            files[relative] = size, digest
        return Written(files=files, crcs=crcs)

    def shard_files(self, side: str, shard: int, arrays: Mapping[str, int]) -> set[str]:
        return {f"{name}/{zarr_shard.chunk_key(shard, axes)}" for name, axes in arrays.items()}

    def attributes(self, features: Path) -> dict[str, Any]:
        try:
            return dict(_read_group(features)["attributes"])
        except FileNotFoundError as error:
            raise StoreError(f"{features}: there is no Zarr group") from error
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{features}: its {_META} is damaged ({error})") from error

    def set_attributes(self, features: Path, attributes: Mapping[str, Any]) -> None:
        group = _read_group(features) | {"attributes": dict(attributes)}
        atomic.write_bytes(features / _META, json.dumps(group, indent=2, sort_keys=True).encode())

    def arrays(self, features: Path) -> set[str]:
        found = {
            name.removesuffix(f"/{_META}")
            for name in remote.file_sizes(features)
            if name.endswith(f"/{_META}")
        }
        # A folder of arrays may be called a group of its own, as zarr-python does.
        return {name for name in found if not self._is_group(features / name)}

    @staticmethod
    def _is_group(folder: Path) -> bool:
        try:
            _read_group(folder)
        except (OSError, ValueError):
            return False
        return True

    def metadata(self, features: Path, names: Collection[str]) -> dict[str, Any]:
        # zarr-python describes the folders between, too; it reads a store without that as well.
        groups = {name.rpartition("/")[0] for name in names}
        ordered = [*sorted({*names, *groups}), ""]
        raw = remote.read_many(features, [f"{name}/{_META}".lstrip("/") for name in ordered])
        found: dict[str, Any] = {}
        for name, data in zip(ordered, raw, strict=True):
            if isinstance(data, FileNotFoundError) and name in groups:
                found[name] = None
                continue
            if isinstance(data, Exception):
                raise _unreadable(features / name, data)
            try:
                found[name] = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise _unreadable(features / name, error) from error
            if not isinstance(found[name], dict):
                raise _unreadable(features / name, ValueError(f"its {_META} is no mapping"))
        # The attributes have a digest of their own, and a consolidated copy is nobody's source.
        for key in ("attributes", "consolidated_metadata"):
            found[""].pop(key, None)
        return found

    def whole(
        self, features: Path, names: Collection[str], metadata: Mapping[str, Any] | None = None
    ) -> dict[str, NDArray[Any]]:
        found = {}
        for name in names:
            try:
                source = ZarrSource(features / name, metadata[name] if metadata else None)
                found[name] = row_reader(source).slice(0, source.shape[0])
            except UnreachableError:
                raise
            except StoreError as error:
                # Earlier versions left out what is all zeros. Where a record binds the array, its
                # digest tells that from a lost file.
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise _unreadable(features / name, error) from error
                found[name] = _filled_in(features / name)
            except (*_ZARR_ERRORS, RuntimeError) as error:
                raise _unreadable(features / name, error) from error
        return found

    def index_files(self, features: Path, names: Mapping[str, int]) -> set[str]:
        found = {_META} | {f"{name}/{_META}" for name in names}
        found |= {f"{name.rpartition('/')[0]}/{_META}" for name in names}
        small = {name: axes for name, axes in names.items() if name.split("/")[-1] not in SHARDED}
        return found | self.shard_files("", 0, small)

    def source(self, features: Path, name: str, metadata: Any = None) -> ZarrSource:
        return ZarrSource(features / name, metadata)

    def files(self, features: Path, side: str, shard: int) -> list[Path]:
        # Not every array of a side: ids and spans lie there too, and belong to no shard.
        return [
            path
            for name in SHARDED
            for path in (features / side / name / "c" / str(shard)).rglob("*")
            if path.is_file()
        ]


class ZarrSource:
    """See `formats.ArraySource`."""

    def __init__(self, folder: Path, metadata: dict[str, Any] | None = None) -> None:
        self.name, self._folder = str(folder), folder
        known = metadata is not None
        self._layout = (
            zarr_shard.parse_layout(metadata or {}) if known else zarr_shard.read_layout(folder)
        )
        self.fill: float
        if self._layout is None:
            array = _library_array(folder)
            self.shape: tuple[int, ...] = array.shape
            self.dtype: np.dtype[Any] = array.dtype
            self.shard_rows = int((array.shards or array.chunks)[0])
            self.fill = float(array.fill_value)
        else:
            self.shape, self.dtype = self._layout.shape, self._layout.dtype
            self.shard_rows, self.fill = self._layout.shard_rows, self._layout.fill

    def raw(self, shard: int) -> RawShard | None:
        if self._layout is None or remote.is_remote(self._folder):
            return None
        return zarr_shard.open_shard(self._folder / self._layout.key(shard), self._layout)

    def remote(self) -> tuple[Path, zarr_shard.ShardLayout] | None:
        """The array's folder and layout where its chunks are ranges of remote files."""
        there = self._layout is not None and remote.is_remote(self._folder)
        return (self._folder, self._layout) if there and self._layout else None

    def library(self, start: int, stop: int) -> NDArray[Any]:
        array = _library_array(self._folder)
        with np.errstate(all="ignore"):
            return np.asarray(array[start:stop])


def _unreadable(place: Path, error: Exception) -> StoreError:
    why = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
    return StoreError(
        f"{place}: cannot be read ({why}). What a store knows before its "
        "first feature cannot be mended: start it again with --fresh."
    )


def _filled_in(folder: Path) -> NDArray[Any]:
    """A whole array through the library, which fills in what is not there."""
    try:
        return np.asarray(_library_array(folder)[...])
    except (*_ZARR_ERRORS, RuntimeError) as error:
        raise _unreadable(folder, error) from error


def _create_array(group: Any, name: str, plan: ArrayPlan) -> Any:
    rest = plan.shape[1:]
    return group.create_array(
        name,
        shape=plan.shape,
        dtype=plan.dtype,
        chunks=(plan.chunk_rows, *rest),
        shards=(plan.shard_rows, *rest) if _is_sharded(plan) else None,
        compressors=[{"name": "crc32c"}],
        fill_value=plan.fill,
        dimension_names=list(plan.dimensions),
        # Or zeros would be no file: a store of one image has no other image_index.
        config={"write_empty_chunks": True},
    )


def _is_sharded(plan: ArrayPlan) -> bool:
    return plan.chunk_rows != plan.shard_rows


def _read_group(features: Path) -> dict[str, Any]:
    """The group's zarr.json; raises FileNotFoundError, ValueError or TypeError."""
    group = json.loads(remote.read_bytes(features / _META))
    if not isinstance(group, dict) or group.get("node_type") != "group":
        raise ValueError("it does not describe a group")
    return group


def _library_array(folder: Path) -> Any:
    import zarr

    try:
        place: Any = folder
        if remote.is_remote(folder):
            options = dict(place.storage_options)
            place = zarr.storage.FsspecStore.from_url(str(folder), options, read_only=True)
        with remote.reaching(folder):
            return zarr.open_array(place, mode="r", zarr_format=3)
    except _ZARR_ERRORS as error:
        raise StoreError(f"{folder}: cannot be opened ({error})") from error
