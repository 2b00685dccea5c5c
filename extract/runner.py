"""Run one backbone over one split: read, encode, write, commit, shard by shard.

The only loop in which a backbone runs. It receives its parts, so a test drives it with a fake
backbone and a three-picture dataset. What a batch holds depends on the shard alone, so a run that
was killed and continued ends with the bytes of an undisturbed one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hada.extract import atomic, remote
from hada.extract.backbones.base import Backbone, RegionBackbone
from hada.extract.batching import BatchSizes, is_out_of_memory, release_memory
from hada.extract.captions import CaptionDataset
from hada.extract.console import say
from hada.extract.encoders import Shard, encode_captions, encode_images
from hada.extract.errors import HadaError
from hada.extract.items import ImageItems, image_items
from hada.extract.planning import store_index, store_spec
from hada.extract.progress import Advance, progress
from hada.extract.reading import make_reader
from hada.extract.spec import SIDES, SideName
from hada.extract.store import StoreWriter
from hada.extract.store.space import plan_size
from hada.extract.token_ids import TokenIds, tokenize
from hada.extract.tokens import ALL, reduced
from hada.extract.writing import WriterThread

if TYPE_CHECKING:
    from hada.extract.views import View

ERRORS = "errors.jsonl"
ON_ERROR = ("skip", "fail")


@dataclass
class Report:
    """What one run did, for the person who started it and for tests.

    `images` and `captions` were encoded now, the rest of the totals lay there already. `seconds`
    is what the one loop did with its time: it waited for decoded pictures, for the model
    ("forward"), for arrays on their way to and from a device, for the writer. Decoding and
    writing that went on meanwhile cost it nothing.
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
        default_factory=lambda: {"decode": 0.0, "forward": 0.0, "transfer": 0.0, "write": 0.0}
    )
    side_seconds: dict[SideName, float] = field(
        default_factory=lambda: {"image": 0.0, "caption": 0.0}
    )
    bytes: int = 0
    batch_sizes: dict[SideName, int] = field(default_factory=dict)
    workers: int = 0
    on_gpu: bool = False


def run(
    backbone: Backbone | RegionBackbone,
    dataset: CaptionDataset,
    path: str | Path,
    *,
    dtype: str = "float16",
    tokens: str = ALL,
    batch_size: int | None = 32,
    workers: int = 0,
    rows_per_shard: dict[SideName, int] | None = None,
    format: str | None = None,  # noqa: A002
    allow_mismatch: Collection[str] = (),
    force: bool = False,
    on_error: str = "skip",
    view: View | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Report:
    """Fill the store at `path` with what is not there yet.

    Args:
        backbone: The frozen model.
        dataset: One split.
        path: The store's folder; created, or continued where it fits.
        dtype: What the disk holds: "float16", "float32", "bfloat16" or "int8".
        tokens: Which tokens are kept: "all", "pool:K" or "none"; see `hada.extract.tokens`.
        batch_size: Items per forward pass; None takes what the store has, else what suits the
            device (`hada.extract.batching`).
        workers: Processes that decode and preprocess pictures; 0 does it in threads.
        rows_per_shard: Items per shard for both sides; the defaults suit real models.
        format: "zarr" or "hdf5"; None goes on with what is there, and makes Zarr otherwise.
        allow_mismatch: Fields in which a store that is there may differ from what is asked for.
        force: Begin even where the disk has not the room for all of it.
        on_error: "skip" leaves out images that cannot be read and names them in the store's
            `errors.jsonl`; "fail" stops at the first.
        view: How to augment pictures; `backbone` and `dataset` are then those of `views`.
        provenance: What else decided the features' last bits, for the shards' markers.

    Raises:
        StoreMismatchError: The store there holds other features.
        StoreError: The disk has not the room.
        HadaError: Not one picture could be read, or one could not and `on_error` is "fail".
    """
    started = time.monotonic()
    backbone = reduced(backbone, tokens)
    ids = tokenize(backbone, dataset.captions)
    spec = store_spec(backbone, dataset, dtype=dtype, rows_per_shard=rows_per_shard)
    items = image_items(backbone, dataset, view)
    index = store_index(backbone, dataset, ids, items)
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
        workers=workers,
        on_gpu=getattr(getattr(backbone, "device", None), "type", "cpu") != "cpu",
    )
    job = _Job(
        backbone,
        items,
        ids,
        writer,
        report,
        workers,
        dict(provenance or {}),
        skip_failed=on_error == "skip",
    )
    sizes = BatchSizes(batch_size, backbone, items, writer)
    label = f"{spec.model.name} on {spec.dataset}/{spec.split}"
    for side in SIDES:
        began = time.monotonic()
        report.skipped_shards += writer.shards(side) - len(writer.pending(side))
        while writer.pending(side) and not job.run_side(side, f"{label}: {side}s", sizes.of(side)):
            size = sizes.of(side)
            say(f"{label}: out of memory, {size} {side}s at a time now become {sizes.halve(side)}")
            release_memory(backbone)
        report.side_seconds[side] = time.monotonic() - began
    _finish(writer, dataset, report)
    if on_error == "fail" and report.failures:  # of an earlier run that left them out
        id_, reason = next(iter(report.failures.items()))
        raise HadaError(f"--on-error fail: {id_}: {reason}")
    report.wall_seconds = time.monotonic() - started
    return report


