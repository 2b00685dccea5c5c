"""A real Slurm of one node, brought up by scripts/slurm_up.sh; skipped where it cannot start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from jobs_fakes import PIPELINE, make_study
from slurm_node import CLUSTER, ask, call, how_often_done, logs, wait, wait_for_shards
from study_runs import accident, differing, serial, stores

from hada.pipelines.execution import slurm
from hada.pipelines.state import Folder
from hada.pipelines.study.config import Cluster
from hada.pipelines.study.resolve import build_jobs
from hada.pipelines.study.survey import survey

pytestmark = pytest.mark.slow


def test_scripts_say_what_slurm_needs(tmp_path: Path) -> None:
    """No Slurm needed."""
    text = (
        PIPELINE
        + "cluster: {queue: gpu, gpus: 2, account: me, setup: [module load x], "
        + 'directives: ["--nice"]}\n'
    )
    pipeline, manifest = make_study(tmp_path, text)
    states = survey(build_jobs(pipeline, manifest))
    found = {s.key: s for s in slurm.scripts(pipeline, states, Folder(tmp_path, "x"), 3)}
    script = found["extract/tiny/train/one"].text
    for line in ("--partition=gpu", "--account=me", "--gres=gpu:2", "--nice", "--requeue",
                 "--array=0-5%3", "--signal=B:TERM@120", "--mem=4G"):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert script.index("module load x") < script.index("exec ")
    assert set(found["train/tiny/one+two-fast-s0"].needs) == {k for k in found if "extract" in k}
    checked = subprocess.run(["bash", "-n"], input=script, text=True, check=False)
    assert checked.returncode == 0
    assert pipeline.cluster == Cluster(
        queue="gpu", gpus=2, account="me", setup=("module load x",), directives=("--nice",)
    )


@pytest.fixture(scope="module")
def limited(cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that takes longer than its jobs may; submitted early, as a minute is the least."""
    folder = tmp_path_factory.mktemp("limited")
    (folder / "pace").write_text("4")
    accident(folder, f"slow:{folder / 'pace'}")
    study = folder / "study.yaml"
    text = study.read_text().replace("[one, two]", "[one]").replace("[train, val]", "[train]")
    text = text.replace("name: study", "name: limited")
    study.write_text(text + CLUSTER.replace("elements: 2", "elements: 1").replace(":10:", ":01:"))
    done = call(cluster, "submit", "study.yaml", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.usefixtures("limited")
def test_submit_equals_the_serial_commands(tmp_path: Path, cluster: dict[str, str]) -> None:
    make_study(tmp_path, PIPELINE + CLUSTER)
    dry = call(cluster, "submit", "study.yaml", "--dry-run")
    assert dry.stdout.count("#!/bin/bash") == 6
    assert not (tmp_path / "runs").exists()
    done = call(cluster, "submit", "study.yaml")
    assert done.returncode == 0, done.stderr
    again = call(cluster, "submit", "study.yaml")
    assert again.returncode == 4
    assert "in the queue" in again.stderr
    assert "in the queue: " in call(cluster, "status", "study.yaml").stdout
    # A drained node ends what it has begun and begins nothing, until it is given back.
    node = ask(cluster, "sinfo", "--noheader", "--format=%n").strip()
    ask(cluster, "scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    time.sleep(2)
    ask(cluster, "scontrol", "update", f"nodename={node}", "state=resume")
    wait(cluster, "hada-study")
    assert differing(stores(tmp_path / "stores"), serial("one", "two")) == [], logs(tmp_path)
    assert "everything is done" in call(cluster, "status", "study.yaml").stdout
    result = json.loads((tmp_path / "runs/tiny/recall-val.json").read_text())
    shutil.rmtree(tmp_path / "runs")
    assert call(cluster, "run", "study.yaml").returncode == 0
    assert json.loads((tmp_path / "runs/tiny/recall-val.json").read_text()) == result


def test_requeued_cancelled_and_killed(tmp_path: Path, cluster: dict[str, str]) -> None:
    """Three ways to lose a batch job in the middle of a shard, and none loses or doubles one."""
    accident(tmp_path, "slow")
    study = tmp_path / "study.yaml"
    study.write_text(study.read_text() + CLUSTER.replace("elements: 2", "elements: 1"))
    # SIGTERM as before the time limit: the shard is finished, the job comes back.
    assert call(cluster, "submit", "study.yaml").returncode == 0
    wait_for_shards(tmp_path, 1)
    id_ = slurm.submitted(Folder(tmp_path / "runs", "study"))["extract/tiny/train/one"]
    ask(cluster, "scancel", "--batch", "--signal=TERM", id_)
    time.sleep(3)
    assert "back into the queue" in logs(tmp_path)
    # kill -9 of the process itself, once it has come back: Slurm calls that a failure.
    shutil.rmtree(tmp_path / "stores")
    wait_for_shards(tmp_path, 1)
    killed = 0
    for process in Path("/proc").glob("[0-9]*"):
        words = (process / "cmdline").read_bytes().split(b"\0") if process.exists() else []
        if b"extract/tiny/train/one" in words and str(tmp_path).encode() in b"".join(words):
            os.kill(int(process.name), signal.SIGKILL)
            killed += 1
    assert killed == 1
    wait(cluster, "hada-study")
    # scancel, through the command.
    assert call(cluster, "submit", "study.yaml").returncode == 0
    time.sleep(1)
    assert "cancelled extract/tiny/train/one" in call(cluster, "cancel", "study.yaml").stdout
    wait(cluster, "hada-study")
    assert call(cluster, "submit", "study.yaml").returncode == 0
    wait(cluster, "hada-study")
    assert differing(stores(tmp_path / "stores"), serial("one", "two")) == [], logs(tmp_path)


def test_a_time_limit(limited: Path, cluster: dict[str, str]) -> None:
    """Slurm's own SIGTERM before the limit: the shard ends, the job comes back and goes on."""
    id_ = slurm.submitted(Folder(limited / "runs", "limited"))["extract/tiny/train/one"]
    end = time.monotonic() + 240
    while ask(cluster, "squeue", "-h", "-o", "%F").split().count(id_):
        assert time.monotonic() < end, logs(limited)
        time.sleep(0.2)
    said = logs(limited)
    assert "SIGTERM: the shard that is being written is finished" in said
    assert "back into the queue" in said
    assert how_often_done(limited, "limited") == {1}
    (limited / "pace").write_text("0")
    os.chdir(limited)
    whole = serial("one")
    assert stores(limited / "stores") == {k: v for k, v in whole.items() if "train" in k}
