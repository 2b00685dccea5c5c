"""What is written arrives, or somebody is told: the one path of all files, and what kills leave."""

from __future__ import annotations

import ast
import builtins
import errno
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import makers
import numpy as np
import pytest
from click.testing import CliRunner
from places import ROOT

from hada.extract.cli import extract
from hada.extract.common import atomic, remote, sink
from hada.extract.common.errors import StoreError, UsageError
from hada.extract.spec import SIDES
from hada.extract.store import commit, locks, open_store, stores_below, write_store
from hada.extract.store.maintain import convert
from hada.extract.store_cli import store
from hada.extract.testing.store_contract import Content, files_of
from hada.fuse.cli import fuse
from hada.fuse.run_folder import RunFolder
from hada.fuse.training import trackers

pytestmark = pytest.mark.slow

FORMATS = pytest.mark.parametrize("form", ["zarr", "hdf5"])
DEAD = f"999999999-{socket.gethostname()}"

# What writes a file without `atomic`, and why it may. Locks and logs are no results.
BESIDE = {
    ("extract/common/console.py", "open"): "os.devnull, for a reader who has gone",
    ("extract/pretraining/towers_blip.py", "save_pretrained"): "whole folder synced, then renamed",
    ("extract/pretraining/towers_clip.py", "save_pretrained"): "whole folder synced, then renamed",
    ("extract/store/locks.py", "open"): "a lock, empty",
    ("extract/store/hdf5_format.py", "h5py.File"): "into memory",
    ("extract/store/hdf5_part.py", "h5py.File"): "into a `Sink` or memory",
    (
        "extract/exporters/databases.py",
        "write_index",
    ): "whole folder synced, then renamed",
    ("evaluate/methods/pair_cache.py", "np.savez"): "into memory",
    ("evaluate/search/mapped.py", "open"): "a member of a zip in memory",
    ("fuse/models_cli.py", "save_pretrained"): "beside; each file is then written by `atomic`",
    ("fuse/run_files/checkpoint.py", "torch.save"): "into memory",
    ("fuse/training/lock.py", "open"): "a lock that names its holder",
    ("fuse/training/trackers.py", "Sink"): "a copy of metrics.jsonl for TensorBoard",
    ("pipelines/execution/batch_pools.py", "NamedTemporaryFile"): "a script that Slurm reads once",
    ("pipelines/execution/worker.py", "open"): "a log",
    ("pipelines/state.py", "os.open"): "makes a log or record, for its user alone; adds nothing",
}
_WRITERS = {
    *("write_bytes", "write_text", "save_file", "save_model", "save_pretrained", "savefig"),
    *(
        "to_parquet",
        "to_csv",
        "tofile",
        "write_index",
        "SummaryWriter",
        "Sink",
        "NamedTemporaryFile",
    ),
    *("np.save", "np.savez", "np.savez_compressed", "np.savetxt", "torch.save", "json.dump"),
    *("yaml.dump", "pickle.dump", "pq.write_table", "h5py.File", "mkstemp", "os.fdopen"),
}