@dataclass
class _Job:
    """The parts of a run."""

    backbone: Backbone | RegionBackbone
    items: ImageItems
    ids: TokenIds
    writer: StoreWriter
    report: Report
    workers: int
    provenance: dict[str, Any]
    skip_failed: bool

    def run_side(self, side: SideName, label: str, batch_size: int) -> bool:
        """All shards of a side that are missing; False where memory was not enough.

        What was finished before that stays, and a shard has one batch size or another, never two.
        """
        try:
            self._run_side(side, label, batch_size)
        except Exception as error:
            if batch_size > 1 and is_out_of_memory(error):
                return False
            raise
        return True

    def _run_side(self, side: SideName, label: str, batch_size: int) -> None:
        writer, report = self.writer, self.report
        pending = writer.pending(side)
        total = writer.index.count(side)
        left = sum(len(writer.rows(side, shard)) for shard in pending)
        done = {"image": "images", "caption": "captions"}[side]
        report.batch_sizes[side] = batch_size
        # Claims are released last: by then nobody writes any more.
        with ExitStack() as claims, ExitStack() as stack:
            shards = _claimed(writer, side, pending, report, claims)
            advance = stack.enter_context(progress(label, total, f"{side}s", done=total - left))
            thread = stack.enter_context(WriterThread(writer, report))
            for shard in stack.enter_context(
                closing(self._encoded(side, shards, batch_size, advance, thread))
            ):
                thread.put(shard, batch_size=batch_size, **self.provenance)
                setattr(report, done, getattr(report, done) + len(shard.rows))

    def _encoded(
        self,
        side: SideName,
        shards: Iterator[Shard],
        batch_size: int,
        advance: Advance,
        thread: WriterThread,
    ) -> Generator[Shard, None, None]:
        lengths = self.writer.index.lengths[side]

        def check(n: int = 1, note: str = "") -> None:
            thread.check()
            advance(n, note)

        if side == "caption":
            yield from encode_captions(
                self.backbone, self.ids, shards, batch_size, self.report, check, lengths
            )
            return
        reader = make_reader(self.items, self.workers, batch_size, on_gpu=self.report.on_gpu)
        with closing(reader):
            yield from encode_images(
                self.backbone,
                self.items,
                reader,
                shards,
                batch_size,
                self.report,
                check,
                skip_failed=self.skip_failed,
            )


def _claimed(
    writer: StoreWriter, side: SideName, pending: list[int], report: Report, claims: ExitStack
) -> Iterator[Shard]:
    """The shards that nobody else is writing, each claimed when it is its turn."""
    for number in pending:
        claim = ExitStack()
        claims.push(claim)
        if claim.enter_context(writer.claim(side, number)):
            yield Shard(side, number, writer.rows(side, number), claim)
            continue
        claim.close()
        report.busy_shards += not writer.is_done(side, number)


def _finish(writer: StoreWriter, dataset: CaptionDataset, report: Report) -> None:
    writer.finish()
    failures = writer.failures("image")
    report.failures = {dataset.image_ids[row]: failures[row] for row in sorted(failures)}
    _write_errors(report.store, dataset, failures)
    if failures and len(failures) == len(dataset.image_ids):
        first = next(iter(report.failures.items()))
        raise HadaError(
            f"{report.store}: none of {len(failures)} pictures could be read; "
            f"the first, {first[0]!r}: {first[1]}"
        )
    report.bytes = sum(remote.file_sizes(report.store).values())


def _write_errors(folder: Path, dataset: CaptionDataset, failures: dict[int, str]) -> None:
    """The failed images for programs, a JSON object a line; no file where nothing failed."""
    if not failures:
        (folder / ERRORS).unlink(missing_ok=True)
        return
    lines = [
        json.dumps(
            {"side": "image", "row": row, "id": dataset.image_ids[row], "reason": failures[row]}
        )
        for row in sorted(failures)
    ]
    atomic.write_bytes(folder / ERRORS, ("\n".join(lines) + "\n").encode())
