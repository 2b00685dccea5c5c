"""What `hada.fuse` offers in Python: the functions that the commands call, lazily."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fuse_fakes import make_world

import hada.fuse
from hada.extract.common.errors import UsageError
from hada.extract.manifest import load_manifest
from hada.extract.store import open_store
from hada.fuse import HadaModel, embed, train

TINY = {"epochs": 1, "node_width": 8, "head_width": 4, "graph_width": 8, "network.out_width": 8}


def test_every_public_name_is_there_and_importing_the_package_loads_none() -> None:
    for name in hada.fuse.__all__:
        assert getattr(hada.fuse, name).__name__ == name
        assert name in dir(hada.fuse)
    code = (
        "import sys, hada.fuse\n"
        "assert not [name for name in sys.modules if name.startswith('hada.fuse.')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="'trian'"):
        _ = hada.fuse.trian


def test_train_embed_and_the_model_agree(tmp_path: Path) -> None:
    manifest = load_manifest(make_world(tmp_path))
    run = train(["left", "right"], manifest=manifest, settings=TINY, run=tmp_path / "run")
    assert run.config()["recipe"]["training"]["epochs"] == 1
    (path,) = embed(run, "val", manifest=manifest, output=tmp_path / "fused")
    stores = [open_store(manifest.store_path("toy", "val", name)) for name in ("left", "right")]
    images, captions = HadaModel.from_run(run.path).embed(stores).unit()
    fused = open_store(path)
    np.testing.assert_allclose(fused.image.embeddings(), images, atol=2e-3)
    np.testing.assert_allclose(fused.caption.embeddings(), captions, atol=2e-3)
    with pytest.raises(UsageError, match="one store"):
        embed(run, ["train", "val"], manifest=manifest, output=tmp_path / "both")
    with pytest.raises(UsageError, match="unknown recipe setting 'epoch'"):
        train(["left"], manifest=manifest, settings={"epoch": 1}, run=tmp_path / "other")
