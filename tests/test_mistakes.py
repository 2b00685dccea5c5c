"""Twelve mistakes a newcomer makes: each ends in one helpful message and an exit code.

The messages stand here in full, so that a change of words is seen as what it is.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import makers
import pytest
from click.testing import CliRunner
from places import ROOT, commands
from small_trainings import UNFINISHED

TRAIN = ["hada-fuse", "train", "--epochs", "1"]


def _nothing(_folder: Path) -> None:
    pass


@dataclass
class Mistake:
    name: str
    command: list[str]
    message: str
    code: int = 2
    prepare: Callable[[Path], None] = field(default=_nothing)


def edit_annotations(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        file = folder / "data" / "dataset_tiny.json"
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))

    return prepare


def no_captions(document: Any) -> None:
    document["images"][-1]["sentences"] = []


def remove_picture(folder: Path) -> None:
    (folder / "data" / "images" / "val_003.jpg").unlink()


def cut_json(folder: Path) -> None:
    file = folder / "data" / "dataset_tiny.json"
    file.write_text(file.read_text()[:-20])


def typo(folder: Path) -> None:
    (folder / "data_manifest.yaml").write_text(makers.MANIFEST.replace("reader:", "raeder:"))


def move_data(folder: Path) -> None:
    (folder / "data").rename(folder / "elsewhere")


def store_of_another_model(folder: Path) -> None:
    extract("one", "val")
    manifest = folder / "data_manifest.yaml"
    manifest.write_text(makers.MANIFEST.replace("weights: a", "weights: other"))


def one_run(_folder: Path) -> None:
    for split in ("train", "val"):
        extract("one", split)
        extract("two", split)
    result = run([*TRAIN, "--run", "runs/tiny/mine", *UNFINISHED])
    assert result.exit_code == 0, result.output
    for path in Path("stores/tiny/val").glob("*"):
        path.rename(path.with_name(f"{path.name}-gone"))


def only_val(_folder: Path) -> None:
    extract("one", "val")
    extract("two", "val")


def extract(model: str, split: str) -> None:
    result = run(["hada-extract", "--model", model, "--split", split])
    assert result.exit_code == 0, result.output


MISTAKES = [
    Mistake(
        "unknown model",
        ["hada-extract", "--model", "oen", "--split", "val"],
        "unknown model 'oen'. Did you mean 'one'? Known: one, two.",
    ),
    Mistake(
        "wrong split",
        ["hada-extract", "--split", "valid"],
        "dataset 'tiny' has no split 'valid'. Did you mean 'val'? Known: train, val.",
    ),
    Mistake(
        "missing root",
        ["hada-extract", "--split", "val"],
        "dataset 'tiny': its folder 'data' does not exist. Say where it lies: "
        "--root tiny=FOLDER. It is published at: https://example.org/tiny.",
        prepare=move_data,
    ),
    Mistake(
        "missing image",
        ["hada-extract", "--split", "val"],
        "dataset 'tiny', split 'val': 1 of 5 pictures are missing, the first is "
        "'data/images/val_003.jpg'. It is published at: https://example.org/tiny.",
        prepare=remove_picture,
    ),
    Mistake(
        "empty caption list",
        ["hada-extract", "--split", "val"],
        "data/dataset_tiny.json: images[16]: 'val_004.jpg' has no captions. "
        "Every image needs at least one: add it, take the image out of the split, or leave such "
        "images out: --loose-rows",
        prepare=edit_annotations(no_captions),
    ),
    Mistake(
        "a store of another model",
        ["hada-extract", "--model", "one", "--split", "val"],
        "stores/tiny/val/one holds other features than these: model.weights_digest: the store has ",
        prepare=store_of_another_model,
    ),
    Mistake(
        "a run without stores",
        ["hada-evaluate", "recall", "--split", "val", "--run", "runs/tiny/mine"],
        "stores/tiny/val/one: there is no feature store. Make it first: hada-extract "
        "--model one --split val --dataset tiny",
        code=1,
        prepare=one_run,
    ),
    Mistake(
        "a train split that was not extracted",
        TRAIN,
        "stores/tiny/train/one: there is no feature store. Make it first: hada-extract "
        "--model one --split train --dataset tiny",
        code=1,
        prepare=only_val,
    ),
    Mistake(
        "a typo in the manifest",
        ["hada-extract", "--split", "val"],
        "data_manifest.yaml, line 9: unknown key 'datasets.tiny.raeder'. Did you mean 'reader'?",
        prepare=typo,
    ),
    Mistake(
        "broken JSON",
        ["hada-extract", "--split", "val"],
        "data/dataset_tiny.json: broken JSON at line 1, column ",
        prepare=cut_json,
    ),
]


def command(name: str) -> click.Command:
    module, _, attribute = commands()[name].partition(":")
    loaded: click.Command = getattr(importlib.import_module(module), attribute)
    return loaded


def run(argv: list[str]) -> Any:
    return CliRunner().invoke(command(argv[0]), argv[1:])


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_ends_in_one_message(tmp_path: Path, mistake: Mistake) -> None:
    makers.make_project(tmp_path)
    mistake.prepare(tmp_path)
    result = run(mistake.command)
    assert result.exit_code == mistake.code, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, result.stderr
    assert mistake.message in errors[0]
    assert "Traceback" not in result.output


@pytest.fixture
def ordinary_user(tmp_path: Path) -> Iterator[None]:
    """Root may write anywhere: become nobody for a moment, with everything imported before."""
    if os.geteuid() != 0:
        yield
        return
    makers.make_project(tmp_path)
    extract("one", "train")
    for folder in [tmp_path, *tmp_path.parents]:
        if str(folder).startswith(("/tmp/", "/dev/shm/")) and folder.stat().st_uid == 0:
            folder.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_no_permission_to_write(tmp_path: Path, ordinary_user: None) -> None:
    if not (tmp_path / "data").exists():
        makers.make_project(tmp_path)
        (tmp_path / "stores").mkdir()
        (tmp_path / "stores").chmod(0o555)
    result = run(["hada-extract", "--model", "two", "--split", "val"])
    assert result.exit_code == 1, result.output
    assert "error: Permission denied: 'stores" in result.stderr
    assert "Choose another place or mend its permissions." in result.stderr


def test_an_old_python_is_told_so() -> None:
    code = "import sys; sys.version_info = (3, 9, 18, 'final', 0); import hada.extract.cli"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("error: HADA needs Python 3.11 or newer; ")
    assert "python3.11 -m venv .venv" in result.stderr
    # The word must be readable by the old Python itself.
    ast.parse((ROOT / "extract" / "__init__.py").read_text(), feature_version=(3, 9))


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    result = CliRunner(env={"HADA_DEBUG": None}).invoke(
        command("hada-extract"), ["--debug", "--split", "nowhere"]
    )
    os.environ.pop("HADA_DEBUG", None)
    assert type(result.exception).__name__ == "UnknownNameError"
