"""Weights of the scores in retrieval, fitted on a validation split.

A run's score is a weighted sum of cosines: the fused one and the frozen models' own. The weights
are those under which a softmax over the sum finds the right captions and the right images most
surely. Recall itself would be the obvious thing to maximise, but it moves in steps: on a few
hundred images its best weights are mostly luck, and so is what they promise.

Shape letters: I images, T captions, K scores (the fused one first).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from hada.fuse.embedding import Embedded

MOST_IMAGES = 1000  # more are not needed to place a handful of numbers
STEPS = 40
START = 10.0  # what a cosine is multiplied by at first; temperatures lie between 0.05 and 0.2
NEGLIGIBLE = 0.005  # a share below this one is none


def tuned_shares(found: Embedded) -> tuple[tuple[float, ...], float]:
    """(K,) shares that sum to 1, those of the most likely matches, and their `matching_loss`.

    It looks at 1,000 evenly spread images at most, with all their captions.
    """
    pairs = [(found.fused_image, found.fused_caption), *found.own]
    weights_K, loss = _fit(pairs, found.caption_to_image)
    shares_K = weights_K.double() / weights_K.sum()
    shares_K = torch.where(shares_K < NEGLIGIBLE, 0, shares_K)
    return tuple((shares_K / shares_K.sum()).tolist()), loss


def score_loss(found: Embedded) -> float:
    """`matching_loss` of a run's score as it is; only its scale is fitted."""
    return _fit([(found.image_IE, found.caption_TE)], found.caption_to_image)[1]


def _fit(
    pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]], owner: NDArray[np.int64]
) -> tuple[Tensor, float]:
    """(K,) weights above 0 with the least `matching_loss`, which is convex in them; that loss."""
    images = len(pairs[0][0])
    kept = np.unique(np.linspace(0, images - 1, min(images, MOST_IMAGES)).astype(np.int64))
    captions = np.flatnonzero(np.isin(owner, kept))
    owner_T = torch.from_numpy(np.searchsorted(kept, owner[captions]))
    scores_KIT = torch.stack([torch.from_numpy(i[kept] @ c[captions].T) for i, c in pairs])
    # Logarithms keep the weights above 0.
    logs_K = torch.full((len(pairs),), START).log().requires_grad_()
    optimizer = torch.optim.LBFGS([logs_K], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = matching_loss(logs_K.exp(), scores_KIT, owner_T)
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    weights_K = logs_K.detach().exp()
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
