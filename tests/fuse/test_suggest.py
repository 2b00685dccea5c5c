"""`hada-fuse suggest` against slow loops over the same stores."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from click.testing import CliRunner
from fuse_fakes import make_store, make_world

from hada.extract.store import open_store
from hada.fuse.cli import fuse
from hada.fuse.ranking.ranks import rank_matrix, recalls
from hada.fuse.untrained import Embeddings, hubness, without_training


@pytest.fixture
def world(tmp_path, monkeypatch):
    make_world(tmp_path)
    for model in ("left", "right", "flat"):
        make_store(tmp_path / "hard", model, "val", images=60, noise=1.6)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words):
    result = CliRunner().invoke(fuse, ["suggest", "--manifest", "toy.yaml", *words])
    return result.exit_code, result.stdout, result.stderr


def test_every_figure_equals_a_slow_loop(world):
    code, out, said = call("--root", "stores=hard", "--json")
    assert code == 0, said
    found = json.loads(out)
    assert (found["images"], found["captions"]) == (60, 120)
    stores = {m: open_store(world / "hard" / "toy" / "val" / m) for m in ("left", "right", "flat")}
    owner = np.asarray(stores["left"].caption_to_image)
    scores = {}
    for name, store in stores.items():
        a, b = (np.asarray(s.embeddings(), np.float64) for s in (store.image, store.caption))
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        scores[name] = (a @ b.T).astype(np.float32)
    best_rank = {}  # (model, query) -> rank, image queries first
    for name, matrix in scores.items():
        for i, row in enumerate(matrix):
            best_rank[name, i] = min((row > row[t]).sum() for t in np.flatnonzero(owner == i))
        for t, column in enumerate(matrix.T):
            best_rank[name, 60 + t] = (column > column[owner[t]]).sum()
    entries = {tuple(entry["models"]): entry for entry in found["combinations"]}
    combinations = [c for n in (1, 2, 3) for c in itertools.combinations(sorted(stores), n)]
    assert sorted(entries) == sorted(combinations)
    for names, entry in entries.items():
        ranks = np.array([[best_rank[n, q] for q in range(180)] for n in names])
        union = sum(
            100 * (ranks[:, part].min(0) < k).mean()
            for part in (slice(0, 60), slice(60, 180))
            for k in (1, 5, 10)
        )
        assert entry["union_rsum"] == pytest.approx(union)
        missed = ranks > 0
        assert entry["error_overlap"] == pytest.approx(missed.all(0).sum() / missed.any(0).sum())
        mean = sum(scores[n] for n in names)
        table = recalls(rank_matrix(mean, owner))
        assert entry["mean_rsum"] == pytest.approx(table["rsum"], abs=1e-6)
        alike = [
            np.mean([np.corrcoef(scores[a][i], scores[b][i])[0, 1] for i in range(60)])
            for a, b in itertools.combinations(names, 2)
        ]
        assert entry["score_correlation"] == pytest.approx(np.mean(alike) if alike else 1, abs=1e-5)
    ordered = [entry["mean_rsum"] for entry in found["combinations"]]
    assert ordered == sorted(ordered, reverse=True)


def test_the_table_and_some_of_the_images(world):
    code, out, _ = call("--model", "left", "--model", "right", "--images", "10")
    assert code == 0
    assert "toy/val: 10 images, 20 captions" in out
    assert "left + right" in out


def test_nothing_to_look_at_is_said(world):
    code, _, said = call("--split", "test")
    assert code == 1
    assert "hada-extract --dataset toy --split test" in said


def test_what_needs_no_training_is_fitted_on_the_training_split(world):
    code, out, said = call("--json")
    assert code == 0, said
    for entry in json.loads(out)["combinations"]:
        assert entry["corrected_rsum"] >= entry["mean_rsum"] - 5
        assert entry["cca_corrected_rsum"] >= entry["cca_rsum"] - 5
        assert set(entry["hubness"]) == set(entry["models"])
    code, out, said = call("--root", "stores=hard", "--json")
    assert code == 0
    assert "there is no feature store" in said
    assert "corrected_rsum" not in json.loads(out)["combinations"][0]


def test_hubness_is_the_skewness_of_first_places():
    """Eight captions have their own image first; the ninth image is the second of all."""
    scores = np.eye(9, 8, dtype=np.float32)
    scores[8] = 0.5
    counts = np.ones(9)
    counts[8] = 8
    skew = ((counts - counts.mean()) ** 3).mean() / counts.std() ** 3
    assert hubness(scores, 2) == pytest.approx(skew)
    assert hubness(np.eye(5, dtype=np.float32), 1) == 0


def test_corrected_and_with_a_head_equal_a_slow_loop():
    draw = np.random.default_rng(0)

    def items(images):
        truth = draw.normal(size=(images, 6))
        owner = np.repeat(np.arange(images), 2)
        models = []
        for _ in range(2):
            sides = (truth, truth[owner])
            # A direction that all items share makes hubs.
            noisy = [s + 0.9 * draw.normal(size=s.shape) + np.eye(6)[0] for s in sides]
            models.append(tuple(side.astype("f4") for side in noisy))
        return Embeddings(tuple(models), owner)

    val, train = items(80), items(200)
    found = without_training(val, train)
    image, caption = val.mean()
    bank_image, bank_caption = train.mean()
    scores = image @ caption.T
    cosines = [
        (i / np.linalg.norm(i, axis=1, keepdims=True))
        @ (c / np.linalg.norm(c, axis=1, keepdims=True)).T
        for i, c in val.models
    ]
    np.testing.assert_allclose(scores, np.mean(cosines, axis=0), atol=1e-5)
    plain = recalls(rank_matrix(scores, val.caption_to_image))["rsum"]
    tried = []
    for k in (8, 32, 128):
        by_image = np.sort(image @ bank_caption.T, axis=1)[:, -k:].mean(1)
        by_caption = np.sort(caption @ bank_image.T, axis=1)[:, -k:].mean(1)
        for a, b in itertools.product((0, 0.125, 0.25, 0.375, 0.5, 0.75), repeat=2):
            less = (scores - a * by_image[:, None] - b * by_caption[None]).astype("f4")
            tried.append(recalls(rank_matrix(less, val.caption_to_image))["rsum"])
    assert any(found["corrected_rsum"] == pytest.approx(value) for value in (*tried, plain))
    assert found["cca_rsum"] >= plain - 30
