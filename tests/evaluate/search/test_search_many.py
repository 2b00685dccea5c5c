"""Many queries at once, mapped indexes, and queries of the side that is searched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from hada.evaluate.cli import evaluate as command
from hada.evaluate.search.encoder import Encoder
from hada.evaluate.search.index import Index, Query, best_rows
from hada.evaluate.search.mapped import ALIGNED, mapped, packed
from hada.evaluate.search.searcher import Searcher
from hada.extract.cli import extract
from hada.extract.datasets.images import open_image
from hada.extract.manifest import load_manifest
from hada.extract.spec import SIDES
from hada.extract.store import open_store, write_store
from hada.extract.store.memory import MemoryStore
from hada.extract.testing.store_contract import make_spec
from hada.fuse.cli import fuse
from hada.fuse.embedding import embed_split
from hada.fuse.run_folder import RunFolder

RUN = "runs/tiny/mine"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that matches nodes and corrects hubs, and its export."""
    folder = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        makers.make_project(folder, splits={"train": [3] * 12, "val": [2, 1, 3, 2, 2] * 3})
        for split in ("train", "val"):
            assert CliRunner().invoke(extract, ["--split", split]).exit_code == 0
        done = CliRunner().invoke(fuse, ["train", "--epochs", "2", "--run", RUN])
        assert done.exit_code == 0, done.output
        give_the_nodes_a_share(RunFolder(RUN))
        done = CliRunner().invoke(fuse, ["export", RUN, "exported"])
        assert done.exit_code == 0, done.output
        yield folder


def give_the_nodes_a_share(folder: RunFolder) -> None:
    """So small a training leaves them none."""
    for checkpoint in folder.path.glob("*.pt"):  # which remember the weights of that time
        checkpoint.unlink()
    tensors = folder.load_tensors()
    # The others as they were, none to none: the bank is as wide as they are.
    others = tensors["heads.shares"][:-1]
    shares = torch.cat([0.5 * others / others.sum(), torch.tensor([0.5]).double()])
    folder.save_tensors({**tensors, "heads.shares": shares})


