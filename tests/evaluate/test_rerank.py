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

from hada.evaluate.cli import evaluate as command
from hada.evaluate.ladder import Request, build
from hada.evaluate.rerank import Reranked
from hada.extract.cli import extract
from hada.extract.manifest import load_manifest
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
            words = ["train", "--epochs", "2", "--run", f"runs/tiny/{name}", *more]
            done = CliRunner().invoke(fuse, words)
            assert done.exit_code == 0, done.output
        yield folder


@pytest.mark.parametrize("depth", [1, 5, 1000])
def test_it_equals_a_loop(made: Path, monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    monkeypatch.chdir(made)
    request = Request(
        dataset="tiny", split="val", runs=[Path("runs/tiny/itm")], quick=True, rerank=depth
    )
    gallery, ladder = build(load_manifest(None), request)
    second = ladder[-1]
    assert isinstance(second, Reranked)
    first, found = second.first.ranks(gallery.owner), second.ranks(gallery.owner)
    scores = second.first.pair[0] @ second.first.pair[1].T
    for caption, image in enumerate(gallery.owner):
        best = np.argsort(-scores[:, caption], kind="stable")[:depth]
        with torch.no_grad():
            text = second.fused[1][[caption] * len(best)]
            logits = second.head(second.fused[0][best.copy()], text).numpy()
        if image in best:
            own = logits[best == image][0]
            # Equal pictures have equal logits but for rounding, so bounds are all there is.
            assert (logits > own + 1e-5).sum() <= found.t2i_lo[caption]
            assert found.t2i_lo[caption] <= (logits > own - 1e-5).sum()
        else:
            assert found.t2i_lo[caption] == max(first.t2i_lo[caption], depth)
    for image in range(len(scores)):
        best = np.argsort(-scores[image], kind="stable")[:depth]
        own = gallery.owner[best] == image
        with torch.no_grad():
            logits = second.head(
                second.fused[0][[image] * len(best)], second.fused[1][best.copy()]
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
    last = written["rungs"][-1]
    assert last["kind"] == "itm"
    assert "two stages: the first 5 by cosine" in last["note"]
    refused = CliRunner().invoke(command, [*words, "--run", "runs/tiny/plain"])
    assert refused.exit_code == 2
    assert "has no match head to re-rank with; train with --set weight_itm=1" in refused.stderr
