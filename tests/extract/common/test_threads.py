"""Threads sleep while they wait, where nobody asked for another way, and before torch is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import makers
import pytest

CODE = """
import os, sys
from hada.extract.common import host
was = host.sleep_while_waiting
def seen():
    assert "torch" not in sys.modules
    was()
    print("policy", os.environ["OMP_WAIT_POLICY"], flush=True)
host.sleep_while_waiting = seen
from hada.extract.cli import extract
extract()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_the_command_sets_the_policy(tmp_path: Path, given: str | None, expected: str) -> None:
    makers.make_project(tmp_path)
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, "--model", "one", "--split", "val"],
        env=environment | ({"OMP_WAIT_POLICY": given} if given else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"policy {expected}\n" in done.stdout
