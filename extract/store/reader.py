"""Reading a store: rows of tokens and embeddings, after its markers have been checked."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common import atomic, remote
from hada.extract.common.errors import StoreError, UsageError
from hada.extract.spec import SIDES, SideName, StoreSpec
from hada.extract.store import commit, dtypes, formats
from hada.extract.store.formats import Format
from hada.extract.store.index import StoreIndex, decode_ids, shard_count
from hada.extract.store.remote_row_reader import row_reader
from hada.extract.store.row_reader import RowReader

Rows = slice | NDArray[np.int64]


class SideReader:
    """The images, or the captions, of a store.

    ids: n ids in row order. lengths: (n,) int64 token rows of each item (zeros where the store
    keeps none). failed: (n,) bool, items that could not be encoded: their features are NaN.
    """

    def __init__(
        self,
        form: Format,
        features: Path,
        side: SideName,
        spec: StoreSpec,
        failed: set[int],
    ) -> None:
        self.side = side
        self._form, self._features, self._dtype = form, features, spec.dtype
        self._width = spec.model.embedding_width
        self.ids = decode_ids(form.whole(features, f"{side}/ids"))
        self.tokens_spec = spec.model.tokens(side)
        self.failed = np.zeros(len(self.ids), bool)
        if not all(0 <= row < len(self.ids) for row in failed):
            raise StoreError(
                f"{features.parent}: a marker calls {side} rows failed that the store has not. "
                "`hada-store repair` does not help here; start the store again with --fresh."
            )
        self.failed[sorted(failed)] = True
        self.lengths = self._lengths()

    def tokens(self, rows: Rows, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Token rows of the items asked for, item after item: (sum of lengths[rows], D).

        Args:
            rows: Items, in any order.
            out: An array of that shape and `dtype` to fill and return; a loop that recycles one
                saves the time that the system takes to hand out fresh memory.

        Raises:
            StoreError: The store keeps no tokens for this side, or is damaged.
        """
        if self.tokens_spec is None:
            raise StoreError(f"{self._features.parent}: keeps no {self.side} tokens")
        items = self._rows(rows)
        if self._dtype == "int8":
            return self._dequantized(items, out)
        if self.tokens_spec.count is None:
            return self._read(self._token_rows, self._spans[items], out)
        spans = np.stack([items, items + 1], axis=1)
        if out is not None:
            out = out.reshape(-1, self.tokens_spec.count, self.tokens_spec.width)
        return self._read(self._token_rows, spans, out).reshape(-1, self.tokens_spec.width)

    def embeddings(self, rows: Rows | None = None) -> NDArray[Any] | None:
        """(n, E) embeddings as the backbone gave them; None where the model has no joint space."""
        if self._embedding_rows is None:
            return None
        items = self._rows(slice(None) if rows is None else rows)
        return self._read(self._embedding_rows, np.stack([items, items + 1], axis=1), None)

    def _dequantized(self, items: NDArray[np.int64], out: NDArray[Any] | None) -> NDArray[Any]:
        """Codes times steps; see `dtypes`."""
        assert self.tokens_spec is not None
        one = np.stack([items, items + 1], axis=1)
        spans = self._spans[items] if self.tokens_spec.count is None else one
        codes = self._token_rows.ranges(spans).reshape(-1, self.tokens_spec.width)
        steps = self._step_rows.ranges(spans).reshape(-1, 1)
        values: NDArray[np.float32] = np.multiply(codes, steps, out=out, dtype=np.float32)
        return values

    @property
    def dtype(self) -> np.dtype[Any]:
        """What `tokens` returns: as stored, but bfloat16 and int8 are widened to float32."""
        return dtypes.in_memory(self._dtype)

    def _rows(self, rows: Rows) -> NDArray[np.int64]:
        return np.arange(len(self.ids), dtype=np.int64)[rows]

    def _read(
        self, reader: RowReader, spans: NDArray[np.int64], out: NDArray[Any] | None
    ) -> NDArray[Any]:
        if reader.dtype == self.dtype:
            return reader.ranges(spans, out)
        values = dtypes.decode(reader.ranges(spans), dtypes.of_embeddings(self._dtype))
        if out is None:
            return values
        out[...] = values
        return out

    def _lengths(self) -> NDArray[np.int64]:
        if self.tokens_spec is None:
            return np.zeros(len(self.ids), np.int64)
        if self.tokens_spec.count is not None:
            return np.full(len(self.ids), self.tokens_spec.count, np.int64)
        return np.asarray(self._spans[:, 1] - self._spans[:, 0])

    @functools.cached_property
    def _spans(self) -> NDArray[np.int64]:
        spans = self._form.whole(self._features, f"{self.side}/spans")
        ordered = spans.shape == (len(self.ids), 2) and bool(
            (spans[:, 0] >= 0).all()
            and (spans[:, 0] <= spans[:, 1]).all()
            and (spans[:, 1] <= self._token_rows.shape[0]).all()
        )
        if not ordered:
            raise StoreError(
                f"{self._features}: {self.side}/spans name rows that {self.side}/tokens has not. "
                "Start the store again with --fresh."
            )
        return spans

    @functools.cached_property
    def _token_rows(self) -> RowReader:
        assert self.tokens_spec is not None
        count, width = self.tokens_spec.count, self.tokens_spec.width
        shape = (width,) if count is None else (count, width)
        stored = dtypes.on_disk(self._dtype)
        return self._array("tokens", shape, None if count is None else len(self.ids), stored)

    @functools.cached_property
    def _step_rows(self) -> RowReader:
        """int8's steps, one for each token row."""
        assert self.tokens_spec is not None
        count = self.tokens_spec.count
        shape = (1,) if count is None else (count, 1)
        rows = self._token_rows.shape[0]
        return self._array("steps", shape, rows, "float32")

    @functools.cached_property
    def _embedding_rows(self) -> RowReader | None:
        if self._width is None or not self._form.has(self._features, f"{self.side}/embeddings"):
            return None
        stored = dtypes.on_disk(dtypes.of_embeddings(self._dtype))
        return self._array("embeddings", (self._width,), len(self.ids), stored)

    def _array(self, name: str, row: tuple[int, ...], rows: int | None, stored: str) -> RowReader:
        """An array, whose shape must be what the spec says: its own metadata has no checksum."""
        reader = row_reader(self._form.source(self._features, f"{self.side}/{name}"))
        dtype = np.dtype(stored)
        fits = reader.shape[1:] == row and rows in (None, reader.shape[0]) and reader.dtype == dtype
        if not fits:
            raise StoreError(
                f"{self._features}: {self.side}/{name}: expected ({rows or 'rows'}, "
                f"{', '.join(map(str, row))}) {dtype}, got {reader.shape} {reader.dtype}. "
                "Start the store again with --fresh."
            )
        return reader


