"""The rows of shards through a backbone, in batches that depend on the shard alone.

Batches follow one another across shards without a pause. Where a backbone answers before its
arrays have left the device (`Encoded.arriving`), the next batch is given to it before the last
one's arrays are read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.backbones.base import Backbone, Encoded, RegionBackbone
from hada.extract.common.errors import HadaError
from hada.extract.common.progress import Advance
from hada.extract.engine.decode import Reader, read_ahead
from hada.extract.engine.items import ImageItems
from hada.extract.engine.token_ids import TokenIds
from hada.extract.spec import SideName
from hada.extract.store import Block

if TYPE_CHECKING:
    from hada.extract.engine.report import Report


@dataclass
class Shard:
    """A shard that is ours to write: its rows, the claim on it, and its features so far."""

    side: SideName
    number: int
    rows: range
    claim: ExitStack
    values: NDArray[np.float32] | None = None
    embeddings: NDArray[np.float32] | None = None
    failed: dict[int, str] = field(default_factory=dict)

    def block(self, **provenance: Any) -> Block:
        """What there is to be written."""
        return Block(
            values=self.values,
            embeddings=self.embeddings,
            failed=self.failed,
            provenance=provenance,
        )


@dataclass
class _Batch:
    """Some rows of a shard: `encode` runs those of them in `kept`; None where none can be."""

    shard: Shard
    rows: Sequence[int]
    kept: Sequence[int]
    encode: Callable[[], Encoded] | None
    last: bool


def encode_images(
    backbone: Backbone | RegionBackbone,
    items: ImageItems,
    reader: Reader,
    shards: Iterator[Shard],
    batch_size: int,
    report: Report,
    advance: Advance,
    *,
    skip_failed: bool = True,
) -> Iterator[Shard]:
    """The shards, filled; images that cannot be read become NaN rows.

    Args:
        backbone: The model.
        items: The image side of the data set.
        reader: Reads and decodes them.
        shards: Empty shards, in the order in which they are wanted.
        batch_size: Images at a time; batches do not cross shards.
        report: Counts and timings are added to it.
        advance: Is called with the number of items done, for progress.
        skip_failed: Whether an image that cannot be read is left out; else it ends the extraction.

    Raises:
        HadaError: An image cannot be read and `skip_failed` is False, or the backbone gives another
            number of tokens than it declared.
    """

    def cut() -> Iterator[tuple[Shard, range]]:
        for shard in shards:
            for start in range(0, len(shard.rows), batch_size):
                yield shard, shard.rows[start : start + batch_size]

    def batches() -> Iterator[_Batch]:
        for shard, rows, inputs in read_ahead(reader, cut(), report):
            reasons = {r: i for r, i in zip(rows, inputs, strict=True) if isinstance(i, str)}
            if reasons and not skip_failed:
                raise HadaError(f"--on-error fail: {next(iter(reasons.values()))}")
            shard.failed.update(reasons)
            good: Any = (
                [item for item in inputs if not isinstance(item, str)] if reasons else inputs
            )
            yield _Batch(
                shard,
                rows,
                [row for row in rows if row not in reasons] if reasons else rows,
                partial(items.encode, good) if len(good) else None,
                last=rows.stop == shard.rows.stop,
            )

    return _encode(backbone, batches(), items.lengths, report, advance)


def encode_captions(
    backbone: Backbone | RegionBackbone,
    ids: TokenIds,
    shards: Iterator[Shard],
    batch_size: int,
    report: Report,
    advance: Advance,
    lengths: NDArray[np.int64],
) -> Iterator[Shard]:
    """The shards, filled; captions are batched by length inside each.

    Args:
        backbone: The model.
        ids: The tokens of every caption of the data set.
        shards: Empty shards, in the order in which they are wanted.
        batch_size: Captions at a time; batches do not cross shards.
        report: Counts and timings are added to it.
        advance: Is called with the number of items done, for progress.
        lengths: (T,) token rows that the store has for each caption.
    """

    def batches() -> Iterator[_Batch]:
        for shard in shards:
            # Captions of one length need no padding, which is most of the work on short ones.
            order = sorted(shard.rows, key=lambda row: (ids.length(row), row))
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                yield _Batch(
                    shard,
                    rows,
                    rows,
                    partial(backbone.encode_captions, [ids[row] for row in rows]),
                    last=start + batch_size >= len(order),
                )

    return _encode(backbone, batches(), lengths, report, advance)


def _encode(
    backbone: Backbone | RegionBackbone,
    batches: Iterator[_Batch],
    lengths: NDArray[np.int64],
    report: Report,
    advance: Advance,
) -> Iterator[Shard]:
    """Run the batches, and yield each shard when its last batch has arrived."""
    launched: deque[tuple[_Batch, Encoded | None]] = deque()
    clock = backbone.clock

    def collect() -> Iterator[Shard]:
        batch, encoded = launched.popleft()
        if encoded is not None:
            began = time.monotonic()
            waited = encoded.wait()
            report.seconds["transfer"] += waited
            report.seconds["forward"] += time.monotonic() - began - waited
            _place(backbone, batch, encoded, lengths)
        failed = len(batch.shard.failed)
        advance(len(batch.rows), f"{failed} failed" if failed else "")
        if batch.last:
            yield batch.shard

    for batch in batches:
        if batch.shard.values is None and batch.shard.embeddings is None:
            _make_room(backbone, batch.shard, lengths)
        began, sent = time.monotonic(), clock.get("transfer", 0.0)
        encoded = batch.encode() if batch.encode else None
        sent = clock.get("transfer", 0.0) - sent
        report.seconds["transfer"] += sent
        report.seconds["forward"] += time.monotonic() - began - sent
        launched.append((batch, encoded))
        ahead = 1 if encoded is not None and encoded.arriving else 0
        while len(launched) > ahead:
            yield from collect()
    while launched:
        yield from collect()


def _make_room(
    backbone: Backbone | RegionBackbone, shard: Shard, lengths: NDArray[np.int64]
) -> None:
    """The shard's arrays, NaN until features come."""
    spec, rows = backbone.spec, shard.rows
    tokens = spec.tokens(shard.side)
    if tokens is not None:
        total = int(lengths[rows.start : rows.stop].sum())
        shard.values = np.full((total, tokens.width), np.nan, np.float32)
    if spec.embedding_width is not None:
        shard.embeddings = np.full((len(rows), spec.embedding_width), np.nan, np.float32)


