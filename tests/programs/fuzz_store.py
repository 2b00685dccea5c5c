"""A harness for atheris: bytes that its mutations make, through everything that parses a store.

    python tests/programs/fuzz_store.py CORPUS -max_total_time=60

CORPUS is a folder of examples to begin with; it is filled with real ones where it is empty. The
first byte of an input says which parser gets the rest. An error that is not HADA's, or the opening
of a file outside the store while a marker is checked, ends the run with the input that did it.
`test_store_fuzz.py` runs this for some seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["hada.extract.store", "hada.extract.spec"]):
    from hada.extract.common.errors import StoreError
    from hada.extract.spec import ModelSpec, StoreSpec, TokenSpec
    from hada.extract.store import commit, damage, formats, zarr_shard
    from hada.extract.store.hdf5_format import _read_plan
    from hada.extract.store.record import Record

MODEL = ModelSpec(
    name="m",
    family="f",
    weights_digest="0",
    embedding_width=4,
    normalized=True,
    image=None,
    caption=TokenSpec(width=5, count=None),
)
STORE: Path
RECORD: Record
_WATCHED: list[Path] = []
_CHUNKS, _STORED, _FILE = 4, 100, 500


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: while a store is watched, nothing outside it is opened."""
    if event == "open" and _WATCHED and isinstance(arguments[0], str | bytes):
        opened = Path(os.fsdecode(arguments[0])).resolve()
        if not opened.is_relative_to(_WATCHED[0]):
            raise AssertionError(f"opened {opened}, outside the store")


def marker(data: bytes) -> None:
    """Parse a marker and look at the files that it names."""
    root = STORE
    found = commit.parse_marker(data, root / "marker.json", "image", 0)
    frame = damage.Frame(RECORD, found.spec_digest)
    _WATCHED.append(root)
    try:
        damage.of_shard(found, frame, metadata={"image/embeddings": {}})
    finally:
        _WATCHED.clear()


def spec(data: bytes) -> None:
    """The attributes of a store."""
    parsed = StoreSpec.from_json(json.loads(data))
    assert StoreSpec.from_json(parsed.to_json()) == parsed
    parsed.digest()


def array(data: bytes) -> None:
    """The zarr.json of an array."""
    value = json.loads(data)
    found = zarr_shard.parse_layout(value) if isinstance(value, dict) else None
    if found is not None:
        assert found.shard_rows % found.chunk_rows == 0
        assert found.row_bytes > 0


def plan(data: bytes) -> None:
    """The description of an array in HDF5's index."""
    found = _read_plan(json.loads(data))
    assert min(found.chunk_rows, found.shard_rows) > 0


def index(data: bytes) -> None:
    """The index at the end of a shard; what it names must lie inside the file."""
    # A checksum is not guessed by mutation: give the input the right one.
    body = data[: 16 * _CHUNKS]
    import google_crc32c

    raw = body + google_crc32c.value(body).to_bytes(4, "little")
    offsets = zarr_shard.parse_index(raw, _FILE, _CHUNKS, _STORED)
    if offsets is not None:
        there = offsets[offsets != -1]
        assert ((there >= 0) & (there + _STORED <= _FILE)).all()


PARSERS = (marker, spec, array, plan, index)


def one_input(data: bytes) -> None:
    """Called by atheris."""
    if data:
        # ValueError is how JSON, and an index with wrong contents, are refused where they are read.
        with contextlib.suppress(StoreError, ValueError, RecursionError):
            PARSERS[data[0] % len(PARSERS)](data[1:])


def examples() -> list[bytes]:
    """One real input for each parser, in their order."""
    model = ModelSpec(
        **(vars(MODEL) | {"image": TokenSpec(width=6, count=3, pooled=3)}),
    )
    crc32c = {"name": "crc32c"}
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, crc32c]
    values: list[Any] = [
        {
            "side": "image",
            "shard": 0,
            "spec": "0",
            "files": {"image/embeddings/c/0/0": [3, 1]},
            "failed": {"1": "r"},
            "provenance": {},
        },
        StoreSpec(model=model, dataset="d", split="s", dataset_digest="0").to_json(),
        {
            "shape": [4, 3],
            "data_type": "float16",
            "node_type": "array",
            "fill_value": "NaN",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 3]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": codecs,
        },
        {
            "shape": [4, 3],
            "dtype": "float16",
            "chunk_rows": 1,
            "shard_rows": 2,
            "dimensions": ["a", "b"],
            "fill": None,
        },
    ]
    raw = [json.dumps(value).encode() for value in values]
    raw.append(b"".join(n.to_bytes(8, "little") for n in (0, _STORED) * _CHUNKS))
    return [bytes([number]) + data for number, data in enumerate(raw)]


def prepare(folder: Path) -> None:
    """A store in `folder`, with the one file that the examples' markers name."""
    global STORE, RECORD
    STORE = folder.resolve()
    file = STORE / "image" / "embeddings" / "c" / "0" / "0"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"abc")
    RECORD = Record(
        folder=STORE,
        form=formats.get("zarr"),
        features=STORE,
        spec=StoreSpec(model=MODEL, dataset="d", split="s", dataset_digest="0"),
        attributes={},
        parts={},
    )


if __name__ == "__main__":
    prepare(Path(tempfile.mkdtemp(prefix="hada-fuzz-")))
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    if not any(corpus.iterdir()):
        for number, example in enumerate(examples()):
            (corpus / f"real{number}").write_bytes(example)
    sys.addaudithook(watch)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
