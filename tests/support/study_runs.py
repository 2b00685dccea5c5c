"""Runs of a small study as a user starts them, and what the serial commands make of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from jobs_fakes import PIPELINE, make_study
from places import SUPPORT

from hada.extract.cli import extract as extract_command
from hada.extract.testing.store_contract import files_of

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        [
            str(SUPPORT),
            os.environ.get("PYTHONPATH", ""),
        ]
    ),
    "OMP_NUM_THREADS": "1",
}
ONLY_EXTRACT = PIPELINE[: PIPELINE.index("fuse:")]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hada.pipelines", "run", "study.yaml", *words],
        cwd=folder,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(folder: Path, *words: str) -> tuple[int, str]:
    process = start(folder, *words)
    _, said = process.communicate(timeout=120)
    assert "Traceback" not in said, said
    return process.returncode, said


def call(command: Any, *words: str) -> str:
    result = CliRunner().invoke(command, list(words))
    assert result.exit_code == 0, result.output
    return result.output


def stores(folder: Path) -> dict[str, dict[str, bytes]]:
    return {
        str(p): files_of(folder / p)
        for p in sorted(q.relative_to(folder) for q in folder.glob("*/*/*"))
    }


def serial(*models: str, place: str = "serial") -> dict[str, dict[str, bytes]]:
    """The stores that the serial command makes of the study."""
    splits = ["--split", "train", "--split", "val", "--shard-size", "3", "--batch-size", "2"]
    names = [word for model in models for word in ("--model", model)]
    call(extract_command, *names, *splits, "--root", f"stores={place}")
    return stores(Path(place))


def differing(one: dict[str, dict[str, bytes]], two: dict[str, dict[str, bytes]]) -> list[str]:
    """The files in which two sets of stores differ, by name: their bytes fill a screen."""
    flat = [
        {f"{store}/{file}": data for store, files in stores.items() for file, data in files.items()}
        for stores in (one, two)
    ]
    return [
        f"{file}: {', '.join(str(len(s[file])) if file in s else 'none' for s in flat)} bytes"
        for file in sorted(flat[0].keys() | flat[1].keys())
        if flat[0].get(file) != flat[1].get(file)
    ]


def accident(folder: Path, weights: str) -> None:
    make_study(
        folder,
        ONLY_EXTRACT,
        **{"family: fake, weights: a": f'family: "jobs_fakes:Accident", weights: "{weights}"'},
    )
