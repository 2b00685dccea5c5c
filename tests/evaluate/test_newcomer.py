"""The newcomer's way: the four commands of the README on a folder of images and a CSV."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import layouts
import numpy as np
import pytest
from click.testing import CliRunner
from places import ROOT

from hada.evaluate.cli import evaluate
from hada.extract.cli import extract
from hada.extract.common import strict_yaml
from hada.extract.manifest import load_manifest
from hada.extract.store import open_store
from hada.fuse.cli import fuse

PROGRAMS: dict[str, click.Command] = {
    "hada-extract": extract,
    "hada-fuse": fuse,
    "hada-evaluate": evaluate,
}


def readme_commands() -> list[list[str]]:
    """The commands between the README's marks."""
    text = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- your own data -->\n```sh\n(.*?)```\n<!-- end -->", text, re.DOTALL)
    assert found is not None
    return [shlex.split(line) for line in found[1].splitlines()]


def run(command: list[str]) -> str:
    """A command as typed; it must end well."""
    outcome = CliRunner().invoke(PROGRAMS[command[0]], command[1:])
    assert outcome.exit_code == 0, f"{command}\n{outcome.output}{outcome.stderr}"
    return outcome.stdout


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/ and captions.csv, and a manifest whose clip and blip are the shipped small ones.

    The manifest stands for a download of the published weights, and says nothing of the data.
    """
    sample = layouts.make_sample(tmp_path / "photos", images=60)
    rows = "".join(f'{n},"{t.replace(chr(34), chr(34) * 2)}"\n' for n, t in sample.pairs())
    (tmp_path / "captions.csv").write_text("image,caption\n" + rows)
    shipped = (ROOT / "data_manifest.yaml").read_text()
    text = shipped.replace("ViT-L-14-336/openai", "builtin:scenes/clip")
    text = text.replace("default: Salesforce/blip-itm-base-flickr", "default: builtin:scenes/blip")
    (tmp_path / "data_manifest.yaml").write_text(text)
    assert strict_yaml.read_yaml(tmp_path / "data_manifest.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_four_commands_of_the_readme_and_images_alone_after_them(folder: Path) -> None:
    commands = readme_commands()
    assert len(commands) == 4
    printed = [run(command) for command in commands]
    assert "HADA" in printed[2]
    assert re.search(r"1  -?\d\.\d+  picture_\d+\.jpg", printed[3]), printed[3]
    (trained,) = (folder / "runs" / "photos").glob("*/best.safetensors")
    # A folder without captions, by the same models and the fusion that was trained on the other.
    layouts.make_sample(folder / "holiday" / "day 1", images=7, seed=3)
    models = ["--model", "clip", "--model", "blip"]
    run(["hada-extract", "--data", "holiday", *models])
    where = [str(trained.parent), "--dataset", "holiday", "--split", "all"]
    run(["hada-fuse", "embed", *where])
    hits = run(
        ["hada-evaluate", "search", "--run", *where, "--jsonl", "--top", "9", "a red half"]
    ).splitlines()
    assert len(hits) == 7
    fused = open_store(folder / "stores" / "holiday" / "all" / trained.parent.name)
    assert len(fused.image) == 7
    assert len(fused.caption) == 0
    values = fused.image.embeddings()
    assert values is not None
    assert np.isfinite(values).all()
    # One image embedded alone and among others is the same.
    layouts.make_sample(folder / "one" / "day 1", images=1, seed=3)
    run(["hada-extract", "--data", "one", *models])
    run(["hada-fuse", "embed", str(trained.parent), "--dataset", "one", "--split", "all"])
    one = open_store(folder / "stores" / "one" / "all" / trained.parent.name).image.embeddings()
    assert one is not None
    row = tuple(fused.image.ids).index("day 1/picture_000.jpg")
    np.testing.assert_allclose(one[0], values[row], atol=2e-3)
    # And texts alone.
    (folder / "queries.txt").write_text("a red half\n\na blue half\n")
    run(["hada-extract", "--data", "asked=queries.txt", *models])
    run(["hada-fuse", "embed", str(trained.parent), "--dataset", "asked", "--split", "all"])
    said = open_store(folder / "stores" / "asked" / "all" / trained.parent.name).caption
    assert tuple(said.ids) == ("line-1", "line-3")
    for name, absent in (("holiday", "no captions"), ("asked", "no images")):
        outcome = CliRunner().invoke(evaluate, ["recall", "--dataset", name, "--split", "all"])
        assert outcome.exit_code == 2
        assert absent in outcome.stderr
    assert load_manifest().dataset("holiday").reader == "folder"


def test_one_split_for_both_is_refused(folder: Path) -> None:
    arguments = ["--dataset", "scenes", "--train-split", "val"]
    for command in ("train", "fit"):
        outcome = CliRunner().invoke(fuse, [command, *arguments])
        assert outcome.exit_code == 2
        assert "train and val are both 'val'" in outcome.stderr
        assert "--allow-same-split" in outcome.stderr
        allowed = CliRunner().invoke(fuse, [command, *arguments, "--allow-same-split"])
        assert "--allow-same-split" not in allowed.stderr, "another reason stops it now"
