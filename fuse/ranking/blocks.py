"""Ranks of the positives where scores come in blocks and no inner product gives them.

Shape letters: I images, T captions, B captions of one block.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hada.fuse.ranking.ranks import Ranks

# Scores are float32, and the same pair rounds differently in another block.
SAME = 1e-6


def rank_blocks(
    blocks: Iterable[tuple[slice, NDArray[np.float32]]],
    positive_T: NDArray[np.float32],
    caption_to_image: NDArray[np.int64],
    images: int,
) -> Ranks:
    """Ranks from scores of all images with some captions after the other; memory is one block.

    Args:
        blocks: Which captions, and (I, B) scores; together all captions, each once.
        positive_T: (T,) the score of each caption with its own image.
        caption_to_image: (T,) the row of each caption's image.
        images: I.

    Returns:
        The ranks. Scores closer than 1e-6 tie.
    """
    captions = len(caption_to_image)
    best_I = np.full(images, -np.inf, np.float32)
    np.maximum.at(best_I, caption_to_image, positive_T)
    tied_I = np.zeros(images, np.int64)
    np.add.at(tied_I, caption_to_image, positive_T >= best_I[caption_to_image] - SAME)
    better_I, level_I = np.zeros(images, np.int64), np.zeros(images, np.int64)
    better_T, level_T = np.zeros(captions, np.int64), np.zeros(captions, np.int64)
    for some, scores_IB in blocks:
        columns = np.arange(scores_IB.shape[1])
        rest_IB = scores_IB.copy()
        # A query's own positives are rivals of none: NaN compares false with everything.
        rest_IB[caption_to_image[some], columns] = np.nan
        by_image = rest_IB - best_I[:, None]
        better_I += (by_image > SAME).sum(axis=1)
        level_I += (np.abs(by_image) <= SAME).sum(axis=1)
        by_caption = rest_IB - positive_T[some]
        better_T[some] = (by_caption > SAME).sum(axis=0)
        level_T[some] = (np.abs(by_caption) <= SAME).sum(axis=0)
    one_T = np.ones(captions, np.int64)
    return Ranks(better_I, better_I + level_I, tied_I, better_T, better_T + level_T, one_T)
