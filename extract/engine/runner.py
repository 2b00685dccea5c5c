"""Run one backbone over one split: every shard of its store that is not there yet.

It receives its parts, so a test drives it with a fake backbone and a three-picture dataset. What a
batch holds depends on the shard alone, so a run that was killed and continued ends with the bytes
of an undisturbed one.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from hada.extract.backbones.base import Backbone, RegionBackbone
from hada.extract.common.errors import HadaError
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.engine.extraction import Extraction
from hada.extract.engine.options import ExtractOptions
from hada.extract.engine.report import Report
from hada.extract.spec import SIDES

if TYPE_CHECKING:
    from hada.extract.variants.views import View


def run(
    backbone: Backbone | RegionBackbone,
    dataset: CaptionDataset,
    path: str | Path,
    options: ExtractOptions | None = None,
    *,
    view: View | None = None,
) -> Report:
    """Fill the store at `path` with what is not there yet.

    Args:
        backbone: The frozen model.
        dataset: One split.
        path: The store's folder; created, or continued where it fits.
        options: How the store is filled; the defaults of `ExtractOptions` where None.
        view: How to augment pictures; `backbone` and `dataset` are then those of `views`.

    Raises:
        StoreMismatchError: The store there holds other features.
        StoreError: The disk has not the room.
        HadaError: Not one picture could be read, or one could not and `on_error` is "fail".
    """
    started = time.monotonic()
    options = options or ExtractOptions()
    extraction = Extraction.open(backbone, dataset, path, options, view=view)
    report = new_report(extraction)
    for side in SIDES:
        began = time.monotonic()
        extraction.fill(side, report)
        report.side_seconds[side] = time.monotonic() - began
    extraction.await_others(report)
    extraction.finish(report)
    if options.on_error == "fail" and report.failures:  # of an earlier run that left them out
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
        on_gpu=extraction.on_gpu,
    )
