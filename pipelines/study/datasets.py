"""The annotations of an extraction's split, read once for its many shards."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hada.extract.manifest import DatasetEntry, SplitEntry
from hada.pipelines.study.jobs import ExtractJob

if TYPE_CHECKING:
    from hada.extract.datasets.read import CaptionDataset


def dataset_of(job: ExtractJob) -> CaptionDataset:
    """The job's split; the last few are kept."""
    from hada.extract.backbones import REGION_FAMILIES

    pictures = job.model["family"] not in REGION_FAMILIES
    return _read(json.dumps(job.dataset, sort_keys=True), job.split, pictures)


def forget_datasets() -> None:
    """Read annotations anew: their files may have changed."""
    _read.cache_clear()


@functools.lru_cache(maxsize=4)
def _read(dataset: str, split: str, pictures: bool) -> CaptionDataset:
    from hada.extract.datasets.read import read_dataset

    return read_dataset(_entry(json.loads(dataset)), split, pictures=pictures)


def _entry(values: Mapping[str, Any]) -> DatasetEntry:
    """The manifest's entry that an `ExtractJob` carries."""
    splits = {
        name: SplitEntry(**{**split, "sources": tuple(split["sources"])})
        for name, split in values["splits"].items()
    }
    return DatasetEntry(**{**values, "root": Path(values["root"]), "splits": splits})
