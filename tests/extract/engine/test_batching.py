"""Batch sizes: kept on resuming, halved where memory is short, grown where there is much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
from click.testing import CliRunner

from hada.extract.backbones import load_backbone
from hada.extract.backbones.base import BackboneRequest
from hada.extract.cli import extract as command
from hada.extract.datasets.caption_dataset import CaptionDataset
from hada.extract.datasets.read import read_dataset
from hada.extract.engine import batch_size
from hada.extract.engine.options import ExtractOptions
from hada.extract.engine.runner import run
from hada.extract.manifest import load_manifest
from hada.extract.spec import SideName
from hada.extract.store import open_store
from hada.extract.testing.store_contract import files_of

ROWS: dict[SideName, int] = {"image": 4, "caption": 8}


def data() -> CaptionDataset:
    return read_dataset(load_manifest().dataset(), "train")


def fake() -> Any:
    return load_backbone(BackboneRequest(name="one", family="fake", weights="a", options={}))


def short_of_memory(most: int, error: Exception, *, after: int = 0) -> Any:
    """A backbone whose device, after some batches of images, takes `most` of them at a time."""
    backbone = fake()
    encode = backbone.encode_images
    seen: list[int] = []

    def encode_images(pixels: Any) -> Any:
        seen.append(len(pixels))
        if len(pixels) > most and len(seen) > after:
            raise error
        return encode(pixels)

    backbone.encode_images = encode_images
    backbone.seen = seen
    return backbone


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's."""


def sizes(folder: str | Path, side: str = "image") -> list[int]:
    markers = sorted((Path(folder) / "commit").glob(f"{side}-*.json"))
    return [json.loads(marker.read_text())["provenance"]["batch_size"] for marker in markers]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_halves_the_batch_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception, workers: int
) -> None:
    makers.make_project(tmp_path)
    backbone = short_of_memory(1, error, after=2)
    run(
        backbone,
        data(),
        "stores/x",
        ExtractOptions(rows_per_shard=ROWS, batch_size=4, workers=workers),
    )
    # The shards before it keep their size; the one in which it happened has the small one whole.
    assert sizes("stores/x") == [4, 4, 1]
    assert sizes("stores/x", "caption") == [4] * 5
    said = capsys.readouterr().err
    assert "out of memory, 4 images at a time now become 2" in said
    assert "out of memory, 2 images at a time now become 1" in said
    run(fake(), data(), "stores/plain", ExtractOptions(rows_per_shard=ROWS, batch_size=4))
    one, two = open_store("stores/x"), open_store("stores/plain")
    np.testing.assert_array_equal(one.image.tokens(slice(None)), two.image.tokens(slice(None)))


def test_a_model_too_large_for_one_item_is_an_error(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    with pytest.raises(OutOfMemoryError):
        run(
            short_of_memory(0, OutOfMemoryError()),
            data(),
            "stores/x",
            ExtractOptions(rows_per_shard=ROWS),
        )


def test_other_errors_are_not_tried_again(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    backbone = short_of_memory(1, RuntimeError("mat1 and mat2 shapes"))
    with pytest.raises(RuntimeError, match="mat1"):
        run(backbone, data(), "stores/x", ExtractOptions(rows_per_shard=ROWS, batch_size=4))
    assert backbone.seen == [4]


def test_auto_goes_on_with_the_stores_size(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    run(fake(), data(), "stores/whole", ExtractOptions(rows_per_shard=ROWS, batch_size=3))
    run(fake(), data(), "stores/x", ExtractOptions(rows_per_shard=ROWS, batch_size=3))
    for name in ("image-000001", "caption-000004"):
        (tmp_path / "stores" / "x" / "commit" / f"{name}.json").unlink()
    report = run(fake(), data(), "stores/x", ExtractOptions(rows_per_shard=ROWS, batch_size=None))
    assert report.batch_sizes == {"image": 3, "caption": 3}
    assert files_of(tmp_path / "stores" / "x") == files_of(tmp_path / "stores" / "whole")


def test_auto_on_a_cpu(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    report = run(fake(), data(), "stores/x", ExtractOptions(rows_per_shard=ROWS, batch_size=None))
    assert report.batch_sizes == {"image": batch_size.CPU_BATCH, "caption": batch_size.CPU_BATCH}


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", ""])
def test_a_size_that_is_none(tmp_path: Path, text: str) -> None:
    makers.make_project(tmp_path)
    result = CliRunner().invoke(command, ["--split", "val", "--batch-size", text])
    assert result.exit_code == 2
    assert "neither a whole number from 1 nor 'auto'" in result.output


@pytest.mark.parametrize(
    ("constant", "each", "most", "expected"),
    [
        (0.0, 0.001, 1024, 512),
        (0.0, 0.0001, 1024, 1024),
        (0.0, 0.0001, 100, 64),
        (0.5, 0.01, 1024, 32),
        (0.0, 2.0, 1024, 1),
    ],
)
def test_growing(constant: float, each: float, most: int, expected: int) -> None:
    tried = []

    def used(size: int) -> float:
        tried.append(size)
        taken = constant + each * size
        if taken > 1:
            raise OutOfMemoryError
        return taken

    assert batch_size.grow(used, most) == expected
    # It saw that before memory ran out, but for what one item takes.
    assert all(constant + each * size <= 1 for size in tried[1:])


def test_growing_passes_other_errors_on() -> None:
    def used(size: int) -> float:
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        batch_size.grow(used, 64)


def test_sizes_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert batch_size.remembered("a") is None
    batch_size.remember("a", 64)
    batch_size.remember("b", 128)
    assert (batch_size.remembered("a"), batch_size.remembered("b")) == (64, 128)
    for broken in (b"{", b"[]", b'{"a": "many"}', b'{"a": -4}', b'{"a": 1e9}', b"\xff"):
        batch_size.cache_file().write_bytes(broken)
        assert batch_size.remembered("a") is None
    batch_size.remember("a", 32)
    assert batch_size.remembered("a") == 32
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    batch_size.remember("a", 16)
    assert batch_size.remembered("a") is None
