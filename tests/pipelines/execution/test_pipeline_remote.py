"""A pipeline whose stores lie on a real S3 endpoint on loopback (moto's server)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_fakes import PIPELINE, make_study
from study_runs import ENVIRONMENT, accident, differing, serial

from hada.extract.common import remote

pytestmark = pytest.mark.slow

# moto's server in a process of its own; it says where it listens.
SERVER = """
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """s3://BUCKET; address and credentials come as users give them, by the environment."""
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install 'hada[s3]'")
    pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[server]'")
    import boto3

    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        given = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in given.items():
            monkeypatch.setenv(name, value)
            monkeypatch.setitem(ENVIRONMENT, name, value)
        boto3.client("s3").create_bucket(Bucket="study")
        s3fs.S3FileSystem.clear_instance_cache()
        yield "s3://study"
        s3fs.S3FileSystem.clear_instance_cache()
        server.kill()


def pipeline(*words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "hada.pipelines", *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def objects(url: str) -> dict[str, dict[str, bytes]]:
    """Store -> relative name -> bytes."""
    place = remote.place(url)
    found: dict[str, dict[str, bytes]] = {}
    for name in remote.file_sizes(place):
        *store, inside = name.split("/", 3)
        found.setdefault("/".join(store), {})[inside] = remote.read_bytes(place / name)
    return found


def test_extraction_and_training_with_stores_in_a_bucket(tmp_path: Path, bucket: str) -> None:
    """One worker dies on the way; the bytes are those of a folder."""
    accident(tmp_path, f"kill:{tmp_path / 'mark'}")
    (tmp_path / "mark").touch()
    (tmp_path / "study.yaml").write_text(PIPELINE)
    there = ("--root", f"stores={bucket}/stores")
    code, said = pipeline("plan", "study.yaml", *there)
    assert code == 0, said
    assert "missing     0/6" in said
    assert remote.file_sizes(remote.place(bucket)) == {}
    code, said = pipeline("run", "study.yaml", "--workers", "2", *there)
    assert code == 0, said
    assert "its worker process died" in said
    assert "done train/tiny/one+two-fast-s0" in said
    assert differing(objects(f"{bucket}/stores"), serial("one", "two")) == []
    assert json.loads((tmp_path / "runs/tiny/recall-val.json").read_text())["methods"]
    # A shard that somebody took away is planned, and mended.
    lost = next(n for n in remote.file_sizes(remote.place(f"{bucket}/stores")) if "/c/1" in n)
    (remote.place(f"{bucket}/stores") / lost).unlink()
    code, said = pipeline("plan", "study.yaml", "--json", *there)
    assert sum(job["damaged"] for job in json.loads(said)["jobs"]) == 1
    assert pipeline("run", "study.yaml", *there)[0] == 0
    assert differing(objects(f"{bucket}/stores"), serial("one", "two")) == []
    code, said = pipeline("run", "study.yaml", *there)
    assert code == 0
    assert "everything is done" in said


def test_a_bucket_that_does_not_answer(tmp_path: Path, bucket: str) -> None:
    """It is told as that, not as a store of another request."""
    make_study(tmp_path)
    ENVIRONMENT["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"
    code, said = pipeline("run", "study.yaml", "--root", f"stores={bucket}/stores")
    assert code == 1
    assert "cannot be reached" in said
    assert "The same command continues" in said
    assert "DIFFERS" not in said
