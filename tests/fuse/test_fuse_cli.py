"""What `hada-fuse` says: its help, its configuration, and one helpful line for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from fuse_fakes import make_store, make_world
from small_trainings import UNFINISHED

from hada.fuse.cli import fuse


def call(*words):
    result = CliRunner().invoke(fuse, words)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a manifest and stores, for what writes nothing there."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.fixture
def unchanged(made, monkeypatch):
    """That folder, and we are in it; whoever writes there is seen."""
    monkeypatch.chdir(made)
    before = sorted(made.rglob("*"))
    yield made
    assert sorted(made.rglob("*")) == before


COMMANDS = ("train", "embed", "suggest", "export", "import")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_shows_examples(command):
    code, out, _ = call(*command.split(), "--help")
    assert code == 0
    assert "hada-fuse" in out


def test_help_and_print_config_load_no_torch():
    script = (
        "import sys\n"
        "from hada.fuse.cli import fuse\n"
        f"for words in (['--help'], *([c, '--help'] for c in {COMMANDS!r})):\n"
        "    try:\n"
        "        fuse.main(words)\n"
        "    except SystemExit:\n"
        "        pass\n"
        "heavy = {'torch', 'zarr', 'open_clip', 'transformers', 'torch_geometric'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.slow
def test_all_of_fuse_imports_without_the_backbones():
    script = (
        "import importlib, pkgutil, sys\n"
        "for name in ('open_clip', 'transformers', 'torch_geometric', 'timm'):\n"
        "    sys.modules[name] = None\n"
        "import hada.fuse\n"
        "for module in pkgutil.iter_modules(hada.fuse.__path__):\n"
        "    importlib.import_module('hada.fuse.' + module.name)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_print_config_is_the_whole_request(unchanged):
    code, out, _ = call(
        "train", "--manifest", "toy.yaml", "--print-config", "--recipe", "hada", "--epochs", "7"
    )
    request = json.loads(out)
    assert code == 0
    assert request["models"] == ["left", "right"]
    assert request["recipe"]["training"]["epochs"] == 7
    assert request["recipe"]["loss"]["queue"] == 64000
    assert not (unchanged / "runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "--model", "lft"], "unknown model 'lft'. Did you mean 'left'?"),
        (["train", "--dataset", "tiy"], "unknown dataset 'tiy'. Did you mean 'toy'?"),
        (["train", "--train-split", "trian"], "Did you mean 'train'?"),
        (["train", "--recipe", "fsat"], "unknown recipe 'fsat'. Did you mean 'fast'?"),
        (["train", "--set", "epoch=3"], "Did you mean 'epochs'?"),
        (["train", "--set", "epochs"], "expected NAME=VALUE"),
        (["train", "--model", "flat"], "hada-extract --model flat --split train"),
        (["train", "--train-split", "test"], "hada-extract --model left --split test"),
        (["train", "--device", "gpu"], "--device gpu: not usable here"),
        (["train", "--model", "left", "--model", "left"], "'left' is given twice"),
        (["embed", "nowhere", "--split", "val"], "no training run there"),
        (["train", "--report-to", "tensorbord"], "Did you mean 'tensorboard'?"),
        (["train", "--init", "nowhere"], "no training run there"),
        (["train", "--set", "second_from_first=true"], "the second without tokens"),
        (["train", "--set", "graph_hidden=8", "--set", "skip=true"], "skip: needs node_width"),
        (["suggest", "--model", "flat"], "hada-extract --model flat --split val"),
        (["suggest", "--split", "vol"], "Did you mean 'val'?"),
        (["import", "nowhere", "--model", "left", "--split", "val"], "no checkpoint at nowhere"),
    ],
)
@pytest.mark.usefixtures("unchanged")
def test_mistakes_end_in_one_line(words, says):
    code, _, said = call(*words, "--manifest", "toy.yaml")
    assert code in (1, 2)
    assert says in said
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if line.startswith("error:")]) == 1


def test_stores_of_different_data_are_refused(world):
    import shutil

    shutil.rmtree(world / "stores" / "toy" / "val" / "right")
    make_store(world / "stores", "right", "val", images=16, digest="another")
    code, _, said = call("train", "--manifest", "toy.yaml")
    assert code == 2
    assert "dataset_digest is" in said


def test_train_then_embed(world):
    small = ["--set=node_width=8", "--set=head_width=4", "--set=graph_width=8", "--epochs=1"]
    code, out, _ = call("train", "--manifest", "toy.yaml", *small, *UNFINISHED)
    assert code == 0
    code, out, said = call("embed", out.strip(), "--split", "val", "--manifest", "toy.yaml")
    assert code == 0
    assert out.strip() == "stores/toy/val/left+right-fast-s0"
    assert "16 images and 32 captions" in said
    run = "runs/toy/left+right-fast-s0"
    code, _, said = call("embed", run, "--split", "test", "--manifest", "toy.yaml")
    assert code == 1
    assert "hada-extract --model left --split test" in said
    (world / run / "best.safetensors").write_bytes(b"broken")
    code, _, said = call(
        "embed", run, "--split", "val", "--output", "again", "--manifest", "toy.yaml"
    )
    assert code == 2
    assert "damaged" in said
