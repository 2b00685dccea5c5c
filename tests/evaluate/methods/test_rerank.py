"""Re-ranking by a run's match head, against a loop over the candidates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import makers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from small_trainings import UNFINISHED

from hada.evaluate.cli import evaluate as command
from hada.evaluate.frozen_model import load_frozen_model
from hada.evaluate.methods.build import build
from hada.evaluate.methods.gallery import EmbeddingMethod
from hada.evaluate.methods.request import Request
from hada.evaluate.methods.rerank import Reranked, RunHead
from hada.extract.cli import extract
from hada.extract.datasets.images import open_image
from hada.extract.datasets.read import read_dataset
from hada.extract.manifest import load_manifest
from hada.extract.scenes import write_scenes
from hada.fuse.cli import fuse


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("rerank")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        makers.make_project(folder, splits={"train": [3] * 12, "val": [2, 1, 3, 2] * 5})
        for split in ("train", "val"):
            assert CliRunner().invoke(extract, ["--split", split]).exit_code == 0
        for name, more in (("itm", ["--set", "weight_itm=1"]), ("plain", [])):
            words = ["train", "--epochs", "2", "--run", f"runs/tiny/{name}", *UNFINISHED, *more]
            done = CliRunner().invoke(fuse, words)
            assert done.exit_code == 0, done.output
        yield folder


@pytest.mark.parametrize("depth", [1, 5, 1000])
def test_it_equals_a_loop(made: Path, monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    monkeypatch.chdir(made)
    request = Request(
        dataset="tiny", split="val", runs=(Path("runs/tiny/itm"),), quick=True, rerank=depth
    )
    gallery, methods = build(load_manifest(None), request)
    second = methods[-1]
    assert isinstance(second, Reranked)
    head = second.head
    assert isinstance(head, RunHead)
    first, found = (
        second.first.ranks(gallery.caption_to_image),
        second.ranks(gallery.caption_to_image),
    )
    scores = second.first.pair[0] @ second.first.pair[1].T
    for caption, image in enumerate(gallery.caption_to_image):
        best = np.argsort(-scores[:, caption], kind="stable")[:depth]
        with torch.no_grad():
            text = head.fused[1][[caption] * len(best)]
            logits = head.network(head.fused[0][best.copy()], text).numpy()
        if image in best:
            own = logits[best == image][0]
            # Equal pictures have equal logits but for rounding, so bounds are all there is.
            assert (logits > own + 1e-5).sum() <= found.t2i_lo[caption]
            assert found.t2i_lo[caption] <= (logits > own - 1e-5).sum()
        else:
            assert found.t2i_lo[caption] == max(first.t2i_lo[caption], depth)
    for image in range(len(scores)):
        best = np.argsort(-scores[image], kind="stable")[:depth]
        own = gallery.caption_to_image[best] == image
        with torch.no_grad():
            logits = head.network(
                head.fused[0][[image] * len(best)], head.fused[1][best.copy()]
            ).numpy()
        if own.any():
            best_own = logits[own].max()
            assert (logits[~own] > best_own + 1e-5).sum() <= found.i2t_lo[image]
            assert found.i2t_lo[image] <= (logits[~own] > best_own - 1e-5).sum()
    if depth == 1:  # one candidate has one order: nobody comes to the first place anew
        assert (first.t2i_lo[found.t2i_lo == 0] == 0).all()


def test_the_command_reports_it_apart(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    words = ["recall", "--split", "val", "--quick", "--resamples", "200", "--rerank", "5"]
    result = CliRunner().invoke(command, [*words, "--run", "runs/tiny/itm"])
    assert result.exit_code == 0, result.output
    written = json.loads((made / "runs/tiny/recall-val.json").read_text())
    last = written["methods"][-1]
    assert last["kind"] == "itm"
    assert "two stages: the first 5 by cosine" in last["note"]
    refused = CliRunner().invoke(command, [*words, "--run", "runs/tiny/plain"])
    assert refused.exit_code == 2
    assert "has no match head to re-rank with; train with --set weight_itm=1" in refused.stderr


def test_a_models_head_orders_the_first_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped BLIP on a few scenes, against `match_logits` from the pictures themselves."""
    write_scenes(Path("data/scenes"), train=0, val=12, test=0)
    names = ["--model", "blip", "--split", "val", "--dataset", "scenes"]
    assert CliRunner().invoke(extract, [*names, "--store-dtype", "float32"]).exit_code == 0
    request = Request(
        dataset="scenes", split="val", models=["blip"], rerank=5, rerank_with="blip", device="cpu"
    )
    manifest = load_manifest(None)
    gallery, (first, second) = build(manifest, request)
    assert isinstance(first, EmbeddingMethod)
    assert isinstance(second, Reranked)
    assert second.name == "blip + blip's match head"
    data = read_dataset(manifest.dataset("scenes"), "val")
    store = gallery.stores[0]
    backbone = load_frozen_model(manifest, store, "cpu")
    pixels = np.stack([backbone.preprocess(open_image(path)) for path in data.image_paths])
    cosines = first.pair[0] @ first.pair[1].T
    ids = backbone.tokenize(data.captions)
    scores = backbone.match_logits(pixels, ids)[..., 1] + cosines
    images, captions = np.divmod(np.arange(scores.size), scores.shape[1])
    found = second.head.logits(images, captions).reshape(scores.shape)
    np.testing.assert_allclose(found, scores, atol=1e-4)
    some = np.array([2, 5]), np.flatnonzero(np.isin(gallery.caption_to_image, [2, 5]))
    part = second.head.part(*some).logits(np.array([0, 1]), np.array([7, 3]))
    np.testing.assert_allclose(part, scores[[2, 5], some[1][[7, 3]]], atol=1e-4)
    ranks = second.ranks(gallery.caption_to_image)
    for caption, image in enumerate(gallery.caption_to_image):
        best = np.argsort(-cosines[:, caption], kind="stable")[:5]
        if image in best:
            above = (scores[best, caption] > scores[image, caption]).sum()
            assert ranks.t2i_lo[caption] == above
    words = ["recall", "--dataset", "scenes", "--split", "val", "--quick", "--rerank-with"]
    refused = CliRunner().invoke(command, [*words, "blip"])
    assert refused.exit_code == 2
    assert "--rerank-with needs --rerank K" in refused.stderr
    refused = CliRunner().invoke(command, [*words, "clip", "--rerank", "5", "--model", "blip"])
    assert refused.exit_code == 2
    assert "not among the models that are evaluated" in refused.stderr
    assert CliRunner().invoke(extract, ["--model", "clip", *names[2:]]).exit_code == 0
    refused = CliRunner().invoke(command, [*words, "clip", "--rerank", "5", "--model", "clip"])
    assert refused.exit_code == 2
    assert "family 'clip' has no match head that works from stored tokens" in refused.stderr
