"""The measurements of a GPU day run on a CPU, tiny, by the same path."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

pytestmark = pytest.mark.slow

PROGRAM = ROOT / "benchmarks" / "gpu.py"
# One of each kind: what differs is only a setting.
KINDS = (
    "tests",
    "extract-clip-tokens",
    "train-device",
    "recall-5k",
    "train-files",
)
# Packages that others bring: torch and transformers.
BROUGHT = {"jinja2", "huggingface-hub"}


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    return importlib.import_module("gpu_needs")


@pytest.fixture
def gpu(needs: Any) -> Any:
    return importlib.import_module("gpu")


def day(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), "--tiny", "--device", "cpu", "--out", str(out)]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=False)


def test_a_tiny_day_leaves_figures_of_every_kind(tmp_path: Path, needs: Any) -> None:
    done = day(tmp_path, "--minutes", "8", "--only", *KINDS)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == ["machine", *KINDS]
    assert all(line["error"] is None and line["seconds"] > 0 for line in lines)
    figures = {line["step"]: line["figures"] for line in lines}
    assert figures["tests"]["chosen"] >= 5
    assert figures["tests"]["failed"] == []
    check_extraction(figures["extract-clip-tokens"])
    assert figures["train-device"]["epoch_over_one_pass"] > 0
    files = figures["train-files"]
    assert files["memory_loss"] == pytest.approx(files["mapped_loss"], rel=1e-3)
    assert len(files["window_epoch_seconds"]) == 2
    assert figures["recall-5k"]["differs_from_cpu"] == 0
    summary = (tmp_path / "summary.md").read_text()
    assert all(f"\n| {step} | " in summary and f"\n## {step}\n" in summary for step in KINDS)

    asked = {name.replace("_", "-") for name in project_dependencies()}
    for step in needs.STEPS:
        loaded = {plain(name) for name in figures.get(step.name, {}).get("packages", ())}
        assert loaded & asked - BROUGHT <= {plain(name) for name in step.needs}, step.name

    again = day(tmp_path, "--minutes", "8", "--only", *KINDS)
    assert again.returncode == 0
    assert again.stdout.count("done before") == len(KINDS)


def check_extraction(figures: dict[str, Any]) -> None:
    assert set(figures["of_bare"]) == {"bare", "plain loop", "hada"}
    assert figures["bound_by"] in ("decode", "forward", "transfer", "write")
    assert figures["longer_images"] == 64
    assert figures["longer_store_bytes"] > 0


def plain(name: str) -> str:
    return name.lower().replace("_", "-")


def project_dependencies() -> list[str]:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [line.partition(">")[0].partition("[")[0] for line in project["dependencies"]]


def test_another_family_and_a_compiled_model_are_timed(tmp_path: Path) -> None:
    steps = ("extract-blip-embeddings", "extract-clip-compiled")
    done = day(tmp_path, "--minutes", "6", "--only", *steps)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "steps.jsonl").read_text().splitlines()[1:]
    for line, compiled in zip(lines, (False, True), strict=True):
        figures = json.loads(line)["figures"]
        assert figures["compiled"] is compiled
        check_extraction(figures)


def test_steps_for_which_no_time_is_left_are_named(tmp_path: Path) -> None:
    done = day(tmp_path, "--minutes", "0.05")
    assert done.returncode == 1
    assert not (tmp_path / "steps.jsonl").exists()
    assert (
        "Not begun, too little time was left: machine, tests,"
        in (tmp_path / "summary.md").read_text()
    )


def test_a_step_that_takes_too_long_is_ended(tmp_path: Path, gpu: Any) -> None:
    arguments = argparse.Namespace(out=tmp_path, device="cpu", tiny=False)
    step = next(step for step in gpu.STEPS if step.name == "recall-100k")
    outcome = gpu.run(step, arguments, 0.5)
    assert outcome.error == "ended after 0 s, its share of the time"
    assert outcome.seconds < 10


def test_a_device_that_is_not_there_ends_the_day(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--device", "cuda:99", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = (tmp_path / "steps.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == "machine"
    assert json.loads(line)["error"]


def test_packages_that_are_missing_are_listed(
    needs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = needs.version

    def version(name: str) -> str:
        if name == "zarr":
            raise PackageNotFoundError(name)
        return "0.1" if name == "timm" else found(name)

    monkeypatch.setattr(needs, "version", version)
    steps = list(needs.STEPS)
    assert needs.missing(steps) == ["zarr>=3.1,<4", "timm>=1.0.9"]
    with pytest.raises(SystemExit) as stopped:
        needs.install(steps, None)
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "missing packages: zarr>=3.1,<4, timm>=1.0.9" in said.out
    assert (
        f"pip download -d wheels 'zarr>=3.1,<4' 'timm>=1.0.9' torch=={torch_release()}" in said.err
    )
    assert said.err.endswith("--only train-device recall-5k recall-100k train-memory\n")


def torch_release() -> str:
    import torch

    return str(torch.__version__).partition("+")[0]


def test_wheels_are_installed_without_a_network(
    needs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty folder of wheels: pip is asked for this, and its failure is the end."""
    monkeypatch.setattr(needs, "missing", lambda steps: ["no-such-package>=1"])
    with pytest.raises(SystemExit) as stopped:
        needs.install(list(needs.STEPS), tmp_path)
    assert stopped.value.code == 2
    said = capsys.readouterr()
    line = f"pip install --no-index --find-links {tmp_path} 'no-such-package>=1'"
    assert line in said.out
    assert "pip could not install from it what is missing" in said.err


def test_every_step_is_there_and_its_packages_are_those_of_the_project(needs: Any) -> None:
    steps = importlib.import_module("gpu_steps")
    assert list(steps.RUN) == [step.name for step in needs.STEPS]
    asked = needs.requirements()
    assert all(name in asked for step in needs.STEPS for name in step.needs)


def test_the_tests_for_a_gpu_are_found(needs: Any) -> None:
    steps = importlib.import_module("gpu_steps")
    names = [Path(name).name for name in steps.gpu_tests(ROOT / "tests")]
    assert "test_compile.py::test_a_run_on_a_gpu" in names
    assert "test_reading.py::test_batches_of_a_split_on_a_gpu" in names
    assert "test_ranking.py::test_screening_in_float32_changes_nothing" in names
    # Marked as a whole.
    assert "test_on_gpu.py::test_an_epoch_on_a_gpu_is_that_of_the_cpu" in names
    assert "test_compile.py::test_no_compiler" not in names
