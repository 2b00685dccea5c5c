"""The HDF5 half of the store: part files, one per side and shard, and one file for the index.

    features.hdf5/
        index.h5             ids, spans, image_index; attributes `hada` and `arrays` as JSON
        image/000000.h5      tokens, embeddings of one shard; crc32c/<array>: one per chunk

HDF5's own checksum (fletcher32) is slower than reading, so a crc32c of each chunk lies beside,
and chunks are read by byte range. Every file is written beside, closed, synced and renamed: a
killed writer leaves no file that HDF5 cannot open. Parts know nothing of each other.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hada.extract.common import atomic
from hada.extract.common.errors import StoreError
from hada.extract.store.chunks import MISSING, RawShard
from hada.extract.store.dtypes import fill_bytes, number_type
from hada.extract.store.formats import SHARDED, ArrayPlan, Written
from hada.extract.store.hdf5_part import (
    CRC,
    READ_ERRORS,
    add_dataset,
    chunk_count,
    chunk_layout,
    compare_part,
    create_file,
    fill_part,
    read_through,
)
from hada.extract.store.open_file import OpenFile, identity

_MOST_ROWS = 2**48  # more than any disk holds
_INDEX = "index.h5"


class Hdf5Format:
    """See `formats.Format`."""

    name = "hdf5"

    def create(
        self,
        features: Path,
        plans: Mapping[str, ArrayPlan],
        small: Mapping[str, NDArray[Any]],
        attributes: Mapping[str, Any],
    ) -> None:
        features.mkdir(parents=True)
        image = io.BytesIO()
        with create_file(image) as file:
            file.attrs["arrays"] = json.dumps({n: _plan_json(p) for n, p in plans.items()})
            for key, value in attributes.items():
                file.attrs[key] = json.dumps(value, sort_keys=True)
            for name, values in small.items():
                add_dataset(file, name, values, max(1, len(values)), 0)
        atomic.write_new(features / _INDEX, image.getvalue())
        for side in {name.partition("/")[0] for name in plans}:
            (features / side).mkdir()
            atomic.sync(features / side)
        atomic.sync(features)

    def write_shard(
        self,
        features: Path,
        side: str,
        shard: int,
        arrays: Mapping[str, tuple[ArrayPlan, NDArray[Any]]],
    ) -> Written:
        path = _part(features, side, shard)
        with atomic.writing(path, silent=True, tidy=False) as sink:
            # In a thread, where Ctrl-C cannot come between: HDF5 would end in the middle of it.
            with ThreadPoolExecutor(1, thread_name_prefix="hdf5") as pool:
                tables = pool.submit(fill_part, sink, arrays).result()
            # What did not arrive is known here, before anything is read back.
            sink.check()
            temporary = atomic.temporary_name(path)
            # The disk is at work while what was written is compared.
            with ThreadPoolExecutor(1) as pool:
                synced = pool.submit(sink.sync)
                written = compare_part(temporary, arrays)
                synced.result()
        return Written(files={str(path.relative_to(features)): written}, crcs=tables)

    def read_shard(
        self,
        features: Path,
        side: str,
        shard: int,
        metadata: Mapping[str, Any],
        sizes: Mapping[str, int] | None = None,
    ) -> Written:
        path = _part(features, side, shard)
        relative, opened, raws = str(path.relative_to(features)), OpenFile(path), {}
        for name, described in metadata.items():
            try:
                raws[name] = Hdf5Source(features, name, described).whole(shard)
            except READ_ERRORS as error:
                raise ValueError(f"{relative}, {name}: {error}") from error
        places = [(o, raw.chunk_bytes) for raw in raws.values() for o in raw.offsets.tolist()]
        digest, found = read_through(opened, places)
        crcs, begin = {}, 0
        for name, raw in raws.items():
            crcs[name] = np.array(found[begin : begin + len(raw.offsets)], np.uint32)
            begin += len(raw.offsets)
            assert raw.crcs is not None
            for chunk in np.flatnonzero(crcs[name] != raw.crcs)[:1].tolist():
                raise ValueError(
                    f"{relative}, {name}: chunk {chunk} has the crc32c {crcs[name][chunk]:08x}, "
                    f"expected {raw.crcs[chunk]:08x}"
                )
        return Written(files={relative: (opened.identity[1], digest)}, crcs=crcs)

    def shard_files(self, side: str, shard: int, arrays: Mapping[str, int]) -> set[str]:
        return {f"{side}/{shard:06d}.h5"} if arrays else set()

    def attributes(self, features: Path) -> dict[str, Any]:
        with _open(features / _INDEX) as file:
            return {key: json.loads(file.attrs[key]) for key in file.attrs if key != "arrays"}

    def set_attributes(self, features: Path, attributes: Mapping[str, Any]) -> None:
        # A copy, because an HDF5 file that is changed in place can be lost; and in memory, where
        # no write fails.
        image = io.BytesIO((features / _INDEX).read_bytes())
        with h5py.File(image, "r+", libver="v110") as file:
            for key in set(file.attrs) - {"arrays"}:
                del file.attrs[key]
            for key, value in attributes.items():
                file.attrs[key] = json.dumps(value, sort_keys=True)
        atomic.write_bytes(features / _INDEX, image.getvalue())

    def arrays(self, features: Path) -> set[str]:
        with _open(features / _INDEX) as file:
            found = set(json.loads(file.attrs["arrays"]))
            file.visititems(lambda name, item: _note(found, name, item))
        return found

    def metadata(self, features: Path, names: Collection[str]) -> dict[str, Any]:
        with _open(features / _INDEX) as file:
            described = json.loads(file.attrs["arrays"])
            found: dict[str, Any] = {"": {}}
            for name in names:
                if name.rpartition("/")[2] in SHARDED:
                    found[name] = described[name]
                else:
                    shape, dtype = file[name].shape, file[name].dtype
                    found[name] = {"shape": list(shape), "dtype": dtype.newbyteorder("<").str}
        return found

    def whole(
        self, features: Path, names: Collection[str], metadata: Mapping[str, Any] | None = None
    ) -> dict[str, NDArray[Any]]:
        with _open(features / _INDEX) as file:
            return {name: np.asarray(file[name][...]) for name in names}

    def source(self, features: Path, name: str, metadata: Any = None) -> Hdf5Source:
        return Hdf5Source(features, name, metadata)

    def index_files(self, features: Path, names: Mapping[str, int]) -> set[str]:
        return {_INDEX}

    def files(self, features: Path, side: str, shard: int) -> list[Path]:
        part = _part(features, side, shard)
        return sorted(part.parent.glob(f"{part.name}*"))


class Hdf5Source:
    """See `formats.ArraySource`."""

    def __init__(self, features: Path, name: str, metadata: Any = None) -> None:
        self.name = f"{features / name}"
        self._features, self._array = features, name
        if metadata is None:
            with _open(features / _INDEX) as file:
                metadata = json.loads(file.attrs["arrays"])[name]
        plan = _read_plan(metadata)
        self._plan = plan
        self.shape, self.dtype, self.fill = plan.shape, np.dtype(plan.dtype), plan.fill
        self.shard_rows = plan.shard_rows

    def raw(self, shard: int) -> RawShard | None:
        side, _, name = self._array.partition("/")
        path = _part(self._features, side, shard)
        before = os.stat(path)
        with h5py.File(path, "r", locking=False) as file:
            crcs = file.get(f"{CRC}/{name}")
            found = chunk_layout(self._plan, file[name], crcs, before.st_size)
        if found is None:
            return None
        rows, offsets, crcs = found
        return RawShard(
            path=path,
            offsets=offsets,
            crcs=crcs,
            chunk_bytes=rows * self._plan.row_bytes,
            row_bytes=self._plan.row_bytes,
            fill=fill_bytes(self.fill, self.dtype),
            identity=identity(before),
        )

    def whole(self, shard: int) -> RawShard:
        """`raw` of a committed shard; raises ValueError where a chunk of it is not there."""
        raw = self.raw(shard)
        if raw is None or raw.crcs is None or (raw.offsets == MISSING).any():
            raise ValueError("its chunks are not as HADA writes them")
        return raw

    def library(self, start: int, stop: int) -> NDArray[Any]:
        side, _, name = self._array.partition("/")
        out = np.full((stop - start, *self.shape[1:]), self.fill, self.dtype)
        step = self.shard_rows
        for shard in range(start // step, -(-stop // step)):
            first, last = max(start, shard * step), min(stop, (shard + 1) * step)
            with h5py.File(_part(self._features, side, shard), "r", locking=False) as file:
                data = file[name]
                rows = data[first - shard * step : last - shard * step]
                # One that was lost reads as if it had never been written.
                if data.chunks is not None and data.id.get_num_chunks() < chunk_count(data):
                    raise ValueError("some of its chunks are missing")
            out[first - start : first - start + len(rows)] = rows
        return out


def _note(found: set[str], name: str, item: Any) -> None:
    if isinstance(item, h5py.Dataset):
        found.add(name)


def _part(features: Path, side: str, shard: int) -> Path:
    return features / side / f"{shard:06d}.h5"


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except READ_ERRORS as error:
        raise StoreError(
            f"{path}: cannot be read ({error}). What a store knows before its first feature "
            "cannot be mended: start it again with --fresh."
        ) from error


def _plan_json(plan: ArrayPlan) -> dict[str, Any]:
    value = dict(vars(plan))
    # JSON has no NaN.
    return value | {"fill": None if np.isnan(plan.fill) else plan.fill}


def _read_plan(value: Any) -> ArrayPlan:
    """Back from `_plan_json`; raises `StoreError` for what no writer of ours can have written."""
    try:
        tuples = {key: tuple(value[key]) for key in ("shape", "dimensions")}
        fill = np.nan if value["fill"] is None else float(value["fill"])
        plan = ArrayPlan(**(value | tuples | {"fill": fill}))
        sizes = (*plan.shape, plan.chunk_rows, plan.shard_rows)
        whole = all(type(size) is int and 0 <= size < _MOST_ROWS for size in sizes)
        if not whole or not plan.shape or min(plan.chunk_rows, plan.shard_rows) < 1:
            raise ValueError(f"sizes {sizes}")
        number_type(plan.dtype)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise StoreError(f"{_INDEX}: the description of an array is damaged ({error})") from error
    return plan