def writers(tree: ast.AST) -> Iterator[str]:
    """The calls of a module that write files, by name."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        whole = ast.unparse(node.func)
        name = whole.rpartition(".")[2]
        if whole == "os.open":
            flags = ast.unparse(node.args[1])
            if "O_RDONLY" not in flags:
                yield whole
        elif name == "open":
            words = [ast.unparse(word) for word in (*node.args, *(k.value for k in node.keywords))]
            if any(word.strip("'\"") in ("w", "a", "x", "wb", "ab", "xb", "a+", "r+b", "w+b", "r+")
                   for word in words):  # fmt: skip
                yield name
        elif whole.startswith("atomic."):
            continue
        elif whole in _WRITERS or name in _WRITERS:
            mode = [ast.unparse(word).strip("'\"") for word in node.args[1:2]]
            if not (name == "File" and mode == ["r"]):
                yield whole if whole in _WRITERS else name


@pytest.mark.parametrize("call", ["pwritev", "fsync", "close", "write"])
def test_errors_of_descriptors_name_the_file(tmp_path: Path, monkeypatch, call: str) -> None:
    real = getattr(os, call)

    def fail(descriptor: int, *words: Any) -> Any:
        if call == "close":
            real(descriptor, *words)
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "file.txt"
    lines = functools.partial(atomic.append_line, line="a line")
    write = lines if call == "write" else functools.partial(atomic.write_bytes, data=b"something")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match=r"Input/output error: '.*file\.txt"):
            write(path)


@pytest.mark.skipif(sink._start_writing is None, reason="needs Linux's sync_file_range")
def test_the_disk_begins_before_a_file_is_synced(tmp_path, monkeypatch) -> None:
    """Every byte is named once, in order, but for the last that are too few; a refusal is none."""
    pieces = [np.random.default_rng(k).bytes(60) for k in range(7)]
    started: list[tuple[int, int]] = []
    real = sink._start_writing

    def start(descriptor: int, begin: int, count: int, flags: int) -> int:
        assert real(descriptor, begin, count, flags) == 0
        started.append((begin, count))
        return -1

    monkeypatch.setattr(sink, "_BEGIN_BYTES", 100)
    for found in (start, None):
        monkeypatch.setattr(sink, "_start_writing", found)
        with atomic.writing(tmp_path / "file") as file:
            for piece in pieces:
                file.write(piece)
        assert (tmp_path / "file").read_bytes() == b"".join(pieces)
    assert started == [(0, 120), (120, 120), (240, 120)]


def test_every_file_goes_through_the_one_path_or_says_why_not() -> None:
    found = {
        (str(path.relative_to(ROOT)), name)
        for room in ("extract", "fuse", "evaluate", "pipelines")
        for path in (ROOT / room).rglob("*.py")
        if path.name not in ("atomic.py", "sink.py") and path.parent.name != "testing"
        for name in writers(ast.parse(path.read_text()))
    }
    assert found - BESIDE.keys() == set(), "write through hada.extract.common.atomic"
    assert BESIDE.keys() - found == set(), "no longer there: strike it off the list"


def test_the_search_for_writers_finds_them() -> None:
    text = (
        "open(p, 'wb'); p.open('a'); np.savez(p); os.open(p, os.O_WRONLY); p.write_text('')\n"
        "h5py.File(p, 'w'); h5py.File(p, 'r'); open(p); atomic.write_bytes(p, b'')\n"
    )
    names = sorted(writers(ast.parse(text)))
    assert names == ["h5py.File", "np.savez", "open", "open", "os.open", "write_text"]


def failing(
    monkeypatch: pytest.MonkeyPatch, name: str, at: int, error: int | None
) -> Callable[[], int]:
    """Let the `at`-th call of a function of `os` fail, or write half; returns a count of calls."""
    step, calls = getattr(os, name), iter(range(10**9))
    seen = [0]

    def wrapped(descriptor: int, *rest: Any) -> Any:
        seen[0] += 1
        if next(calls) != at:
            return step(descriptor, *rest)
        if error is not None:
            raise OSError(error, os.strerror(error))
        (pieces, place) = rest
        first = memoryview(pieces[0])
        return step(descriptor, [first[: max(1, len(first) // 2)]], place)

    monkeypatch.setattr(os, name, wrapped)
    return lambda: seen[0]


@FORMATS
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, None], ids=["EIO", "ENOSPC", "short"])
def test_any_failed_write_of_a_store_is_told_and_any_short_one_made_good(
    tmp_path: Path, form: str, error: int | None
) -> None:
    content = Content(makers.make_spec(), format=form)
    content.write(tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    at = 0
    while True:
        path, told = tmp_path / f"s{at}", None
        with pytest.MonkeyPatch.context() as patch:
            calls = failing(patch, "pwritev", at, error)
            try:
                content.write(path)
            except OSError as caught:
                told = caught.errno
        if calls() <= at:
            break
        assert told == error
        content.write(path)
        assert files_of(path) == whole
        at += 17  # each of them takes half a minute
    assert at > 20


@pytest.mark.parametrize("name", ["fsync", "close", "replace"])
def test_what_comes_after_the_last_write_is_looked_at_too(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic.write_bytes(tmp_path / "a", b"old")
    step, failed = getattr(os, name), []

    def fail_once(*words: Any) -> Any:
        if not failed:
            failed.append(1)
            if name == "close":
                step(*words)
            raise OSError(errno.EIO, "Input/output error")
        return step(*words)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail_once)
        with pytest.raises(OSError, match="Input/output"):
            atomic.write_bytes(tmp_path / "a", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_an_error_that_a_library_swallows_is_raised_at_the_end(tmp_path: Path) -> None:
    def write() -> None:
        with (
            pytest.MonkeyPatch.context() as patch,
            atomic.writing(tmp_path / "x.h5", silent=True) as sink,
        ):
            failing(patch, "pwritev", 1, errno.ENOSPC)
            with h5py.File(sink, "w") as file:
                file["x"] = np.arange(10_000)

    with pytest.raises(OSError, match="No space left"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_line_after_half_a_line_begins_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"half')
    atomic.append_line(path, '{"b": 2}')
    step, calls = os.write, iter(range(9))
    monkeypatch.setattr(os, "write", lambda d, data: step(d, data[:3] if not next(calls) else data))
    atomic.append_line(path, '{"c": 3}')
    monkeypatch.undo()
    lines = path.read_bytes().splitlines()
    assert lines == [b'{"a": 1}', b'{"half', b'{"b": 2}', b'{"c', b'{"c": 3}']


def test_what_a_killed_process_left_is_no_store_and_goes_away(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    assert CliRunner().invoke(extract, ["--split", "val", "--model", "one"]).exit_code == 0
    folder = tmp_path / "stores" / "tiny" / "val"
    living = f".two.tmp-{os.getppid()}-{socket.gethostname()}"
    for name in (f".two.tmp-{DEAD}", ".two.tmp-999999999", living, "notes", ".one.tmp-5-elsewhere"):
        (folder / name / "features.zarr").mkdir(parents=True)
    assert [path.name for path in stores_below(folder)] == ["notes", "one"]
    shutil.rmtree(folder / "notes")
    done = CliRunner().invoke(extract, ["--split", "val", "--model", "two"])
    assert done.exit_code == 0, done.output
    assert {path.name for path in folder.iterdir()} == {
        "one",
        "two",
        living,
        ".one.tmp-5-elsewhere",
    }
    result = CliRunner().invoke(fuse, ["suggest", "--split", "val", "--json"])
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["combinations"]) == 3
    os.utime(folder / ".one.tmp-5-elsewhere", (0, 0))  # of a machine that has been silent
    assert atomic.leftovers(folder / ".one") == [folder / ".one.tmp-5-elsewhere"]


def test_the_index_of_one_image_is_all_zeros_and_a_file_all_the_same(tmp_path: Path) -> None:
    """zarr-python leaves out what equals the fill value, as earlier versions of stores did."""
    write_store(
        tmp_path / "s",
        makers.make_spec(image=None, caption=None),
        ids={"image": ["one_image"], "caption": ["b", "c"]},
        caption_to_image=np.zeros(2, np.int64),
        embeddings={"image": np.ones((1, 4), "f4"), "caption": np.ones((2, 4), "f4")},
    )
    assert open_store(tmp_path / "s").caption_to_image.tolist() == [0, 0]
    (tmp_path / "s/features.zarr/caption/image_index/c/0").unlink()
    assert open_store(tmp_path / "s").caption_to_image.tolist() == [0, 0]
    (tmp_path / "s/features.zarr/caption/ids/c/0/0").unlink()
    with pytest.raises(StoreError, match="caption/ids"):
        open_store(tmp_path / "s")


def test_a_marker_that_cannot_be_read_keeps_a_store_from_being_called_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Content(makers.make_spec())
    writer = content.open(tmp_path / "s")
    for side in SIDES:
        for shard in range(writer.shards(side)):
            writer.write(side, shard, content.block(writer, side, shard))
    step = remote.read_many

    def fail_once(folder: Path, names: Any) -> Any:
        found = step(folder, names)
        return [OSError(errno.EIO, "Input/output error"), *found[1:]]

    with monkeypatch.context() as patch:
        patch.setattr(remote, "read_many", fail_once)
        with pytest.raises(StoreError, match="Input/output error"):
            writer.finish()
    writer.finish()
    assert (tmp_path / "s" / "commit" / "seal.json").exists()


def test_results_take_away_what_was_left_of_them(tmp_path: Path) -> None:
    for name in (f"r.json.tmp-{DEAD}", f"other.json.tmp-{DEAD}"):
        (tmp_path / name).write_text("half")
    atomic.write_json(tmp_path / "r.json", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"r.json", f"other.json.tmp-{DEAD}"}


@FORMATS
def test_a_finished_store_may_be_read_only(tmp_path: Path, form: str) -> None:
    makers.make_project(tmp_path)
    disk = tmp_path / "stores"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a file system to make it read-only")
    words = ["--split", "val", "--model", "one", "--format", form]
    try:
        assert CliRunner().invoke(extract, words).exit_code == 0
        Path("stores/tiny/val/copy").mkdir()
        Path("stores/tiny/val/copy").rmdir()
        move = ["convert", "stores/tiny/val/one", "stores/tiny/val/copy"]
        assert CliRunner().invoke(store, move).exit_code == 0
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for command, line in ((extract, words), (store, move)):
            done = CliRunner().invoke(command, line)
            assert done.exit_code == 0, done.output
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("name", ["extract", "convert"])
def test_what_another_process_writes_is_waited_for_and_taken_over(
    tmp_path: Path, name: str
) -> None:
    makers.make_project(tmp_path)
    words = ["--split", "val", "--model", "one", "--shard-size", "2"]
    folder = Path("stores/tiny/val/one").absolute()

    def work() -> int:
        if name == "extract":
            return CliRunner().invoke(extract, words).exit_code
        return len(list(convert(tmp_path / "source", folder))) // 99

    assert CliRunner().invoke(extract, words).exit_code == 0
    if name == "convert":
        folder.rename(tmp_path / "source")
        assert work() == 0
    whole = files_of(folder)
    commit.marker_path(folder, "image", 1).unlink()
    ends: list[int] = []
    thread = threading.Thread(target=lambda: ends.append(work()))
    with locks.shard_lock(folder, "image", 1) as mine:
        assert mine
        thread.start()
        time.sleep(0.5)
        assert ends == []
    thread.join()
    assert ends == [0]
    assert files_of(folder) == whole


def test_a_disk_that_fails_once_makes_no_picture_one_without_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers.make_project(tmp_path)
    words = ["--split", "val", "--model", "one"]
    step = builtins.open

    def failing_open(file: Any, *rest: Any, **more: Any) -> Any:
        if str(file).endswith("val_002.jpg"):
            raise OSError(errno.EIO, "Input/output error", str(file))
        return step(file, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", failing_open)
        result = CliRunner().invoke(extract, words)
    assert result.exit_code == 1
    assert "Input/output error" in result.output
    assert CliRunner().invoke(extract, words).exit_code == 0
    assert not open_store("stores/tiny/val/one").image.failed.any()


def test_no_store_lies_in_another_or_behind_a_link_to_nowhere(tmp_path: Path) -> None:
    content = Content(makers.make_spec())
    content.write(tmp_path / "s")
    whole = files_of(tmp_path / "s")
    for inside in ("sub", "features.zarr/sub", "commit/a/b"):
        result = CliRunner().invoke(store, ["convert", "s", f"s/{inside}"])
        assert result.exit_code == 2
        assert "lies in the store" in result.output
    assert files_of(tmp_path / "s") == whole
    (tmp_path / "link").symlink_to("nowhere")
    for place in ("link", "link/below"):
        with pytest.raises(UsageError, match="a link to nowhere, which is not there"):
            content.write(tmp_path / place)
    for words in (["info", "link"], ["verify", "link"], ["convert", "s", "link"]):
        result = CliRunner().invoke(store, words)
        assert result.exit_code == 2
        assert "a link to nowhere" in result.output
    (tmp_path / "file").write_text("")
    with pytest.raises((UsageError, StoreError), match="a file, expected a folder"):
        content.write(tmp_path / "file" / "s")
    (tmp_path / "real").symlink_to("t")
    (tmp_path / "t").mkdir()
    content.write(tmp_path / "real" / "s")
    assert open_store(tmp_path / "t" / "s").spec == content.spec


def test_a_sample_of_injected_faults_is_noticed_by_the_commands() -> None:
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("needs a C compiler")
    words = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--sample", "40"]
    stages = ["extract-zarr", "extract-hdf5", "zarr-to-hdf5"]
    done = subprocess.run(
        [*words, "--stages", *stages], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 faults" in done.stdout


def test_a_tracker_that_cannot_write_is_left_out_and_the_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def make(*_words: Any) -> Any:
        def step(epoch: int, _values: Any) -> None:
            seen.append(epoch)
            raise OSError(errno.ENOSPC, "No space left on device")

        return step, lambda: seen.append(-1)

    monkeypatch.setattr(trackers, "_tensorboard", make)
    (report,), close = trackers.open_reports(["tensorboard"], RunFolder(tmp_path), {}, 1)
    for epoch in (1, 2):
        report(epoch, {"loss": 1.0})
    close()
    assert seen == [1]
    assert "warning: --report-to tensorboard: [Errno 28] No space left" in capsys.readouterr().err
