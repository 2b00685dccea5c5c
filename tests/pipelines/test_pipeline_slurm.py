"""A real Slurm of one node, brought up by scripts/slurm_up.sh; skipped where it cannot start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_fakes import PIPELINE, make_study
from places import ROOT
from test_pipeline_run import ENVIRONMENT, ONLY_EXTRACT, accident, serial, stores

from hada.pipelines import slurm
from hada.pipelines.config import Cluster
from hada.pipelines.jobs import build_jobs
from hada.pipelines.state import Folder
from hada.pipelines.survey import survey

CLUSTER = 'cluster: {elements: 2, memory: 500MB, walltime: "00:10:00", interface: lo}\n'
SCRIPT = str(ROOT / "scripts/slurm_up.sh")


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of Slurm's commands; stopped afterwards."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    for tool in ("slurmctld", "slurmd", "munged", "sbatch"):
        if shutil.which(tool, path=path) is None:
            pytest.skip(f"needs Slurm ({tool}): apt-get install slurm-wlm munge")
    # munged wants a socket that everybody can reach, which pytest's own folders are not.
    folder = Path(tempfile.mkdtemp(prefix="hada-slurm-"))
    port = 20000 + os.getpid() % 20000
    environment = {
        **ENVIRONMENT,
        "SLURM_TEST_DIR": str(folder),
        "SLURM_TEST_PORT": str(port),
        "SLURM_CONF": str(folder / "slurm.conf"),
    }
    up = subprocess.run(
        [SCRIPT, "start"], env=environment, capture_output=True, text=True, check=False
    )
    if up.returncode:
        pytest.skip(f"Slurm cannot start here: {up.stderr.strip()[-400:]}")
    yield environment
    subprocess.run([SCRIPT, "stop"], env=environment, check=True)
    shutil.rmtree(folder)
    Path(f"{folder}.lock").unlink()


def call(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hada.pipelines", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def ask(environment: dict[str, str], *words: str) -> str:
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout


def wait(environment: dict[str, str], limit: float = 90.0) -> None:
    """Until the queue is empty."""
    end = time.monotonic() + limit
    while ask(environment, "squeue", "--noheader").strip():
        assert time.monotonic() < end, ask(environment, "squeue")
        time.sleep(0.2)


def wait_for_shards(folder: Path, count: int) -> None:
    for _ in range(600):
        if len(list(folder.glob("stores/tiny/train/one/commit/image-*.json"))) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("no shard was written")


def logs(folder: Path) -> str:
    return "\n".join(p.read_text() for p in folder.glob("runs/pipelines/study/logs/*.out"))


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
    wait(cluster)
    assert stores(tmp_path / "stores") == serial("one", "two"), logs(tmp_path)
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
    wait(cluster)
    # scancel, through the command.
    assert call(cluster, "submit", "study.yaml").returncode == 0
    time.sleep(1)
    assert "cancelled extract/tiny/train/one" in call(cluster, "cancel", "study.yaml").stdout
    wait(cluster)
    assert call(cluster, "submit", "study.yaml").returncode == 0
    wait(cluster)
    assert stores(tmp_path / "stores") == serial("one", "two"), logs(tmp_path)


def test_run_on_slurm_with_a_worker_cancelled(tmp_path: Path, cluster: dict[str, str]) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install 'hada[jobqueue]'")
    accident(tmp_path, "slow")
    study = tmp_path / "study.yaml"
    study.write_text(ONLY_EXTRACT + CLUSTER)
    words = [sys.executable, "-m", "hada.pipelines", "run", "study.yaml", "--on", "slurm"]
    process = subprocess.Popen(
        [*words, "--workers", "2"], env=cluster, stderr=subprocess.PIPE, text=True
    )
    wait_for_shards(tmp_path, 1)
    first = ask(cluster, "squeue", "--noheader", "--format=%A", "--states=RUNNING").split()[0]
    ask(cluster, "scancel", first)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    wait(cluster)
    assert stores(tmp_path / "stores") == serial("one", "two")
