"""The extraction as a pipeline: bounded ahead, errors at once, honest about what bound it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
import torch

from hada.extract import one_model
from hada.extract.backbones import load_backbone
from hada.extract.backbones.base import BackboneRequest, Encoded
from hada.extract.common.host import cores
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.read import read_dataset
from hada.extract.engine import token_ids
from hada.extract.engine.decode import ThreadReader, read_ahead
from hada.extract.engine.items import PictureItems
from hada.extract.engine.options import ExtractOptions
from hada.extract.engine.report import Report
from hada.extract.engine.runner import run
from hada.extract.engine.summary import summary
from hada.extract.engine.token_ids import TokenIds
from hada.extract.manifest import load_manifest
from hada.extract.spec import SideName
from hada.extract.store import StoreWriter, open_store

ROWS: dict[SideName, int] = {"image": 2, "caption": 4}


def data() -> CaptionDataset:
    return read_dataset(load_manifest().dataset(), "train")


def fake(**options: Any) -> Any:
    return load_backbone(BackboneRequest(name="one", family="fake", weights="a", options=options))


class _LateEncoded(Encoded):
    """As what comes from a GPU: its arrays are here only after `wait`."""

    arriving = True
    waited = False

    def wait(self) -> float:
        object.__setattr__(self, "waited", True)
        time.sleep(0.01)
        return 0.01


def late(log: list[str]) -> Any:
    """A backbone that answers before its arrays are here."""
    backbone = fake()
    for name in ("encode_images", "encode_captions"):
        encode = getattr(backbone, name)

        def launch(batch: Any, encode: Any = encode) -> Encoded:
            found: Encoded = encode(batch)
            log.append("launch")
            answer = _LateEncoded(found.values, found.lengths, found.embeddings)
            wait = answer.wait

            def arrive() -> float:
                log.append("arrive")
                return wait()

            object.__setattr__(answer, "wait", arrive)
            return answer

        setattr(backbone, name, launch)
    return backbone


def test_the_next_batch_is_launched_before_the_last_has_arrived(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    log: list[str] = []
    report = run(
        late(log), data(), "stores/late", ExtractOptions(rows_per_shard=ROWS, batch_size=2)
    )
    images = log[:12]  # six batches, also across shards: one on its way, never more
    assert images == ["launch", *(["launch", "arrive"] * 5), "arrive"]
    assert report.seconds["transfer"] >= 0.01 * len(log) / 2 - 1e-6
    run(fake(), data(), "stores/plain", ExtractOptions(rows_per_shard=ROWS, batch_size=2))
    one, two = open_store("stores/late"), open_store("stores/plain")
    for side in ("image", "caption"):
        a, b = getattr(one, side), getattr(two, side)
        np.testing.assert_array_equal(a.tokens(slice(None)), b.tokens(slice(None)))
        np.testing.assert_array_equal(a.embeddings(slice(None)), b.embeddings(slice(None)))


def test_a_writers_error_stops_the_run_at_the_next_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers.make_project(tmp_path)
    backbone = fake()
    encode, seen = backbone.encode_images, []

    def slowly(pixels: Any) -> Encoded:
        seen.append(len(pixels))
        time.sleep(0.1)
        found: Encoded = encode(pixels)
        return found

    def write(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    backbone.encode_images = slowly
    monkeypatch.setattr(StoreWriter, "write", write)
    with pytest.raises(OSError, match="No space left"):
        run(
            backbone,
            data(),
            "stores/x",
            ExtractOptions(rows_per_shard={"image": 4, "caption": 4}, batch_size=1),
        )
    assert len(seen) == 5  # the first shard's, and one while it was tried to be written
    assert list((tmp_path / "stores" / "x" / "commit").glob("*.lock")) == []


@pytest.mark.parametrize("ahead", [0, 2])
def test_what_is_read_ahead_is_bounded(tmp_path: Path, ahead: int) -> None:
    makers.make_project(tmp_path, splits={"train": [1] * 40})
    items = PictureItems(fake(), data())
    read, taken = [], 0
    plain = items.read
    items.read = lambda row: (read.append(row), plain(row))[1]  # type: ignore[method-assign]
    reader = ThreadReader(items, 2, ahead)
    batches = iter([("shard", range(start, start + 4)) for start in range(0, 40, 4)])
    try:
        for _, rows, inputs in read_ahead(reader, batches, Report(Path())):
            taken += len(rows)
            time.sleep(0.01)
            assert len(inputs) == 4
            assert len(read) <= taken + ahead * 4
    finally:
        reader.close()
    assert sorted(read) == list(range(40))


def test_decoding_threads_compute_alone(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    items = PictureItems(fake(), data())
    items.read = lambda row: torch.get_num_threads()  # type: ignore[method-assign,assignment]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        reader = ThreadReader(items, 2, 0)
        assert list(reader.begin(range(6)).result()) == [1] * 6
        assert torch.get_num_threads() == 2
        reader.close()
        with ThreadPoolExecutor(1) as pool:  # a thread that begins later
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


def test_token_ids_are_those_of_the_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers.make_project(tmp_path)
    captions = data().captions
    whole = fake().tokenize(captions)
    for at_once in (1, 5, 4096):
        monkeypatch.setattr(token_ids, "AT_ONCE", at_once)
        ids = token_ids.tokenize(fake(), captions)
        assert [ids[row] for row in range(len(ids))] == whole
        assert [ids.length(row) for row in range(len(ids))] == [len(row) for row in whole]
    assert len(token_ids.tokenize(fake(), [])) == 0
    assert TokenIds([[], [7]])[0] == []


@pytest.mark.parametrize(
    ("binding", "workers", "on_gpu", "remedy"),
    [
        ("decode", 0, False, "--workers"),
        ("decode", 4, True, "more --workers"),
        ("forward", 0, False, "a GPU"),
        ("forward", 8, True, "--precision bf16"),
        ("transfer", 8, True, "fewer tokens"),
        ("write", 0, False, "a faster disk"),
    ],
)
def test_the_last_line_names_the_longest_wait(
    binding: str, workers: int, on_gpu: bool, remedy: str
) -> None:
    report = Report(Path("s"), images=10, wall_seconds=10.0, workers=workers, on_gpu=on_gpu)
    report.side_seconds["image"] = 10.0
    report.seconds[binding] = 6.0
    line = summary("m", report)
    assert f"10s, 60% of it {binding} (to speed up: " in line
    assert remedy in line


def test_waiting_is_counted_where_it_happens(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    slow = fake()
    encode = slow.encode_images
    slow.encode_images = lambda pixels: (time.sleep(0.05), encode(pixels))[1]
    few: dict[SideName, int] = {"image": 64, "caption": 64}  # writing costs little then
    forward = run(slow, data(), "stores/a", ExtractOptions(rows_per_shard=few, batch_size=2))
    assert max(forward.seconds, key=forward.seconds.__getitem__) == "forward"
    blind = fake()
    preprocess = blind.preprocessor
    blind.preprocessor = lambda image: (time.sleep(0.05), preprocess(image))[1]
    decode = run(blind, data(), "stores/b", ExtractOptions(rows_per_shard=few, batch_size=2))
    assert max(decode.seconds, key=decode.seconds.__getitem__) == "decode"
    for report in (forward, decode):
        assert sum(report.seconds.values()) <= report.wall_seconds


def test_workers_by_default() -> None:
    assert one_model.default_workers("cpu") == 0
    assert 0 <= one_model.default_workers("cuda:1") == min(one_model.MOST_WORKERS, cores() - 1)
