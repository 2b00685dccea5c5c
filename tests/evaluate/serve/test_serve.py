"""A real server process and a real client: answers, limits, hostile requests, who may ask."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image
from served_runs import TOKEN, asking, make_served, serving

from hada.evaluate.cli import evaluate
from hada.evaluate.serve.settings import Settings
from hada.extract.common.errors import UsageError

for _package in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(_package, reason=f"needs {_package}: pip install 'hada[serve]'")
httpx = pytest.importorskip("httpx", reason="needs httpx: pip install httpx")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_served(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def served(project: Path) -> Iterator[tuple[str, Path]]:
    words = ["out", "--split", "val", "--split", "train", "--max-bytes", "200000"]
    with serving(project, *words, "--max-pixels", "250000") as address:
        yield address


@pytest.fixture
def client(served: tuple[str, Path]) -> Iterator[Any]:
    yield from asking(*served)


def picture(project: Path, number: int = 1) -> bytes:
    return (project / f"data/images/val_00{number}.jpg").read_bytes()


def by_command(project: Path, *words: str) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        done = CliRunner().invoke(evaluate, ["search", *words, "--run", "out", "--jsonl"])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def same(results: list[dict[str, Any]], hits: list[dict[str, Any]]) -> None:
    assert [hit["id"] for hit in results] == [hit["id"] for hit in hits]
    for a, b in zip(results, hits, strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=1e-4)
        assert a["models"] == pytest.approx(b["models"], abs=1e-4)
        assert a["captions"] == b["captions"]
        assert "file" not in a, "no path of the machine is sent"


def test_it_answers_as_the_command_does(client: Any, project: Path) -> None:
    answer = client.post("/api/text", json={"text": "red above blue", "top": 3})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["split"], body["find"]) == ("val", "images")
    same(body["results"], by_command(project, "red above blue", "--split", "val", "--top", "3"))
    train = client.post("/api/text", json={"text": "red", "split": "train", "find": "captions"})
    hits = by_command(project, "red", "--split", "train", "--find", "captions")
    same(train.json()["results"], hits)
    file = str(project / "data/images/val_001.jpg")
    for find in ("captions", "images"):
        answer = client.post(f"/api/image?find={find}&top=4", content=picture(project))
        hits = by_command(project, "--image", file, "--split", "val", "--find", find, "--top", "4")
        same(answer.json()["results"], hits)
    shown = client.get(body["results"][0]["picture"])
    assert shown.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(shown.content)).size == (32, 24)


def test_a_batch_answers_texts_first_then_images(client: Any, project: Path) -> None:
    images = [base64.b64encode(picture(project, k)).decode() for k in (1, 3)]
    body = {"texts": ["red", "blue above green"], "images": images, "top": 2}
    answers = client.post("/api/batch", json=body).json()["answers"]
    assert [answer["find"] for answer in answers] == ["images"] * 2 + ["captions"] * 2
    for text, answer in zip(body["texts"], answers, strict=False):
        one = client.post("/api/text", json={"text": text, "top": 2}).json()
        assert [h["id"] for h in one["results"]] == [h["id"] for h in answer["results"]]
    for k, answer in zip((1, 3), answers[2:], strict=True):
        one = client.post("/api/image?top=2", content=picture(project, k)).json()
        assert [h["id"] for h in one["results"]] == [h["id"] for h in answer["results"]]


def test_many_clients_get_what_each_would_alone(client: Any) -> None:
    texts = [f"{a} above {b}" for a in ("red", "green", "blue") for b in ("black", "yellow", "red")]

    def ask(text: str) -> list[str]:
        found = client.post("/api/text", json={"text": text, "top": 5}).json()
        return [hit["id"] for hit in found["results"]]

    alone = [ask(text) for text in texts]
    with ThreadPoolExecutor(9) as pool:
        for _ in range(4):
            assert list(pool.map(ask, texts)) == alone
    lines = client.get("/metrics").text.splitlines()
    size = next(x for x in lines if x.startswith("hada_batch_size_sum"))
    count = next(x for x in lines if x.startswith("hada_batch_size_count"))
    assert float(size.split()[1]) > float(count.split()[1]), "nothing was batched"


def huge_png() -> bytes:
    """Few bytes that decode to many pixels."""
    data = io.BytesIO()
    Image.new("1", (2000, 2000)).save(data, "PNG", optimize=True)
    return data.getvalue()


def bad_requests(project: Path) -> dict[str, tuple[str, str, dict[str, Any], int, str]]:
    whole = picture(project)
    text, image, batch = "/api/text", "/api/image", "/api/batch"
    return {
        "broken picture": ("POST", image, {"content": whole[:200]}, 400, "cannot be used"),
        "no picture": ("POST", image, {"content": b"hello"}, 400, "not a picture"),
        "empty body": ("POST", image, {"content": b""}, 400, "the body is empty"),
        "many pixels": ("POST", image, {"content": huge_png()}, 413, "2000 x 2000 pixels"),
        "large body": ("POST", image, {"content": bytes(10**8)}, 413, "at most 200,000 bytes"),
        "large stream": (
            *("POST", image, {"content": (bytes(10**6) for _ in range(40))}, 413),
            "at most 200,000 bytes",
        ),
        "large JSON": ("POST", text, {"content": b" " * 10**7}, 413, "too large"),
        "no JSON": ("POST", text, {"content": b"{"}, 400, "not the JSON"),
        "not UTF-8": ("POST", text, {"content": b'{"text": "\xff"}'}, 400, "not the JSON"),
        "deep JSON": ("POST", text, {"content": b"[" * 10**6}, 400, "not the JSON"),
        "half a character": ("POST", text, {"content": b'{"text": "\\ud800"}'}, 400, "not the"),
        "no text": ("POST", text, {"json": {}}, 400, "text"),
        "blank text": ("POST", text, {"json": {"text": "  "}}, 400, "the query is empty"),
        "long text": ("POST", text, {"json": {"text": "a" * 5000}}, 400, "4000"),
        "top 0": ("POST", text, {"json": {"text": "a", "top": 0}}, 400, "top"),
        "top large": ("POST", image + "?top=99999999999", {"content": whole}, 400, "top"),
        "unknown field": ("POST", text, {"json": {"text": "a", "path": "/etc"}}, 400, "path"),
        "unknown split": ("POST", text, {"json": {"text": "a", "split": "no"}}, 404, "split"),
        "bad find": ("POST", image + "?find=x", {"content": whole}, 400, "find"),
        "empty batch": ("POST", batch, {"json": {}}, 400, "empty"),
        "no base64": ("POST", batch, {"json": {"images": ["?"]}}, 400, "base64"),
        "bad image of a batch": ("POST", batch, {"json": {"images": ["aGk="]}}, 400, "picture"),
        "path for an id": ("GET", "/api/picture?id=../../data_manifest.yaml", {}, 404, "no image"),
        "absolute path": ("GET", "/api/picture?id=/etc/passwd", {}, 404, "no image"),
        "other method": ("GET", text, {}, 405, "Method"),
        "nowhere": ("GET", "/nowhere", {}, 404, "Not Found"),
    }


def test_a_bad_request_is_one_clear_answer(
    client: Any, project: Path, served: tuple[str, Path]
) -> None:
    for name, (method, path, options, status, says) in bad_requests(project).items():
        answer = client.request(method, path, **options)
        assert answer.status_code == status, f"{name}: {answer.status_code} {answer.text}"
        assert says in answer.json()["error"], f"{name}: {answer.text}"
        assert "Traceback" not in answer.text
        assert str(project) not in answer.text, f"{name}: tells a path"
    assert "site-packages" not in served[1].read_text()


def test_odd_texts_are_searched_and_do_no_harm(client: Any) -> None:
    for text in ("\x00", "red\x00blue", "🙂" * 1000, "<script>alert(1)</script>", "\u202e", "a\nb"):
        answer = client.post("/api/text", json={"text": text})
        assert answer.status_code == 200, (text, answer.text)
        assert len(answer.json()["results"]) == 5


def test_nothing_is_lost_when_a_client_leaves(
    client: Any, served: tuple[str, Path], project: Path
) -> None:
    want = client.post("/api/text", json={"text": "green"}).json()
    host, port = served[0].removeprefix("http://").split(":")
    body = json.dumps({"text": "red above blue"}).encode()
    head = f"POST /api/text HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    stop = threading.Event()

    def leave() -> None:
        while not stop.is_set():
            for sent in (head.encode() + body, head.encode(), head.encode() + body[:5]):
                with socket.create_connection((host, int(port))) as one:
                    one.sendall(sent)
                time.sleep(0.01)

    leaving = threading.Thread(target=leave)
    leaving.start()
    try:
        answers = [client.post("/api/text", json={"text": "green"}).json() for _ in range(40)]
    finally:
        stop.set()
        leaving.join()
    assert all(answer == want for answer in answers)
    log = served[1].read_text()
    assert "Traceback" not in log
    assert "Exception" not in log


def test_the_page_its_description_and_the_metrics(client: Any) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "<script>" not in page.text  # only its file
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert path.startswith("/"), "nothing comes from elsewhere"
        assert client.get(path).status_code == 200
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.")
    for path, methods in described["paths"].items():
        for method in methods:
            # Every route that is described is there; an empty request is at most wrong.
            assert client.request(method, path).status_code in (200, 400, 404), path
    assert "/api/text" in client.get("/docs").text
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert {"hada_requests", "hada_request_seconds", "hada_queries", "hada_batch_size"} <= {
        *families
    }
    paths = {sample.labels["path"] for sample in families["hada_requests"].samples}
    assert "/nowhere" not in paths, "a label for everything that is asked fills the memory"


def test_a_name_that_turns_to_this_machine_is_refused(client: Any) -> None:
    assert client.get("/api/info", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/api/info", headers={"host": "localhost:99"}).status_code == 200


def test_beyond_this_machine_a_token_is_needed(project: Path) -> None:
    with pytest.raises(UsageError, match="give --token"):
        Settings(host="0.0.0.0")
    with pytest.raises(UsageError, match="at least 16 characters"):
        Settings(token="short")
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert Settings(host=host).loopback
    done = CliRunner().invoke(evaluate, ["serve", "--host", "192.0.2.1"])
    assert done.exit_code == 2
    assert "others could search your images" in done.stderr
    words = ["runs/tiny/mine", "--split", "val", "--host", "0.0.0.0"]
    with serving(project, *words, HADA_TOKEN=TOKEN) as (address, log):
        port = address.rpartition(":")[2]
        assert "warning: 0.0.0.0 is not this machine alone" in log.read_text()
        assert TOKEN not in log.read_text()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            ask = {"text": "red"}
            for path in ("/", "/page.js", "/docs", "/openapi.json", "/health"):
                assert client.get(path).status_code == 200
            for wrong in ({}, {"authorization": "Bearer no"}, {"authorization": TOKEN}):
                answer = client.post("/api/text", json=ask, headers=wrong)
                assert answer.status_code == 401
                assert "token" in answer.json()["error"]
                for path in ("/api/info", "/metrics", "/api/picture?id=val_001.jpg"):
                    assert client.get(path, headers=wrong).status_code == 401
            right = {"authorization": f"Bearer {TOKEN}"}
            assert client.post("/api/text", json=ask, headers=right).status_code == 200


def test_a_port_in_use_is_one_message(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ["serve", "out", "--split", "val", "--port", str(taken.getsockname()[1])]
        done = CliRunner().invoke(evaluate, words)
    assert done.exit_code == 2
    assert "cannot be listened at" in done.stderr


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = CliRunner().invoke(evaluate, ["serve"])
    assert done.exit_code == 2
    assert "pip install 'hada[serve]'" in done.stderr
