"""A pipeline over a small data set and fake models, and a family with accidents."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import makers

from hada.extract.backbones.base import BackboneRequest
from hada.extract.backbones.fake import FakeBackbone, FakeOptions
from hada.extract.manifest import Manifest, load_manifest
from hada.pipelines.study.config import Pipeline, load_pipeline

PIPELINE = """\
schema: 1
name: study
device: cpu
extract:
  - {dataset: tiny, models: [one, two], splits: [train, val], shard_size: 3, batch_size: 2}
fuse:
  - dataset: tiny
    models: [one, two]
    set: {epochs: 1, node_width: 16, head_width: 8, graph_width: 16, out_width: 16, batch_size: 6}
evaluate:
  - {dataset: tiny, split: val, quick: true}
"""


def make_study(folder: Path, text: str = PIPELINE, **changes: str) -> tuple[Pipeline, Manifest]:
    """The files of a small study in `folder`, loaded; `changes` replace words of both."""
    makers.make_project(folder)
    manifest, study = folder / "data_manifest.yaml", folder / "study.yaml"
    study.write_text(text)
    for old, new in changes.items():
        manifest.write_text(manifest.read_text().replace(old, new))
        study.write_text(study.read_text().replace(old, new))
    loaded = load_manifest(manifest)
    return load_pipeline(study, loaded), loaded


ONLY_EXTRACT = PIPELINE[: PIPELINE.index("fuse:")]


class Accident(FakeBackbone):
    """A fake model that, by its weights' words `HOW:FILE`, meets with an accident.

    how: "kill" and "raise" happen in every batch of pictures until FILE is gone, which "kill"
    removes itself; "poison" kills in every batch; "slow" takes a while, or what FILE says. "load"
    makes FILE and takes two minutes to load, unless FILE is there.
    """

    def __init__(self, request: BackboneRequest) -> None:
        super().__init__(request, FakeOptions())
        self._how, _, file = request.weights.partition(":")
        self._file = Path(file)
        if self._how == "load" and not self._file.exists():
            self._file.touch()
            time.sleep(120)

    def encode_images(self, pixels: Any) -> Any:
        if self._how == "kill" and self._file.exists():
            self._file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if self._how == "raise" and self._file.exists():
            raise OSError("the disk hiccuped")
        if self._how == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._how == "slow":
            time.sleep(float(self._file.read_text()) if self._file.is_file() else 0.2)
        return super().encode_images(pixels)
