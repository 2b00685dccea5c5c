"""`run --on slurm` on a real node: whole studies, and every way to lose who works on one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from slurm_node import CLUSTER, ask, call, how_often_done, wait, wait_for_shards
from study_runs import ONLY_EXTRACT, accident, differing, serial, stores

from hada.extract.scenes import write_scenes
from hada.pipelines.state import Folder

pytestmark = pytest.mark.slow

SCENES = """\
schema: 1
name: scenes
device: cpu
extract:
  - dataset: scenes
    models: [blip, clip]
    splits: [train, val, test]
    shard_size: 64
    batch_size: 32
fuse:
  - {dataset: scenes, models: [blip, clip], set: {epochs: 1}}
evaluate:
  - {dataset: scenes, split: test}
""" + CLUSTER.replace("500MB", "1GB").replace("elements: 2", "elements: 1")


@pytest.fixture(autouse=True)
def _needs_jobqueue() -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install 'hada[jobqueue]'")


def methods(runs: str) -> list[dict[str, Any]]:
    """The figures of a result, without where its runs lie."""
    found = json.loads(Path(runs, "scenes/recall-test.json").read_text())["methods"]
    return [{k: v for k, v in method.items() if k != "run"} for method in found]


def command(environment: dict[str, str], name: str, *words: str) -> None:
    code = f"from hada.{name}.cli import {name}; {name}()"
    subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment,
        capture_output=True,
        check=True,
        timeout=300,
    )


def test_scenes_end_as_with_the_serial_commands(tmp_path: Path, cluster: dict[str, str]) -> None:
    write_scenes(tmp_path / "data/scenes", train=200, val=40, test=40)
    models = ["--dataset", "scenes", "--model", "blip", "--model", "clip"]
    splits = [word for split in ("train", "val", "test") for word in ("--split", split)]
    sizes = ["--shard-size", "64", "--batch-size", "32"]
    command(cluster, "extract", *models, *splits, *sizes, "--device", "cpu")
    command(cluster, "fuse", "train", *models, "--set", "epochs=1", "--device", "cpu")
    command(cluster, "evaluate", "recall", "--dataset", "scenes", "--split", "test")
    whole, figures = stores(tmp_path / "stores"), methods("runs")
    assert len(whole) == 6
    assert len(figures) >= 6
    (tmp_path / "study.yaml").write_text(SCENES)
    for how, more in (("run", ("--workers", "2")), ("submit", ())):
        places = [
            word for kind in ("stores", "runs") for word in ("--root", f"{kind}={how}/{kind}")
        ]
        done = call(cluster, how, "study.yaml", "--on", "slurm", *more, *places)
        assert done.returncode == 0, done.stderr
        wait(cluster, "hada-scenes" if how == "submit" else "dask-worker")
        said = "\n".join(p.read_text() for p in tmp_path.glob(f"{how}/runs/pipelines/*/logs/*.out"))
        assert differing(stores(tmp_path / how / "stores"), whole) == [], said
        assert methods(f"{how}/runs") == figures, said


def workers(environment: dict[str, str]) -> list[psutil.Process]:
    """The processes that do the tasks of this Slurm's jobs: the children of Dask's nannies."""
    found = []
    for process in psutil.process_iter():
        try:
            if "spawn_main" in " ".join(process.cmdline()):
                given = process.environ()
                if given.get("SLURM_CONF") == environment["SLURM_CONF"] and "SLURM_JOB_ID" in given:
                    found.append(process)
        except psutil.Error:
            continue
    return found


def being_written(folder: Path) -> bool:
    return any(folder.glob("stores/tiny/train/one/commit/*.lock"))


def drive(environment: dict[str, str]) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "hada.pipelines", "run", "study.yaml", "--on", "slurm"]
    return subprocess.Popen(
        [*words, "--workers", "2"], env=environment, stderr=subprocess.PIPE, text=True
    )


def test_workers_node_and_driver_lost(tmp_path: Path, cluster: dict[str, str]) -> None:
    """One worker after the other, the node, the driver: nothing is lost, nothing done twice."""
    (tmp_path / "pace").write_text("0.5")
    accident(tmp_path, f"slow:{tmp_path / 'pace'}")
    study = tmp_path / "study.yaml"
    study.write_text(ONLY_EXTRACT + CLUSTER)
    process = drive(cluster)
    wait_for_shards(tmp_path, 1)
    # kill -9 in the middle of a shard.
    while not being_written(tmp_path):
        time.sleep(0.02)
    victims = workers(cluster)
    assert victims
    victims[0].kill()
    # scancel of the whole job, on a drained node: it is replaced when the node comes back.
    node = ask(cluster, "sinfo", "--noheader", "--format=%n").strip()
    ask(cluster, "scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    job = ask(cluster, "squeue", "-h", "-o", "%A", "-t", "RUNNING", "-n", "dask-worker").split()[0]
    ask(cluster, "scancel", job)
    wait_for_shards(tmp_path, 3)
    ask(cluster, "scontrol", "update", f"nodename={node}", "state=resume")
    # The driver, by a signal that it cannot hear.
    process.kill()
    process.communicate()
    lock = Folder(tmp_path / "runs", "study").lock_file
    assert json.loads(lock.read_text())["pid"] == process.pid
    process = drive(cluster)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    wait(cluster, "dask-worker")
    assert differing(stores(tmp_path / "stores"), serial("one", "two")) == [], said
    assert how_often_done(tmp_path) == {1}
