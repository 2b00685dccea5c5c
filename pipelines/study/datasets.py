"""The annotations of an extraction's split, read once for its many shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hada.pipelines.study.jobs import ExtractJob

if TYPE_CHECKING:
    from hada.extract.datasets.caption_dataset import CaptionDataset

MOST_KEPT = 4
_KEPT: dict[tuple[str, str, bool], CaptionDataset] = {}


def dataset_of(job: ExtractJob) -> CaptionDataset:
    """The job's split; the last few are kept."""
    from hada.extract.backbones import REGION_FAMILIES
    from hada.extract.datasets.read import read_dataset

    pictures = job.model.family not in REGION_FAMILIES
    key = repr(job.dataset), job.split, pictures
    data = _KEPT.pop(key, None)
    if data is None:
        data = read_dataset(job.dataset, job.split, pictures=pictures)
        while len(_KEPT) >= MOST_KEPT:
            _KEPT.pop(next(iter(_KEPT)))
    _KEPT[key] = data
    return data


def forget_datasets() -> None:
    """Read annotations anew: their files may have changed."""
    _KEPT.clear()
