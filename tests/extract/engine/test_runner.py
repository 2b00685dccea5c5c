"""The one loop: what it stores, what it survives, and that it ends with the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest

from hada.extract.backbones import load_backbone
from hada.extract.backbones.base import Backbone, BackboneRequest
from hada.extract.common.errors import HadaError
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.read import read_dataset
from hada.extract.engine.options import ExtractOptions
from hada.extract.engine.report import Report
from hada.extract.engine.runner import run
from hada.extract.manifest import load_manifest
from hada.extract.spec import SideName
from hada.extract.store import open_store
from hada.extract.testing.store_contract import files_of

ROWS: dict[SideName, int] = {"image": 2, "caption": 4}


def fake(**options: Any) -> Backbone:
    return load_backbone(BackboneRequest(name="one", family="fake", weights="a", options=options))


def data(split: str = "val") -> CaptionDataset:
    return read_dataset(load_manifest().dataset(), split)


def extract(path: str, **options: Any) -> Report:
    return run(fake(**options), data(), path, ExtractOptions(rows_per_shard=ROWS))


@pytest.mark.parametrize("options", [{}, {"pooled": True}, {"tokens": False}], ids=str)
def test_every_item_is_stored_as_the_backbone_gives_it(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    makers.make_project(tmp_path)
    extract("stores/x", **options)
    store, backbone, dataset = open_store("stores/x"), fake(**options), data()
    for row, ids in enumerate(backbone.tokenize(dataset.captions)):
        alone = backbone.encode_captions([ids])
        assert alone.embeddings is not None
        got = store.caption.embeddings(np.array([row]))
        np.testing.assert_allclose(got, alone.embeddings, atol=2e-3)
        if alone.values is not None:
            got = store.caption.tokens(np.array([row]))
            np.testing.assert_allclose(got, alone.values, atol=4e-3)
    assert store.image.ids == dataset.image_ids


def test_batch_size_and_threads_do_not_change_what_is_stored(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    for name, batch, workers in [("a", 1, 0), ("b", 32, 2)]:
        run(
            fake(),
            data(),
            f"stores/{name}",
            ExtractOptions(rows_per_shard=ROWS, batch_size=batch, workers=workers),
        )
    one, two = open_store("stores/a"), open_store("stores/b")
    np.testing.assert_array_equal(one.image.tokens(slice(None)), two.image.tokens(slice(None)))
    np.testing.assert_array_equal(one.caption.tokens(slice(None)), two.caption.tokens(slice(None)))


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    first = extract("stores/x")
    before = files_of(tmp_path / "stores")
    second = extract("stores/x")
    assert (first.images, second.images, second.captions) == (5, 0, 0)
    assert files_of(tmp_path / "stores") == before


def test_a_broken_picture_is_recorded_and_the_rest_is_stored(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    picture = tmp_path / "data" / "images" / "val_003.jpg"
    picture.write_bytes(picture.read_bytes()[:300])
    report = extract("stores/x")
    assert list(report.failures) == ["val_003.jpg"]
    store = open_store("stores/x")
    assert store.image.failed.tolist() == [False, False, False, True, False]
    assert np.isfinite(store.image.tokens(np.array([0, 1, 2, 4]))).all()


def test_no_picture_at_all_is_a_failure(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    for picture in (tmp_path / "data" / "images").iterdir():
        picture.write_bytes(b"not a picture")
    with pytest.raises(HadaError, match="none of 5 pictures could be read"):
        extract("stores/x")


def test_tokens_that_were_not_declared_are_refused(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    backbone = fake()
    encode = backbone.encode_images  # type: ignore[union-attr]

    def shifted(pixels: Any) -> Any:
        encoded = encode(pixels)
        return replace(encoded, lengths=encoded.lengths + np.array([1, -1]))

    backbone.encode_images = shifted  # type: ignore[union-attr, method-assign]
    with pytest.raises(HadaError, match=r"gave \[6, 4\] tokens .* declared to have \[5, 5\]"):
        run(backbone, data(), "stores/x", ExtractOptions(rows_per_shard=ROWS))


_SLOW = """
import sys, time
from hada.extract import manifest
from hada.extract.datasets import read
from hada.extract.engine import runner
from hada.extract.backbones import load_backbone, BackboneRequest
backbone = load_backbone(BackboneRequest(name="one", family="fake", weights="a", options={}))
encode = backbone.encode_images
def slow(pixels):
    time.sleep(0.15)
    return encode(pixels)
backbone.encode_images = slow
data = read.read_dataset(manifest.load_manifest().dataset(), "train")
from hada.extract.engine.options import ExtractOptions
options = ExtractOptions(rows_per_shard={"image": 2, "caption": 4}, batch_size=1)
runner.run(backbone, data, "stores/killed", options)
"""


def test_killed_and_continued_ends_with_the_same_bytes(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    run(fake(), data("train"), "stores/whole", ExtractOptions(rows_per_shard=ROWS, batch_size=1))
    random = np.random.default_rng(0)
    kills = 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", _SLOW], cwd=tmp_path)
        _wait_for_store(tmp_path / "stores" / "killed", process)
        time.sleep(float(random.uniform(0.05, 0.7)))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 2
    run(fake(), data("train"), "stores/killed", ExtractOptions(rows_per_shard=ROWS, batch_size=1))
    assert files_of(tmp_path / "stores" / "killed") == files_of(tmp_path / "stores" / "whole")


def _wait_for_store(path: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if path.exists() or process.poll() is not None:
            return
        time.sleep(0.05)
