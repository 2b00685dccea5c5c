"""Care for stores: hada-store, and what hada-extract looks at before it begins."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import makers
import numpy as np
import pytest
from calls import call

from hada.extract.cli import extract
from hada.extract.common.errors import StoreError, StoreMismatchError, UsageError
from hada.extract.spec import SIDES, TokenSpec
from hada.extract.store import StoreWriter, commit, locks, open_store
from hada.extract.store.maintain import convert, describe, repair
from hada.extract.store_cli import store
from hada.extract.testing.store_contract import Content, files_of

FORMATS = pytest.mark.parametrize("form", ["zarr", "hdf5"])
OTHER = {"zarr": "hdf5", "hdf5": "zarr"}


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def make(path: Path, form: str, **changes: Any) -> Content:
    content = Content(makers.make_spec(**changes), format=form)
    content.write(path)
    return content


@FORMATS
def test_convert_there_and_back_is_the_same_store(tmp_path: Path, form: str) -> None:
    make(tmp_path / "a", form)
    code, output = call(store, "convert", tmp_path / "a", tmp_path / "b", "--format", OTHER[form])
    assert code == 0, output
    list(convert(tmp_path / "b", tmp_path / "c", format=form))
    a, b, c = (open_store(tmp_path / name) for name in "abc")
    assert (a.format, b.format, c.format) == (form, OTHER[form], form)
    for side in SIDES:
        whole = a.side(side).tokens(slice(None))
        np.testing.assert_array_equal(b.side(side).tokens(slice(None)), whole)
        assert a.side(side).ids == b.side(side).ids
    features = next((tmp_path / "a").glob("features.*")).name
    assert files_of(tmp_path / "a" / features) == files_of(tmp_path / "c" / features)


def test_convert_keeps_failures_and_changes_the_dtype(tmp_path: Path) -> None:
    content = Content(makers.make_spec(dtype="float32"))
    writer = StoreWriter.open(tmp_path / "a", content.spec, content.index())
    writer.write("image", 1, makers.failed_block(content, writer))
    content.write(tmp_path / "a")
    for dtype, exact in [("float16", "f2"), ("bfloat16", None)]:
        list(convert(tmp_path / "a", tmp_path / dtype, dtype=dtype))
        again = open_store(tmp_path / dtype)
        assert again.spec.dtype == dtype
        assert again.image.failed.tolist() == [False, False, False, True, False]
        if exact:
            np.testing.assert_array_equal(
                again.caption.tokens(slice(None)),
                np.concatenate(content.tokens["caption"]).astype("f4").astype(exact),
            )
    with pytest.raises(StoreError, match="in place"):
        list(convert(tmp_path / "a", tmp_path / "a"))


@FORMATS
def test_repair_removes_what_is_damaged_and_says_so(tmp_path: Path, form: str) -> None:
    content = make(tmp_path / "s", form)
    whole = files_of(tmp_path / "s")
    features = next((tmp_path / "s").glob("features.*"))
    first, second, third = sorted(
        path
        for path in (features / "image").rglob("*")
        if path.is_file()
        and path.name != "zarr.json"
        and "ids" not in path.parts
        and "embeddings" not in path.parts
    )
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    commit.marker_path(tmp_path / "s", "image", 1).unlink()
    second.with_name(f"{second.name}.tmp-1").write_bytes(b"half")
    third.unlink()
    code, output = call(store, "verify", "--deep", tmp_path / "s")
    assert code == 1
    assert "image shard 0" in output
    assert "left by a killed writer" in output
    code, output = call(store, "repair", tmp_path / "s")
    assert code == 0
    assert "image shard 0: removed" in output
    assert "image shard 1: removed (files without a marker)" in output
    assert "image shard 2: removed" in output
    assert "now run: hada-extract --dataset tiny --split val --model model" in output
    assert repair(tmp_path / "s") == []
    assert "nothing to remove" in call(store, "repair", tmp_path / "s")[1]
    content.write(tmp_path / "s")
    assert files_of(tmp_path / "s") == whole
    assert call(store, "verify", "--deep", tmp_path / "s")[0] == 0


def test_repair_leaves_a_shard_that_is_being_written(tmp_path: Path) -> None:
    make(tmp_path / "s", "zarr")
    commit.marker_path(tmp_path / "s", "image", 1).unlink()
    before = files_of(tmp_path / "s")
    with locks.shard_lock(tmp_path / "s", "image", 1) as mine:
        assert mine
        (entry,) = repair(tmp_path / "s")
    assert entry.busy
    assert files_of(tmp_path / "s") == before


@FORMATS
def test_a_difference_is_accepted_by_name_and_recorded(tmp_path: Path, form: str) -> None:
    content = make(tmp_path / "s", form)
    other = Content(makers.make_spec(weights_digest="1"), format=form)
    with pytest.raises(StoreMismatchError, match=r"--allow-mismatch model\.weights_digest"):
        other.open(tmp_path / "s")
    for _ in range(2):
        writer = StoreWriter.open(
            tmp_path / "s",
            other.spec,
            other.index(),
            allow_mismatch=["model.weights_digest"],
        )
    assert writer.spec == content.spec
    assert writer.pending("image") == []
    facts = describe(tmp_path / "s")
    assert facts["allowed_mismatches"] == [
        {"field": "model.weights_digest", "store": "0", "request": "1"}
    ]
    assert "accepted    model.weights_digest: '0' for '1'" in call(store, "info", tmp_path / "s")[1]
    assert json.loads(call(store, "info", "--json", tmp_path / "s")[1]) == facts
    assert open_store(tmp_path / "s").spec == content.spec
    with pytest.raises(UsageError, match="decide shapes and bytes"):
        StoreWriter.open(tmp_path / "s", other.spec, other.index(), allow_mismatch=["dtype"])


def test_another_format_is_refused_with_the_way_out(tmp_path: Path) -> None:
    content = make(tmp_path / "s", "zarr")
    content.format = "hdf5"
    with pytest.raises(StoreMismatchError, match="hada-store convert"):
        content.write(tmp_path / "s")
    (tmp_path / "s" / "features.hdf5").mkdir()
    with pytest.raises(StoreError, match=r"two formats \(zarr, hdf5\)"):
        open_store(tmp_path / "s")


@FORMATS
def test_the_size_is_known_before_the_first_byte(tmp_path: Path, form: str) -> None:
    makers.make_project(tmp_path)
    arguments = ("--split", "val", "--model", "one", "--shard-size", 2)
    code, output = call(extract, *arguments, "--dry-run")
    assert code == 0, output
    assert not (tmp_path / "stores").exists()
    assert "image/tokens" in output
    assert "5 in 3 shards" in output
    code, output = call(extract, *arguments, "--format", form)
    assert code == 0, output
    assert describe(tmp_path / "stores" / "tiny" / "val" / "one")["format"] == form
    code, output = call(extract, *arguments, "--dry-run")
    assert code == 0
    assert "nothing was written" in output


def test_a_small_disk_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers.make_project(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10, 5, 5))
    arguments = ("--split", "val", "--model", "one")
    for more in ((), ("--dry-run",)):
        code, output = call(extract, *arguments, *more)
        assert code == 1
        assert "but the disk has 5 B left" in output
    assert not (tmp_path / "stores").exists()
    assert call(extract, *arguments, "--dry-run", "--force")[0] == 0
    assert call(extract, *arguments, "--force")[0] == 0
    code, output = call(extract, *arguments)
    assert code == 0
    assert "complete already" in output


def test_the_planned_bytes_are_those_on_disk(tmp_path: Path) -> None:
    from hada.extract.store.size_plan import plan_size

    content = Content(makers.make_spec(image=TokenSpec(width=64, count=50)))
    plan = plan_size(tmp_path / "s", content.spec, content.index())
    content.write(tmp_path / "s")
    for name, planned in plan.arrays.items():
        found = sum(
            path.stat().st_size
            for path in (tmp_path / "s" / "features.zarr" / name / "c").rglob("*")
            if path.is_file()
        )
        # Checksums and indexes come on top; the last chunk of embeddings is filled up.
        assert planned <= found <= planned * 1.02 + 200, name
    again = plan_size(tmp_path / "s", content.spec, content.index())
    assert again.needed < plan.needed / 3


def test_the_frame_of_a_killed_process_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    """Two processes make the same store; one was killed before it saw that the other had."""
    content = Content(makers.make_spec())
    content.write(tmp_path / "s")
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    host = socket.gethostname()
    frames = [tmp_path / f".s.tmp-{pid}-{host}" for pid in (dead.pid, os.getppid())]
    for frame in frames:
        (frame / "features.zarr").mkdir(parents=True)
    other = tmp_path / f".t.tmp-{dead.pid}-{host}"
    other.mkdir()
    content.open(tmp_path / "s")
    assert [frame.exists() for frame in (*frames, other)] == [False, True, True]
