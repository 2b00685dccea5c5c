"""What a combination of models gives without any training: for `hada-fuse suggest`.

Shape letters: I images, T captions, E embedding width, K models of a combination.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.arrays import unit_rows
from hada.extract.common.errors import UsageError
from hada.fuse.closed_form.cca import CCA, choose_cca
from hada.fuse.closed_form.correction import choose_correction, popularities
from hada.fuse.ranking.ranks import rank_matrix, recalls

Floats = NDArray[np.float32]
# Of the images (I, E) and of the captions (T, E).
Sides = tuple[Floats, Floats]
NEIGHBOURS = (8, 32, 128)
CCA_SHARE = 0.3


@dataclass(frozen=True)
class Embeddings:
    """Stored embeddings of some models on some items.

    models: per model, of the images and of the captions, as stored.
    caption_to_image: (T,) the row of each caption's image.
    """

    models: tuple[Sides, ...]
    caption_to_image: NDArray[np.int64]

    def side_by_side(self) -> Sides:
        """All models' embeddings of either side."""
        image, caption = (np.concatenate(side, axis=1) for side in zip(*self.models, strict=True))
        return image, caption

    def mean(self) -> Sides:
        """Vectors whose inner product is the mean of the models' cosines."""
        scale = np.float32(len(self.models) ** -0.5)
        units = [(scale * unit_rows(i), scale * unit_rows(c)) for i, c in self.models]
        return Embeddings(tuple(units), self.caption_to_image).side_by_side()

    def some(self, models: Sequence[int]) -> Embeddings:
        """Those of some models."""
        return Embeddings(tuple(self.models[k] for k in models), self.caption_to_image)


def hubness(scores_IT: Floats, first: int = 10) -> float:
    """Skewness of how often an image is among the first of a caption (Radovanovic et al. 2010).

    0 where all images come equally often; above 1 a few images come far too often.

    Args:
        scores_IT: (I, T) scores of a model.
        first: How many images of a caption count.
    """
    images = len(scores_IT)
    best = np.argpartition(-scores_IT, min(first, images - 1), axis=0)[:first]
    return skewness(np.bincount(best.ravel(), minlength=images).astype(np.float64))


def skewness(counts: NDArray[np.float64]) -> float:
    """The third standardised moment of some counts; 0 where all are equal.

    >>> round(skewness(np.array([0.0, 0.0, 0.0, 4.0])), 3)
    1.155
    """
    spread = counts.std()
    return float(((counts - counts.mean()) ** 3).mean() / spread**3) if spread else 0.0


def without_training(items: Embeddings, train: Embeddings) -> dict[str, float]:
    """RSum of the mean of cosines corrected, with a CCA head, and with both.

    Args:
        items: What is looked at. It chooses what is corrected and the head, so the figures flatter.
        train: Fits the head and is the bank.
    """
    pair, bank = items.mean(), train.mean()
    found = {"corrected_rsum": _corrected(pair, bank, items.caption_to_image)}
    sides = train.side_by_side()

    def with_head(embeddings: Embeddings, head: CCA) -> Sides:
        one, other = embeddings.side_by_side()
        encoded = head.encode("image", one), head.encode("caption", other)
        image, caption = (
            np.concatenate([(1 - CCA_SHARE) ** 0.5 * mean, CCA_SHARE**0.5 * more], axis=1)
            for mean, more in zip(embeddings.mean(), encoded, strict=True)
        )
        return image, caption

    def value(head: CCA) -> float:
        image, caption = with_head(items, head)
        return _rsum(image @ caption.T, items.caption_to_image)

    try:
        head, _ = choose_cca(*sides, train.caption_to_image, value=value)
    except UsageError:
        return found
    pair, bank = with_head(items, head), with_head(train, head)
    return found | {
        "cca_rsum": _rsum(pair[0] @ pair[1].T, items.caption_to_image),
        "cca_corrected_rsum": _corrected(pair, bank, items.caption_to_image),
    }


def _corrected(pair: Sides, bank: Sides, caption_to_image: NDArray[np.int64]) -> float:
    by_image = popularities(pair[0], bank[1], NEIGHBOURS)
    by_caption = popularities(pair[1], bank[0], NEIGHBOURS)
    scores_IT = pair[0] @ pair[1].T
    choice = choose_correction(scores_IT, by_image, by_caption, caption_to_image)
    paid_I = choice.alpha_image * by_image[choice.k_image]
    paid_T = choice.alpha_caption * by_caption[choice.k_caption]
    return _rsum(scores_IT - paid_I[:, None] - paid_T[None], caption_to_image)


def _rsum(scores_IT: Floats, caption_to_image: NDArray[np.int64]) -> float:
    return float(recalls(rank_matrix(scores_IT.astype(np.float32), caption_to_image))["rsum"])