class StoreReader:
    """A complete store, open for reading. Make one with `open_store`.

    Threads may share it. It pickles without its open files, so a worker that is sent one opens
    its own.
    """

    def __init__(
        self,
        folder: Path,
        spec: StoreSpec,
        form: Format,
        features: Path,
        failed: dict[SideName, set[int]],
    ) -> None:
        self.path, self.spec = folder, spec
        self.format = form.name
        self.image = SideReader(form, features, "image", spec, failed["image"])
        self.caption = SideReader(form, features, "caption", spec, failed["caption"])
        self.caption_to_image: NDArray[np.int64] = form.whole(features, "caption/image_index")
        captions, images = len(self.caption.ids), len(self.image.ids)
        owners = self.caption_to_image
        if owners.shape != (captions,) or ((owners < 0) | (owners >= images)).any():
            raise StoreError(
                f"{features}: caption/image_index names images that the store has not. "
                "Start the store again with --fresh."
            )

    def side(self, name: SideName) -> SideReader:
        """`image` or `caption`, by name."""
        return self.image if name == "image" else self.caption

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f"StoreReader({spec.model.name} on {spec.dataset}/{spec.split}: "
            f"{len(self.image.ids)} images, {len(self.caption.ids)} captions)"
        )


def open_store(path: str | Path) -> StoreReader:
    """Open a finished store.

    Raises:
        StoreError: There is none, it is incomplete or damaged; the message says what to do.
    """
    folder = remote.place(path)
    form, features = locate(folder)
    spec = read_spec(folder)
    markers = _markers(form, folder, features, spec)
    status = _status(features, spec, markers)
    missing = {side: [k for k, state in status[side].items() if state] for side in SIDES}
    if any(missing.values()):
        total = sum(len(status[side]) for side in SIDES)
        gone = sum(map(len, missing.values()))
        side = next(side for side in SIDES if missing[side])
        first = status[side][missing[side][0]]
        raise StoreError(
            f"{folder}: {gone} of {total} shards are missing or damaged "
            f"({side} shard {missing[side][0]}: {first}). Run again: hada-extract "
            f"--dataset {spec.dataset} --split {spec.split} --model {spec.model.name}"
        )
    failed: dict[SideName, set[int]] = {side: set() for side in SIDES}
    for (side, _), marker in markers.items():
        if isinstance(marker, commit.Marker):
            failed[side].update(marker.failed)
    return StoreReader(folder, spec, form, features, failed)


