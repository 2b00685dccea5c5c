"""Weights of the scores in retrieval, fitted on a validation split.

A run's score is a weighted sum of cosines: the fused one and the frozen models' own. The weights
are those under which a softmax over the sum finds the right captions and the right images most
surely. Recall itself would be the obvious thing to maximise, but it moves in steps: on a few
hundred images its best weights are mostly luck, and so is what they promise.

Shape letters: I images, T captions, K scores (the fused one first).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hada.fuse.scores.embedded import Embedded
from hada.fuse.scores.item_nodes import score_matrix

MOST_IMAGES = 1000  # more are not needed to place a handful of numbers
MOST_IMAGES_OF_NODES = 250  # node matching costs a hundred times a cosine
STEPS = 40
START = 10.0  # what a cosine is multiplied by at first; temperatures lie between 0.05 and 0.2
NEGLIGIBLE = 0.005  # a share below this one is none
# Where every match is found, or no score says anything, the best weights lie at infinity or at 0.
LEAST, MOST = 1e-30, 1e6


@dataclass(frozen=True)
class ScoreTable:
    """All scores of evenly spread images with all their captions.

    scores_KIT: the fused cosine, the models' own, the CCA head's and the node matching's, as far
        as there are such.
    caption_to_image_T: the row, here, of each caption's image.
    images_I, captions_T: the rows of both in what was embedded.
    """

    scores_KIT: Tensor
    caption_to_image_T: Tensor
    images_I: NDArray[np.int64]
    captions_T: NDArray[np.int64]

    @classmethod
    def of(cls, found: Embedded, most: int | None = None, *, device: str = "cpu") -> Self:
        """The table of at most `most` images; by default as many as are worth their time.

        Nodes are matched on `device`; the table lies on the CPU.
        """
        most = most or (MOST_IMAGES if found.nodes is None else MOST_IMAGES_OF_NODES)
        kept = spread(len(found.fused_image), most)
        captions = np.flatnonzero(np.isin(found.caption_to_image, kept))
        pairs = [(found.fused_image, found.fused_caption), *found.own]
        scores = [torch.from_numpy(i[kept] @ c[captions].T) for i, c in pairs]
        if found.nodes is not None:
            image, caption = found.nodes[0].take(kept), found.nodes[1].take(captions)
            matched = score_matrix(image, caption, found.mirror, device=device)
            scores.append(torch.from_numpy(matched))
        owner = np.searchsorted(kept, found.caption_to_image[captions])
        return cls(torch.stack(scores), torch.from_numpy(owner), kept, captions)

    def part(self, images: NDArray[np.int64]) -> Self:
        """The table of some of its images, in ascending order, with their captions."""
        owner = self.caption_to_image_T.numpy()
        captions = np.flatnonzero(np.isin(owner, images))
        scores = self.scores_KIT[:, torch.from_numpy(images)][:, :, torch.from_numpy(captions)]
        owner_t = torch.from_numpy(np.searchsorted(images, owner[captions]))
        return type(self)(scores, owner_t, self.images_I[images], self.captions_T[captions])

    def total(self, shares: Sequence[float]) -> NDArray[np.float32]:
        """(I, T) the sum of the scores, each with its share."""
        weights_K = torch.tensor(shares, dtype=self.scores_KIT.dtype)
        return np.asarray(torch.tensordot(weights_K, self.scores_KIT, dims=1).numpy(), np.float32)


def spread(images: int, most: int) -> NDArray[np.int64]:
    """At most `most` images of all, evenly spread, in ascending order.

    Args:
        images: How many there are.
        most: How many are wanted.

    >>> spread(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return np.unique(np.linspace(0, images - 1, min(images, most)).astype(np.int64))


def tuned_shares(table: ScoreTable) -> tuple[tuple[float, ...], float]:
    """(K,) shares that sum to 1, those of the most likely matches, and their `matching_loss`."""
    weights_K, loss = fit(table)
    shares_K = weights_K.double() / weights_K.sum()
    shares_K = torch.where(shares_K < NEGLIGIBLE, 0, shares_K)
    return tuple((shares_K / shares_K.sum()).tolist()), loss


def score_loss(table: ScoreTable, shares: Sequence[float]) -> float:
    """`matching_loss` of a score as it is; only its scale is fitted."""
    total = torch.from_numpy(table.total(shares))[None]
    return fit(replace(table, scores_KIT=total))[1]


def fit(table: ScoreTable) -> tuple[Tensor, float]:
    """(K,) weights with the least `matching_loss`, which is convex in them; that loss."""
    scores_KIT, owner_T = table.scores_KIT, table.caption_to_image_T
    # Logarithms keep the weights above 0; beyond the limits the loss is flat and the search ends.
    logs_K = torch.full((len(scores_KIT),), START).log().requires_grad_()
    optimizer = torch.optim.LBFGS([logs_K], max_iter=STEPS, line_search_fn="strong_wolfe")

    def weights() -> Tensor:
        return logs_K.clamp(math.log(LEAST), math.log(MOST)).exp()

    def loss() -> float:
        optimizer.zero_grad()
        value = matching_loss(weights(), scores_KIT, owner_T)
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    weights_K = weights().detach()
    return weights_K, float(matching_loss(weights_K, scores_KIT, owner_T))


def matching_loss(weights_K: Tensor, scores_KIT: Tensor, owner_T: Tensor) -> Tensor:
    """Mean cross-entropy of both directions, with weights_K . scores_KIT as the logits.

    An image's captions share its target evenly; `owner_T` is the row of each caption's image.
    """
    logits_IT = torch.tensordot(weights_K, scores_KIT, dims=1)
    own_T = logits_IT[owner_T, torch.arange(len(owner_T))]
    count_I = torch.bincount(owner_T, minlength=len(logits_IT)).clamp(min=1)
    hits_I = torch.zeros(len(logits_IT)).index_add(0, owner_T, own_T) / count_I
    i2t = (logits_IT.logsumexp(1) - hits_I).mean()
    loss: Tensor = (i2t + F.cross_entropy(logits_IT.T, owner_T)) / 2
    return loss
