"""What matched, by API: the heat that the report shows, and the ranks of a slow loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_runs import asking, make_served, serving

from hada.evaluate.frozen_model import load_frozen_model
from hada.evaluate.methods.build import open_gallery
from hada.evaluate.pages.look import LEVELS, Shown, looker, words_of
from hada.extract.datasets.read import read_dataset
from hada.extract.manifest import load_manifest
from hada.fuse.run_folder import RunFolder

for _package in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(_package, reason=f"needs {_package}: pip install 'hada[serve]'")
httpx = pytest.importorskip("httpx", reason="needs httpx: pip install httpx")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_served(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def served(project: Path) -> Iterator[tuple[str, Path]]:
    with serving(project, "out", "--split", "val", "--split", "train") as address:
        yield address


@pytest.fixture
def client(served: tuple[str, Path]) -> Iterator[Any]:
    yield from asking(*served)


def of_the_report(project: Path, split: str, image: int, caption: int) -> Shown:
    """What the report's page would show of a stored image and a stored caption."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        manifest, folder = load_manifest(None), RunFolder("runs/tiny/mine")
        gallery = open_gallery(manifest, "tiny", split, folder.config()["models"], alone=True)
        stores = gallery.stores
        frozen = {s.spec.model.name: load_frozen_model(manifest, s) for s in stores}
        text = read_dataset(manifest.dataset("tiny"), split).captions[caption]
        one = looker(gallery, folder, frozen, np.array([image]), np.array([caption]))
        return one(0, text)


def same(sent: dict[str, Any], shown: Shown) -> None:
    assert [one["model"] for one in sent["heats"]] == [one.model for one in shown.heats]
    for got, want in zip(sent["heats"], shown.heats, strict=True):
        assert np.asarray(got["heat"]).shape == want.heat.shape
        assert np.abs(np.asarray(got["heat"]) - want.heat).max() < 0.01
        assert got["most"] == pytest.approx(want.most, abs=0.01)
        assert got["cut"] == want.cut
    assert list(sent["words"]) == list(shown.words)
    for name, words in shown.words.items():
        assert [one["text"] for one in sent["words"][name]] == [one.text for one in words]
        for got, want in zip(sent["words"][name], words, strict=True):
            assert got["heat"] == pytest.approx(want.level / LEVELS, abs=1.5 / LEVELS)
            patch = want.patch and dict(zip(("model", "row", "column"), want.patch, strict=True))
            assert got["patch"] == patch
            assert got["tip"].partition(",")[2] == want.tip.partition(",")[2]


@pytest.mark.slow
def test_a_sentence_and_an_image_are_looked_at_as_on_the_report(client: Any, project: Path) -> None:
    for split, image, caption in (("val", 1, 2), ("val", 4, 0), ("train", 3, 7)):
        shown = of_the_report(project, split, image, caption)
        assert shown.heats, "nothing would be compared"
        assert any(word.patch for words in shown.words.values() for word in words)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(project)
            data = read_dataset(load_manifest(None).dataset("tiny"), split)
        ids = {"id": data.image_ids[image], "split": split}
        answer = client.post("/api/look", json={"text": data.captions[caption], **ids})
        assert answer.status_code == 200, answer.text
        same(answer.json(), shown)
        file = Path(str(project / data.image_paths[image])).read_bytes()
        ids = {"id": data.caption_ids[caption], "split": split}
        answer = client.post("/api/look/image", params=ids, content=file)
        assert answer.status_code == 200, answer.text
        same(answer.json(), shown)


