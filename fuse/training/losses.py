"""Losses of the fusion as plain functions of embeddings and similarities.

A new loss of a batch's embeddings is a function here, entered in `PAIR_LOSSES` under a name, and a
field `weight_NAME` of `hada.fuse.settings.LossSettings`.

Shape letters: B images and T captions of a batch (equal where batches are pairs), Q queries,
K keys (batch first, then queue), E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hada.fuse.settings import LossSettings


@dataclass(frozen=True)
class Encoded:
    """A batch as the network encodes it.

    image_BE, caption_TE: Embeddings of unit length.
    ids_B: Which image of the data set each row is; a batch of pairs may hold one twice.
    caption_to_image_T: The row of each caption's image.
    temperature: The learned one, without dimensions, within its bounds.
    """

    image_BE: Tensor
    caption_TE: Tensor
    ids_B: Tensor
    caption_to_image_T: Tensor
    temperature: Tensor


def positive_targets(query_ids_Q: Tensor, key_ids_K: Tensor) -> Tensor:
    """(Q, K) targets: every key of the query's image shares its mass alike.

    Other captions of the image count, and so do older copies of it in a queue. A query always
    has its own key, so no row is empty.
    """
    same_QK = (query_ids_Q[:, None] == key_ids_K[None, :]).float()
    return same_QK / same_QK.sum(dim=1, keepdim=True)


def soft_cross_entropy(logits_QK: Tensor, targets_QK: Tensor) -> Tensor:
    """Mean over queries of -sum_k target_k log softmax_k: InfoNCE with soft targets."""
    return -(F.log_softmax(logits_QK, dim=1) * targets_QK).sum(dim=1).mean()


def distilled(targets_QK: Tensor, teacher_logits_QK: Tensor, alpha: float) -> Tensor:
    """Mix the teacher's opinion into the targets.

    Args:
        targets_QK: (Q, K) targets; rows sum to 1.
        teacher_logits_QK: (Q, K) the slow encoders' logits.
        alpha: The teacher's share.

    Returns:
        (Q, K) alpha * softmax(teacher) + (1 - alpha) * targets; no gradient reaches the teacher.
    """
    if alpha == 0:
        return targets_QK
    teacher_QK = F.softmax(teacher_logits_QK.detach(), dim=1)
    return alpha * teacher_QK + (1 - alpha) * targets_QK


def distillation_weight(alpha: float, epoch: int, step: int, steps: int) -> float:
    """The teacher's share: rises linearly over the first epoch, then stays.

    Args:
        alpha: The share after the first epoch.
        epoch: From 0.
        step: Of the epoch, from 0.
        steps: Of an epoch.
    """
    return alpha * step / steps if epoch == 0 else alpha


def hardest_hinge(
    scores_BT: Tensor, caption_to_image_T: Tensor, same_BT: Tensor | None, margin: float
) -> Tensor:
    """In-batch hinge against the hardest negative, summed over both directions' means.

    Args:
        scores_BT: (B, T) scores of images with captions.
        caption_to_image_T: (T,) batch row of each caption's image.
        same_BT: (B, T) which entries are no negatives; None exempts a pair's own entry alone, as
            the published loss does (repeats of an image in a batch of pairs then count as
            negatives).
        margin: How far a positive must be above the hardest negative to cost nothing.

    Returns:
        A number. A query without negatives costs nothing.
    """
    captions = torch.arange(len(caption_to_image_T), device=scores_BT.device)
    if same_BT is None:
        same_BT = torch.zeros_like(scores_BT, dtype=torch.bool)
        same_BT[caption_to_image_T, captions] = True
    positive_T = scores_BT[caption_to_image_T, captions]
    # The lowest number, not 0: a hinge may be exactly 0 and clamping comes afterwards.
    rivals_BT = scores_BT.masked_fill(same_BT, torch.finfo(scores_BT.dtype).min / 4)
    by_image_T = margin + rivals_BT.max(dim=1).values[caption_to_image_T] - positive_T
    by_caption_T = margin + rivals_BT.max(dim=0).values - positive_T
    return by_image_T.clamp_min(0).mean() + by_caption_T.clamp_min(0).mean()


def draw_negatives(
    logits_QK: Tensor, same_QK: Tensor, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw one hard negative per query, by softmax over its scores.

    The softmax runs over the candidates alone, so it cannot underflow to nothing.

    Args:
        logits_QK: (Q, K) logits of queries with keys.
        same_QK: (Q, K) which keys are of the query's own image, and no negatives.
        generator: Of the random numbers; None for PyTorch's own.

    Returns:
        (Q,) keys, and (Q,) whether there was any to draw: a batch of one image has none.
    """
    found_Q = ~same_QK.all(dim=1)
    lowest = torch.finfo(logits_QK.dtype).min
    chance_QK = F.softmax(logits_QK.detach().masked_fill(same_QK, lowest), dim=1)
    return torch.multinomial(chance_QK, 1, generator=generator)[:, 0], found_Q


def pair_features(image_QE: Tensor, caption_QE: Tensor) -> Tensor:
    """(Q, 4E) what the matching head looks at: [a, b, |a - b|, a * b]."""
    difference = (image_QE - caption_QE).abs()
    return torch.cat([image_QE, caption_QE, difference, image_QE * caption_QE], dim=1)


def hinge(batch: Encoded, settings: LossSettings) -> Tensor:
    """`hardest_hinge` of a batch's cosines over the temperature."""
    same_BT = None
    if not settings.hinge_repeats:
        same_BT = batch.ids_B[:, None] == batch.ids_B[batch.caption_to_image_T][None, :]
    scores_BT = batch.image_BE @ batch.caption_TE.T / batch.temperature
    return hardest_hinge(scores_BT, batch.caption_to_image_T, same_BT, settings.margin)


# Losses of one batch's embeddings by name, in the order in which they are added up; each is
# computed where its `weight_NAME` is not 0.
PAIR_LOSSES: dict[str, Callable[[Encoded, LossSettings], Tensor]] = {"hinge": hinge}
