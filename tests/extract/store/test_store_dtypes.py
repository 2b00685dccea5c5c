"""What numbers become on the disk, one by one, and which rows a shard holds."""

from __future__ import annotations

import struct
from typing import Any

import makers
import numpy as np
import pytest
import torch

from hada.extract.common.errors import NonFiniteError, StoreError
from hada.extract.store import dtypes
from hada.extract.store.block import Block
from hada.extract.store.index import (
    StoreIndex,
    decode_ids,
    encode_ids,
    ragged_capacity,
    ragged_spans,
    shard_count,
    shard_rows,
)
from hada.extract.store.writer import StoreWriter


def test_bfloat16_rounds_to_the_nearest_and_ties_to_even() -> None:
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, 5000, dtype=np.uint32)
    # Exactly between two neighbours, above and below an even one.
    bits[:1000] = (bits[:1000] & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    found = dtypes.decode(dtypes.encode(values, "bfloat16"), "bfloat16")
    want = torch.from_numpy(values.copy()).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, -np.nan])
def test_what_is_not_finite_is_seen_wherever_it_lies(dtype: str, bad: float) -> None:
    values = np.full(300_000, -1.5, np.float32)
    assert dtypes.all_finite(dtypes.encode(values, dtype), dtype)
    for place in (0, 150_000, 299_999):
        values[:] = -1.5
        values[place] = bad
        assert not dtypes.all_finite(dtypes.encode(values, dtype), dtype)


def test_int8_is_within_half_a_step_of_127() -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=(200, 33)) * 10.0 ** random.integers(-6, 6, (200, 1))
    values = values.astype(np.float32)
    codes, steps = dtypes.quantize(values)
    for row in range(200):
        step = np.abs(values[row]).max() / 127
        assert steps[row, 0] == pytest.approx(step, rel=1e-6)
        assert np.abs(codes[row] * steps[row] - values[row]).max() <= step * 0.5001
        assert np.abs(codes[row].astype(int)).max() == 127


def test_an_unwritten_value_reads_as_nan() -> None:
    for dtype in ("float16", "float32", "bfloat16"):
        stored = np.array([dtypes.fill_value(dtype)]).astype(dtypes.on_disk(dtype))
        assert np.isnan(dtypes.decode(stored, dtype)).all()
    assert struct.pack("<H", int(dtypes.fill_value("bfloat16"))) == b"\xc0\x7f"
    assert dtypes.of_embeddings("int8") == "float16"
    assert [dtypes.of_embeddings(d) for d in ("float16", "bfloat16")] == ["float16", "bfloat16"]


def index(images: int, lengths: list[int]) -> StoreIndex:
    owner = np.minimum(np.arange(len(lengths)), images - 1)
    return StoreIndex(
        ids={
            "image": tuple(f"i{k}" for k in range(images)),
            "caption": tuple(f"c{k}" for k in range(len(lengths))),
        },
        caption_to_image=owner,
        lengths={"image": np.full(images, 3), "caption": np.array(lengths)},
    )


def test_the_last_shard_holds_what_is_left() -> None:
    spec, made = makers.make_spec(), index(5, [1, 4, 2, 3, 2, 5, 1, 2, 6])
    assert [shard_count(spec, made, side) for side in ("image", "caption")] == [3, 3]
    rows = [list(shard_rows(spec, made, "image", k)) for k in range(3)]
    assert rows == [[0, 1], [2, 3], [4]]
    assert ragged_capacity(spec, made, "caption") == 32
    spans = ragged_spans(spec, made, "caption").tolist()
    assert spans[:4] == [[0, 1], [1, 5], [5, 7], [7, 10]]
    assert spans[4:] == [[32, 34], [34, 39], [39, 40], [40, 42], [64, 70]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"caption_to_image": np.array([0, 5])}, r"outside 0\.\.4"),
        ({"caption_to_image": np.array([0, -1])}, r"outside 0\.\.4"),
        ({"lengths": {"image": np.array([3, 3, 3, 3, 2]), "caption": np.ones(2, int)}}, "3 tokens"),
        ({"lengths": {"image": np.full(5, 3), "caption": np.array([1])}}, "caption lengths"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(change: dict[str, Any], says: str) -> None:
    made = index(5, [1, 1])
    made.check(makers.make_spec())
    with pytest.raises(StoreError, match=says):
        StoreIndex(**{**vars(made), **change}).check(makers.make_spec())


@pytest.mark.parametrize("at_once", [1, 3, 1 << 16])
@pytest.mark.parametrize(
    "ids", [[], ["a"], ["a.jpg", "béta", "日本", "b", "\U0001f600#1", "c c\n", "d"]]
)
def test_ids_encoded_together_are_those_encoded_one_by_one(
    ids: list[str], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hada.extract.store.index._IDS_AT_ONCE", at_once)
    width = max((len(id_.encode()) for id_ in ids), default=1)
    rows = [list(id_.encode().ljust(width, b"\0")) for id_ in ids]
    expected = np.array(rows, np.uint8).reshape(len(ids), width)
    np.testing.assert_array_equal(encode_ids(ids), expected)
    assert decode_ids(encode_ids(ids)) == tuple(ids)


@pytest.mark.parametrize("ids", [["a", ""], [""], ["a\0b"], ["a\0", "b"]])
def test_ids_that_cannot_be_stored_are_refused(ids: list[str]) -> None:
    with pytest.raises(StoreError, match="must not"):
        encode_ids(ids)


@pytest.mark.parametrize(("dtype", "large"), [("float16", 1e6), ("int8", 1e39)])
def test_an_overflow_is_told_from_a_feature_that_is_not_finite(dtype: str, large: float) -> None:
    """The remedies differ: another dtype on the disk, or another precision of the model."""
    made = index(2, [1, 1])
    writer = StoreWriter.open("store", makers.make_spec(dtype=dtype), made)
    values = np.ones((6, 6), np.float64)
    embeddings = np.ones((2, 4))
    values[4, 2] = large
    with pytest.raises(StoreError, match=r"do not fit .* Use --store-dtype float32"):
        writer.write("image", 0, Block(values=values, embeddings=embeddings))
    values[4, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"features of 1 items.*the first is 'i1'"):
        writer.write("image", 0, Block(values=values, embeddings=embeddings))
    with pytest.raises(NonFiniteError, match="the first is 'i1'"):
        writer.write("image", 0, Block(values=values, embeddings=embeddings, failed={0: "no"}))
    writer.write("image", 0, Block(values=values, embeddings=embeddings, failed={1: "broken"}))
    assert writer.failures("image") == {1: "broken"}
    with pytest.raises(StoreError, match="expected shape"):
        writer.write("image", 0, Block(values=values[:5], embeddings=embeddings))