@pytest.mark.slow
def test_each_models_own_rank_is_the_place_in_its_own_order(client: Any, project: Path) -> None:
    asked = {"text": "red above blue", "split": "train", "top": 1000}
    hits = client.post("/api/text", json={**asked, "ranks": True}).json()["results"]
    assert len(hits) == 12
    for name in hits[0]["models"]:
        for hit in hits:
            above = sum(other["models"][name] > hit["models"][name] for other in hits)
            assert hit["ranks"][name] == 1 + above
    few = client.post("/api/text", json={**asked, "ranks": True, "top": 3}).json()["results"]
    assert [hit["ranks"] for hit in few] == [hit["ranks"] for hit in hits[:3]]
    assert any(hit["ranks"][name] != hit["place"] for hit in hits for name in hit["ranks"])
    file = (project / "data/images/val_001.jpg").read_bytes()
    for path, words in (("/api/image?ranks=true", {"content": file}), ("/api/batch", {})):
        words = words or {"json": {"texts": ["red"], "ranks": True}}
        answer = client.post(path, **words).json()
        first = answer.get("results") or answer["answers"][0]["results"]
        assert set(first[0]["ranks"]) == set(hits[0]["ranks"])
    plain = client.post("/api/text", json=asked).json()["results"]
    assert all("ranks" not in hit for hit in plain)


@pytest.mark.slow
def test_a_look_at_nothing_is_one_clear_answer(client: Any, project: Path) -> None:
    file = (project / "data/images/val_001.jpg").read_bytes()
    cases: list[tuple[str, dict[str, Any], int, str]] = [
        ("/api/look", {"json": {"text": "red", "id": "no"}}, 404, "no image of that id"),
        ("/api/look", {"json": {"text": "red", "id": "../x"}}, 404, "no image of that id"),
        ("/api/look", {"json": {"text": " ", "id": "val_001.jpg"}}, 400, "empty"),
        ("/api/look", {"json": {"text": "red"}}, 400, "id"),
        ("/api/look", {"json": {"text": "r", "id": "x", "split": "no"}}, 404, "split"),
        ("/api/look/image?id=no", {"content": file}, 404, "no caption of that id"),
        ("/api/look/image", {"content": file}, 404, "no caption of that id"),
        ("/api/image?ranks=1", {"content": file}, 400, "ranks: expected false or true"),
    ]
    for path, words, status, says in cases:
        answer = client.post(path, **words)
        assert (answer.status_code, says in answer.json()["error"]) == (status, True), answer.text


@pytest.mark.slow
def test_a_single_model_has_nothing_to_look_at(project: Path) -> None:
    words = ["--model", "one", "--split", "val"]
    with serving(project, *words) as (address, _), httpx.Client(base_url=address) as client:
        assert client.get("/api/info").json()["looks"] is False
        answer = client.post("/api/look", json={"text": "red", "id": "val_001.jpg"})
        assert answer.status_code == 400
        assert "a single model is served" in answer.json()["error"]


def test_words_that_a_model_reads_nothing_of_are_clear() -> None:
    """As control characters are for BPE; a fuzzer found it."""
    spans = [("red", 1, 2), ("\x08", 2, 2), ("blue", 2, 4)]
    answers = [("x", ("one", 0, 1)), None, ("y", None)]
    words = words_of(spans, np.array([0.1, 0.2, 0.3, 0.3, 0.1]), answers)
    assert [word.text for word in words] == ["red", "\x08", "blue"]
    assert (words[1].level, words[1].patch) == (0, None)
    assert "reads nothing" in words[1].tip
    without = words_of([spans[0], spans[2]], np.array([0.1, 0.2, 0.3, 0.3, 0.1]))
    assert [w.level for w in without] == [words[0].level, words[2].level]
    assert words_of([("\x08", 1, 1)], np.array([0.5, 0.5]))[0].level == 0


@pytest.mark.slow
def test_texts_that_a_model_reads_nothing_of_are_looked_at(client: Any, project: Path) -> None:
    for text in ("\x98\x08", "red \x08 blue", "\U0001f642", "\u200b"):
        answer = client.post("/api/look", json={"text": text, "id": "val_001.jpg"})
        assert answer.status_code == 200, (text, answer.text)


@pytest.mark.slow
def test_a_whole_number_may_be_written_as_json_writes_numbers(client: Any) -> None:
    for top in ("3.0", "3e0", "3"):
        answer = client.post("/api/text", content=f'{{"text": "red", "top": {top}}}')
        assert len(answer.json()["results"]) == 3
    for top in ("3.5", "1e400", "1e30", "true", '"3"'):
        answer = client.post("/api/text", content=f'{{"text": "red", "top": {top}}}')
        assert answer.status_code == 400, answer.text
