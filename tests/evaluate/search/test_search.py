"""Search: a query lands where the split's own items lie, and the index is made once."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import galleries
import makers
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from hada.evaluate.cli import evaluate as command
from hada.evaluate.search.encoder import Encoder
from hada.evaluate.search.graph import faiss_top
from hada.evaluate.search.index import Index, Query, build_index, own_embeddings
from hada.extract.cli import extract
from hada.extract.common.errors import UsageError
from hada.extract.datasets.read import read_dataset
from hada.extract.manifest import load_manifest
from hada.extract.store import open_store
from hada.fuse.cli import fuse
from hada.fuse.run_files.sealed import FaultError
from hada.fuse.run_folder import RunFolder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        makers.make_project(folder)
        for split in ("train", "val"):
            assert CliRunner().invoke(extract, ["--split", split]).exit_code == 0
        done = CliRunner().invoke(fuse, ["train", "--epochs", "2", "--run", "runs/tiny/mine"])
        assert done.exit_code == 0, done.output
        yield folder


@pytest.fixture
def project(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def run(*words: str) -> Any:
    return CliRunner().invoke(command, ["search", *words, "--split", "val"])


@pytest.mark.parametrize("fused", [True, False])
def test_a_query_is_encoded_as_the_split_was(project: Path, fused: bool, tmp_path: Path) -> None:
    manifest = load_manifest(None)
    data = read_dataset(manifest.dataset("tiny"), "val")
    names = ("one", "two") if fused else ("one",)
    stores = [open_store(f"stores/tiny/val/{name}") for name in names]
    folder = RunFolder("runs/tiny/mine") if fused else None
    encoder = Encoder(manifest, stores, "cpu", folder)
    images, _ = build_index(stores, folder, "image", "cpu", tmp_path / "i.npz")
    captions, _ = build_index(stores, folder, "caption", "cpu", tmp_path / "c.npz")
    for row in (0, 3):
        np.testing.assert_allclose(
            encoder.image(data.image_paths[row]).vector, images.embeddings[row], atol=2e-3
        )
        np.testing.assert_allclose(
            encoder.text(data.captions[row]).vector, captions.embeddings[row], atol=2e-3
        )


def test_the_best_come_first_and_the_index_is_reused(project: Path) -> None:
    first = run("red above blue", "--top", "3", "--jsonl")
    assert first.exit_code == 0, first.output
    assert "index of 5 images written" in first.stderr
    hits = [json.loads(line) for line in first.stdout.splitlines()]
    assert [hit["place"] for hit in hits] == [1, 2, 3]
    assert hits[0]["score"] >= hits[1]["score"] >= hits[2]["score"]
    assert Path(hits[0]["file"]).is_file()
    again = run("red above blue", "--top", "3", "--jsonl")
    assert "index of" not in again.stderr
    assert again.stdout == first.stdout
    index = Path("runs/tiny/mine/index-val-image.npz")
    index.write_bytes(index.read_bytes()[:100])  # damaged: made again
    assert run("red above blue", "--top", "3", "--jsonl").stdout == first.stdout


def test_by_picture_as_a_page_and_without_pictures(project: Path, tmp_path: Path) -> None:
    page = tmp_path / "found.html"
    words = ["--image", "data/images/val_001.jpg", "--model", "one", "--page", str(page)]
    result = run(*words, "--find", "images", "--top", "2")
    assert result.exit_code == 0, result.output
    assert "val_001.jpg" in result.stdout.splitlines()[0]
    assert page.read_text().count("data:image/jpeg") == 2


def test_requests_that_make_no_sense_are_refused(project: Path, tmp_path: Path) -> None:
    for words, says in (
        ([], "expected either a sentence or --image"),
        (["  "], "the query is empty"),
        (["a", "--model", "one", "--run", "runs/tiny/mine"], "give one of them"),
        (["a", "--run", "runs/nowhere"], "no training run there"),
        (["--image", str(tmp_path / "no.jpg")], "no such file"),
    ):
        result = run(*words)
        assert result.exit_code == 2, result.output
        assert says in result.stderr


def test_an_index_is_exact_and_says_when_it_is_of_other_features(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(50, 8)).astype(np.float32)
    index = Index(values, [str(k) for k in range(50)], "key")
    query = random.normal(size=8)
    slow = sorted(range(50), key=lambda row: -float(values[row].astype(float) @ query))
    assert [row for row, _ in index.top(query, 50)] == slow
    index.save(tmp_path / "index.npz")
    same = Index.load(tmp_path / "index.npz", "key")
    assert same is not None
    assert same.ids == index.ids
    with pytest.raises(FaultError, match="stale: it is of other weights or stores"):
        Index.load(tmp_path / "index.npz", "other")


def test_a_models_own_rank_is_one_more_than_how_many_are_nearer() -> None:
    """By a slow loop; equal cosines share a rank."""
    random = np.random.default_rng(0)
    # Few values, so that many cosines are equal and none is rounded.
    own = {name: random.integers(-1, 2, (30, 4)).astype(np.float32) for name in ("one", "two")}
    index = Index(own["one"], [str(k) for k in range(30)], "key", own=own)
    asked = {name: random.integers(-1, 2, 4).astype(np.float32) for name in ("one", "two")}
    ranks = index.own_ranks(Query(asked["one"], own=asked), range(30))
    for name, values in own.items():
        scores = [float(row @ asked[name]) for row in values]
        assert len(set(scores)) < 15
        assert ranks[name] == [1 + sum(other > one for other in scores) for one in scores]
    some = index.own_ranks(Query(asked["one"], own={"two": asked["two"]}), [7, 3])
    assert some == {"two": [ranks["two"][7], ranks["two"][3]]}


def test_without_faiss_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    index = Index(np.eye(3, dtype=np.float32), ["a", "b", "c"], "key")
    with pytest.raises(UsageError, match=r"pip install 'hada\[faiss\]'"):
        faiss_top(index, np.ones(3, np.float32), 3)


def test_faiss_finds_what_an_exact_search_finds(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="needs faiss: pip install 'hada[faiss]'")
    random = np.random.default_rng(0)
    values = random.normal(size=(3000, 16)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    index = Index(values, [str(k) for k in range(3000)], "key")
    path = tmp_path / "index.npz"
    found = 0
    for query in values[:20] + 0.1 * random.normal(size=(20, 16)).astype(np.float32):
        exact, graph = index.top(query, 10), faiss_top(index, query, 10, path)
        scores = [score for _, score in graph]
        assert scores == sorted(scores, reverse=True)
        assert scores == pytest.approx([float(values[row] @ query) for row, _ in graph], abs=1e-5)
        found += len({row for row, _ in exact} & {row for row, _ in graph})
    assert found >= 190  # 95 % of the neighbours
    (kept,) = tmp_path.glob("*.faiss")
    before = kept.stat().st_mtime_ns
    again = faiss_top(index, values[0], 10, path)
    assert kept.stat().st_mtime_ns == before
    kept.write_bytes(kept.read_bytes()[:100])  # damaged: made again
    assert faiss_top(index, values[0], 10, path) == again
    other = Index(values[:50], index.ids[:50], "other")  # of other features: replaced
    assert len(faiss_top(other, values[0], 60, path)) == 50
    assert [file.name for file in tmp_path.glob("*.faiss")] == ["index-other.faiss"]


def test_the_command_searches_with_faiss(project: Path) -> None:
    pytest.importorskip("faiss", reason="needs faiss: pip install 'hada[faiss]'")
    exact = run("red above blue", "--top", "3", "--jsonl")
    approximate = run("red above blue", "--top", "3", "--jsonl", "--faiss")
    assert approximate.exit_code == 0, approximate.output
    assert "faiss found 3 of the 3 that an exact search finds" in approximate.stderr
    ids = [[json.loads(line)["id"] for line in r.stdout.splitlines()] for r in (exact, approximate)]
    assert ids[0] == ids[1]


def test_equal_scores_come_in_the_order_of_rows() -> None:
    index = Index(np.ones((40, 2), np.float32), [str(k) for k in range(40)], "key")
    assert [row for row, _ in index.top(np.ones(2), 30)] == list(range(30))


def test_a_models_own_index_has_unit_length_and_failed_items_last(tmp_path: Path) -> None:
    store = galleries.make_store(tmp_path / "s", "a", failed={"image": [3]})
    values = own_embeddings(store, "image")
    want = np.asarray(store.image.embeddings())
    for row in range(len(values)):
        if row == 3:
            assert values[row].tolist() == [0.0] * galleries.WIDTH
        else:
            np.testing.assert_allclose(
                values[row], want[row] / np.linalg.norm(want[row]), rtol=1e-6
            )
    assert values.dtype == np.float32


def test_an_index_is_of_one_side_and_of_these_weights(project: Path, tmp_path: Path) -> None:
    """The same file is asked for with another side, store or weights: never what lies there."""
    stores = [open_store(f"stores/tiny/val/{name}") for name in ("one", "two")]
    folder, path = RunFolder("runs/tiny/mine"), tmp_path / "index.npz"
    made = [build_index(stores, folder, "image", "cpu", path)]
    made += [build_index(stores, folder, "image", "cpu", path)]
    made += [build_index(stores, folder, "caption", "cpu", path)]
    made += [build_index(stores[:1], None, "caption", "cpu", path)]
    made += [build_index(stores[1:], None, "caption", "cpu", path)]
    assert [there for _, there in made] == [False, True, False, False, False]
    other = tmp_path / "other"
    shutil.copytree(folder.path, other)
    for checkpoint in other.glob("*.pt"):  # which remember the weights of that time
        checkpoint.unlink()
    tensors = folder.load_tensors()
    shares = torch.tensor([1.0, *[0.0] * (len(tensors["heads.shares"]) - 1)])
    RunFolder(other).save_tensors({**tensors, "heads.shares": shares.double()})
    before = build_index(stores, folder, "image", "cpu", path)[0]
    after, there = build_index(stores, RunFolder(other), "image", "cpu", path)
    assert not there
    assert after.key != before.key
    assert not np.array_equal(after.embeddings, before.embeddings)


def test_a_runs_index_names_the_items_that_every_model_could_read(
    project: Path, tmp_path: Path
) -> None:
    """Image 1 of five failed in one store, so row 1 of the index is image 2."""
    stores = [open_store(f"stores/tiny/val/{name}") for name in ("one", "two")]
    ids = stores[0].image.ids
    stores[1].image.failed[1] = True
    index, _ = build_index(stores, RunFolder("runs/tiny/mine"), "image", "cpu", tmp_path / "i.npz")
    assert index.ids == [ids[0], ids[2], ids[3], ids[4]]
    assert len(index.embeddings) == 4


def test_a_query_is_kept_in_the_precision_of_the_split(project: Path, tmp_path: Path) -> None:
    """float16, as the split was: the query of an item is its embedding to the last bit."""
    store = open_store("stores/tiny/val/one")
    assert store.spec.dtype == "float16"
    data = read_dataset(load_manifest(None).dataset("tiny"), "val")
    encoder = Encoder(load_manifest(None), [store], "cpu")
    own = own_embeddings(store, "caption")
    for row in (0, 3, 5):
        np.testing.assert_array_equal(encoder.text(data.captions[row]).vector, own[row])


def test_the_second_stage_puts_the_best_first_and_equal_ones_in_the_order_they_came() -> None:
    whole = np.array([0.1, 0.9, 0.5, 0.9, 0.2], np.float32)

    class Stage:
        def scores(self, embedded: Any, rows: Any) -> Any:
            return whole[rows]

    stage: Any = Stage()
    index = Index(np.eye(5, dtype=np.float32), list("abcde"), "key", stage)
    embedded: Any = object()
    query = Query(np.zeros(5, np.float32), embedded)
    best = index.again(query, np.array([4, 3, 0, 1]), 3)
    assert best == [(3, whole[3]), (1, whole[1]), (4, whole[4])]
