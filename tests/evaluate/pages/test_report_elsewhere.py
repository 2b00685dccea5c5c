"""The report of a run on another data set than its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import makers
import pytest
from click.testing import CliRunner

from hada.evaluate.cli import evaluate
from hada.extract.cli import extract
from hada.fuse.cli import fuse

pytestmark = pytest.mark.slow
OTHER = """\
  other:
    reader: karpathy
    root: other
    annotations: dataset_tiny.json
    images: images
    splits:
      val: {}
models:
"""


def test_a_run_is_reported_on_another_data_set(tmp_path: Path) -> None:
    manifest = makers.make_project(tmp_path)
    makers.make_dataset(tmp_path / "other", splits={"val": [2] * 7}, seed=5)
    manifest.write_text(manifest.read_text().replace("models:\n  one:", f"{OTHER}  one:"))
    for words in (["--split", "train"], ["--split", "val"], ["-d", "other", "--split", "val"]):
        done = CliRunner().invoke(extract, words)
        assert done.exit_code == 0, done.output
    words = ["train", "--epochs", "2", "--run", "runs/tiny/mine"]
    assert CliRunner().invoke(fuse, words).exit_code == 0
    images = {}
    for dataset in ("tiny", "other"):
        words = ["report", "runs/tiny/mine", "--split", "val", "--quick", "--resamples", "100"]
        done = CliRunner().invoke(evaluate, [*words, "--dataset", dataset])
        assert done.exit_code == 0, done.output
        name = "report-val.html" if dataset == "tiny" else "report-other-val.html"
        assert done.stdout == f"runs/tiny/mine/{name}\n"
        page = (tmp_path / "runs/tiny/mine" / name).read_text()
        images[dataset] = re.search(r"([\d,]+) images", page)
        assert ("--dataset other" in page) == (dataset == "other")
    assert images["tiny"]
    assert images["other"]
    assert [images["tiny"][1], images["other"][1]] == ["5", "7"]
    done = CliRunner().invoke(evaluate, ["report", "runs/tiny/mine", "--dataset", "no"])
    assert done.exit_code == 2
    assert json.dumps("no").strip('"') in done.stderr
