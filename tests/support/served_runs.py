"""A real server process on a tiny run, for the tests of `hada-evaluate serve`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import makers
import pytest
from click.testing import CliRunner

from hada.extract.cli import extract
from hada.fuse.cli import fuse

PROGRAM = "from hada.evaluate.cli import evaluate; evaluate(prog_name='hada-evaluate')"
TOKEN = "correct-horse-battery"


@contextlib.contextmanager
def serving(folder: Path, *words: str, **variables: str) -> Iterator[tuple[str, Path]]:
    """The server's address and its log; ended by SIGTERM, to which it must listen."""
    log = folder / "serve.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "serve", *words, "--port", "0"],
            cwd=folder,
            stderr=file,
            stdout=file,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        )
    try:
        for _ in range(600):
            found = re.search(r"serving at (http://\S+)/", log.read_text())
            if found:
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        assert found, log.read_text()
        yield found[1], log
        assert process.poll() is None, log.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def asking(address: str, log: Path) -> Iterator[Any]:
    """A client of the server; whatever it did, the server is then well and has no traceback."""
    httpx = pytest.importorskip("httpx", reason="needs httpx: pip install httpx")
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client
        assert client.get("/health").json() == {"status": "ok"}
    assert "Traceback" not in log.read_text()


def make_served(folder: Path) -> Path:
    """A tiny data set with a run and its export, below `folder`, which is returned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        makers.make_project(folder, splits={"train": [3] * 12, "val": [2, 1, 3, 2, 2]})
        for split in ("train", "val"):
            assert CliRunner().invoke(extract, ["--split", split]).exit_code == 0
        words = ["train", "--epochs", "2", "--run", "runs/tiny/mine"]
        assert CliRunner().invoke(fuse, words).exit_code == 0
        assert CliRunner().invoke(fuse, ["export", "runs/tiny/mine", "out"]).exit_code == 0
    return folder
