"""How sure a figure is: paired bootstrap over images.

An image is drawn together with all its captions, since those are not independent of each other.
The gallery stays whole; what is resampled is which queries count. The same draws serve every
method, so differences between methods are paired. Where the figure is a mean over folds, images are
drawn within each fold, and every resample is such a mean too.

A p-value is the interval turned round: 1 minus the level at which a percentile interval of the same
resamples ends at 0. So p < 0.05 exactly where the 95 % interval leaves 0 out, from 40 resamples on.

Shape letters: I images, R resamples, K figures, F folds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hada.fuse.ranking.ranks import KS, Ranks

RESAMPLES = 10_000
# Draws are made in blocks of so many counts, to bound memory (int64: 64 MiB).
BLOCK_COUNTS = 1 << 23


@dataclass(frozen=True)
class Hits:
    """Per image, what its queries add to the figures.

    i2t: (I, K) chance of a hit among the first k. t2i: (I, K) sum over the image's captions.
    captions: (I,) how many captions it has.
    folds: of how many galleries of consecutive images the figures are the mean.
    """

    i2t: NDArray[np.float64]
    t2i: NDArray[np.float64]
    captions: NDArray[np.float64]
    folds: int = 1

    @classmethod
    def of(
        cls,
        ranks: Ranks,
        caption_to_image: NDArray[np.int64],
        ks: Sequence[int] = KS,
        *,
        folds: int = 1,
    ) -> Hits:
        """What the bootstrap draws from: per image the hits of its own and of its captions.

        Args:
            ranks: Of both ways.
            caption_to_image: Entry j is the image row of caption j, e.g. `[0, 0, 1, 1]`.
            ks: The recalls that are counted.
            folds: Into which the images are cut, in their order.
        """
        images = len(ranks.i2t_lo)
        t2i = [np.bincount(caption_to_image, ranks.t2i_hits(k), minlength=images) for k in ks]
        return cls(
            i2t=np.stack([ranks.i2t_hits(k) for k in ks], axis=1),
            t2i=np.stack(t2i, axis=1),
            captions=np.bincount(caption_to_image, minlength=images).astype(np.float64),
            folds=folds,
        )

    def rsum(self, counts_RI: NDArray[np.int64]) -> NDArray[np.float64]:
        """(R,) RSum in percent of each resample, given how often each image was drawn.

        Where every image is drawn once it is the figure itself.
        """
        counts = counts_RI.astype(np.float64)
        i2t, t2i = self.i2t.sum(axis=1), self.t2i.sum(axis=1)
        total = np.zeros(len(counts))
        for part in np.split(np.arange(len(i2t)), self.folds):
            drawn = counts[:, part[0] : part[-1] + 1]
            total += (drawn @ i2t[part]) / drawn.sum(axis=1)
            total += (drawn @ t2i[part]) / (drawn @ self.captions[part])
        return np.asarray(100 * total / self.folds)


@dataclass(frozen=True)
class Interval:
    """A 95 % interval; `p` is the two-sided p-value of a difference being 0, see above."""

    low: float
    high: float
    p: float | None = None

    @property
    def half_width(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2


def bootstrap_rsums(
    hits: Sequence[Hits], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[NDArray[np.float64]]:
    """The RSum of every resample, for every method: the same draws for all.

    Args:
        hits: One for each method, all of the same images and folds.
        resamples: R, the number of resamples.
        seed: Seed of the draws.

    Returns:
        (R,) RSum in percent points for each method, in the order of `hits`.
    """
    parts: list[list[NDArray[np.float64]]] = [[] for _ in hits]
    for counts_RI in draws(len(hits[0].captions), hits[0].folds, resamples, seed):
        for part, method in zip(parts, hits, strict=True):
            part.append(method.rsum(counts_RI))
    return [np.concatenate(part) for part in parts]


def interval(values: NDArray[np.float64]) -> Interval:
    """The middle 95 % of (R,) resampled figures."""
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def difference(values: NDArray[np.float64], others: NDArray[np.float64]) -> Interval:
    """Interval and p-value of (R,) `values - others`, resampled with the same draws."""
    gap = values - others
    spread = interval(gap)
    tail = min(_share_to_zero(gap), _share_to_zero(-gap))
    # Had one more resample been drawn, it might have been beyond 0: p is never exactly 0.
    least = 2 / (len(gap) + 1)
    return Interval(spread.low, spread.high, p=min(1.0, max(least, 2 * tail)))


def _share_to_zero(values: NDArray[np.float64]) -> float:
    """The largest share q with `np.quantile(values, q) <= 0`, 0 where there is none.

    >>> _share_to_zero(np.array([-1.0, 1.0, 2.0])), _share_to_zero(np.array([1.0, 2.0]))
    (0.25, 0.0)
    """
    ordered = np.sort(values)
    below = int(np.searchsorted(ordered, 0.0, side="right"))
    if below in (0, len(ordered)):
        return float(below > 0)
    low, high = ordered[below - 1], ordered[below]
    # Quantiles are linear between neighbours.
    return float((below - 1 + low / (low - high)) / (len(ordered) - 1))


def draws(images: int, folds: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield (rows, I) how often each image is drawn, block by block.

    Args:
        images: I.
        folds: Galleries of consecutive images; each is drawn from itself.
        resamples: Rows in all.
        seed: Of the draw.
    """
    random = np.random.default_rng(seed)
    step = max(1, BLOCK_COUNTS // images)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = random.integers(0, images // folds, (rows * folds, images // folds))
        drawn += np.arange(rows * folds)[:, None] * (images // folds)
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)
