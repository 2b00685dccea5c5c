"""Worker processes: the same bytes whatever their number, and what becomes of those that die."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import makers
import numpy as np
import psutil
import pytest
import tiny_clip
import tiny_dual
from faulty_transforms import Failing, Homebound, Slow
from PIL import Image
from places import SUPPORT

from hada.extract.backbones import load_backbone
from hada.extract.backbones.base import BackboneRequest
from hada.extract.common.errors import HadaError
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.read import read_dataset
from hada.extract.engine import decode_workers
from hada.extract.engine.decode import ProcessReader
from hada.extract.engine.items import PictureItems
from hada.extract.engine.options import ExtractOptions
from hada.extract.engine.report import Report
from hada.extract.engine.runner import run
from hada.extract.manifest import load_manifest
from hada.extract.spec import SideName
from hada.extract.store import open_store
from hada.extract.testing.store_contract import files_of

pytestmark = pytest.mark.slow

ROWS: dict[SideName, int] = {"image": 3, "caption": 4}


def data(split: str = "train") -> CaptionDataset:
    return read_dataset(load_manifest().dataset(), split)


def model(family: str, folder: Path, golden_root: Path) -> Any:
    golden = golden_root / "backbones"
    places = {
        "fake": lambda: "a",
        "clip": lambda: tiny_clip.make_folder(folder, tiny_clip.VIT, tiny_clip.TEXT),
        "dual": lambda: tiny_dual.make_clip(folder),
        "albef": lambda: golden / "albef" / "flickr30k.pth",
        "blip": lambda: golden / "blip_base" / "model_base_retrieval_flickr.pth",
    }
    weights = str(places[family]())
    return load_backbone(BackboneRequest(name="m", family=family, weights=weights, options={}))


def fake(preprocessor: Any = None) -> Any:
    backbone: Any = load_backbone(BackboneRequest(name="m", family="fake", weights="a", options={}))
    if preprocessor is not None:
        backbone.preprocessor = preprocessor
    return backbone


def extract(backbone: Any, path: str, workers: int, **options: Any) -> Report:
    options = {"rows_per_shard": ROWS, "batch_size": 2, **options}
    return run(backbone, data(), path, ExtractOptions(workers=workers, **options))


@pytest.mark.parametrize("family", ["fake", "blip"])
def test_the_same_bytes_whatever_their_number(
    golden_root: Path, tmp_path: Path, family: str
) -> None:
    makers.make_project(tmp_path)
    broken = tmp_path / "data" / "images" / "train_004.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    backbone = model(family, tmp_path / "weights", golden_root)
    counts = (0, 1, 3)
    reports = [extract(backbone, f"stores/{count}", count) for count in counts]
    assert [list(report.failures) for report in reports] == [["train_004.jpg"]] * len(counts)
    assert len({next(iter(report.failures.values())) for report in reports}) == 1
    assert PictureItems(backbone, data()).portable
    plain = files_of(tmp_path / "stores" / "0")
    assert len(plain) > 20
    for count in counts[1:]:
        assert files_of(tmp_path / "stores" / str(count)) == plain


@pytest.mark.parametrize("family", ["fake", "clip", "dual", "blip", "albef"])
def test_transforms_travel(golden_root: Path, tmp_path: Path, family: str) -> None:
    """Here, and not in a process, which would have to import PyTorch for some of them."""
    makers.make_project(tmp_path)
    backbone = model(family, tmp_path / "weights", golden_root)
    items = PictureItems(backbone, data())
    assert items.portable
    packed = pickle.dumps(items.reader)
    assert len(packed) < 20_000  # without the model
    travelled = pickle.loads(packed)
    values = travelled.read(*items.source(3))
    assert values.shape == items.shape
    np.testing.assert_array_equal(values, items.read(3))
    np.testing.assert_array_equal(values, backbone.preprocess(Image.open(items.source(3)[0])))


def mark(folder: Path, *names: str) -> None:
    """Pictures in the colour that `Failing` looks for."""
    for name in names:
        Image.new("RGB", (32, 24), (200, 30, 120)).save(
            folder / "data" / "images" / name, quality=95
        )


@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        ("SIGSEGV", r"its decoder died of SIGSEGV"),
        ("exit", r"its decoder ended with exit code 7"),
        ("shape", r"preprocessed to \(3, 1, 1\), expected \(3, 16, 16\)"),
    ],
)
def test_a_picture_that_ends_its_worker(tmp_path: Path, fate: str, reason: str) -> None:
    makers.make_project(tmp_path)
    mark(tmp_path, "train_001.jpg", "train_007.jpg")
    report = extract(fake(Failing(fate)), "stores/x", 2)
    assert list(report.failures) == ["train_001.jpg", "train_007.jpg"]
    for text in report.failures.values():
        assert re.search(reason, text)
    store = open_store("stores/x")
    assert store.image.failed.sum() == 2
    assert np.isfinite(store.image.tokens(np.flatnonzero(~store.image.failed))).all()


def test_a_picture_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    makers.make_project(tmp_path)
    mark(tmp_path, "train_001.jpg")
    monkeypatch.setattr(decode_workers, "PICTURE_LIMIT_S", 0.5)
    report = extract(fake(Failing("hang")), "stores/x", 2)
    assert list(report.failures) == ["train_001.jpg"]
    assert "its decoder took longer than" in report.failures["train_001.jpg"]


def test_a_worker_that_is_killed_is_no_fault_of_the_picture(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    mark(tmp_path, "train_001.jpg")
    with pytest.raises(HadaError, match=r"was killed while .*train_001.*fewer --workers"):
        extract(fake(Failing("SIGKILL")), "stores/x", 2)
    assert extract(fake(), "stores/x", 2).failures == {}


def test_a_worker_killed_once_from_outside_costs_nothing(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    items = PictureItems(fake(Slow(0.3)), data())
    reader = ProcessReader(items, 1, 4)
    try:
        expected = [items.read(row) for row in range(4)]
        pending = reader.begin(range(4))
        victims: list[psutil.Process] = []
        for _ in range(200):
            family = psutil.Process().children(recursive=True)
            victims = [
                child for child in family if child.children() == [] and child.ppid() != os.getpid()
            ]
            if victims:
                break
            time.sleep(0.05)
        time.sleep(0.5)
        victims[0].kill()
        np.testing.assert_array_equal(np.stack(pending.result()), np.stack(expected))
    finally:
        reader.close()


def test_too_many_deaths_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    makers.make_project(tmp_path)
    mark(tmp_path, *(f"train_{number:03d}.jpg" for number in range(12)))
    monkeypatch.setattr(decode_workers, "MOST_DEATHS", 4)
    with pytest.raises(HadaError, match=r"[5-9] worker processes have died"):
        extract(fake(Failing("exit")), "stores/x", 2)


def test_workers_that_cannot_start(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    with pytest.raises(HadaError, match=r"cannot start: ImportError: no such lib.*workers 0"):
        extract(fake(Homebound()), "stores/x", 2)


def test_a_backbone_without_a_transform_of_its_own_uses_threads(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    backbone = fake()
    transform = backbone.preprocessor
    backbone.preprocessor = None
    backbone.preprocess = transform
    assert extract(backbone, "stores/threads", 2).failures == {}
    extract(fake(), "stores/processes", 2)
    assert files_of(tmp_path / "stores" / "threads") == files_of(tmp_path / "stores" / "processes")


# What a shell starts in the background ignores Ctrl-C, and hands that on.
_STOPPED = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {tests!r})
from faulty_transforms import Slow
from hada.extract import cli
from hada.extract.backbones import fake
class Backbone(fake.FakeBackbone):
    def __init__(self, *args):
        super().__init__(*args)
        self.preprocessor = Slow(0.03)
if __name__ == "__main__":
    fake.FakeBackbone = Backbone
    cli.extract()
"""


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_and_continued(
    tmp_path: Path, number: signal.Signals, code: int, workers: str
) -> None:
    """The whole process group gets the signal, as from a terminal or a batch system."""
    makers.make_project(tmp_path, splits={"train": [1] * 60})
    (tmp_path / "slow.py").write_text(_STOPPED.format(tests=str(SUPPORT)))
    arguments = ["--model", "one", "--split", "train", "--shard-size", "2", "--batch-size", "2"]
    process = subprocess.Popen(
        [sys.executable, "slow.py", *arguments, "--workers", workers],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    commit = tmp_path / "stores" / "tiny" / "train" / "one" / "commit"
    for _ in range(1200):
        if len(list(commit.glob("image-*.json"))) >= 2 or process.poll() is not None:
            break
        time.sleep(0.02)
    helpers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "What is done is kept" in said
    assert "Traceback" not in said
    assert psutil.wait_procs(helpers, timeout=10)[1] == []
    left = [path.name for path in commit.parent.rglob("*") if ".tmp-" in path.name]
    assert left == []
    assert list(commit.glob("*.lock")) == []
    done = len(list(commit.glob("image-*.json")))
    assert 2 <= done < 30
    rows: dict[SideName, int] = {"image": 2, "caption": 16}
    for name in ("one", "whole"):
        backbone = load_backbone(
            BackboneRequest(name="one", family="fake", weights="a", options={})
        )
        place = commit.parent if name == "one" else tmp_path / "whole"
        report = run(backbone, data(), place, ExtractOptions(rows_per_shard=rows, batch_size=2))
        assert report.images == (60 - 2 * done if name == "one" else 60)
    assert files_of(commit.parent) == files_of(tmp_path / "whole")


def test_markers_record_the_batch_size(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    extract(fake(), "stores/x", 2)
    markers = sorted((tmp_path / "stores" / "x" / "commit").glob("*-*.json"))
    assert markers
    for marker in markers:
        assert json.loads(marker.read_text())["provenance"]["batch_size"] == 2


@pytest.mark.parametrize("setup", [b"no reader", None])
def test_a_worker_whose_parent_is_killed_while_it_starts_says_nothing(setup: bytes | None) -> None:
    ours, theirs = multiprocessing.Pipe()
    before = signal.getsignal(signal.SIGINT)
    memory = os.memfd_create("pictures")
    reduction.send_handle(ours, memory, os.getpid())
    if setup is None:  # one that works: its answer finds nobody
        os.ftruncate(memory, 4)
        setup = pickle.dumps((None, 4, (1,)))
    ours.send_bytes(setup)
    ours.close()
    os.close(memory)
    try:
        decode_workers._serve(theirs)
    finally:
        signal.signal(signal.SIGINT, before)
