"""Rows of unit length and captions by image, against slow loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hada.extract.common.arrays import evenly_spread, group_by_image, unit_rows


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 4), (0, 4), (3, 1)])
def test_rows_have_length_one_and_keep_their_dtype(shape: tuple[int, ...], dtype: type) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(dtype)
    before = values.copy()
    found = unit_rows(values)
    assert found.dtype == dtype
    assert found.shape == shape
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-6)
    assert np.array_equal(values, before)


@pytest.mark.filterwarnings("error")
def test_zero_rows_stay_zero_and_small_rows_do_not() -> None:
    values = np.array([[0.0, 0.0], [1e-30, 0.0], [-0.0, 0.0]])
    assert unit_rows(values).tolist() == [[0, 0], [1, 0], [0, 0]]


def test_rows_equal_the_division_that_was_written_before() -> None:
    values = np.random.default_rng(1).normal(size=(50, 33)).astype(np.float32)
    length = np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    assert np.array_equal(unit_rows(values), values / length)


@given(hnp.arrays(np.int64, st.integers(0, 30), elements=st.integers(0, 6)))
def test_groups_equal_a_loop(caption_to_image: np.ndarray) -> None:
    order, bounds = group_by_image(caption_to_image, 7)
    assert len(bounds) == 8
    for image in range(7):
        expected = [j for j, i in enumerate(caption_to_image) if i == image]
        assert order[bounds[image] : bounds[image + 1]].tolist() == expected


def test_rows_are_spread_from_the_first_to_the_last() -> None:
    for count in range(40):
        for most in range(1, 45):
            rows = evenly_spread(count, most)
            if count <= most:
                assert rows.tolist() == list(range(count))
                continue
            assert len(rows) == most
            assert rows[0] == 0
            gaps = np.diff(rows)
            assert most == 1 or rows[-1] == count - 1
            assert most == 1 or gaps.min() >= max(1, gaps.max() - 1)
