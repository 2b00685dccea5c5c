"""Nearest-neighbour normalisation: an item pays for how near it is to everything.

In many dimensions some images and captions are close to every query (hubs, Radovanovic et al. 2010)
and come first too often. With b of a bank of queries (Chowdhury et al., NNN, arXiv 2410.24114; the
same family as QB-Norm, Bogolin et al., arXiv 2112.12777):

    s'(q, g) = s(q, g) - alpha * mean of the k largest s(b, g)

No query but q is looked at. What an item pays does not depend on the query, so for inner products
both directions fit into one: [e_image, -p_image, 1] with [e_caption, 1, -p_caption]; the term that
is constant for a query changes no rank.

Shape letters: I images, T captions, N gallery items, B items of the bank, E width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from hada.extract.common.errors import UsageError
from hada.fuse.ranking.ranks import rank_matrix

# Products of one block, float32: 32 MiB.
BLOCK_NUMBERS = 1 << 23
ALPHAS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75)
# Longer than any corrected vector: unit length, a payment below 2 and a 1.
LONGEST = 2.5
# Images, and captions.
Rows = tuple[NDArray[np.int64], NDArray[np.int64]]
# By k and alpha.
Gains = dict[tuple[int, float], float]
# A correction must raise one of these by as much on queries that did not choose it: the likelihood
# of right matches of its direction (nats), or their mean reciprocal rank. Less is what another few
# hundred queries would take away again.
LEAST_GAIN = {"likelihood": 1e-3, "reciprocal rank": 0.002}
# What scores are multiplied by to be logits, over their standard deviation.
SCALES = np.geomspace(0.25, 64, 33)


@dataclass(frozen=True)
class Correction:
    """What images and captions pay; an alpha of 0 is no correction.

    k_image, alpha_image: of an image, among a bank of captions: for caption -> image.
    k_caption, alpha_caption: of a caption, among a bank of images: for image -> caption.
    """

    k_image: int
    alpha_image: float
    k_caption: int
    alpha_caption: float


def popularity(gallery_NE: NDArray[Any], bank_BE: NDArray[Any], k: int) -> NDArray[np.float32]:
    """(N,) mean of each item's `k` largest inner products with a bank.

    Args:
        gallery_NE: As in `popularities`.
        bank_BE: As in `popularities`.
        k: How many of the largest; all where the bank is smaller.
    """
    return popularities(gallery_NE, bank_BE, [k])[k]


def popularities(
    gallery_NE: NDArray[Any], bank_BE: NDArray[Any], ks: Sequence[int]
) -> dict[int, NDArray[np.float32]]:
    """How near items are to a bank, by several measures at once; memory is one block of products.

    Args:
        gallery_NE: The items.
        bank_BE: Queries, at least one.
        ks: How many of the largest products are averaged; all where the bank is smaller.

    Returns:
        k -> (N,) mean of each item's k largest inner products with the bank.

    Raises:
        UsageError: The bank is empty, or a k is below 1.
    """
    if not len(bank_BE) or min(ks) < 1:
        raise UsageError(
            f"popularity: a bank of {len(bank_BE)} and k = {min(ks)}; expected 1 at least"
        )
    found = {k: np.empty(len(gallery_NE), np.float32) for k in ks}
    bank_EB = np.ascontiguousarray(bank_BE.T, np.float32)
    step = max(1, BLOCK_NUMBERS // len(bank_BE))
    for first in range(0, len(gallery_NE), step):
        some = slice(first, first + step)
        means = top_means(gallery_NE[some].astype(np.float32) @ bank_EB, ks)
        for k, mean in zip(ks, means, strict=True):
            found[k][some] = mean
    return found


def top_means(scores_NB: NDArray[np.float32], ks: Sequence[int]) -> list[NDArray[np.float32]]:
    """For every k: (N,) means of the k largest numbers of each row, of all where there are fewer.

    Args:
        scores_NB: N rows.
        ks: How many are averaged, each at least 1.

    >>> [mean.tolist() for mean in top_means(np.array([[1.0, 3.0, 2.0]]), [1, 2])]
    [[3.0], [2.5]]
    """
    most = min(max(ks), scores_NB.shape[1])
    largest = torch.from_numpy(scores_NB).topk(most, dim=1).values.numpy()
    return [largest[:, :k].mean(axis=1, dtype=np.float64).astype(np.float32) for k in ks]


def choose_correction(
    scores_IT: NDArray[Any],
    image_popularities: Mapping[int, NDArray[Any]],
    caption_popularities: Mapping[int, NDArray[Any]],
    caption_to_image: NDArray[Any],
    *,
    alphas: Sequence[float] = ALPHAS,
) -> Correction:
    """The k and alpha of each direction that serve a validation split best.

    The images are cut into two halves. A direction is corrected where what either half would choose
    helps on the other half; a bank of another kind of data does not. Each of two measures makes its
    choice, and of those that help by their own measure that one is taken whose first places gain
    more on the halves that did not choose:

    - the likelihood of a softmax over a query's scores, at the scale that is best without a
      correction. It moves smoothly: its choice is the same for most parts of a split.
    - the mean reciprocal rank, which speaks of the first places, as recall does, but is uneven over
      a few hundred queries: alone it left three of 48 directions uncorrected on Flickr8k, which
      cost five RSum each time. The likelihood alone cost one model of `scenes` nine.

    Args:
        scores_IT: (I, T) scores of the validation split; any scores, not only inner products.
        image_popularities: k -> (I,) popularity of the images.
        caption_popularities: k -> (T,) popularity of the captions.
        caption_to_image: (T,) the row of each caption's image.
        alphas: What is tried beside 0.

    Returns:
        What each direction pays: 0 where it does not help.
    """
    scores = np.asarray(scores_IT, np.float32)
    caption_to_image_T = np.asarray(caption_to_image)
    halves = [_half(caption_to_image_T, len(scores), first) for first in (0, 1)]

    chosen: list[tuple[int, float]] = []
    for direction, popularities in (("t2i", image_popularities), ("i2t", caption_popularities)):
        by_half = [
            _gains(scores, caption_to_image_T, half, direction, popularities, alphas)
            for half in halves
        ]
        chosen.append(_best(by_half) or (min(popularities), 0.0))
    return Correction(*chosen[0], *chosen[1])


def _best(halves: Sequence[Mapping[str, Gains]]) -> tuple[int, float] | None:
    """The k and alpha of the measure that serves first places better; None where none helps."""
    found: dict[tuple[int, float], float] = {}
    for measure, least in LEAST_GAIN.items():
        one, other = (half[measure] for half in halves)
        if not one or not other:
            continue
        firsts = [max(half, key=lambda key: half[key]) for half in (one, other)]
        if np.mean([other[firsts[0]], one[firsts[1]]]) >= least:
            choice = max(one, key=lambda key: one[key] + other[key])
            ranks = [half["reciprocal rank"] for half in halves]
            found[choice] = float(np.mean([ranks[1][firsts[0]], ranks[0][firsts[1]]]))
    return max(found, key=lambda key: found[key], default=None)


def _gains(
    scores_IT: NDArray[np.float32],
    caption_to_image_T: NDArray[Any],
    rows: Rows,
    direction: str,
    popularities: Mapping[int, NDArray[Any]],
    alphas: Sequence[float],
) -> dict[str, Gains]:
    """By measure: how much every k and alpha gives over no correction, on some images."""
    images, captions = rows
    found: dict[str, Gains] = {measure: {} for measure in LEAST_GAIN}
    if not len(captions):
        return found
    part = scores_IT[np.ix_(images, captions)]
    owner = np.searchsorted(images, caption_to_image_T[captions])
    spread = float(part.std()) or 1.0
    losses = {scale: _loss(part * (scale / spread), owner, direction) for scale in SCALES}
    scale = min(losses, key=lambda scale: losses[scale])
    plain = _reciprocal_rank(part, owner, direction)
    for k, values in popularities.items():
        paid = np.asarray(values, np.float32)
        paid = paid[images][:, None] if direction == "t2i" else paid[captions][None]
        for alpha in filter(None, alphas):
            corrected = part - np.float32(alpha) * paid
            loss = _loss(corrected * (scale / spread), owner, direction)
            found["likelihood"][k, alpha] = losses[scale] - loss
            rank = _reciprocal_rank(corrected, owner, direction)
            found["reciprocal rank"][k, alpha] = rank - plain
    return found


def folded(
    image_IE: NDArray[Any],
    caption_TE: NDArray[Any],
    image_paid_I: NDArray[Any],
    caption_paid_T: NDArray[Any],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fold a correction into embeddings.

    Args:
        image_IE: (I, E).
        caption_TE: (T, E).
        image_paid_I: (I,) what each image pays for its popularity.
        caption_paid_T: (T,) what each caption pays.

    Returns:
        (I, E + 2) and (T, E + 2); their inner product is the embeddings' less what both pay.
    """
    ones_I, ones_T = np.ones((len(image_IE), 1)), np.ones((len(caption_TE), 1))
    image = np.concatenate([image_IE, -np.asarray(image_paid_I)[:, None], ones_I], axis=1)
    caption = np.concatenate([caption_TE, ones_T, -np.asarray(caption_paid_T)[:, None]], axis=1)
    return image.astype(np.float32), caption.astype(np.float32)


