"""Stores behind URLs: in fsspec's memory, and on a real S3 endpoint on loopback (moto's server)."""

from __future__ import annotations

import collections
import json
import pickle
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import makers
import numpy as np
import pytest
from calls import call

from hada.extract.cli import extract
from hada.extract.common import remote
from hada.extract.common.errors import (
    NonFiniteError,
    StoreError,
    StoreMismatchError,
    UnreachableError,
    UsageError,
)
from hada.extract.spec import SIDES, TokenSpec
from hada.extract.store import commit, damage, open_store, remote_row_reader
from hada.extract.store.maintain import convert, describe, repair
from hada.extract.store.reader import shard_status
from hada.extract.store.record import read_contents, read_record
from hada.extract.store_cli import store
from hada.extract.testing.store_contract import Content, files_of, signed

pytestmark = pytest.mark.slow


class CountingServer:
    """moto's S3 as a WSGI application on a free port of 127.0.0.1; it notes every request."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log(self, *_arguments: Any) -> None:
                pass

        self.seen: list[tuple[str, str]] = []
        backend = DomainDispatcherApplication(create_backend_app)

        def application(environ: dict[str, Any], start: Any) -> Any:
            method = environ["REQUEST_METHOD"]
            kind = "LIST" if "list-type" in environ.get("QUERY_STRING", "") else method
            self.seen.append((kind, environ["PATH_INFO"]))
            return backend(environ, start)

        self.server = make_server(
            "127.0.0.1", 0, application, threaded=True, request_handler=Silent
        )
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def count(self, part: str = "") -> dict[str, int]:
        """Requests by kind, of those whose path holds `part`; then the count begins anew."""
        found = collections.Counter(kind for kind, path in self.seen if part in path)
        self.seen.clear()
        return dict(found)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[CountingServer]:
    pytest.importorskip("s3fs", reason="needs s3fs: pip install 'hada[s3]'")
    pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[server]'")
    server = CountingServer()
    yield server
    server.server.shutdown()


@pytest.fixture
def s3(s3_server: CountingServer, monkeypatch: pytest.MonkeyPatch) -> tuple[CountingServer, str]:
    """The server, and a bucket of this test's own; credentials come as users give them."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server.address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    s3_server.seen.clear()
    return s3_server, f"s3://{bucket}"


