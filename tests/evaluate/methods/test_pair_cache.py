"""The file of pairs' scores: whole, or made anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hada.evaluate.methods.pair_cache import PairCache


def filled(path: Path, key: str = "k") -> PairCache:
    cache = PairCache.open(path, key)
    cache.add(np.array([7, 3, 1 << 40]), np.array([0.7, 0.3, 40], np.float32), 1.5)
    cache.add(np.array([5]), np.array([0.5], np.float32), 0.5)
    cache.save()
    return cache


def test_what_was_added_is_found_again(tmp_path: Path) -> None:
    filled(tmp_path / "x.npz")
    again = PairCache.open(tmp_path / "x.npz", "k")
    found, scores = again.known(np.array([5, 6, 1 << 40, 3, 8]))
    assert again.seconds == 2.0
    assert found.tolist() == [True, False, True, True, False]
    assert scores.tolist() == np.array([0.5, 0, 40, 0.3, 0], np.float32).tolist()


def test_it_agrees_with_a_dictionary(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    known: dict[int, float] = {}
    cache = PairCache.open(tmp_path / "x.npz", "k")
    for _ in range(5):
        pairs = random.permutation(np.unique(random.integers(0, 1 << 40, 30)))
        values = random.standard_normal(len(pairs)).astype(np.float32)
        known |= dict(zip(pairs.tolist(), values.tolist(), strict=True))
        cache.add(pairs, values, 0.5)
    cache.save()
    asked = random.permutation([*known, *random.integers(0, 1 << 40, 50).tolist()])
    expected = np.array([known.get(int(pair), 0.0) for pair in asked], np.float32)
    for one in (cache, PairCache.open(tmp_path / "x.npz", "k")):
        found, scores = one.known(asked)
        np.testing.assert_array_equal(scores, expected)
        assert found.tolist() == [int(pair) in known for pair in asked]


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "other key", "text"])
def test_a_file_that_is_not_whole_is_not_used(
    tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.npz"
    filled(path)
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[:-9], "empty": b"", "text": b"hello"}.get(harm, bytes(data)))
    cache = PairCache.open(path, "other" if harm == "other key" else "k")
    assert not cache.known(np.array([5, 7]))[0].any()
    assert "Its pairs are scored anew" in capsys.readouterr().err
    cache.add(np.array([1]), np.array([1], np.float32), 0.1)
    cache.save()
    assert PairCache.open(path, cache.key).known(np.array([1]))[0].all()


def test_a_folder_that_cannot_be_written_costs_the_file_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    cache = filled(tmp_path / "file" / "x.npz")
    assert "scores of pairs are not kept" in capsys.readouterr().err
    assert cache.known(np.array([7]))[0].all()
