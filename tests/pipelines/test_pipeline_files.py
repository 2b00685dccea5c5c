"""A pipeline's own files, damaged, hostile or of another program: told in a line, not obeyed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jobs_fakes import ONLY_EXTRACT, make_study

from hada.pipelines.cli import pipeline
from hada.pipelines.lock import SILENT_S, BusyError, driving, holder
from hada.pipelines.state import Folder
from hada.pipelines.study.jobs import to_json
from hada.pipelines.study.resolve import build_jobs

ELSEWHERE = {"host": "elsewhere", "pid": 7, "started": "1"}
HERE = {"host": os.uname().nodename, "pid": 1, "started": "1"}
NO_LOCKS = [
    b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff\xfe", b"\0" * 40, b"{}", b"[" * 9000,
    *(json.dumps({**lock, name: value}).encode()
      for lock in (ELSEWHERE, HERE)
      for name, value in [("pid", "12"), ("pid", True), ("pid", None), ("pid", 1e30), ("host", 3),
                          ("host", None), ("started", 5), ("started", ["1"])]),
    b'{"host": "elsewhere", "pid": ' + b"9" * 5000 + b', "started": "1"}',
    b" " * 10_000,
]  # fmt: skip


def lock(folder: Folder, content: bytes | dict[str, Any], age_s: float = 0.0) -> Path:
    folder.path.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    folder.lock_file.write_bytes(data)
    at = time.time() - age_s
    os.utime(folder.lock_file, (at, at))
    return folder.lock_file


@pytest.mark.parametrize("content", NO_LOCKS, ids=range(len(NO_LOCKS)))
def test_what_is_no_lock_is_respected_for_a_while_and_then_taken(
    tmp_path: Path, content: bytes
) -> None:
    folder = Folder(tmp_path, "study")
    file = lock(folder, content)
    with pytest.raises(BusyError, match=f"If no process drives this pipeline, delete {file}"):
        driving(folder).__enter__()
    assert "damaged" in str(holder(folder))
    assert file.read_bytes() == content
    lock(folder, content, SILENT_S + 5)
    with driving(folder):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert not file.exists()


def test_the_time_of_another_host_s_lock(tmp_path: Path) -> None:
    """Renewed lately: held, also by a clock that is a little ahead. Else nobody's."""
    folder = Folder(tmp_path, "study")
    for age in (0.0, SILENT_S - 30, 30 - SILENT_S):
        lock(folder, ELSEWHERE, age)
        assert holder(folder) == "process 7 on elsewhere"
        with pytest.raises(BusyError, match=r"certainly gone, delete .*lock"):
            driving(folder).__enter__()
    for age in (SILENT_S + 5, 1e9, -SILENT_S - 5, -1e9):
        lock(folder, ELSEWHERE, age)
        assert holder(folder) is None
        with driving(folder):
            pass
    lock(folder, {**ELSEWHERE, "pid": 2**70 % 2**63}, 0.0)
    assert "on elsewhere" in str(holder(folder))
    lock(folder, {**HERE, "pid": -1, "started": None})
    with driving(folder):
        pass


def test_a_lock_that_is_no_file(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "study")
    folder.path.mkdir(parents=True)
    for make in (
        lambda: folder.lock_file.mkdir(),
        lambda: folder.lock_file.symlink_to(tmp_path / "nowhere"),
        lambda: os.mkfifo(folder.lock_file),
    ):
        make()
        with pytest.raises(BusyError, match="expected a file, this is none"):
            driving(folder).__enter__()
        assert "damaged" in str(holder(folder))
        if folder.lock_file.is_dir():
            folder.lock_file.rmdir()
        else:
            folder.lock_file.unlink()


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    _, manifest = make_study(tmp_path, ONLY_EXTRACT)
    return Folder(manifest.runs, "study")


def said(*words: str, code: int) -> str:
    done = CliRunner().invoke(pipeline, list(words))
    assert done.exit_code == code, done.output
    assert "unexpected" not in done.output
    return done.output


GOOD = {"key": "extract/tiny/val/one", "status": "done", "side": "image", "shard": 0, "seconds": 2}
NO_RECORDS = [
    "[]", "7", "null", "{", '"x"', "[" * 9000, '{"key": "a"}', "\x00",
    *(json.dumps({**GOOD, name: value})
      for name, value in [("key", 5), ("key", ["a"]), ("key", None), ("status", None),
                          ("status", {}), ("side", 3), ("side", ["image"]), ("shard", "0"),
                          ("shard", [1]), ("shard", 1.5), ("shard", True), ("seconds", "2"),
                          ("seconds", None), ("seconds", -1), ("seconds", [2]), ("error", 5)]),
    json.dumps(GOOD).replace(": 2", ": NaN"), json.dumps(GOOD).replace(": 2", ": 1e999"),
    json.dumps(GOOD).replace(": 2", f": {'9' * 5000}"),
]  # fmt: skip


def test_lines_that_are_no_records_are_left_out(study: Folder) -> None:
    study.record({**GOOD, "status": "failed", "error": "the disk hiccuped"})
    file = study.path / "tasks.jsonl"
    with file.open("a") as lines:
        lines.write("".join(f"{line}\n" for line in NO_RECORDS))
        lines.write('{"key": "cut sho')  # by a kill, which is nothing to tell
    study.record({**GOOD, "shard": 1})
    assert [record["shard"] for record in study.records()] == [0, 1]
    out = said("status", "study.yaml", code=0)
    assert "failed last: extract/tiny/val/one image 0: the disk hiccuped" in out
    assert f"{file}: {len(NO_RECORDS) + 1} of its lines are no records of tasks (line 2" in out
    assert out.count("are no records") == 1
    said("plan", "study.yaml", code=0)
    assert "unexpected" not in said("run", "study.yaml", "--retry-failed", "--on", "x", code=2)


