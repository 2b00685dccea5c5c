"""The rows of a shard through a backbone: read ahead in threads, batched, put back in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.backbones.base import Backbone, Encoded, RegionBackbone
from hada.extract.errors import DatasetError, HadaError
from hada.extract.items import ImageItems
from hada.extract.progress import Advance
from hada.extract.store import Block

if TYPE_CHECKING:
    from hada.extract.runner import Report

# Decoded pictures waiting for the model, in batches: enough to never wait, little memory.
BATCHES_AHEAD = 2


class ImageEncoder:
    """Images of some rows -> one block; those that cannot be read become NaN rows."""

    def __init__(
        self,
        backbone: Backbone | RegionBackbone,
        items: ImageItems,
        pool: ThreadPoolExecutor,
        batch_size: int,
        report: Report,
        *,
        skip_failed: bool = True,
    ) -> None:
        self._spec, self._items, self._pool = backbone.spec, items, pool
        self._batch_size, self._report, self._skip_failed = batch_size, report, skip_failed

    def encode(self, rows: range, advance: Advance) -> Block:
        parts: list[Encoded] = []
        failed: dict[int, str] = {}
        for batch, inputs in self._inputs(rows):
            good = [item for item in inputs if not isinstance(item, str)]
            failed.update({r: i for r, i in zip(batch, inputs, strict=True) if isinstance(i, str)})
            if failed and not self._skip_failed:
                raise HadaError(f"--on-error fail: {next(iter(failed.values()))}")
            began = time.monotonic()
            encoded = self._items.encode(good) if good else None
            self._report.seconds["encode"] += time.monotonic() - began
            kept = np.array([not isinstance(item, str) for item in inputs])
            self._check_lengths(encoded, batch, kept)
            parts.append(self._with_gaps(encoded, batch, kept))
            advance(len(batch), f"{len(failed)} failed" if failed else "")
        self._report.images += len(rows)
        return _block(parts, failed)

    def _inputs(self, rows: range) -> Iterator[tuple[range, list[Any]]]:
        """Batches of what the backbone takes, or the reason why one could not be read."""
        batches = deque(
            rows[start : start + self._batch_size]
            for start in range(0, len(rows), self._batch_size)
        )
        waiting: deque[tuple[range, list[Future[Any]]]] = deque()
        while batches or waiting:
            while batches and len(waiting) <= BATCHES_AHEAD:
                batch = batches.popleft()
                waiting.append((batch, [self._pool.submit(self._read, row) for row in batch]))
            batch, futures = waiting.popleft()
            began = time.monotonic()
            inputs = [future.result() for future in futures]
            self._report.seconds["decode"] += time.monotonic() - began
            yield batch, inputs

    def _read(self, row: int) -> Any:
        try:
            return self._items.read(row)
        except DatasetError as error:
            return str(error)

    def _check_lengths(
        self, encoded: Encoded | None, batch: range, kept: NDArray[np.bool_]
    ) -> None:
        """Refuse tokens that would be stored as another image's."""
        if encoded is None or encoded.lengths is None:
            return
        declared = self._items.lengths[batch.start : batch.stop][kept]
        if not np.array_equal(encoded.lengths, declared):
            raise HadaError(
                f"model {self._spec.name!r} gave {encoded.lengths.tolist()} tokens for images "
                f"that it declared to have {declared.tolist()}: a fault of the backbone"
            )

    def _with_gaps(self, encoded: Encoded | None, batch: range, kept: NDArray[np.bool_]) -> Encoded:
        """Put NaN rows where images failed, so that every item has its place."""
        if encoded is not None and kept.all():
            return encoded
        spec, values, embeddings = self._spec, None, None
        if spec.image is not None:
            lengths = self._items.lengths[batch.start : batch.stop]
            values = np.full((int(lengths.sum()), spec.image.width), np.nan, np.float32)
            if encoded is not None and encoded.values is not None:
                values[np.repeat(kept, lengths)] = encoded.values
        if spec.embedding_width is not None:
            embeddings = np.full((len(kept), spec.embedding_width), np.nan, np.float32)
            if encoded is not None and encoded.embeddings is not None:
                embeddings[kept] = encoded.embeddings
        return Encoded(values=values, lengths=None, embeddings=embeddings)


class CaptionEncoder:
    """Tokenised captions of some rows -> one block, batched by length inside the shard."""

    def __init__(
        self,
        backbone: Backbone | RegionBackbone,
        ids: list[list[int]],
        batch_size: int,
        report: Report,
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


def _block(parts: list[Encoded], failed: dict[int, str]) -> Block:
    values = [part.values for part in parts if part.values is not None]
    embeddings = [part.embeddings for part in parts if part.embeddings is not None]
    return Block(
        values=np.concatenate(values) if values else None,
        embeddings=np.concatenate(embeddings) if embeddings else None,
        failed=failed,
    )
