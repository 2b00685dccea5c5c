"""Batch systems that are not here, and the parts of a run that need no worker."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from jobs_fakes import make_study
from study_runs import ENVIRONMENT, ONLY_EXTRACT, differing, run, serial, stores

from hada.extract.cli import extract as extract_command
from hada.extract.common.errors import HadaError, UsageError
from hada.pipelines.execution import batch_pools, dask_pools
from hada.pipelines.lock import BEAT_S, SILENT_S, BusyError, driving, holder
from hada.pipelines.state import Folder
from hada.pipelines.study.config import Cluster


@pytest.mark.parametrize("system", batch_pools.BATCH_SYSTEMS)
def test_every_batch_system_s_script(tmp_path: Path, system: str) -> None:
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install 'hada[jobqueue]'")
    cluster = Cluster(queue="long", account="me", memory="3GB", setup=("module load x",), gpus=1)
    if system in ("pbs", "sge"):
        with pytest.raises(UsageError, match=r"cluster\.directives, as in"):
            batch_pools.batch_cluster(system, cluster, tmp_path / "logs", tmp_path)
        cluster = replace(cluster, directives=("-l gpu=1",))
    with contextlib.closing(
        batch_pools.batch_cluster(system, cluster, tmp_path / "logs", tmp_path)
    ) as made:
        script = made.job_script()
    assert "distributed.cli.dask_worker" in script
    assert "--nthreads 1" in script
    assert "--worker-class hada.pipelines.execution.credentials.PrivateWorker" in script
    assert "--protocol tls://" in script
    for name in ("ca-file", "cert", "key"):
        assert f"--tls-{name} {tmp_path}/" in script
    assert "--lifetime" in script
    assert re.findall(r"--memory-limit (\S+)", script)[-1] == "0"
    assert "module load x" in script
    if system == "slurm":
        assert "--no-requeue" in script
        assert "--gres=gpu:1" in script
    assert "gpu" in script
    assert re.search(r"\bme\b", script)
    if system != "htcondor":
        assert "long" in script


def test_devices() -> None:
    assert dask_pools.choose_devices(None) == []
    assert dask_pools.choose_devices("0, 2") == ["0", "2"]
    for wrong in ("", "0,", "1,1"):
        with pytest.raises(UsageError, match="expected all, or numbers"):
            dask_pools.choose_devices(wrong)


@pytest.mark.slow
def test_one_process_a_device(tmp_path: Path) -> None:
    """Each worker sees its own device and no other, and computes with its share of the cores."""
    code = (
        "import os\n"
        "from hada.pipelines.execution.dask_pools import local_pool\n"
        "def seen():\n"
        "    import torch\n"
        "    return os.environ['CUDA_VISIBLE_DEVICES'], torch.get_num_threads()\n"
        "if __name__ == '__main__':\n"
        "    with local_pool(1, ['3', '5'], threads=2) as pool:\n"
        "        pool._client.wait_for_workers(2, timeout=60)\n"
        "        print(sorted(pool._client.run(seen).values()))\n"
    )
    (tmp_path / "devices.py").write_text(code)
    plain = {k: v for k, v in ENVIRONMENT.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "devices.py"], env=plain, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[('3', 2), ('5', 2)]\n"


def test_the_lock(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "study")
    assert holder(folder) is None
    with driving(folder):
        assert holder(folder) == f"process {os.getpid()} on {os.uname().nodename}"
        with pytest.raises(BusyError, match=f"process {os.getpid()} on"), driving(folder):
            pass
    assert not folder.lock_file.exists()


def test_stale_locks(tmp_path: Path) -> None:
    """Of a process that is gone, of one whose number is used again, of a silent machine."""
    folder = Folder(tmp_path, "study")
    folder.path.mkdir(parents=True)
    here = {"host": os.uname().nodename, "pid": os.getpid(), "started": "1"}
    gone = subprocess.Popen(["true"])
    gone.wait()
    for lock in (here, {**here, "pid": gone.pid}):
        folder.lock_file.write_text(json.dumps(lock))
        assert holder(folder) is None
        with driving(folder):
            pass
    folder.lock_file.write_text(json.dumps({**here, "host": "elsewhere"}))
    with pytest.raises(BusyError, match="on elsewhere"), driving(folder):
        pass
    assert SILENT_S > 3 * BEAT_S
    silent = time.time() - SILENT_S - 1
    os.utime(folder.lock_file, (silent, silent))
    with driving(folder):
        pass


@pytest.mark.slow
def test_views_and_pooled_tokens(tmp_path: Path) -> None:
    """What a worker's own loading must heed as the serial command does."""
    text = ONLY_EXTRACT.replace(
        "shard_size: 3", "shard_size: 3, views: 1, view_seed: 4, tokens: 'pool:2'"
    )
    make_study(tmp_path, text)
    code, said = run(tmp_path)
    assert code == 0, said
    from click.testing import CliRunner

    words = "--split train --split val --shard-size 3 --batch-size 2 --views 1 --view-seed 4"
    options = [*words.split(), "--tokens", "pool:2", "--root", "stores=serial"]
    done = CliRunner().invoke(extract_command, options)
    assert done.exit_code == 0, done.output
    assert len(stores(tmp_path / "serial")) == 8
    assert stores(tmp_path / "stores") == stores(tmp_path / "serial")