def _place(
    backbone: Backbone | RegionBackbone,
    batch: _Batch,
    encoded: Encoded,
    lengths: NDArray[np.int64],
) -> None:
    """Put a batch's features where their rows are in the shard."""
    shard, kept = batch.shard, np.asarray(batch.kept)
    if encoded.lengths is not None and not np.array_equal(encoded.lengths, lengths[kept]):
        # They would be stored as another item's.
        raise HadaError(
            f"model {backbone.spec.name!r} gave {encoded.lengths.tolist()} tokens for "
            f"{shard.side}s that it declared to have {lengths[kept].tolist()}: "
            "a fault of the backbone"
        )
    if encoded.embeddings is not None and shard.embeddings is not None:
        shard.embeddings[kept - shard.rows.start] = encoded.embeddings
    if encoded.values is None or shard.values is None:
        return
    ends = np.cumsum(lengths[shard.rows.start : shard.rows.stop])
    starts = (ends - lengths[shard.rows.start : shard.rows.stop])[kept - shard.rows.start]
    taken = np.concatenate([[0], np.cumsum(lengths[kept])])
    if kept[-1] - kept[0] + 1 == len(kept) and np.all(np.diff(kept) == 1):
        shard.values[starts[0] : starts[0] + taken[-1]] = encoded.values
        return
    for start, first, end in zip(starts, taken[:-1], taken[1:], strict=True):
        shard.values[start : start + end - first] = encoded.values[first:end]
