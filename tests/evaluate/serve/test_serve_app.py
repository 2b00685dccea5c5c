"""The server's application in this process: whose answer is whose, limits, and who may ask."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import makers
import pytest
from click.testing import CliRunner
from PIL import Image
from served_runs import TOKEN

from hada.evaluate.search.index import Query
from hada.evaluate.search.searcher import Searcher
from hada.evaluate.serve.settings import Settings
from hada.extract.cli import extract
from hada.extract.common.errors import UsageError
from hada.extract.manifest import load_manifest

for _package in ("starlette", "uvicorn", "prometheus_client", "httpx"):
    pytest.importorskip(_package, reason=f"needs {_package}: pip install 'hada[serve]' httpx")

TEXTS = ["red above blue", "green above black", "yellow"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        makers.make_project(folder, splits={"train": [1], "val": [2, 1, 3, 2, 2]})
        done = CliRunner().invoke(extract, ["--model", "one", "--split", "val"])
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def searcher(project: Path, monkeypatch: pytest.MonkeyPatch) -> Searcher:
    monkeypatch.chdir(project)
    return Searcher.open(load_manifest(None), model="one", split="val", device="cpu")


def client(searcher: Searcher, **settings: Any) -> Any:
    from starlette.testclient import TestClient

    from hada.evaluate.serve.app import build_app

    app = build_app({"val": searcher}, Settings(**settings))
    return TestClient(app, base_url="http://127.0.0.1:8000")


def ids(answer: Any) -> list[str]:
    return [hit["id"] for hit in answer["results"]]


def test_each_query_of_a_batch_has_its_own_answer(searcher: Searcher, project: Path) -> None:
    pictures = [(project / f"data/images/val_00{k}.jpg").read_bytes() for k in (1, 3)]
    index = searcher.index("image")

    def alone(query: Query) -> list[str]:
        return [index.ids[row] for row, _ in index.top(query, 3)]

    expected = [alone(searcher.encoder.text(text)) for text in TEXTS]
    assert len(set(map(tuple, expected))) == len(TEXTS)
    with client(searcher) as asking:
        body = {"texts": TEXTS, "images": [base64.b64encode(p).decode() for p in pictures]}
        answers = asking.post("/api/batch", json={**body, "top": 3}).json()["answers"]
        assert [ids(answer) for answer in answers[:3]] == expected
        single = [asking.post("/api/text", json={"text": t, "top": 3}).json() for t in TEXTS]
        assert [ids(answer) for answer in single] == expected
        for picture, answer in zip(pictures, answers[3:], strict=True):
            assert ids(asking.post("/api/image?top=3", content=picture).json()) == ids(answer)
        for hit in (hit for answer in (*answers, *single) for hit in answer["results"]):
            assert "file" not in hit
            assert str(project) not in str(hit)
        text = asking.get("/metrics").text
    figures = {line.split()[0]: line.split()[1] for line in text.splitlines() if line[0] != "#"}
    # Five queries at once, then five alone.
    assert float(figures["hada_batch_size_sum"]) == 10
    assert float(figures["hada_batch_size_count"]) < 10


def test_what_is_too_large_is_refused(searcher: Searcher) -> None:
    data = io.BytesIO()
    Image.new("1", (300, 200)).save(data, "PNG")
    with client(searcher, most_pixels=59_999, most_bytes=5000) as asking:
        answer = asking.post("/api/image", content=data.getvalue())
        assert (answer.status_code, "300 x 200 pixels" in answer.text) == (413, True)
        for body in (bytes(5001), (bytes(1000) for _ in range(6))):
            answer = asking.post("/api/image", content=body)
            assert (answer.status_code, "at most 5,000 bytes" in answer.text) == (413, True)
    with client(searcher, most_pixels=60_000) as asking:
        assert asking.post("/api/image", content=data.getvalue()).status_code == 200


def test_who_may_ask(searcher: Searcher) -> None:
    with client(searcher) as asking:
        assert asking.get("/api/info").status_code == 200
        assert asking.get("/api/info", headers={"host": "evil.example"}).status_code == 400
    with client(searcher, host="0.0.0.0", token=TOKEN) as asking:
        assert asking.get("/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer no"}, {"authorization": TOKEN}):
            for path in ("/api/info", "/metrics", "/api/picture?id=val_001.jpg"):
                assert asking.get(path, headers=headers).status_code == 401
        right = {"authorization": f"Bearer {TOKEN}", "host": "any.example"}
        assert asking.get("/api/picture?id=val_001.jpg", headers=right).status_code == 200
    with pytest.raises(UsageError, match="give --token"):
        Settings(host="0.0.0.0")
    assert all(Settings(host=host).loopback for host in ("127.9.9.9", "::1", "localhost"))