@pytest.fixture(params=["memory", "s3"])
def root(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("upath", reason="needs universal-pathlib: pip install 'hada[remote]'")
    if request.param == "s3":
        url: str = request.getfixturevalue("s3")[1]
        return url
    return f"memory://b{uuid.uuid4().hex}"


def objects(url: str) -> dict[str, bytes]:
    """Every object below a URL, by its relative name."""
    place = remote.place(url)
    return {name: remote.read_bytes(place / name) for name in remote.file_sizes(place)}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image": TokenSpec(width=6, count=None)},
        {"dtype": "int8"},
        {"image": None, "caption": None},
        {"embedding_width": None, "dtype": "bfloat16"},
    ],
    ids=["plain", "ragged", "int8", "embeddings only", "bfloat16"],
)
def test_the_same_bytes_and_the_same_answers_as_a_folder(
    root: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    content = Content(makers.make_spec(**changes))
    content.write(tmp_path / "s")
    content.write(f"{root}/stores/s")  # type: ignore[arg-type]
    assert objects(f"{root}/stores/s") == files_of(tmp_path / "s")
    local, far = open_store(tmp_path / "s"), open_store(f"{root}/stores/s")
    assert local.spec == far.spec
    asked = [np.array(rows, np.int64) for rows in ([4, 0, 2, 2], [], [1], [3, 4])]
    for side in SIDES:
        mine, other = local.side(side), far.side(side)
        assert mine.ids == other.ids
        for rows in (slice(None), slice(1, 4), *asked):
            if mine.tokens_spec is not None:
                np.testing.assert_array_equal(mine.tokens(rows), other.tokens(rows))
            if content.embeddings is not None:
                np.testing.assert_array_equal(mine.embeddings(rows), other.embeddings(rows))
    again = pickle.loads(pickle.dumps(far))
    if again.image.tokens_spec is not None:
        np.testing.assert_array_equal(
            again.image.tokens(slice(None)), local.image.tokens(slice(None))
        )


def test_an_interrupted_store_is_refused_and_continued(root: str) -> None:
    url: Any = f"{root}/s"
    content = Content(makers.make_spec())
    content.write(f"{root}/whole")  # type: ignore[arg-type]
    writer = content.open(url)
    with writer.claim("image", 1) as mine:
        assert mine
        writer.write("image", 1, content.block(writer, "image", 1))
    with pytest.raises(StoreError, match=r"5 of 6 shards.*not written yet.*hada-extract"):
        open_store(url)
    assert content.open(url).pending("image") == [0, 2]
    block = content.block(writer, "image", 0)
    assert block.values is not None
    block.values[:] = np.nan
    with pytest.raises(NonFiniteError):
        writer.write("image", 0, block)
    assert content.open(url).pending("image") == [0, 2]
    content.write(url)
    assert objects(url) == objects(f"{root}/whole")
    other = Content(makers.make_spec(weights_digest="1"))
    with pytest.raises(StoreMismatchError, match="weights_digest"):
        other.write(url)


def test_a_frame_that_was_not_finished_is_made_again(root: str) -> None:
    content = Content(makers.make_spec())
    content.write(f"{root}/whole")  # type: ignore[arg-type]
    content.write(f"{root}/s")  # type: ignore[arg-type]
    place = remote.place(f"{root}/s")
    (place / "features.zarr" / "zarr.json").unlink()
    (place / "features.zarr" / "image" / "ids" / "zarr.json").unlink()
    with pytest.raises(StoreError, match="there is no feature store"):
        open_store(f"{root}/s")
    content.write(f"{root}/s")  # type: ignore[arg-type]
    assert objects(f"{root}/s") == objects(f"{root}/whole")


@pytest.mark.parametrize(
    "harm", ["bit", "short", "gone", "marker gone", "marker broken", "outside"]
)
def test_damage_is_named_removed_and_mended(root: str, harm: str) -> None:
    url: Any = f"{root}/s"
    content = Content(makers.make_spec())
    content.write(url)
    whole = objects(url)
    place = remote.place(url)
    name = "features.zarr/image/tokens/c/1/0/0"
    marker = commit.marker_path(place, "image", 1)
    if harm == "bit":
        data = bytearray(whole[name])
        data[3] ^= 1
        remote.put_bytes(place / name, bytes(data))
        with pytest.raises(StoreError, match=r"rows 2 to 3: cannot be read.*crc32c"):
            open_store(url).image.tokens(slice(2, 4))
    elif harm == "short":
        remote.put_bytes(place / name, whole[name][:-1])
    elif harm == "gone":
        (place / name).unlink()
    elif harm == "marker gone":
        marker.unlink()
    elif harm == "marker broken":
        remote.put_bytes(marker, b"{")
    else:
        value = json.loads(remote.read_bytes(marker))
        value["files"] = {"../../../x": [1, "2"], "/etc/passwd": [1, "2"]}
        remote.put_bytes(marker, json.dumps(signed(value)).encode())
    code, output = call(store, "verify", "--deep", url)
    assert code == 1
    assert "image shard 1" in output
    assert ("outside the store" in output) == (harm == "outside")
    if harm != "bit":
        with pytest.raises(StoreError, match="1 of 6 shards"):
            open_store(url)
    assert call(store, "repair", url)[0] == 0
    assert repair(remote.place(url)) == []
    content.write(url)
    assert objects(url) == whole
    assert call(store, "verify", "--deep", url)[0] == 0


def test_commands_take_urls(root: str, tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    common = ("--split", "val", "--model", "one", "--shard-size", 2)
    there = (*common, "--root", f"stores={root}/stores")
    assert call(extract, *common)[0] == 0
    code, output = call(extract, *there, "--dry-run")
    assert code == 0, output
    assert "free on the disk" not in output
    assert objects(root) == {}
    code, output = call(extract, *there)
    assert code == 0, output
    url = f"{root}/stores/tiny/val/one"
    assert "complete already" in call(extract, *there)[1]
    assert objects(url) == files_of(tmp_path / "stores" / "tiny" / "val" / "one")
    code, output = call(store, "info", url)
    assert code == 0, output
    assert "5, 5 tokens of width 16; 3 of 3 shards" in output
    assert call(store, "convert", url, f"{root}/small", "--tokens", "pool:2")[0] == 0
    assert open_store(f"{root}/small").image.lengths.tolist() == [2] * 5
    for harm, message in (
        (("convert", url, url), "in place"),
        (("convert", url, f"{root}/h", "--format", "hdf5"), "behind a URL is Zarr"),
        (("info", f"{root}/nothing"), "there is no feature store"),
        (("info", "nonsense://x/y"), "nonsense"),
    ):
        code, output = call(store, *harm)
        assert code in (1, 2), output
        assert message in output
        assert "unexpected" not in output
    assert call(extract, *there, "--fresh")[0] == 0
    assert open_store(url).spec.model.name == "one"


def test_stock_zarr_reads_it(s3: tuple[CountingServer, str]) -> None:
    server, root = s3
    content = Content(makers.make_spec())
    content.write(f"{root}/s")  # type: ignore[arg-type]
    server.seen.clear()
    # In a process of its own: without HADA, and zarr leaves its connections open.
    program = (
        "import sys, zarr; array = zarr.open_array(sys.argv[1], mode='r');"
        "sys.stdout.buffer.write(array[:].tobytes())"
    )
    url = f"{root}/s/features.zarr/image/tokens"
    done = subprocess.run(
        [sys.executable, "-c", program, url], stdout=subprocess.PIPE, check=True, timeout=120
    )
    assert done.stdout == np.stack(content.tokens["image"]).astype("f2").tobytes()
    assert server.count("image/tokens")["GET"] >= 1 + 3


def test_training_reads_from_a_url(s3: tuple[CountingServer, str], tmp_path: Path) -> None:
    from hada.fuse.cli import fuse

    root = s3[1]
    makers.make_project(tmp_path)
    options = ("--root", f"stores={root}/stores")
    for model in ("one", "two"):
        code, output = call(
            extract, "--split", "train", "--split", "val", "--model", model, *options
        )
        assert code == 0, output
    code, output = call(fuse, "train", "--epochs", 1, "--device", "cpu", *options)
    assert code == 0, output
    assert list((tmp_path / "runs").rglob("best.safetensors"))


def test_the_number_of_requests(s3: tuple[CountingServer, str]) -> None:
    """What docs/store.md says of them."""
    server, root = s3
    spec = makers.make_spec(
        image=TokenSpec(width=6, count=3), rows_per_shard={"image": 8, "caption": 16}
    )
    content = Content(spec)
    content.counts = {"image": 32, "caption": 32}
    random = np.random.default_rng(0)
    content.ids = {side: [f"{side}{k}" for k in range(32)] for side in SIDES}
    content.caption_to_image = np.arange(32)
    content.embeddings = {side: random.normal(size=(32, 4)) for side in SIDES}
    content.tokens = {
        "image": [random.normal(size=(3, 6)) for _ in range(32)],
        "caption": [random.normal(size=(9, 5)) for _ in range(32)],
    }
    url: Any = f"{root}/s"
    writer = content.open(url)
    server.seen.clear()
    with writer.claim("image", 0) as mine:
        assert mine
        asked = server.count()
        writer.write("image", 0, content.block(writer, "image", 0))
    # A shard is one put for each of its arrays, and one for its marker.
    assert server.count() == {"PUT": 3}
    assert asked == {"GET": 1}
    content.write(url)

    server.seen.clear()
    far = open_store(url)
    paths = [path for _, path in server.seen]
    kinds = server.count()
    # One for each marker, one for their seal. The rest does not grow with the store, but for its
    # listing, a request for every 1,000 files.
    assert sum("/commit/" in path for path in paths) == 6 + 1
    assert not any("/tokens/c/" in path or "/embeddings/c/" in path for path in paths)
    assert kinds == {"GET": 6 + 17, "HEAD": 2, "LIST": 2}

    whole = far.image.tokens(slice(None))
    np.testing.assert_array_equal(whole, np.concatenate(content.tokens["image"]).astype("f2"))
    # Two a shard: its index, and all of its chunks.
    assert server.count("image/tokens") == {"GET": 2 * 4}
    far.image.tokens(slice(None))
    assert server.count("image/tokens") == {"GET": 4}
    far.image.tokens(random.permutation(32)[:20])
    assert server.count("image/tokens") == {"GET": 4}
    far.image.embeddings()
    assert server.count("image/embeddings") == {"GET": 4}
    deep = shard_status(far.path, spec, deep=True)
    assert not any(state for shards in deep.values() for state in shards.values())
    assert server.count("image/tokens/c") == {"GET": 4}


def test_chunks_far_apart_are_ranges_of_their_own(
    s3: tuple[CountingServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, root = s3
    content = Content(makers.make_spec(rows_per_shard={"image": 8, "caption": 8}))
    content.write(f"{root}/s")  # type: ignore[arg-type]
    far = open_store(f"{root}/s")
    expected = far.image.tokens(slice(None)).reshape(5, 3, 6)
    server.seen.clear()
    chunk = 3 * 6 * 2 + 4
    for between, most, count in ((0, 1 << 20, 2), (2 * chunk, 1 << 20, 1), (1 << 20, chunk, 3)):
        monkeypatch.setattr(remote_row_reader, "MOST_BETWEEN", between)
        monkeypatch.setattr(remote_row_reader, "MOST_IN_RANGE", most)
        monkeypatch.setattr(remote_row_reader, "MOST_IN_FLIGHT", 1)
        got = far.image.tokens(np.array([4, 0, 1, 0])).reshape(4, 3, 6)
        np.testing.assert_array_equal(got, expected[[4, 0, 1, 0]])
        assert server.count() == {"GET": count}


def test_a_place_that_cannot_be_reached_is_told(
    s3: tuple[CountingServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, root = s3
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    code, output = call(store, "info", f"{root}/s")
    assert code == 1
    assert "cannot be reached" in output
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def going(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingServer]:
    """A server of this test's own, with a bucket `going`, that nobody waits for when it is gone."""
    pytest.importorskip("s3fs", reason="needs s3fs: pip install 'hada[s3]'")
    pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[server]'")
    import boto3
    import s3fs

    server = CountingServer()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    boto3.client("s3").create_bucket(Bucket="going")
    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    s3fs.S3FileSystem.clear_instance_cache()


def gone(server: CountingServer) -> None:
    server.server.shutdown()
    server.server.server_close()


UNREACHABLE = r"cannot be reached.*The same command continues"


def test_an_endpoint_that_goes_away_is_told(going: CountingServer) -> None:
    """In the middle of writing."""
    content = Content(makers.make_spec())
    writer = content.open("s3://going/s")  # type: ignore[arg-type]
    writer.write("image", 0, content.block(writer, "image", 0))
    gone(going)
    with pytest.raises(UnreachableError, match=UNREACHABLE):
        writer.write("image", 1, content.block(writer, "image", 1))


def test_a_network_failure_is_no_damage(going: CountingServer) -> None:
    """Neither rows nor markers that do not come say anything of the store."""
    url: Any = "s3://going/s"
    Content(makers.make_spec()).write(url)
    cold, warm = open_store(url), open_store(url)
    whole = warm.image.tokens(slice(None))
    place = remote.place(url)
    record = read_record(place)
    frame, metadata = damage.Frame.of(record), read_contents(record).metadata
    sizes = damage.listed_sizes(record.features)
    marker = commit.read_marker(place, "image", 0)
    assert marker is not None
    gone(going)
    for ask in (
        lambda: cold.image.tokens(slice(1, 3)),
        lambda: warm.image.tokens(slice(None)),  # the shards' indexes are known already
        lambda: warm.image.embeddings(),
        lambda: commit.read_markers(place, [("image", 0)]),
        lambda: damage.of_shard(marker, frame, metadata=metadata, sizes=sizes),
        lambda: repair(place),
    ):
        with pytest.raises(UnreachableError, match=UNREACHABLE) as told:
            ask()
        assert "damaged" not in str(told.value)
    assert len(whole)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(UsageError, match="pip install universal-pathlib s3fs"):
        remote.place("s3://bucket/s")


def test_a_conversion_into_a_bucket_and_back(root: str, tmp_path: Path) -> None:
    Content(makers.make_spec(dtype="float32")).write(tmp_path / "a")
    url: Any = f"{root}/b"
    list(convert(tmp_path / "a", url))
    list(convert(url, tmp_path / "c"))
    features = "features.zarr"
    assert files_of(tmp_path / "a" / features) == files_of(tmp_path / "c" / features)
    assert describe(remote.place(url))["bytes"] > 0
