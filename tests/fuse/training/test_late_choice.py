"""Late interaction over stored tokens as a member of the mixture, and as its second stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from token_stores import multi_vector, projected, slow

from hada.evaluate.methods.build import build
from hada.evaluate.methods.late import NodeMethod
from hada.evaluate.methods.request import Request
from hada.evaluate.search.index import SecondStage
from hada.extract.manifest import StoreRoot
from hada.extract.store import open_store
from hada.fuse.cli import fuse
from hada.fuse.embedding import embed_split
from hada.fuse.exchange.stores import write_nodes
from hada.fuse.run_folder import RunFolder

pytestmark = pytest.mark.slow

OWNER = np.repeat(np.arange(60), 2)
MANIFEST = """\
schema: 1
defaults: {dataset: d, models: [clip, colpali]}
stores: stores
runs: runs
datasets:
  d: {reader: karpathy, root: data, annotations: a.json, splits: {train: {}, val: {}}}
models:
  clip: {family: dual, weights: a}
  colpali: {family: dual, weights: b}
"""


def fitted(folder: Path, *words: str, models: tuple[str, ...] = ("clip", "colpali")) -> Any:
    """`hada-fuse fit` on stores of both splits."""
    (folder / "data_manifest.yaml").write_text(MANIFEST)
    named = [word for model in models for word in ("--model", model)]
    return CliRunner().invoke(fuse, ["fit", "--dataset", "d", *named, "--run", "runs/d/x", *words])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        projected(tmp_path, split=split, owner=OWNER, seed=len(split), related=True)
    return tmp_path


def made(folder: Path, *, related: bool = True) -> tuple[list[Any], list[Any]]:
    multi_vector(folder, split="train", owner=OWNER, related=related)
    _, images, captions = multi_vector(folder, owner=OWNER, related=related)
    return images, captions


def test_it_has_a_share_where_it_helps(here: Path) -> None:
    images, captions = made(here)
    done = fitted(here, "--set", "correct=none")
    assert done.exit_code == 0, done.output
    assert "late: the tokens of colpali, mirror" in done.stderr
    assert "late: share" in done.stderr
    run = RunFolder(here / "runs/d/x")
    heads = run.load_heads()
    assert heads is not None
    assert heads.late is not None
    stores = [open_store(here / "stores/d/val" / name) for name in ("clip", "colpali")]
    found = embed_split(run, stores)
    assert found.node_share == heads.shares[-1] > 0
    cosine = found.image_IE @ found.caption_TE.T
    part = slow(images, captions)
    if found.mirror:
        part = (part + slow(captions, images).T) / 2
    whole = cosine + found.node_share * part
    for some, block in found.scores():
        np.testing.assert_allclose(block, whole[:, some], atol=1e-4)
    stage = SecondStage.of(found, "image")
    assert stage is not None
    asked = found.part(np.array([0]), np.array([1]))
    scores = stage.scores(asked, np.array([5, 0, 9]))
    np.testing.assert_allclose(scores, whole[[5, 0, 9], 1], atol=1e-4)
    write_nodes(here / "nodes", "x-nodes", run, found, stores, anew=False)
    assert open_store(here / "nodes").image.lengths.tolist() == [len(x) for x in images]
    request = Request(dataset="d", split="val", runs=(run.path,), quick=True)
    method = build(StoreRoot(str(here / "stores")), request)[1][-1]
    assert isinstance(method, NodeMethod)
    assert "nodes" in method.note
    again = replace(found, nodes=None, node_share=0.0)
    assert again.image_IE.shape == found.image_IE.shape


def test_it_pays_for_hubs_as_nodes_do(here: Path) -> None:
    made(here)
    done = fitted(here)
    assert done.exit_code == 0, done.output
    assert "correction of the node matching" in done.stderr


def test_it_is_left_out_where_it_does_not_help(here: Path) -> None:
    made(here, related=False)
    done = fitted(here)
    assert done.exit_code == 0, done.output
    assert "late: left out: right matches are as likely without it" in done.stderr
    heads = RunFolder(here / "runs/d/x").load_heads()
    assert heads is not None
    assert heads.late is None
    stores = [open_store(here / "stores/d/val" / name) for name in ("clip", "colpali")]
    assert embed_split(here / "runs/d/x", stores).nodes is None


def test_any_model_can_be_asked_for(here: Path) -> None:
    made(here)
    done = fitted(here, "--set", "late=clip")
    assert done.exit_code == 0, done.output
    assert "late: the tokens of clip, mirror" in done.stderr
    assert "mapped to its joint space by least squares" in done.stderr
    config = json.loads((here / "runs/d/x/config.json").read_text())
    assert config["recipe"]["scores"]["late"] == "clip"


def test_a_multi_vector_model_alone_is_a_fusion(here: Path) -> None:
    images, _ = made(here)
    done = fitted(here, models=("colpali",))
    assert done.exit_code == 0, done.output
    found = embed_split(here / "runs/d/x", [open_store(here / "stores/d/val/colpali")])
    assert found.nodes is not None
    assert found.nodes[0].lengths.tolist() == [len(x) for x in images]


def test_what_cannot_be_is_refused(here: Path) -> None:
    made(here)
    for words, said in (
        (["--set", "late=clop"], "late=clop: expected none, auto, all or one of the models"),
        (["--set", "late=all", "--set", "match_width=8"], "a run has one second stage"),
    ):
        done = fitted(here, *words)
        assert done.exit_code == 2, done.output
        assert said in done.stderr
