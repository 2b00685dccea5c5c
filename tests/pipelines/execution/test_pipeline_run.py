"""Pipelines on this machine: the same bytes as the commands, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from jobs_fakes import make_study
from study_runs import ONLY_EXTRACT, accident, call, differing, run, serial, start, stores

from hada.evaluate.cli import evaluate as evaluate_command
from hada.extract.spec import SIDES
from hada.fuse.cli import fuse as fuse_command
from hada.pipelines.cli import pipeline as command
from hada.pipelines.state import Folder
from hada.pipelines.study.plan_table import table
from hada.pipelines.study.resolve import build_jobs
from hada.pipelines.study.survey import survey

pytestmark = pytest.mark.slow


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As workers compute: with more threads the last bits of a training differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_the_bytes_and_the_recall_of_the_serial_commands(tmp_path: Path) -> None:
    make_study(tmp_path)
    code, said = run(tmp_path, "--workers", "2")
    assert code == 0, said
    assert "done train/tiny/one+two-fast-s0" in said
    assert differing(stores(tmp_path / "stores"), serial("one", "two")) == []
    settings = "epochs=1 node_width=16 head_width=8 graph_width=16 out_width=16 batch_size=6"
    places = ["--root", "stores=serial", "--root", "runs=serial-runs"]
    words = [word for setting in settings.split() for word in ("--set", setting)]
    call(fuse_command, "train", *words, *places)
    call(evaluate_command, "recall", "--split", "val", "--quick", *places)
    found, expected = (
        json.loads((tmp_path / runs / "tiny" / "recall-val.json").read_text())
        for runs in ("runs", "serial-runs")
    )
    for result in (found, expected):
        for method in result["methods"]:
            method.pop("run", None)  # where it lies
    assert found["methods"] == expected["methods"]
    # And again: nothing is to do, and nothing is touched.
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "stores").rglob("*")}
    assert run(tmp_path)[0] == 0
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "stores").rglob("*")}
    assert "everything is done" in call(command, "plan", "study.yaml")


@pytest.mark.parametrize("how", ["kill", "raise"])
def test_an_accident_is_tried_again(tmp_path: Path, how: str) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    accident(tmp_path, f"{how}:{mark}")
    code, said = run(tmp_path, "--workers", "2", "--retries", "1")
    if how == "kill":
        assert "its worker process died" in said
        assert code == 0, said
    else:
        assert code == 1
        assert "FAILED extract/tiny/train/one image 0: OSError: the disk hiccuped" in said
        # The other model is complete, and so are the captions of this one.
        assert len(list((tmp_path / "stores/tiny/val/two/commit").glob("*-*.json"))) == 3
        assert "two attempts" not in said
        assert said.count("train/one image shard 1: OSError: the disk hiccuped; trying again") == 1
        mark.unlink()
        code, said = run(tmp_path, "--retry-failed")
        assert code == 0, said
        assert "6 tasks" not in said
    mark.unlink(missing_ok=True)
    assert differing(stores(tmp_path / "stores"), serial("one", "two")) == []


def test_a_task_that_always_kills_its_worker(tmp_path: Path) -> None:
    accident(tmp_path, "poison")
    code, said = run(tmp_path, "--workers", "2", "--retries", "0")
    assert code == 1
    assert "FAILED extract/tiny/val/one image 0: its worker process died" in said
    assert {p.name for p in (tmp_path / "stores/tiny").glob("*/two/commit/image-*")} >= {
        "image-000000.json",
        "image-000003.json",
    }
    assert "two" not in " ".join(line for line in said.splitlines() if "FAILED" in line)


def slow(folder: Path) -> None:
    accident(folder, "slow")


def wait_for(pattern: str, count: int, folder: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if len(list(folder.glob(pattern))) >= count or process.poll() is not None:
            return
        time.sleep(0.05)


IMAGES = "stores/tiny/train/one/commit/image-*.json"


def test_interrupted_and_continued(tmp_path: Path) -> None:
    """The whole group gets the signal, as from a terminal."""
    slow(tmp_path)
    process = start(tmp_path, "--workers", "2")
    wait_for(IMAGES, 1, tmp_path, process)
    family = psutil.Process(process.pid).children(recursive=True)
    listening = {
        connection.laddr.ip
        for one in [psutil.Process(process.pid), *family]
        for connection in one.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "the same command continues" in said
    assert psutil.wait_procs(family, timeout=10)[1] == []
    left = [
        p.name for p in (tmp_path / "stores").rglob("*") if p.suffix == ".lock" or "tmp-" in p.name
    ]
    assert left == []
    assert not (tmp_path / "runs/pipelines/study/lock").exists()
    assert run(tmp_path)[0] == 0
    assert differing(stores(tmp_path / "stores"), serial("one", "two")) == []


def test_a_model_that_loads_is_not_waited_for(tmp_path: Path) -> None:
    mark = tmp_path / "loading"
    accident(tmp_path, f"load:{mark}")
    process = start(tmp_path)
    wait_for("loading", 1, tmp_path, process)
    family = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert time.monotonic() - began < 60, "the model takes two minutes"
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "to do still: extract/tiny/train/one" in said
    assert psutil.wait_procs(family, timeout=10)[1] == []
    assert list((tmp_path / "stores").rglob("*.lock")) == []
    assert run(tmp_path)[0] == 0
    assert differing(stores(tmp_path / "stores"), serial("one", "two")) == []


def test_a_worker_and_the_driver_killed(tmp_path: Path) -> None:
    slow(tmp_path)
    process = start(tmp_path, "--workers", "2")
    wait_for(IMAGES, 1, tmp_path, process)
    lock = json.loads((tmp_path / "runs/pipelines/study/lock").read_text())
    assert lock["pid"] == process.pid
    code, said = run(tmp_path)
    assert code == 4
    assert f"process {process.pid} on" in said
    victims = [
        p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())
    ]
    victims[0].kill()
    time.sleep(0.3)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert psutil.wait_procs(family, timeout=30)[1] == []
    code, said = run(tmp_path, "--workers", "2")  # the stale lock is recognised
    assert code == 0, said
    assert differing(stores(tmp_path / "stores"), serial("one", "two")) == []


def test_max_hours(tmp_path: Path) -> None:
    slow(tmp_path)
    code, said = run(tmp_path, "--max-hours", "0.000001")
    assert code == 3
    assert "the time is up" in said


def test_damage_is_planned_and_mended(tmp_path: Path) -> None:
    study = make_study(tmp_path, ONLY_EXTRACT)
    whole = serial("one", "two", place="stores")
    victim = max((tmp_path / "stores/tiny/train/one").rglob("c/2/*"), key=str)
    victim = victim if victim.is_file() else next(p for p in victim.rglob("*") if p.is_file())
    victim.write_bytes(victim.read_bytes()[:-1])
    states = survey(build_jobs(*study))
    assert states["extract/tiny/train/one"].damaged == 1
    assert states["extract/tiny/train/one"].condition == "part"
    assert run(tmp_path)[0] == 0
    assert differing(stores(tmp_path / "stores"), whole) == []


def test_a_store_of_another_request(tmp_path: Path) -> None:
    make_study(tmp_path, ONLY_EXTRACT)
    serial("one", "two", place="stores")
    study = tmp_path / "study.yaml"
    study.write_text(study.read_text().replace("shard_size: 3", "shard_size: 4"))
    assert "DIFFERS" in call(command, "plan", "study.yaml")
    code, said = run(tmp_path)
    assert code == 1
    assert "shard_size is 3 there, 4 here" in said


def test_plan_writes_nothing_and_tells_all(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    text = call(command, "plan", "study.yaml")
    assert sorted(tmp_path.rglob("*")) == before
    assert "extract   tiny/train/one" in text
    assert "missing     0/6" in text
    assert json.loads(call(command, "plan", "study.yaml", "--json"))["jobs"][0]["total"] == 6
    last = text.splitlines()[-1]
    assert last.startswith("6 of 6 jobs to do: 20 tasks; nothing is known of their size and time")
    rates = {f"extract/one/{side}": 2.0 for side in SIDES}
    last = table(survey(build_jobs(*study)), rates).splitlines()[-1]
    known = "20 tasks, at least 18s of one worker (? is not known until a first shard is written)"
    assert last == f"6 of 6 jobs to do: {known}"


def test_records_of_a_run(tmp_path: Path) -> None:
    make_study(tmp_path, ONLY_EXTRACT)
    folder = Folder(tmp_path / "runs", "study")
    assert list(folder.records()) == []
    assert run(tmp_path)[0] == 0
    records = list(folder.records())
    assert sum(record.get("items", 0) for record in records if record.get("side") == "image") == 34
    assert folder.failures() == {}
    assert set(folder.rates()) >= {"extract/one/image", "extract/two/caption"}
