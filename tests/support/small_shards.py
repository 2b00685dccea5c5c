"""An extraction of the fake backbone with one item in each shard."""

from __future__ import annotations

from pathlib import Path

from hada.extract.backbones import load_backbone
from hada.extract.backbones.base import Backbone, BackboneRequest
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.read import read_dataset
from hada.extract.engine.options import ExtractOptions
from hada.extract.engine.runner import run
from hada.extract.manifest import load_manifest
from hada.extract.spec import SideName

ONE: dict[SideName, int] = {"image": 1, "caption": 1}


def fake() -> Backbone:
    return load_backbone(
        BackboneRequest(name="one", family="fake", weights="a", options={"width": 64})
    )


def data(split: str) -> CaptionDataset:
    return read_dataset(load_manifest().dataset(), split)


def extract(path: Path | str, form: str, split: str = "train") -> None:
    run(fake(), data(split), path, ExtractOptions(rows_per_shard=ONE, batch_size=1, format=form))
