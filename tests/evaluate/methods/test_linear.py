"""Concatenation + linear against the same training written out, and what each split is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import galleries
import makers
import numpy as np
import pytest
import torch
from torch import nn

from hada.evaluate.methods import build as build_module
from hada.evaluate.methods.build import build, finished_runs
from hada.evaluate.methods.combinations import single_models
from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery
from hada.evaluate.methods.linear import LinearConfig, concatenation_linear, contrastive
from hada.evaluate.methods.request import Request
from hada.extract.manifest import load_manifest
from hada.fuse.ranking.ranks import rank_positives, recalls

MODELS = {"a": 1.1, "b": 1.3}
CONFIG = LinearConfig(epochs=7, batch_size=5, width=8, learning_rate=0.02, seed=3)


def inputs(gallery: Gallery) -> list[Any]:
    found = []
    for side in (0, 1):
        joined = np.concatenate([rung.pair[side] for rung in single_models(gallery)], axis=1)
        found.append(torch.from_numpy(joined * joined.shape[1] ** 0.5))
    return found


def slow_training(gallery: Gallery, train: Gallery, val: Gallery) -> tuple[Any, list[float]]:
    """The embeddings of the epoch that is best on `val`, and RSum there of all epochs."""
    torch.manual_seed(CONFIG.seed)
    data, width = inputs(train), 2 * galleries.WIDTH
    heads = [nn.Sequential(nn.Dropout(0.2), nn.Linear(width, 8)) for _ in (0, 1)]
    parameters = [p for head in heads for p in head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=CONFIG.learning_rate, weight_decay=0.01)
    rsums, made = [], []
    for epoch in range(CONFIG.epochs):
        order = np.random.default_rng([CONFIG.seed, epoch]).permutation(len(data[0]))
        for start in range(0, len(order), 5):
            images = order[start : start + 5]
            captions = [c for i in images for c in np.flatnonzero(train.caption_to_image == i)]
            for head in heads:
                head.train()
            a = nn.functional.normalize(heads[0](data[0][images]), dim=1)
            b = nn.functional.normalize(heads[1](data[1][captions]), dim=1)
            scores = a @ b.T / 0.07
            i2t = t2i = torch.zeros(())
            for row, image in enumerate(images):
                own = [k for k, c in enumerate(captions) if train.caption_to_image[c] == image]
                i2t = i2t - (scores[row, own] - scores[row].logsumexp(0)).mean() / len(images)
                for k in own:
                    t2i = t2i - (scores[row, k] - scores[:, k].logsumexp(0)) / len(captions)
            optimizer.zero_grad()
            ((i2t + t2i) / 2).backward()
            optimizer.step()
        for head in heads:
            head.eval()
        with torch.no_grad():
            on_val, here = (
                [
                    nn.functional.normalize(head(x), dim=1).numpy()
                    for head, x in zip(heads, inputs(part), strict=True)
                ]
                for part in (val, gallery)
            )
        rsums.append(recalls(rank_positives(*on_val, val.caption_to_image))["rsum"])
        made.append(here)
    return made[int(np.argmax(rsums))], rsums


def test_it_equals_the_same_training_written_out() -> None:
    gallery, train, val = (
        galleries.make_gallery("stores", MODELS, split=split, images=images)
        for split, images in (("test", 11), ("train", 23), ("val", 17))
    )
    found = concatenation_linear(gallery, train, val, CONFIG)
    want, rsums = slow_training(gallery, train, val)
    assert 0 < int(np.argmax(rsums)) < len(rsums) - 1  # neither end is the best
    assert f"RSum {max(rsums):.1f} on the split" in found.note
    for side in (0, 1):
        np.testing.assert_allclose(found.pair[side], want[side], atol=2e-4)


def test_captions_of_an_image_share_its_target() -> None:
    scores, owner = torch.randn(3, 5, generator=torch.manual_seed(0)), [0, 0, 1, 2, 2]
    i2t = t2i = 0.0
    for caption, image in enumerate(owner):
        alike = owner.count(image)
        i2t -= float(scores[image, caption] - scores[image].logsumexp(0)) / alike / 3
        t2i -= float(scores[image, caption] - scores[:, caption].logsumexp(0)) / 5
    assert float(contrastive(scores, torch.tensor(owner))) == pytest.approx((i2t + t2i) / 2)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """On val model a is nearly perfect, on train and test model b is."""
    makers.make_project(tmp_path)
    text = makers.MANIFEST.replace("[one, two]", "[a, b]").replace(
        "val: {}", "val: {}\n      test: {}"
    )
    (tmp_path / "data_manifest.yaml").write_text(text.replace("one:", "a:").replace("two:", "b:"))
    for split, noises in (("train", (9.0, 0.1)), ("val", (0.1, 9.0)), ("test", (9.0, 0.1))):
        galleries.make_gallery(
            "stores", dict(zip("ab", noises, strict=True)), split=split, images=30
        )
    return tmp_path


def test_each_split_has_one_purpose(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum is tuned on val; the layers are trained on train, stopped by val, and score test."""
    seen: list[list[str]] = []

    def listen(*parts: Gallery) -> EmbeddingMethod:
        seen.append([part.stores[0].spec.split for part in parts])
        return concatenation_linear(*parts, LinearConfig(epochs=1))

    monkeypatch.setattr(build_module, "concatenation_linear", listen)
    request = Request(dataset="tiny", split="test", models=["a", "b"])
    gallery, rungs = build(load_manifest(None), request)
    assert seen == [["test", "train", "val"]]
    by_kind = {rung.kind: rung for rung in rungs}
    shares = by_kind["weighted"].details["shares"]
    assert shares["a"] > 0.5 > shares["b"]
    assert "tuned on val: a" in by_kind["weighted"].note
    figures = {
        kind: recalls(rung.ranks(gallery.caption_to_image))["rsum"]
        for kind, rung in by_kind.items()
    }
    assert figures["weighted"] < figures["mean"]  # what was best on val is not on test


def test_only_runs_with_weights_are_finished(tmp_path: Path) -> None:
    for name, files in (("done", ("config.json", "best.safetensors")), ("begun", ("config.json",))):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
    assert finished_runs(tmp_path) == [tmp_path / "done"]
