"""Scores of pairs that were computed before, kept in a folder: what was interrupted goes on.

Every part is one file, written whole, and named by its content: processes that write at the same
time need not know of each other.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hada.extract.common import atomic
from hada.extract.common.array_files import read_npz
from hada.extract.common.console import say
from hada.extract.common.errors import StoreError

_NAMES = ("pairs", "scores", "seconds")


class PairScores:
    """Scores by pair; a pair is one number, which the caller makes of its items.

    seconds: What computing all of them took, in whatever process.
    """

    def __init__(self, folder: Path) -> None:
        """Read what a folder holds; it need not be there. Damaged parts are left out."""
        self._folder = folder
        self._pairs = np.empty(0, np.int64)
        self._scores = np.empty(0, np.float32)
        self.seconds = 0.0
        for file in sorted(folder.glob("*.npz")) if folder.is_dir() else ():
            try:
                part = read_npz(file, str(file), StoreError, _NAMES)
                self._take(*(part[name] for name in _NAMES))
            except (StoreError, KeyError, ValueError, OSError) as error:
                say(f"{file}: not used, its pairs are scored again ({error})")

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def seconds_per_pair(self) -> float:
        """The mean over all pairs that are known; 0.0 without any."""
        return self.seconds / len(self) if len(self) else 0.0

    def find(self, pairs: NDArray[np.int64]) -> NDArray[np.float32]:
        """(P,) the scores of P pairs, NaN where one is not known."""
        found = np.full(len(pairs), np.nan, np.float32)
        if len(self._pairs):
            place = np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)
            known = self._pairs[place] == pairs
            found[known] = self._scores[place[known]]
        return found

    def add(self, pairs: NDArray[np.int64], scores: NDArray[np.float32], seconds: float) -> None:
        """Keep (P,) scores, in memory and in a file of their own.

        Args:
            pairs: (P,) int64.
            scores: (P,) float32, finite.
            seconds: What computing them took.
        """
        took = np.array([seconds])
        self._take(pairs, scores, took)
        stream = io.BytesIO()
        np.savez(stream, pairs=pairs, scores=scores, seconds=took)
        data = stream.getvalue()
        atomic.make_folder(self._folder)
        name = f"{hashlib.sha256(data).hexdigest()[:24]}.npz"
        atomic.write_bytes(self._folder / name, data)

    def _take(
        self, pairs: NDArray[np.int64], scores: NDArray[np.float32], seconds: NDArray[np.float64]
    ) -> None:
        right = pairs.dtype == np.int64 and scores.dtype == np.float32
        if not right or pairs.shape != scores.shape:
            raise ValueError("expected int64 pairs and as many float32 scores")
        if pairs.ndim != 1 or not np.isfinite(scores).all() or seconds.shape != (1,):
            raise ValueError("expected finite scores, one a pair, and the seconds they took")
        # Of a pair that two processes scored, the first in order of the files.
        self._pairs, first = np.unique(np.concatenate([self._pairs, pairs]), return_index=True)
        self._scores = np.concatenate([self._scores, scores])[first]
        self.seconds += float(seconds[0])
