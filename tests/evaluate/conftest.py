"""A trained run with its report, made once for the tests that look at the page."""

from __future__ import annotations

from pathlib import Path

import makers
import pytest
from click.testing import CliRunner

from hada.evaluate.cli import evaluate
from hada.extract.cli import extract
from hada.fuse.cli import fuse


@pytest.fixture(scope="session")
def report_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set, extracted, trained and reported by the commands."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        makers.make_project(folder, splits={"train": [3] * 12, "val": [2, 1, 3, 2, 2] * 4})
        for split in ("train", "val"):
            assert CliRunner().invoke(extract, ["--split", split]).exit_code == 0
        words = ["train", "--epochs", "2", "--set", "heads=1", "--run", "runs/tiny/mine"]
        done = CliRunner().invoke(fuse, words)
        assert done.exit_code == 0, done.output
        words = ["report", "runs/tiny/mine", "--split", "val", "--quick", "--resamples", "200"]
        done = CliRunner().invoke(evaluate, words)
        assert done.exit_code == 0, done.output
        assert done.stdout.strip().endswith("report-val.html")
    return folder


@pytest.fixture(scope="session")
def report_page(report_project: Path) -> Path:
    """The page that `hada-evaluate report` wrote."""
    return report_project / "runs/tiny/mine/report-val.html"
