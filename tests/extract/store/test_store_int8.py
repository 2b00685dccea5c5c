"""int8 tokens: each value to half a step, steps in a second array that stock libraries read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import makers
import numpy as np
import pytest
import zarr
from calls import call
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from hada.extract.cli import extract
from hada.extract.common.errors import NonFiniteError, StoreError
from hada.extract.spec import SIDES, TokenSpec
from hada.extract.store import dtypes, open_store
from hada.extract.store.maintain import convert, describe
from hada.extract.store.size_plan import plan_size
from hada.extract.store_cli import store
from hada.extract.testing.store_contract import Content, files_of

FORMATS = pytest.mark.parametrize("form", ["zarr", "hdf5"])
RAGGED = TokenSpec(width=6, count=None)


def half_a_step(values: NDArray[Any]) -> NDArray[np.float64]:
    """What may be lost of each value of a row: half of a 127th of its largest, and rounding."""
    wide = values.astype(np.float64)
    most = np.abs(wide).max(axis=1, keepdims=True)
    return np.maximum(most / 127, dtypes._SMALLEST_STEP) / 2 * (1 + 1e-6) + np.abs(wide) * 2**-22


@given(
    values=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 9)),
        elements=st.floats(-(2.0**120), 2.0**120, width=32)
        | st.floats(-1, 1, width=32)
        | st.sampled_from([0.0, 1e-44, -1e-39, 3.4e38, 65504.0]),
    )
)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_every_value_comes_back_to_half_a_step(values: NDArray[np.float32]) -> None:
    codes, steps = dtypes.quantize(values)
    assert codes.dtype == np.int8
    assert steps.dtype == np.float32
    assert steps.shape == (len(values), 1)
    assert codes.min() >= -127
    back = np.multiply(codes, steps, dtype=np.float32).astype(np.float64)
    assert (np.abs(back - values) <= half_a_step(values)).all()
    np.testing.assert_array_equal(back[(values == 0).all(axis=1)], 0)
    # The codes of a row do not depend on the rows beside it.
    for row in range(len(values)):
        np.testing.assert_array_equal(dtypes.quantize(values[row : row + 1])[0][0], codes[row])


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float16)
    whole = dtypes.quantize(values)
    monkeypatch.setattr(dtypes, "_ROWS", 8)
    for got, expected in zip(dtypes.quantize(values), whole, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_cannot_pass_for_numbers(bad: float) -> None:
    codes, steps = dtypes.quantize(np.array([[1.0, bad, 2.0], [1.0, 0.0, -1.0]]))
    assert not np.isfinite(steps[0])
    assert codes[0].tolist() == [0, 0, 0]
    with np.errstate(invalid="ignore"):
        assert not np.isfinite(codes[0] * steps[0]).any()
    assert codes[1].tolist() == [127, 0, -127]


@FORMATS
@pytest.mark.parametrize("image", [TokenSpec(width=6, count=3), RAGGED], ids=["fixed", "ragged"])
def test_a_store_reads_as_float32(tmp_path: Path, form: str, image: TokenSpec) -> None:
    content = Content(makers.make_spec(dtype="int8", image=image), format=form)
    content.write(tmp_path / "s")
    got = open_store(tmp_path / "s")
    for side in SIDES:
        expected = np.concatenate(content.tokens[side])
        tokens = got.side(side).tokens(slice(None))
        assert tokens.dtype == got.side(side).dtype == np.float32
        assert (np.abs(tokens - expected) <= half_a_step(expected)).all()
        some = np.array([4, 0, 2])
        out = np.empty((int(got.side(side).lengths[some].sum()), expected.shape[1]), np.float32)
        filled = got.side(side).tokens(some, out)
        assert filled is out
        parts = np.split(tokens, np.cumsum(got.side(side).lengths)[:-1])
        np.testing.assert_array_equal(out, np.concatenate([parts[row] for row in some]))
        assert content.embeddings is not None
        embeddings = got.side(side).embeddings()
        np.testing.assert_array_equal(embeddings, content.embeddings[side].astype("f2"))
    assert files_of(tmp_path / "s")
    content.write(tmp_path / "t")
    assert files_of(tmp_path / "s") == files_of(tmp_path / "t")
    assert call(store, "verify", "--deep", tmp_path / "s")[0] == 0
    assert "stored as   int8" in call(store, "info", tmp_path / "s")[1]


def test_stock_zarr_and_h5py_read_the_values(tmp_path: Path) -> None:
    content = Content(makers.make_spec(dtype="int8"), format="zarr")
    content.write(tmp_path / "s")
    images = np.stack(content.tokens["image"])
    group = zarr.open_group(tmp_path / "s" / "features.zarr", mode="r")
    codes, steps = group["image/tokens"], group["image/steps"]
    assert (codes.dtype, codes.shape) == (np.int8, (5, 3, 6))
    assert (steps.dtype, steps.shape) == (np.float32, (5, 3, 1))
    flat = images.reshape(-1, 6)
    assert (np.abs((codes[:] * steps[:]).reshape(-1, 6) - flat) <= half_a_step(flat)).all()
    spans = group["caption/spans"][:]
    rows = group["caption/tokens"][:] * group["caption/steps"][:]
    for caption, (start, stop) in enumerate(spans):
        item = content.tokens["caption"][caption]
        assert (np.abs(rows[start:stop] - item) <= half_a_step(item)).all()
    content.format = "hdf5"
    content.write(tmp_path / "h")
    with h5py.File(tmp_path / "h" / "features.hdf5" / "image" / "000001.h5") as file:
        part = file["tokens"][:] * file["steps"][:]
    flat = images[2:4].reshape(-1, 6)
    assert (np.abs(part.reshape(-1, 6) - flat) <= half_a_step(flat)).all()


@FORMATS
def test_failed_items_are_nan_and_others_may_not_be(tmp_path: Path, form: str) -> None:
    content = Content(makers.make_spec(dtype="int8"), format=form)
    writer = content.open(tmp_path / "s")
    writer.write("image", 1, makers.failed_block(content, writer))
    content.write(tmp_path / "s")
    got = open_store(tmp_path / "s").image
    assert np.isnan(got.tokens(np.array([3]))).all()
    assert np.isfinite(got.tokens(np.array([0, 1, 2, 4]))).all()
    fresh = content.open(tmp_path / "t")
    for bad, error in ((np.nan, NonFiniteError), (np.inf, NonFiniteError), (1e39, StoreError)):
        values = np.array(content.block(fresh, "image", 0).values)
        values[1, 2] = bad
        with pytest.raises(error, match=r"NaN or infinite|do not fit int8"):
            fresh.write("image", 0, content.block(fresh, "image", 0, values=values))
    assert fresh.pending("image") == [0, 1, 2]


@FORMATS
def test_convert_there_and_back(tmp_path: Path, form: str) -> None:
    content = Content(makers.make_spec(), format=form)
    content.write(tmp_path / "a")
    code, output = call(store, "convert", tmp_path / "a", tmp_path / "b", "--dtype", "int8")
    assert code == 0, output
    list(convert(tmp_path / "b", tmp_path / "c", dtype="float32"))
    list(convert(tmp_path / "c", tmp_path / "d", dtype="int8"))
    a, b, c = (open_store(tmp_path / name) for name in "abc")
    for side in SIDES:
        whole = a.side(side).tokens(slice(None))
        rounded = b.side(side).tokens(slice(None))
        assert (np.abs(rounded - whole) <= half_a_step(whole)).all()
        np.testing.assert_array_equal(c.side(side).tokens(slice(None)), rounded)
    # Rounding what is rounded already changes nothing: the largest code of a row is 127 again.
    for features in (path.name for path in (tmp_path / "b").glob("features.*")):
        one, two = (files_of(tmp_path / name / features) for name in "bd")
        assert {k: v for k, v in one.items() if "tokens/c" in k} == {
            k: v for k, v in two.items() if "tokens/c" in k
        }
    assert describe(tmp_path / "b")["provenance"][0]["converted_from"]["dtype"] == "float16"


def test_damage_in_the_steps_is_found_and_mended(tmp_path: Path) -> None:
    content = Content(makers.make_spec(dtype="int8"))
    content.write(tmp_path / "s")
    whole = files_of(tmp_path / "s")
    for side in SIDES:
        file = next((tmp_path / "s" / "features.zarr" / side / "steps" / "c").rglob("0"))
        while file.is_dir():
            file = next(file.iterdir())
        data = bytearray(file.read_bytes())
        data[1] ^= 1
        file.write_bytes(data)
        with pytest.raises(StoreError, match="cannot be read"):
            open_store(tmp_path / "s").side(side).tokens(slice(None))
        assert f"{side} shard" in call(store, "verify", "--deep", tmp_path / "s")[1]
    assert call(store, "repair", tmp_path / "s")[0] == 0
    content.write(tmp_path / "s")
    assert files_of(tmp_path / "s") == whole


def test_the_size_is_known_first(tmp_path: Path) -> None:
    spec = makers.make_spec(dtype="int8", image=TokenSpec(width=64, count=50))
    content = Content(spec)
    plan = plan_size(tmp_path / "s", spec, content.index())
    assert plan.arrays["image/tokens"] == 5 * 50 * 64
    # The last shard's only chunk of steps is stored whole: 6 images' room.
    assert plan.arrays["image/steps"] == 6 * 50 * 4
    content.write(tmp_path / "s")
    for name, planned in plan.arrays.items():
        folder = tmp_path / "s" / "features.zarr" / name / "c"
        found = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert planned <= found <= planned * 1.02 + 400, name


def test_hada_extract_writes_it(tmp_path: Path) -> None:
    makers.make_project(tmp_path)
    for model in ("one", "two"):
        common = ("--split", "val", "--model", model, "--store-dtype", "int8")
        assert call(extract, *common)[0] == 0
        assert "complete already" in call(extract, *common)[1]
        code, output = call(extract, "--split", "val", "--model", model)
        assert code == 2
        assert "dtype: the store has 'int8', this call wants 'float16'" in output
        path = tmp_path / "stores" / "tiny" / "val" / model
        assert isinstance(open_store(path).image.tokens(slice(0, 1)), np.ndarray)
