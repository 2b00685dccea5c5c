"""Opens features from other programs by their layout."""

from __future__ import annotations

from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.importers.source import FeatureSource, ImportRequest


def open_source(request: ImportRequest, dataset: CaptionDataset) -> FeatureSource:
    """The features that `request` names, laid out for `dataset`; raises `DatasetError`."""
    from hada.extract.importers import arrays, clip_retrieval, hada_npz

    if request.format == "hada":
        return hada_npz.HadaFolders(request, dataset)
    if request.format == "clip-retrieval":
        return clip_retrieval.clip_retrieval(request, dataset)
    if request.format == "npy":
        return arrays.plain_npy(request, dataset)
    return arrays.from_safetensors(request, dataset)
