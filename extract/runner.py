"""Run one backbone over one split: read, encode, write, commit, shard by shard.

The only loop in which a backbone runs. It receives its parts, so a test drives it with a fake
backbone and a three-picture dataset. What a batch holds depends on the shard alone, so a run that
was killed and continued ends with the bytes of an undisturbed one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hada.extract import atomic, remote
from hada.extract.backbones.base import Backbone, RegionBackbone
from hada.extract.captions import CaptionDataset
from hada.extract.encoders import CaptionEncoder, ImageEncoder
from hada.extract.errors import HadaError
from hada.extract.items import image_items
from hada.extract.planning import store_index, store_spec
from hada.extract.progress import progress
from hada.extract.spec import SIDES, SideName
from hada.extract.store import StoreWriter
from hada.extract.store.space import plan_size
from hada.extract.tokens import ALL, reduced

if TYPE_CHECKING:
    from hada.extract.views import View

ERRORS = "errors.jsonl"
ON_ERROR = ("skip", "fail")


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
    backbone: Backbone | RegionBackbone,
    dataset: CaptionDataset,
    path: str | Path,
    *,
    dtype: str = "float16",
    tokens: str = ALL,
    batch_size: int = 32,
    decoders: int = 2,
    rows_per_shard: dict[SideName, int] | None = None,
    format: str | None = None,  # noqa: A002
    allow_mismatch: Collection[str] = (),
    force: bool = False,
    on_error: str = "skip",
    view: View | None = None,
) -> Report:
    """Fill the store at `path` with what is not there yet.

    Args:
        backbone: The frozen model.
        dataset: One split.
        path: The store's folder; created, or continued where it fits.
        dtype: What the disk holds: "float16", "float32", "bfloat16" or "int8".
        tokens: Which tokens are kept: "all", "pool:K" or "none"; see `hada.extract.tokens`.
        batch_size: Items per forward pass.
        decoders: Threads that decode and preprocess pictures.
        rows_per_shard: Items per shard for both sides; the defaults suit real models.
        format: "zarr" or "hdf5"; None goes on with what is there, and makes Zarr otherwise.
        allow_mismatch: Fields in which a store that is there may differ from what is asked for.
        force: Begin even where the disk has not the room for all of it.
        on_error: "skip" leaves out images that cannot be read and names them in the store's
            `errors.jsonl`; "fail" stops at the first.
        view: How to augment pictures; `backbone` and `dataset` are then those of `views`.

    Raises:
        StoreMismatchError: The store there holds other features.
        StoreError: The disk has not the room.
        HadaError: Not one picture could be read, or one could not and `on_error` is "fail".
    """
    started = time.monotonic()
    backbone = reduced(backbone, tokens)
    ids = backbone.tokenize(dataset.captions)
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
    )
    label = f"{spec.model.name} on {spec.dataset}/{spec.split}"
    with ThreadPoolExecutor(decoders, thread_name_prefix="decode") as pool:
        encoders: dict[SideName, ImageEncoder | CaptionEncoder] = {
            "image": ImageEncoder(
                backbone, items, pool, batch_size, report, skip_failed=on_error == "skip"
            ),
            "caption": CaptionEncoder(backbone, ids, batch_size, report),
        }
        for side in SIDES:
            began = time.monotonic()
            _run_side(writer, side, encoders[side], f"{label}: {side}s", report, batch_size)
            report.side_seconds[side] = time.monotonic() - began
    _finish(writer, dataset, report)
    if on_error == "fail" and report.failures:  # of an earlier run that left them out
        id_, reason = next(iter(report.failures.items()))
        raise HadaError(f"--on-error fail: {id_}: {reason}")
    report.wall_seconds = time.monotonic() - started
    return report


def _run_side(
    writer: StoreWriter,
    side: SideName,
    encoder: ImageEncoder | CaptionEncoder,
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
