"""What the bootstrap draws, and what its intervals and p-values say, on numbers made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hada.evaluate.results import significance
from hada.evaluate.results.significance import Hits, bootstrap_rsums, difference, interval


def hits(i2t: list[float], t2i: list[float], captions: list[float]) -> Hits:
    """One figure."""
    return Hits(np.array(i2t)[:, None], np.array(t2i)[:, None], np.array(captions))


def test_every_image_is_drawn_as_often_as_any_other() -> None:
    """One image alone finds its caption: the resamples' mean is its share, whichever it is."""
    for image in (0, 4, 8):
        found = [float(k == image) for k in range(9)]
        (drawn,) = bootstrap_rsums([hits(found, found, [1.0] * 9)], resamples=4000, seed=1)
        assert drawn.mean() == pytest.approx(200 / 9, rel=0.1)
        # A count of nine draws with chance 1 / 9 each.
        assert drawn.std() == pytest.approx(200 / 9 * np.sqrt(9 * 1 / 9 * 8 / 9), rel=0.1)


def test_captions_count_as_often_as_their_image_was_drawn() -> None:
    one = hits([1.0, 0.0, 0.0], [3.0, 1.0, 0.0], [4.0, 1.0, 2.0])
    found = one.rsum(np.array([[2, 1, 0], [0, 0, 3], [1, 1, 1]]))
    want = [200 / 3 + 100 * 7 / 9, 0.0, 100 / 3 + 100 * 4 / 7]
    assert found.tolist() == pytest.approx(want)


def test_blocks_of_draws_are_one_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    some = [hits(*random.random((2, 7)).tolist(), [1.0] * 7) for _ in range(2)]
    whole = bootstrap_rsums(some, resamples=50, seed=3)
    monkeypatch.setattr(significance, "BLOCK_COUNTS", 21)
    for a, b in zip(whole, bootstrap_rsums(some, resamples=50, seed=3), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(set(whole[0].tolist())) > 40
    other = bootstrap_rsums(some, resamples=50, seed=4)
    assert not np.array_equal(whole[0], other[0])


def test_the_same_draws_serve_every_rung() -> None:
    found = [float(k % 3 == 0) for k in range(10)]
    one, same, better = bootstrap_rsums(
        [hits(x, x, [1.0] * 10) for x in (found, found, [v / 2 for v in found])], resamples=200
    )
    np.testing.assert_array_equal(one, same)
    np.testing.assert_allclose(better, one / 2)


def test_an_interval_holds_the_middle_95_percent() -> None:
    found = interval(np.random.default_rng(0).permutation(np.arange(1001.0)))
    assert (found.low, found.high, found.half_width) == (25.0, 975.0, 475.0)


def test_p_counts_both_sides_and_is_never_0() -> None:
    values = np.linspace(-1, 9, 1001)  # a tenth lies below 0
    zero = np.zeros(1001)
    assert difference(values, zero).p == pytest.approx(0.2, abs=1e-3)
    assert difference(-values, zero).p == pytest.approx(0.2, abs=1e-3)
    assert difference(values + 5, zero).p == pytest.approx(2 / 1002)
    assert difference(zero, zero).p == 1.0


def test_a_resample_of_folds_is_the_mean_of_its_folds() -> None:
    """Two galleries of two images, with very uneven captions: each fold weighs the same."""
    one = Hits(
        np.array([[1.0], [0.0], [1.0], [1.0]]),
        np.array([[4.0], [0.0], [1.0], [0.0]]),
        np.array([8.0, 1.0, 1.0, 1.0]),
        folds=2,
    )
    found = one.rsum(np.array([[1, 1, 1, 1], [2, 0, 0, 2]]))
    want = [(1 / 2 + 4 / 9 + 1 + 1 / 2) / 2, (1 + 4 / 8 + 1 + 0) / 2]
    assert found.tolist() == pytest.approx([100 * value for value in want])
