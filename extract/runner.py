"""Run one backbone over one split: read, encode, write, commit, shard by shard.

The only loop in which a backbone runs. It receives its parts, so a test drives it with a fake
backbone and a three-picture dataset. What a batch holds depends on the shard alone, so a run that
was killed and continued ends with the bytes of an undisturbed one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hada.extract import images
from hada.extract.backbones.base import Backbone, Encoded
from hada.extract.captions import CaptionDataset
from hada.extract.errors import HadaError
from hada.extract.planning import store_index, store_spec
from hada.extract.progress import Advance, progress
from hada.extract.spec import SIDES, SideName
from hada.extract.store import Block, StoreWriter
from hada.extract.store.space import plan_size

# Decoded pictures waiting for the model, in batches: enough to never wait, little memory.
BATCHES_AHEAD = 2


@dataclass
class Report:
    """What one run did, for the person who started it and for tests.

    `images` and `captions` were encoded now, the rest of the totals lay there already. `seconds`
    splits the wall time: waiting for decoded pictures, encoding, writing.
    """

    store: Path
    total_images: int = 0
    total_captions: int = 0
    images: int = 0
    captions: int = 0
    skipped_shards: int = 0
    busy_shards: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    wall_seconds: float = 0.0
    seconds: dict[str, float] = field(
        default_factory=lambda: {"decode": 0.0, "encode": 0.0, "write": 0.0}
    )
    side_seconds: dict[SideName, float] = field(
        default_factory=lambda: {"image": 0.0, "caption": 0.0}
    )
    bytes: int = 0


def run(
    backbone: Backbone,
    dataset: CaptionDataset,
    path: str | Path,
    *,
    dtype: str = "float16",
    batch_size: int = 32,
    decoders: int = 2,
    rows_per_shard: dict[SideName, int] | None = None,
    format: str | None = None,  # noqa: A002
    allow_mismatch: Collection[str] = (),
    force: bool = False,
) -> Report:
    """Fill the store at `path` with what is not there yet.

    Args:
        backbone: The frozen model.
        dataset: One split.
        path: The store's folder; created, or continued where it fits.
        dtype: What the disk holds: "float16", "float32" or "bfloat16".
        batch_size: Items per forward pass.
        decoders: Threads that decode and preprocess pictures.
        rows_per_shard: Items per shard for both sides; the defaults suit real models.
        format: "zarr" or "hdf5"; None goes on with what is there, and makes Zarr otherwise.
        allow_mismatch: Fields in which a store that is there may differ from what is asked for.
        force: Begin even where the disk has not the room for all of it.

    Raises:
        StoreMismatchError: The store there holds other features.
        StoreError: The disk has not the room.
        HadaError: Not one picture could be read.
    """
    started = time.monotonic()
    ids = backbone.tokenize(dataset.captions)
    spec = store_spec(backbone, dataset, dtype=dtype, rows_per_shard=rows_per_shard)
    index = store_index(backbone, dataset, ids)
    space = plan_size(path, spec, index)
    if not space.present:
        space.check(force=force)
    writer = StoreWriter.open(path, spec, index, format=format, allow_mismatch=allow_mismatch)
    # A store that is complete needs no room, however full the disk has become.
    if any(writer.pending(side) for side in SIDES):
        space.check(force=force)
    report = Report(
        store=writer.folder,
        total_images=len(dataset.image_ids),
        total_captions=len(dataset.caption_ids),
    )
    label = f"{spec.model.name} on {spec.dataset}/{spec.split}"
    with ThreadPoolExecutor(decoders, thread_name_prefix="decode") as pool:
        encoders: dict[SideName, _ImageEncoder | _CaptionEncoder] = {
            "image": _ImageEncoder(backbone, dataset, pool, batch_size, report),
            "caption": _CaptionEncoder(backbone, ids, batch_size, report),
        }
        for side in SIDES:
            began = time.monotonic()
            _run_side(writer, side, encoders[side], f"{label}: {side}s", report, batch_size)
            report.side_seconds[side] = time.monotonic() - began
    _finish(writer, dataset, report)
    report.wall_seconds = time.monotonic() - started
    return report


class _ImageEncoder:
    """Pictures of some rows -> one block; pictures that cannot be read become NaN rows."""

    def __init__(
        self,
        backbone: Backbone,
        dataset: CaptionDataset,
        pool: ThreadPoolExecutor,
        batch_size: int,
        report: Report,
    ) -> None:
        self._backbone, self._paths, self._pool = backbone, dataset.image_paths, pool
        self._batch_size, self._report = batch_size, report

    def encode(self, rows: range, advance: Advance) -> Block:
        parts: list[Encoded] = []
        failed: dict[int, str] = {}
        for batch, pixels in self._decoded(rows):
            good = [p for p in pixels if not isinstance(p, str)]
            failed.update({r: p for r, p in zip(batch, pixels, strict=True) if isinstance(p, str)})
            began = time.monotonic()
            encoded = self._backbone.encode_images(np.stack(good)) if good else None
            self._report.seconds["encode"] += time.monotonic() - began
            parts.append(self._with_gaps(encoded, [not isinstance(p, str) for p in pixels]))
            advance(len(batch), f"{len(failed)} failed" if failed else "")
        self._report.images += len(rows)
        return _block(parts, failed)

    def _decoded(self, rows: range) -> Iterator[tuple[range, list[NDArray[np.float32] | str]]]:
        """Batches of preprocessed pictures, or the reason why one could not be read."""
        batches = deque(
            rows[start : start + self._batch_size]
            for start in range(0, len(rows), self._batch_size)
        )
        waiting: deque[tuple[range, list[Future[NDArray[np.float32] | str]]]] = deque()
        while batches or waiting:
            while batches and len(waiting) <= BATCHES_AHEAD:
                batch = batches.popleft()
                waiting.append((batch, [self._pool.submit(self._read, row) for row in batch]))
            batch, futures = waiting.popleft()
            began = time.monotonic()
            pixels = [future.result() for future in futures]
            self._report.seconds["decode"] += time.monotonic() - began
            yield batch, pixels

    def _read(self, row: int) -> NDArray[np.float32] | str:
        try:
            return self._backbone.preprocess(images.open_image(self._paths[row]))
        except images.ImageError as error:
            return str(error)

    def _with_gaps(self, encoded: Encoded | None, good: list[bool]) -> Encoded:
        """Put NaN rows where pictures failed, so that every item has its place."""
        if encoded is not None and all(good):
            return encoded
        spec, n = self._backbone.spec, len(good)
        values = embeddings = None
        if spec.image is not None:
            count = spec.image.count or 0
            tokens = np.full((n, count, spec.image.width), np.nan, np.float32)
            if encoded is not None and encoded.values is not None:
                tokens[good] = encoded.values.reshape(-1, count, spec.image.width)
            values = tokens.reshape(-1, spec.image.width)
        if spec.embedding_width is not None:
            embeddings = np.full((n, spec.embedding_width), np.nan, np.float32)
            if encoded is not None and encoded.embeddings is not None:
                embeddings[good] = encoded.embeddings
        return Encoded(values=values, lengths=None, embeddings=embeddings)


class _CaptionEncoder:
    """Tokenised captions of some rows -> one block, batched by length inside the shard."""

    def __init__(
        self, backbone: Backbone, ids: list[list[int]], batch_size: int, report: Report
    ) -> None:
        self._backbone, self._ids = backbone, ids
        self._batch_size, self._report = batch_size, report

    def encode(self, rows: range, advance: Advance) -> Block:
        # Captions of one length need no padding, which is most of the work on short ones.
        order = sorted(rows, key=lambda row: (len(self._ids[row]), row))
        values: dict[int, NDArray[np.float32]] = {}
        embeddings: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            began = time.monotonic()
            encoded = self._backbone.encode_captions([self._ids[row] for row in batch])
            self._report.seconds["encode"] += time.monotonic() - began
            if encoded.values is not None and encoded.lengths is not None:
                pieces = np.split(encoded.values, np.cumsum(encoded.lengths)[:-1])
                values.update(zip(batch, pieces, strict=True))
            if encoded.embeddings is not None:
                embeddings.update(zip(batch, encoded.embeddings, strict=True))
            advance(len(batch))
        self._report.captions += len(rows)
        return Block(
            values=np.concatenate([values[row] for row in rows]) if values else None,
            embeddings=np.stack([embeddings[row] for row in rows]) if embeddings else None,
        )


def _run_side(
    writer: StoreWriter,
    side: SideName,
    encoder: _ImageEncoder | _CaptionEncoder,
    label: str,
    report: Report,
    batch_size: int,
) -> None:
    total = writer.index.count(side)
    pending = writer.pending(side)
    report.skipped_shards += writer.shards(side) - len(pending)
    left = sum(len(writer.rows(side, shard)) for shard in pending)
    if not pending:
        return
    with progress(label, total, f"{side}s", done=total - left) as advance:
        for shard in pending:
            with writer.claim(side, shard) as mine:
                if not mine:
                    report.busy_shards += not writer.is_done(side, shard)
                    continue
                block = encoder.encode(writer.rows(side, shard), advance)
                began = time.monotonic()
                writer.write(side, shard, replace(block, provenance={"batch_size": batch_size}))
                report.seconds["write"] += time.monotonic() - began


def _block(parts: list[Encoded], failed: dict[int, str]) -> Block:
    values = [part.values for part in parts if part.values is not None]
    embeddings = [part.embeddings for part in parts if part.embeddings is not None]
    return Block(
        values=np.concatenate(values) if values else None,
        embeddings=np.concatenate(embeddings) if embeddings else None,
        failed=failed,
    )


def _finish(writer: StoreWriter, dataset: CaptionDataset, report: Report) -> None:
    writer.finish()
    failures = writer.failures("image")
    report.failures = {dataset.image_ids[row]: failures[row] for row in sorted(failures)}
    if failures and len(failures) == len(dataset.image_ids):
        first = next(iter(report.failures.items()))
        raise HadaError(
            f"{report.store}: none of {len(failures)} pictures could be read; "
            f"the first, {first[0]!r}: {first[1]}"
        )
    report.bytes = sum(file.stat().st_size for file in report.store.rglob("*") if file.is_file())
