"""Scores of pairs that were expensive to make, kept on disk and gone on with.

A second stage that runs a model on every pair takes hours on a large split. What it has scored is
saved now and then in one file, bound to the weights, the stores and the settings that made it; a
command that was stopped goes on from there, and both directions and all first stages share it.

Shape letters: P pairs, n pairs that are kept.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hada.extract.common import atomic
from hada.extract.common.console import say
from hada.extract.common.errors import HadaError
from hada.extract.common.progress import progress
from hada.fuse.run_files.sealed import check_sealed, write_sealed

if TYPE_CHECKING:
    from hada.evaluate.methods.rerank import Head
    from hada.evaluate.methods.seen import Fitted

FORMAT = 1
HOLDS = "scores of pairs"
SAVE_SECONDS = 30.0


@dataclass
class PairCache:
    """Scores by pair of rows of the stores.

    Attributes:
        path: The file.
        key: What the scores depend on; a file with another key is not used.
        pairs_n: Image row times 2^32 plus caption row, ascending.
        scores_n: float32.
        seconds: What making all of them took, in whatever process.
    """

    path: Path
    key: str
    pairs_n: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    scores_n: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    seconds: float = 0.0
    _saved: int = 0
    _clock: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, path: Path, key: str) -> PairCache:
        """The file's scores; none where it is missing, damaged, or of something else."""
        if not path.exists():
            return cls(path, key)
        try:
            head = check_sealed(path) or {}
            if (head.get("holds"), head.get("format")) != (HOLDS, FORMAT):
                raise ValueError("it holds no scores of this version")
            if head.get("key") != key:
                raise ValueError("its scores are of other weights, stores or settings")
            with np.load(path, allow_pickle=False) as arrays:
                pairs, scores, took = (arrays[name] for name in ("pairs", "scores", "seconds"))
            fits = pairs.dtype == np.int64 and scores.dtype == np.float32
            if not fits or pairs.ndim != 1 or pairs.shape != scores.shape:
                raise ValueError("its arrays do not fit each other")
            if (np.diff(pairs) <= 0).any():
                raise ValueError("its pairs are not in order")
            seconds = float(took)
        except Exception as error:  # whatever a file of other bytes may raise
            say(f"{path}: {error or type(error).__name__}. Its pairs are scored anew")
            return cls(path, key)
        return cls(path, key, pairs, scores, seconds, len(pairs))

    def known(self, pairs_P: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """(P,) which pairs have a score, and (P,) that score, 0 where there is none."""
        if not len(self.pairs_n):
            return np.zeros(len(pairs_P), bool), np.zeros(len(pairs_P), np.float32)
        places = np.minimum(np.searchsorted(self.pairs_n, pairs_P), len(self.pairs_n) - 1)
        found = self.pairs_n[places] == pairs_P
        return found, np.where(found, self.scores_n[places], np.float32(0))

    def add(
        self, pairs_P: NDArray[np.int64], scores_P: NDArray[np.float32], seconds: float
    ) -> None:
        """Take some new pairs in, each once; the file is written when the last time is long ago.

        Args:
            pairs_P: See `pairs_n`; in any order.
            scores_P: Their scores.
            seconds: What making them took.
        """
        self.seconds += seconds
        places = np.searchsorted(self.pairs_n, pairs_P)
        order = np.argsort(pairs_P, kind="stable")
        self.pairs_n = np.insert(self.pairs_n, places[order], pairs_P[order])
        self.scores_n = np.insert(self.scores_n, places[order], scores_P[order])
        if time.monotonic() - self._clock >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the file where there is something new; a disk that is full costs the file only."""
        if len(self.pairs_n) == self._saved:
            return
        buffer = io.BytesIO()
        np.savez(buffer, pairs=self.pairs_n, scores=self.scores_n, seconds=np.float64(self.seconds))
        try:
            with atomic.writing(self.path) as file:
                head = {"holds": HOLDS, "format": FORMAT, "key": self.key}
                write_sealed(file, buffer.getbuffer(), head)
        except (OSError, HadaError) as error:
            why = getattr(error, "strerror", None) or error
            say(f"{self.path}: the scores of pairs are not kept: {why}")
        self._saved, self._clock = len(self.pairs_n), time.monotonic()


@dataclass(frozen=True)
class CachedHead:
    """A head whose scores are looked up where they are known.

    Attributes:
        head: What scores a pair.
        cache: What it has scored, by rows of the stores.
        image_rows: (I,) the rows of the gallery's images in the stores.
        caption_rows: (T,) the rows of its captions.
        pairs_at_once: So many are scored before they are kept: some seconds of work.
    """

    head: Head
    cache: PairCache
    image_rows: NDArray[np.int64]
    caption_rows: NDArray[np.int64]
    pairs_at_once: int

    @property
    def name(self) -> str:
        """The head's."""
        return self.head.name

    @property
    def description(self) -> str:
        """The head's."""
        return self.head.description

    @property
    def stage(self) -> str:
        """The head's."""
        return self.head.stage

    @property
    def fitted(self) -> tuple[Fitted, ...]:
        """The head's."""
        return self.head.fitted

    @property
    def seconds_per_pair(self) -> float | None:
        """The mean over all that were ever scored; None before the first."""
        return self.cache.seconds / len(self.cache.pairs_n) if len(self.cache.pairs_n) else None

    def logits(
        self, images_P: NDArray[np.int64], captions_P: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """(P,) logits of pairs, by their rows in the gallery."""
        pairs_P = (self.image_rows[images_P] << 32) + self.caption_rows[captions_P]
        # A pair may be asked for twice: by several queries of one call.
        unique, first, inverse = np.unique(pairs_P, return_index=True, return_inverse=True)
        known, scores = self.cache.known(unique)
        missing = np.flatnonzero(~known)
        try:
            with progress(self.name, len(missing), "pairs") as advance:
                for start in range(0, len(missing), self.pairs_at_once):
                    some = missing[start : start + self.pairs_at_once]
                    began = time.perf_counter()
                    scores[some] = self.head.logits(images_P[first[some]], captions_P[first[some]])
                    self.cache.add(unique[some], scores[some], time.perf_counter() - began)
                    advance(len(some))
        finally:
            self.cache.save()
        return np.asarray(scores[inverse], np.float32)

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> CachedHead:
        """The same head on a subset: (i,) rows of images and (t,) rows of captions."""
        return replace(
            self,
            head=self.head.part(images, captions),
            image_rows=self.image_rows[images],
            caption_rows=self.caption_rows[captions],
        )
