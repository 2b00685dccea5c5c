"""Run one backbone over one split: every shard of its store that is not there yet.

It receives its parts, so a test drives it with a fake backbone and a three-picture dataset. What a
batch holds depends on the shard alone, so a run that was killed and continued ends with the bytes
of an undisturbed one.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hada.extract.backbones.base import Backbone, RegionBackbone
from hada.extract.common.errors import HadaError
from hada.extract.datasets.read import CaptionDataset
from hada.extract.engine.extraction import ERRORS, Extraction
from hada.extract.engine.report import Report
from hada.extract.spec import SIDES, SideName
from hada.extract.variants.reduced import ALL

if TYPE_CHECKING:
    from hada.extract.variants.views import View

__all__ = ["ERRORS", "ON_ERROR", "Report", "new_report", "run"]

ON_ERROR = ("skip", "fail")


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
        tokens: Which tokens are kept: "all", "pool:K" or "none"; see
            `hada.extract.variants.reduced`.
        batch_size: Items per forward pass; None takes what the store has, else what suits the
            device (`hada.extract.engine.batch_size`).
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
    extraction = Extraction.open(
        backbone,
        dataset,
        path,
        dtype=dtype,
        tokens=tokens,
        batch_size=batch_size,
        workers=workers,
        rows_per_shard=rows_per_shard,
        format=format,
        allow_mismatch=allow_mismatch,
        force=force,
        on_error=on_error,
        view=view,
        provenance=provenance,
    )
    report = new_report(extraction)
    for side in SIDES:
        began = time.monotonic()
        writer = extraction.writer
        report.skipped_shards += writer.shards(side) - len(writer.pending(side))
        extraction.fill(side, report)
        report.side_seconds[side] = time.monotonic() - began
    extraction.await_others(report)
    extraction.finish(report)
    if on_error == "fail" and report.failures:  # of an earlier run that left them out
        id_, reason = next(iter(report.failures.items()))
        raise HadaError(f"--on-error fail: {id_}: {reason}")
    report.wall_seconds = time.monotonic() - started
    return report


def new_report(extraction: Extraction) -> Report:
    """A report on an extraction that has not begun."""
    dataset = extraction.dataset
    return Report(
        store=extraction.writer.folder,
        total_images=len(dataset.image_ids),
        total_captions=len(dataset.caption_ids),
        workers=extraction.workers,
        on_gpu=getattr(getattr(extraction.backbone, "device", None), "type", "cpu") != "cpu",
    )