@pytest.mark.slow
def test_a_scheduler_that_is_there(tmp_path: Path) -> None:
    make_study(tmp_path, ONLY_EXTRACT)
    code, said = run(tmp_path, "--on", "tcp://127.0.0.1:9")
    assert code == 1
    assert "no Dask scheduler answers there" in said
    file = tmp_path / "scheduler.json"
    words = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
    scheduler = subprocess.Popen(
        [
            *words,
            "--port",
            "0",
            "--dashboard-address",
            "127.0.0.1:0",
            "--scheduler-file",
            str(file),
        ],
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )
    while not file.exists():
        time.sleep(0.1)
    address = json.loads(file.read_text())["address"]
    words = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1"]
    worker = subprocess.Popen(
        [*words, "--no-nanny", "--dashboard-address", "127.0.0.1:0", "--no-dashboard"],
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )
    try:
        code, said = run(tmp_path, "--on", address)
        # The same jobs in other places, for a worker that remembers the first.
        second, said_then = run(tmp_path, "--on", address, "--root", "stores=again")
    finally:
        # A worker that says good-bye to a scheduler which is gone takes half a minute: one by one.
        for process in (worker, scheduler):
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    assert code == 0, said
    assert second == 0, said_then
    expected = serial("one", "two")
    for made in ("stores", "again"):
        assert differing(stores(tmp_path / made), expected) == []


def test_a_place_nobody_knows(tmp_path: Path) -> None:
    make_study(tmp_path, ONLY_EXTRACT)
    code, said = run(tmp_path, "--on", "slrum")
    assert code == 2
    assert "expected local, slurm" in said


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("Requested node configuration is not available", None),
        ("Requested node configuration is not available for ever", "not available for ever"),
        ("invalid partition specified: gpu", "invalid partition"),
    ],
)
def test_slurm_refuses_for_a_moment_or_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, message: str | None
) -> None:
    """A command in sbatch's place, which has a node from the third call on, unless for ever."""
    calls = tmp_path / "calls"
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(
        f"#!/bin/sh\necho x >> {calls}\n"
        f'[ "$(wc -l < {calls})" -gt 2 ] && [ -z "$EVER" ] && exit 0\n'
        f"echo 'allocation failure: {says}' >&2\nexit 1\n"
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("EVER", "" if message is None else "yes")
    monkeypatch.setattr(batch_pools, "NO_NODE_S", 2.0 if message else 30.0)
    if message is None:
        batch_pools._test_only("#!/bin/sh\n")
    else:
        with pytest.raises(HadaError, match=f"Slurm refuses the workers' jobs: .*{message}"):
            batch_pools._test_only("#!/bin/sh\n")
    many = len(calls.read_text().split())
    assert many == 3 if message is None else (many > 1) == (batch_pools.NO_NODE in says)
