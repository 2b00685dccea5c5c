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
