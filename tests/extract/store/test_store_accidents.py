"""Accidents while a store is written: kills, a full disk, two writers. Nothing may be lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import makers
import pytest
from click.testing import CliRunner
from places import PROGRAMS, SUPPORT
from small_shards import ONE, data, extract, fake

from hada.extract.common.errors import StoreError
from hada.extract.engine.options import ExtractOptions
from hada.extract.engine.runner import run
from hada.extract.store import open_store
from hada.extract.store.reader import read_spec, shard_status
from hada.extract.store_cli import store
from hada.extract.testing.store_contract import files_of

pytestmark = pytest.mark.slow

FORMATS = pytest.mark.parametrize("form", ["zarr", "hdf5"])
KILLS = 50
KILL_EXTRACTION = PROGRAMS / "kill_extraction.py"


@FORMATS
def test_fifty_kills_lose_nothing(tmp_path: Path, form: str) -> None:
    makers.make_project(tmp_path, splits={"train": [2] * 60})
    command = [sys.executable, str(KILL_EXTRACTION), "stores/killed", form, str(KILLS), "7"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    counts = json.loads(done.stdout)
    assert counts["at a step"] + counts["at a moment"] >= KILLS, counts
    killed = tmp_path / "stores" / "killed"
    status = shard_status(killed, read_spec(killed), deep=True)
    # A kill leaves shards unwritten, never wrong ones that count.
    states = {state for shards in status.values() for state in shards.values()}
    assert states <= {None, "not written yet"}
    extract("stores/killed", form)
    extract("stores/whole", form)
    result = CliRunner().invoke(store, ["verify", "--deep", "stores/killed"])
    assert result.exit_code == 0, result.output
    assert files_of(killed) == files_of(tmp_path / "stores" / "whole")


@FORMATS
def test_two_writers_at_once_share_the_work(tmp_path: Path, form: str) -> None:
    makers.make_project(tmp_path, splits={"train": [2] * 30})
    code = (
        "import sys; sys.path.insert(0, sys.argv[3])\n"
        "import small_shards\n"
        "small_shards.extract(sys.argv[1], sys.argv[2])\n"
    )
    arguments = ["stores/both", form, str(SUPPORT)]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    assert [process.wait() for process in both] == [0, 0]
    extract("stores/both", form)
    extract("stores/whole", form)
    assert files_of(tmp_path / "stores" / "both") == files_of(tmp_path / "stores" / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@FORMATS
def test_a_full_disk_is_an_error_and_no_loss(tmp_path: Path, form: str, small_disk: Path) -> None:
    makers.make_project(tmp_path, splits={"train": [2] * 30})
    with pytest.raises(StoreError, match=r"are to be written, but the disk has"):
        extract(small_disk / "s", form)
    with pytest.raises(OSError, match="No space left"):
        run(
            fake(),
            data("train"),
            small_disk / "s",
            ExtractOptions(rows_per_shard=ONE, batch_size=1, format=form, force=True),
        )
    folder = small_disk / "s"
    if folder.exists():
        status = shard_status(folder, read_spec(folder), deep=True)
        states = [state for shards in status.values() for state in shards.values()]
        assert set(states) <= {None, "not written yet"}
        assert None in states
        with pytest.raises(StoreError, match="shards are missing"):
            open_store(folder)
        # Room is made, and the same call continues.
        shutil.copytree(folder, tmp_path / "more")
        extract(tmp_path / "more", form)
    extract("stores/whole", form)
    assert files_of(tmp_path / "more") == files_of(tmp_path / "stores" / "whole")
