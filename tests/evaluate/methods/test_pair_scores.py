"""Scores of pairs that are kept from one run to the next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hada.evaluate.methods.pair_scores import PairScores


def test_scores_of_two_processes_are_one(tmp_path: Path) -> None:
    one, two = PairScores(tmp_path / "a"), PairScores(tmp_path / "a")
    one.add(np.array([5, 1]), np.array([0.5, 0.1], np.float32), 1.0)
    two.add(np.array([5, 9]), np.array([0.5, 0.9], np.float32), 2.0)
    both = PairScores(tmp_path / "a")
    np.testing.assert_array_equal(
        both.find(np.array([9, 2, 1, 5])), np.array([0.9, np.nan, 0.1, 0.5], np.float32)
    )
    assert (len(both), both.seconds) == (3, 3.0)
    assert PairScores(tmp_path / "none").seconds_per_pair == 0.0


def test_it_agrees_with_a_dictionary(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    known: dict[int, float] = {}
    scores = PairScores(tmp_path)
    for _ in range(5):
        pairs = np.unique(random.integers(0, 1 << 40, 30))
        values = random.standard_normal(len(pairs)).astype(np.float32)
        known |= dict(zip(pairs.tolist(), values.tolist(), strict=True))
        scores.add(pairs, values, 0.5)
    asked = random.permutation([*known, *random.integers(0, 1 << 40, 50).tolist()])
    expected = np.array([known.get(int(pair), np.nan) for pair in asked], np.float32)
    for one in (scores, PairScores(tmp_path)):
        np.testing.assert_array_equal(one.find(asked), expected)
        assert (len(one), one.seconds_per_pair) == (len(known), 2.5 / len(known))


def test_damaged_parts_are_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = PairScores(tmp_path)
    scores.add(np.array([1, 2]), np.array([0.1, 0.2], np.float32), 1.0)
    (tmp_path / "a.npz").write_bytes(b"PK")
    np.savez(tmp_path / "b.npz", pairs=np.array([3]))
    np.savez(tmp_path / "c.npz", pairs=np.array([3]), scores=np.array([0.3]), seconds=np.ones(1))
    np.savez(tmp_path / "d.npz", pairs=np.array([3]), scores=np.array([np.nan], np.float32),
             seconds=np.ones(1))  # fmt: skip
    again = PairScores(tmp_path)
    assert len(again) == 2
    assert again.seconds == 1.0
    said = capsys.readouterr().err
    assert all(f"{name}.npz: not used, its pairs are scored again" in said for name in "abcd")
