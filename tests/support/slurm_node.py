"""A real Slurm of one node for tests, brought up by scripts/slurm_up.sh, and its commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT
from study_runs import ENVIRONMENT

from hada.pipelines.state import Folder

CLUSTER = 'cluster: {elements: 2, memory: 500MB, walltime: "00:10:00", interface: lo}\n'
SCRIPT = str(ROOT / "scripts/slurm_up.sh")


def brought_up() -> Iterator[dict[str, str]]:
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
        "SLURM_TEST_CPUS": "3",
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


def call(
    environment: dict[str, str], *words: str, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hada.pipelines", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def ask(environment: dict[str, str], *words: str) -> str:
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout


def wait(environment: dict[str, str], name: str = "", limit: float = 180.0) -> None:
    """Until no job is in the queue whose name holds `name`."""
    end = time.monotonic() + limit
    while any(name in line for line in ask(environment, "squeue", "-h", "-o", "%j").splitlines()):
        assert time.monotonic() < end, ask(environment, "squeue")
        time.sleep(0.2)


def wait_for_shards(folder: Path, count: int) -> None:
    for _ in range(1200):
        if len(list(folder.glob("stores/tiny/train/one/commit/image-*.json"))) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("no shard was written")


def how_often_done(folder: Path, name: str = "study") -> set[int]:
    """How often the shards were written that were."""
    records = Folder(folder / "runs", name).records()
    done = [r for r in records if r["status"] == "done" and "shard" in r]
    return set(Counter((r["key"], r["side"], r["shard"]) for r in done).values())


def logs(folder: Path) -> str:
    return "\n".join(p.read_text() for p in folder.glob("runs/pipelines/*/logs/*.out"))