def as_cosine(
    image_IE: NDArray[Any], caption_TE: NDArray[Any], longest: float = LONGEST
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(I, E + 2) and (T, E + 2) of unit length whose cosine is the inner product over `longest`².

    Each side gets a dimension that fills its vectors up to one length, where the other side has 0
    (Bachrach et al. 2014): so what only takes cosines ranks by the inner product.

    Args:
        image_IE: Image vectors.
        caption_TE: Caption vectors.
        longest: A length that no vector is above; the same for all that is compared.

    Raises:
        UsageError: A vector is longer.
    """
    filled = []
    for number, side in enumerate((image_IE, caption_TE)):
        wide = np.asarray(side, np.float64) / longest
        rest = 1 - np.square(wide).sum(axis=1)
        if len(rest) and rest.min() < -1e-6:
            raise UsageError(f"as_cosine: a vector is longer than {longest:g}")
        columns = np.zeros((len(wide), 2))
        columns[:, number] = np.sqrt(np.maximum(rest, 0))
        filled.append(np.concatenate([wide, columns], axis=1).astype(np.float32))
    return filled[0], filled[1]


def _half(
    caption_to_image_T: NDArray[Any], images: int, first: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every other image with its captions."""
    rows = np.arange(first, images, 2)
    return rows, np.flatnonzero(np.isin(caption_to_image_T, rows))


def _loss(logits_IT: NDArray[Any], caption_to_image_T: NDArray[Any], direction: str) -> float:
    """Mean cross entropy of one direction's queries; an image's captions share its target."""
    logits = torch.from_numpy(np.asarray(logits_IT, np.float32))
    owner_T = torch.from_numpy(caption_to_image_T)
    if direction == "t2i":
        return float(F.cross_entropy(logits.T, owner_T))
    own_T = logits[owner_T, torch.arange(len(owner_T))]
    count_I = torch.bincount(owner_T, minlength=len(logits))
    hits_I = torch.zeros(len(logits)).index_add(0, owner_T, own_T)
    asked = count_I > 0
    return float((logits[asked].logsumexp(1) - hits_I[asked] / count_I[asked]).mean())


def _reciprocal_rank(scores_IT: NDArray[np.float32], owner: NDArray[Any], direction: str) -> float:
    """One direction's mean of 1 / rank of the best match, ranks from 1."""
    ranks = rank_matrix(scores_IT, owner)
    return float((1 / (1 + getattr(ranks, direction))).mean())
