"""A model's way to the Hub's format and back, without a network."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fuse_fakes import make_store, make_world
from small_trainings import SETTINGS, call

from hada.extract.common.errors import RunError
from hada.extract.store import open_store
from hada.fuse.cli import fuse
from hada.fuse.embedding import embed_split
from hada.fuse.exchange.hub import HadaModel

TRAIN = ["train", "--manifest", "toy.yaml", "--epochs", "1", *SETTINGS, "--run", "run"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with stores and a run."""
    folder = tmp_path_factory.mktemp("trained")
    make_world(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call(*TRAIN)[0] == 0
    return folder


@pytest.fixture
def world(trained, tmp_path):
    """A copy of that folder, and we are in it."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def stores(world):
    return [open_store(world / "stores" / "toy" / "val" / m) for m in ("left", "right")]


def test_round_trip(world, stores):
    model = HadaModel.from_run("run", {"left": "MIT"})
    model.save_pretrained("saved")
    assert {p.name for p in (world / "saved").iterdir()} == {
        "README.md", "config.json", "model.safetensors"
    }  # fmt: skip
    again = HadaModel.from_pretrained("saved", local_files_only=True)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    got, want = again.embed(stores[::-1], device="cpu"), embed_split("run", stores, device="cpu")
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    assert got.shares == want.shares
    card = (world / "saved" / "README.md").read_text()
    assert "| left | fake | `left-weights` | MIT |" in card
    assert "| right | fake | `right-weights` | not recorded" in card
    assert "license: apache-2.0" in card
    assert "toy" in card


def test_other_features_are_refused(world, stores):
    model = HadaModel.from_run("run")
    with pytest.raises(RunError, match="store of 'right' is missing"):
        model.embed(stores[:1])
    from dataclasses import replace

    other = make_store(world / "other", "left", "val", images=16)
    spec = replace(other.spec, model=replace(other.spec.model, weights_digest="new"))
    other.spec = spec
    with pytest.raises(RunError, match="was trained on 'left-weights'"):
        model.embed([other, stores[1]])
    with pytest.raises(RunError, match="licence of 'lft'"):
        HadaModel.from_run("run", {"lft": "MIT"})


def test_the_command(world, stores):
    words = ["export", "run", "out", "--licence", "right=CC-BY-4.0"]
    result = CliRunner().invoke(fuse, words)
    assert result.exit_code == 0, result.stderr
    config = json.loads((world / "out" / "config.json").read_text())
    assert config["licences"]["right"] == "CC-BY-4.0"
    result = CliRunner().invoke(fuse, ["export", "nowhere", "out"])
    assert result.exit_code == 2
    assert "no training run there" in result.stderr


def test_push_goes_through_the_hub_and_nowhere_else(stores, monkeypatch):
    """What is sent is the saved folder: the client's own upload is replaced by a look at it."""
    from huggingface_hub import HfApi

    seen = {}

    def upload_folder(self, *, repo_id, folder_path, **_options):
        from pathlib import Path

        seen[repo_id] = {path.name for path in Path(folder_path).iterdir()}
        return "sent"

    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **_: type("R", (), {"repo_id": repo_id})()
    )
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    HadaModel.from_run("run").push_to_hub("someone/hada")
    assert seen == {"someone/hada": {"README.md", "config.json", "model.safetensors"}}