@pytest.fixture
def project(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def run(*words: str) -> Any:
    return CliRunner().invoke(command, ["search", *words, "--split", "val"])


def lines(*words: str) -> list[dict[str, Any]]:
    done = run(*words, "--jsonl")
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_file_of_queries_is_answered_as_one_by_one(project: Path, tmp_path: Path) -> None:
    texts = ["red above blue", "green above black", "yellow"]
    file = tmp_path / "queries.txt"
    file.write_text("\ufeff" + "\r\n".join([texts[0], "", *texts[1:]]) + "\n", encoding="utf-8")
    many = lines("--queries", str(file), "--top", "4")
    single = [hit for text in texts for hit in lines(text, "--top", "4")]
    assert [hit["query"] for hit in many] == [text for text in texts for _ in range(4)]
    assert [(h["place"], h["id"]) for h in many] == [(h["place"], h["id"]) for h in single]
    for a, b in zip(many, single, strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=1e-4)
        assert a["models"].keys() == {"one", "two"}
        assert a["models"] == pytest.approx(b["models"], abs=1e-4)
        assert Path(a["file"]).is_file()
        assert a["captions"]
    text = run("--queries", str(file), "--top", "2").stdout
    assert text.splitlines()[0] == "red above blue:"
    assert "  one " in text.splitlines()[1]


def test_a_folder_of_images_is_answered_and_a_broken_one_is_left_out(
    project: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("val_001.jpg", "val_003.jpg"):
        shutil.copy(project / "data/images" / name, folder / name)
    (folder / "notes.txt").write_text("not an image")
    hits = lines("--queries", str(folder), "--find", "images", "--top", "1")
    assert [hit["id"] for hit in hits] == ["val_001.jpg", "val_003.jpg"]
    (folder / "val_002.jpg").write_bytes(b"no picture")
    done = run("--queries", str(folder), "--find", "images", "--top", "1", "--jsonl")
    assert done.exit_code == 1
    assert "left out: picture" in done.stderr
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [h["id"] for h in hits]


def test_the_score_of_each_model_is_its_own_cosine(project: Path) -> None:
    hits = lines("red above blue", "--top", "15")
    for name in ("one", "two"):
        alone = {hit["id"]: hit["score"] for hit in lines("red above blue", "--model", name)}
        assert alone
        for hit in hits:
            if hit["id"] in alone:
                assert hit["models"][name] == pytest.approx(alone[hit["id"]], abs=1e-5)


def test_an_exported_run_finds_the_same_and_keeps_its_index_elsewhere(project: Path) -> None:
    assert lines("red above blue", "--run", "exported") == lines("red above blue", "--run", RUN)
    names = {file.name for file in Path("exported").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors"}
    assert Path("runs/tiny/exported-exported/index-val-image.npz").is_file()


def test_images_find_images_by_cosines_alone(project: Path) -> None:
    """Nodes are matched, and hubs corrected, between an image and a caption: not here."""
    stores = [open_store(f"stores/tiny/val/{name}") for name in ("one", "two")]
    embedded = embed_split(RUN, stores, device="cpu")
    assert embedded.nodes is not None
    assert embedded.node_share == pytest.approx(0.5)
    plain = embedded.cosines()[0]
    searcher = Searcher.open(load_manifest(None), run=RUN, split="val", device="cpu")
    index = searcher.index("image")
    for row in (0, 4):
        query = searcher.encoder.image(f"data/images/{index.ids[row]}")
        got = index.top(query, 15)
        want = plain @ plain[row]
        assert got[0][0] == row
        np.testing.assert_allclose([s for _, s in got], np.sort(want)[::-1], atol=2e-2)


def test_queries_are_encoded_together_as_alone(project: Path) -> None:
    stores = [open_store(f"stores/tiny/val/{name}") for name in ("one", "two")]
    encoder = Encoder(load_manifest(None), stores, "cpu", RunFolder(RUN))
    texts = ["red above blue here here", "green", "black above yellow"]
    pictures = [open_image(f"data/images/val_00{k}.jpg") for k in (0, 2, 3)]
    for together, alone in (
        (encoder.texts(texts), [encoder.text(text) for text in texts]),
        (encoder.images(pictures), [encoder.images([one])[0] for one in pictures]),
    ):
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a.vector, b.vector, atol=1e-5)
            for name in a.own:
                np.testing.assert_allclose(a.own[name], b.own[name], atol=1e-5)
            assert a.embedded is not None
            assert b.embedded is not None
            for side in (0, 1):
                assert a.embedded.nodes is not None
                assert b.embedded.nodes is not None
                assert len(a.embedded.nodes[side]) == 1


def test_an_index_is_mapped_and_aligned(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "ids": np.array(["a", "bb", "é"]),
        "embeddings": random.normal(size=(3, 5)).astype(np.float32),
        "x" * 37: random.normal(size=(7,)).astype(np.float16),
        "none": np.zeros((0, 4), np.float32),
    }
    file = tmp_path / "x.npz"
    file.write_bytes(packed(arrays))
    found = mapped(file)
    with np.load(file, allow_pickle=False) as plain:
        assert set(plain) == set(arrays) == set(found)
        for name, values in arrays.items():
            np.testing.assert_array_equal(plain[name], values)
            np.testing.assert_array_equal(found[name], values)
            assert found[name].dtype == values.dtype
            if values.size:
                assert isinstance(found[name], np.memmap)
                assert found[name].ctypes.data % ALIGNED == 0
                assert not found[name].flags.writeable
    np.savez_compressed(file, a=np.zeros(100))
    with pytest.raises(ValueError, match="is compressed"):
        mapped(file)


def test_the_best_rows_are_those_of_a_whole_sort() -> None:
    random = np.random.default_rng(0)
    for count in (1, 3, 10, 40, 50):
        scores = random.integers(0, 9, 40).astype(np.float32)  # many ties
        assert (
            best_rows(scores, count).tolist()
            == sorted(range(40), key=lambda row: (-scores[row], row))[:count]
        )


def test_several_queries_at_once_find_what_each_finds() -> None:
    random = np.random.default_rng(0)
    index = Index(random.normal(size=(200, 8)).astype(np.float32), [str(k) for k in range(200)], "")
    queries = [Query(random.normal(size=8).astype(np.float32)) for _ in range(5)]
    for query, best in zip(queries, index.tops(queries, 7), strict=True):
        assert [row for row, _ in best] == [row for row, _ in index.top(query, 7)]


def test_an_index_that_cannot_be_kept_is_used_all_the_same(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Index, path: Path, weights: str = "") -> None:
        raise OSError(30, "Read-only file system")

    want = lines("red above blue", "--find", "captions")
    file = Path(RUN, "index-val-caption.npz")
    file.unlink()
    monkeypatch.setattr(Index, "save", full)
    done = run("red above blue", "--find", "captions", "--jsonl")
    assert "is not kept" in done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == want


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", "int8"])
def test_a_store_in_memory_gives_what_a_written_one_gives(tmp_path: Path, dtype: str) -> None:
    spec = make_spec(dtype=dtype)
    random = np.random.default_rng(0)
    count = {"image": 2, "caption": 3}
    tokens, values = {}, {}
    for side in SIDES:
        known = spec.model.tokens(side)
        assert known is not None
        lengths = [known.count or 2 + k for k in range(count[side])]
        tokens[side] = [random.normal(size=(n, known.width)).astype(np.float32) for n in lengths]
        width = spec.model.embedding_width
        assert width is not None
        values[side] = random.normal(size=(count[side], width)).astype(np.float32)
    ids = {side: [f"{side}{k}" for k in range(count[side])] for side in SIDES}
    owner = np.array([0, 1, 1])
    write_store(
        tmp_path / "s", spec, ids=ids, caption_to_image=owner, tokens=tokens, embeddings=values
    )
    written, held = open_store(tmp_path / "s"), MemoryStore(spec, ids, owner, tokens, values)
    for side in SIDES:
        a, b = written.side(side), held.side(side)
        assert tuple(a.ids) == tuple(b.ids)
        np.testing.assert_array_equal(a.lengths, b.lengths)
        rows = np.array([1, 0, count[side] - 1])
        for x, y in (
            (a.tokens(rows), b.tokens(rows)),
            (a.embeddings(rows), b.embeddings(rows)),
            (a.embeddings(), b.embeddings()),
        ):
            assert x is not None
            assert y is not None
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
