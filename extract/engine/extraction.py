"""One backbone on one split, opened once and ready to fill any shard of its store.

The only place in which a backbone runs: read, encode, write, commit. The loop, from outside in:

1. `fill` takes the shards of a side that are missing, and halves batches when memory runs out.
2. `_fill` opens what one pass needs: claims, a progress bar, the thread that writes.
3. `_claimed` claims each shard when it is its turn, and passes over those of other processes.
4. `_encoded` and `encode.py` decode ahead and run the backbone, batch after batch, over a shard.
5. `WriterThread` writes a shard and its marker (the commit) while the next one is encoded.
6. `finish`, after the last shard, seals the store and names the pictures that failed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hada.extract.backbones.base import Backbone, RegionBackbone
from hada.extract.common import atomic, remote
from hada.extract.common.console import say
from hada.extract.common.errors import HadaError
from hada.extract.common.progress import Advance, progress
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.engine.batch_size import BatchSizes, is_out_of_memory, release_memory
from hada.extract.engine.decode import MOST_THREADS, Reader, make_reader
from hada.extract.engine.encode import Shard, encode_captions, encode_images
from hada.extract.engine.items import ImageItems, image_items
from hada.extract.engine.options import ExtractOptions
from hada.extract.engine.store_plan import as_stored, store_index, store_spec
from hada.extract.engine.token_ids import TokenIds, tokenize
from hada.extract.engine.writer_thread import WriterThread
from hada.extract.spec import SIDES, SideName
from hada.extract.store import StoreWriter
from hada.extract.store.size_plan import plan_size
from hada.extract.variants.reduced import reduced

if TYPE_CHECKING:
    from hada.extract.engine.report import Report
    from hada.extract.variants.views import View

ERRORS = "errors.jsonl"
# Between two looks at what another process is writing.
WAIT_S = 0.2


@dataclass
class Extraction:
    """The parts of an extraction. Make one with `Extraction.open`."""

    backbone: Backbone | RegionBackbone
    dataset: CaptionDataset
    items: ImageItems
    ids: TokenIds
    writer: StoreWriter
    sizes: BatchSizes
    workers: int
    provenance: dict[str, Any]
    skip_failed: bool
    # Worker processes stay between two calls of `fill`, until `close`.
    keep_reader: bool = False
    # Threads that decode where no worker processes do.
    most_threads: int = MOST_THREADS
    _kept: tuple[int, Reader] | None = None

    @classmethod
    def open(
        cls,
        backbone: Backbone | RegionBackbone,
        dataset: CaptionDataset,
        path: str | Path,
        options: ExtractOptions | None = None,
        *,
        view: View | None = None,
        keep_reader: bool = False,
    ) -> Self:
        """Create the store at `path`, or go on with it.

        Args:
            backbone: The frozen model.
            dataset: One split.
            path: The store's folder or URL.
            options: How the store is filled; the defaults of `ExtractOptions` where None.
            view: How to augment images; `backbone` and `dataset` are then those of `views`.
            keep_reader: Whether worker processes stay between two calls of `fill`, until `close`.

        Raises:
            StoreMismatchError: The store there holds other features.
            StoreError: The disk has not the room.
        """
        options = options or ExtractOptions()
        backbone = reduced(backbone, options.tokens)
        dataset = as_stored(dataset, path)
        ids = tokenize(backbone, dataset.captions)
        spec = store_spec(backbone, dataset, options)
        items = image_items(backbone, dataset, view)
        index = store_index(backbone, dataset, ids, items)
        space = plan_size(path, spec, index)
        if not space.present:
            space.check(force=options.force)
        writer = StoreWriter.open(
            path, spec, index, format=options.format, allow_mismatch=options.allow_mismatch
        )
        # A store that is complete needs no room, however full the disk has become.
        if any(writer.pending(side) for side in SIDES):
            space.check(force=options.force)
        return cls(
            backbone=backbone,
            dataset=dataset,
            items=items,
            ids=ids,
            writer=writer,
            sizes=BatchSizes(options.batch_size, backbone, items, writer),
            workers=options.workers,
            provenance={**options.provenance, **backbone.origin},
            skip_failed=options.on_error == "skip",
            keep_reader=keep_reader,
        )

    @property
    def on_gpu(self) -> bool:
        """Whether the model computes on another device than the host."""
        device = self.backbone.device
        return device is not None and device.type != "cpu"

    def fill(
        self,
        side: SideName,
        report: Report,
        shards: Collection[int] | None = None,
        *,
        shown: bool = True,
    ) -> None:
        """Write the shards of a side that are missing.

        Shards that another process is writing are left to it and counted in `report`. Where
        memory is not enough, batches become smaller; what was finished before that stays, and a
        shard has one batch size or another, never two.

        Args:
            side: Whose shards.
            report: Counts and timings are added to it.
            shards: Among which missing ones are written; None for all of the side.
            shown: Whether progress is shown.
        """
        spec = self.writer.spec
        label = f"{spec.model.name} on {spec.dataset}/{spec.split}"
        while pending := self._pending(side, shards):
            size = self.sizes.of(side)
            try:
                self._fill(side, pending, f"{label}: {side}s", size, report, shown=shown)
            except Exception as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            else:
                return
            smaller = self.sizes.halve(side)
            say(f"{label}: out of memory, {size} {side}s at a time now become {smaller}")
            release_memory(self.backbone)

    def await_others(self, report: Report) -> None:
        """Wait for shards that other processes are writing, and write those that they give up."""
        announced = False
        # Without such, nothing is looked at again: behind a URL that costs requests.
        while report.busy_shards and (
            busy := sum(len(self.writer.pending(side)) for side in SIDES)
        ):
            if not announced:
                name = self.writer.spec.model.name
                say(f"{name}: waiting for {busy} shards that another process is writing")
            announced = True
            time.sleep(WAIT_S)
            for side in SIDES:
                self.fill(side, report, shown=False)
        report.busy_shards = 0

    def finish(self, report: Report) -> None:
        """After the last shard: clear away, and name the pictures that failed.

        May be called when any number of shards are there, and again.
        """
        _finish(self.writer, self.dataset, report)

    def close(self) -> None:
        """End what `keep_reader` kept."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept[1].close()

    @contextlib.contextmanager
    def _reading(self, batch_size: int) -> Iterator[Reader]:
        if self._kept is None or self._kept[0] != batch_size:
            self.close()
            reader = make_reader(self.items, self.workers, batch_size, self.most_threads)
            self._kept = batch_size, reader
        whole = False
        try:
            yield self._kept[1]
            whole = True
        finally:
            # A reader that was left in the middle holds pictures that nobody will take.
            if not (whole and self.keep_reader):
                self.close()

    def _pending(self, side: SideName, shards: Collection[int] | None) -> list[int]:
        if shards is None:
            return self.writer.pending(side)
        return [shard for shard in shards if not self.writer.is_done(side, shard)]

    def _fill(
        self,
        side: SideName,
        pending: list[int],
        label: str,
        batch_size: int,
        report: Report,
        *,
        shown: bool,
    ) -> None:
        writer = self.writer
        total = writer.index.count(side)
        left = sum(len(writer.rows(side, shard)) for shard in pending)
        done = {"image": "images", "caption": "captions"}[side]
        report.batch_sizes[side] = batch_size
        # Claims are released last: by then nobody writes any more.
        with ExitStack() as claims, ExitStack() as stack:
            shards = _claimed(writer, side, pending, report, claims)
            meter = progress(label, total, f"{side}s", done=total - left) if shown else _silence()
            advance = stack.enter_context(meter)
            thread = stack.enter_context(WriterThread(writer, report))
            for shard in stack.enter_context(
                closing(self._encoded(side, shards, batch_size, advance, thread, report))
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
        report: Report,
    ) -> Generator[Shard, None, None]:
        lengths = self.writer.index.lengths[side]

        def check(n: int = 1, note: str = "") -> None:
            thread.check()
            advance(n, note)

        if side == "caption":
            yield from encode_captions(
                self.backbone, self.ids, shards, batch_size, report, check, lengths
            )
            return
        with self._reading(batch_size) as reader:
            yield from encode_images(
                self.backbone,
                self.items,
                reader,
                shards,
                batch_size,
                report,
                check,
                skip_failed=self.skip_failed,
            )


@contextlib.contextmanager
def _silence() -> Iterator[Advance]:
    def advance(n: int = 1, note: str = "") -> None:
        pass

    yield advance


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
        # Not where there is none: a finished store may lie on a file system that cannot be written.
        if (folder / ERRORS).exists():
            (folder / ERRORS).unlink(missing_ok=True)
        return
    lines = [
        json.dumps(
            {"side": "image", "row": row, "id": dataset.image_ids[row], "reason": failures[row]}
        )
        for row in sorted(failures)
    ]
    data = ("\n".join(lines) + "\n").encode()
    if not (folder / ERRORS).exists() or remote.read_bytes(folder / ERRORS) != data:
        atomic.write_bytes(folder / ERRORS, data)
