"""Features that are too small for half precision are refused, as those that are too large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hada.extract.common.errors import StoreError
from hada.extract.store import dtypes
from hada.extract.store.block import Block
from hada.extract.store.underflow import too_small
from hada.extract.store.writer import StoreWriter
from hada.extract.testing.store_contract import Content, make_spec

UNITS = {"float16": 2.0**-11, "float32": 2.0**-24, "bfloat16": 2.0**-9}


def lost_items(values: NDArray[Any], dtype: str, lengths: list[int]) -> list[bool]:
    """The definition, item by item."""
    found, start = [], 0
    for length in lengths:
        item = values[start : start + length].astype(np.float64)
        stored = dtypes.decode(dtypes.encode(values[start : start + length], dtype), dtype)
        change = sum((a - b) ** 2 for a, b in zip(item.flat, stored.astype(np.float64).flat,
                                                  strict=True))  # fmt: skip
        whole = sum(a**2 for a in item.flat)
        found.append(bool(change**0.5 > 8 * UNITS[dtype] * whole**0.5))
        start += length
    return found


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("width", [1, 7, 768])
def test_lost_items_are_those_of_the_definition(dtype: str, width: int) -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(0, 4, 300)
    # Through the whole range in which it happens, and rows of very different size in an item.
    low, high = (-9, 1) if dtype == "float16" else (-47, -34)
    scales = 10.0 ** random.uniform(low, high, (int(lengths.sum()), 1))
    values = random.normal(size=(len(scales), width)) * scales
    values[::17] = 0
    stored = dtypes.encode(values, dtype)
    found = too_small(values, stored, dtype, lengths).tolist()
    assert found == lost_items(values, dtype, lengths.tolist())
    assert 0 < sum(found) < 300


def test_unit_vectors_and_sparse_ones_are_never_lost() -> None:
    random = np.random.default_rng(0)
    units = random.normal(size=(200, 4096))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    sparse = np.zeros((4, 4096))
    sparse[0, 3], sparse[1, 5] = 1, 1e-3
    sparse[2] = 1e-7  # below the range, beside one number that carries the row
    sparse[2, 0] = 1
    values = np.concatenate([units, sparse]).astype(np.float32)
    stored = dtypes.encode(values, "float16")
    assert not too_small(values, stored, "float16", np.ones(len(values), np.int64)).any()


@pytest.mark.parametrize("dtype", ["float16", "int8", "float32", "bfloat16"])
@pytest.mark.parametrize("part", ["embeddings", "values"])
def test_a_millionth_is_refused_where_it_would_be_lost(
    tmp_path: Path, dtype: str, part: str
) -> None:
    content = Content(make_spec(dtype=dtype))
    writer = content.open(tmp_path / "s")
    good = content.block(writer, "image", 0)
    small: dict[str, Any] = {part: getattr(good, part) * 1e-7}
    block = content.block(writer, "image", 0, **small)
    # int8 has a step for every token row; its embeddings are float16.
    if dtype == "float16" or (dtype == "int8" and part == "embeddings"):
        with pytest.raises(StoreError, match=r"so small that float16 .* is '.*'\. Use --store-dt"):
            writer.write("image", 0, block)
        assert 0 in writer.pending("image")
    else:
        writer.write("image", 0, block)
        assert 0 not in writer.pending("image")


def test_a_failed_item_beside_is_not_in_the_way(tmp_path: Path) -> None:
    content = Content(make_spec())
    writer = content.open(tmp_path / "s")
    good = content.block(writer, "image", 1, failed={3: "broken"})
    assert good.values is not None
    assert good.embeddings is not None
    good.values[3:] = np.nan
    good.embeddings[1] = np.nan
    writer.write("image", 1, good)
    tiny: Block = content.block(writer, "image", 2)
    assert tiny.embeddings is not None
    tiny.embeddings[:] = 0
    writer.write("image", 2, tiny)


def test_the_writer_names_the_first_item(tmp_path: Path) -> None:
    content = Content(make_spec())
    writer: StoreWriter = content.open(tmp_path / "s")
    good = content.block(writer, "image", 1)
    assert good.embeddings is not None
    good.embeddings[1] *= 1e-7
    name = content.ids["image"][writer.rows("image", 1).start + 1]
    with pytest.raises(StoreError, match=rf"image: 1 items of rows 2 to 3 .* is '{name}'"):
        writer.write("image", 1, good)