def test_records_that_are_no_file(study: Folder) -> None:
    (study.path / "tasks.jsonl").mkdir(parents=True)
    assert "expected a file. Take it away" in said("plan", "study.yaml", code=1)


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "7", "{}", '{"jobs": {}}', '{"at": 1, "jobs": []}', "[" * 9000,
        '{"at": "x", "jobs": {}}', '{"at": 1, "jobs": {"a": 7}}', '{"at": 1, "jobs": {"a": null}}',
        '{"at": 1, "jobs": {"a": "--user=root"}}', '{"at": 1, "jobs": {"a": "7 8"}}',
    ],
)  # fmt: skip
def test_what_was_submitted(study: Folder, content: str) -> None:
    study.path.mkdir(parents=True)
    (study.path / "submitted.json").write_text(content)
    for words in (["status", "study.yaml"], ["cancel", "study.yaml"]):
        out = said(*words, code=2)
        assert "submitted.json" in out
        assert "squeue --me" in out


def test_what_a_batch_job_reads(study: Folder, tmp_path: Path) -> None:
    from hada.extract.manifest import load_manifest
    from hada.pipelines.study.config import load_pipeline

    manifest = load_manifest(None)
    job = build_jobs(load_pipeline(Path("study.yaml"), manifest), manifest)[0]
    good = {"job": to_json(job), "pending": {"image": [0]}, "parts": 1, "threads": 1}
    study.path.mkdir(parents=True)
    file = study.path / "jobs.json"
    odd: list[Any] = [[], 7, {}, {job.key: []}, {job.key: {}}, {job.key: {**good, "parts": "2"}}]
    odd += [{job.key: {**good, "pending": {"image": ["0"]}}}, {job.key: {**good, "job": 5}}]
    wrong = {"key": "cook/x", "options": 3, "store": None, "needs": "a", "view": "0"}
    for name, value in wrong.items():
        odd.append({job.key: {**good, "job": {**to_json(job), name: value}}})
    odd.append({job.key: {**good, "job": {**to_json(job), "surplus": 1}}})
    odd.append(
        {job.key: {**good, "job": {k: v for k, v in to_json(job).items() if k != "options"}}}
    )
    for entries in odd:
        file.write_text(json.dumps(entries))
        assert str(file) in said("work", str(file), job.key, code=2), entries
    for text in ("", "{", "[" * 9000):
        file.write_text(text)
        assert "submit again" in said("work", str(file), job.key, code=2)
    (tmp_path / "jobs.json").write_text(json.dumps({job.key: good}))
    assert "expected RUNS/pipelines/NAME" in said("work", "jobs.json", job.key, code=2)


ODD_VALUES = [
    "7", "-1", "1.5", "true", "null", "[]", "{}", "[[]]", "[7]", "[{}]", "{a: b}", "''", "x",
    ".inf", ".nan", "99999999999999999999999", f"'{'9' * 5000}:00:00'", "2026-01-01", "[a, [b]]",
    '"\\e[2J"', "'../x'", "!!binary aGk=", "&a [*a]", "'00:00:00'", "0x10", "1e400",
]  # fmt: skip
FULL = """\
schema: 1
name: study
device: cpu
extract:
  - dataset: tiny
    models: [one]
    splits: [val]
    views: 0
    view_seed: 0
    precision: fp32
    store_dtype: float16
    store_format: zarr
    tokens: all
    shard_size: 3
    batch_size: 2
    max_errors: 1
fuse:
  - dataset: tiny
    models: [one, two]
    recipe: fast
    seeds: [0]
    train_split: train
    val_split: val
    name: mine
    set: {epochs: 1}
evaluate:
  - {dataset: tiny, split: val, models: [one], quick: true}
cluster:
  queue: a
  account: b
  walltime: "01:00:00"
  cores: 1
  memory: 4GB
  gpus: 0
  elements: 4
  interface: lo
  directives: []
  setup: []
"""


@pytest.mark.slow
def test_whatever_a_pipeline_says_is_a_plan_or_an_error_with_its_line(study: Folder) -> None:
    """Every value of a full file replaced by a third of the odd ones, each by others."""
    lines = FULL.splitlines()
    tried = refused = 0
    for number, line in enumerate(lines):
        head, colon, _ = line.partition(":")
        words = ["plan", "study.yaml"]
        if number > lines.index("cluster:"):
            words = ["submit", "study.yaml", "--dry-run"]
        for value in ODD_VALUES[number % 3 :: 3] if colon else []:
            text = "\n".join([*lines[:number], f"{head}: {value}", *lines[number + 1 :]])
            Path("study.yaml").write_text(text)
            done = CliRunner().invoke(pipeline, words)
            assert "unexpected" not in done.output, f"{head}: {value}: {done.output}"
            assert done.exit_code in (0, 1, 2), f"{head}: {value}"
            assert done.exit_code != 2 or "study.yaml" in done.output, done.output
            assert "\x1b" not in done.output
            refused += done.exit_code == 2
            tried += 1
    assert refused > tried / 2