def locate(folder: Path) -> tuple[Format, Path]:
    """The format of a store and the folder of its features. Raises `StoreError` without one."""
    found = formats.find(folder)
    if found is None and not remote.is_remote(folder) and folder.is_symlink():
        raise UsageError(atomic.not_a_folder(folder))
    if found is None:
        raise StoreError(
            f"{folder}: there is no feature store. Make it first: hada-extract "
            f"--model {folder.name} --split {folder.parent.name} "
            f"--dataset {folder.parent.parent.name}"
        )
    return found


def stores_below(folder: Path) -> list[Path]:
    """The stores in a folder, by name; what is being made there, or was left by a kill, is none."""
    places = sorted(folder.iterdir()) if folder.exists() else []
    return [
        path
        for path in places
        if path.is_dir()
        and not path.name.startswith(".")
        and not atomic.is_temporary(path.name)
        and formats.find(path) is not None
    ]


def read_spec(folder: Path) -> StoreSpec:
    """What a store holds, complete or not. Raises `StoreError` where there is none."""
    form, features = locate(folder)
    raw = form.attributes(features).get("hada")
    if not isinstance(raw, dict):
        raise StoreError(f"{features}: holds arrays, but not ones that HADA wrote")
    return StoreSpec.from_json(raw)


def shard_status(
    folder: Path, spec: StoreSpec, *, deep: bool = False
) -> dict[SideName, dict[int, str | None]]:
    """For every shard of both sides: what is wrong with it, None where nothing is."""
    form, features = locate(folder)
    return _status(features, spec, _markers(form, folder, features, spec), deep=deep)


Markers = dict[tuple[SideName, int], commit.Marker | StoreError | None]


def _markers(form: Format, folder: Path, features: Path, spec: StoreSpec) -> Markers:
    ids = {side: decode_ids(form.whole(features, f"{side}/ids")) for side in SIDES}
    empty = StoreIndex(ids=ids, caption_to_image=np.zeros(0, np.int64), lengths={})
    shards = [(side, shard) for side in SIDES for shard in range(shard_count(spec, empty, side))]
    return commit.read_markers(folder, shards)


def _status(
    features: Path, spec: StoreSpec, markers: Markers, *, deep: bool = False
) -> dict[SideName, dict[int, str | None]]:
    digest, sizes = spec.digest(), commit.listed_sizes(features)
    status: dict[SideName, dict[int, str | None]] = {side: {} for side in SIDES}
    for (side, shard), marker in markers.items():
        if isinstance(marker, StoreError):
            status[side][shard] = str(marker)
        elif marker is None:
            status[side][shard] = "not written yet"
        else:
            status[side][shard] = commit.damage(features, marker, digest, deep=deep, sizes=sizes)
    return status
