"""WCA and LGCA: images and texts as weighted sums of crops and of descriptions.

WCA (Li et al., ICML 2024) weights random crops by their similarity to the whole image, and
descriptions by their similarity to the plain prompt. LGCA (Cao et al., SoICT 2025) then selects the
most salient crops repeatedly and expands them. Only its abstract was available, so the
rule of selection, the expansion and the weights of the rounds are this project's reading of it,
each an option here (docs/evaluation.md).

All features are of unit length. Shape letters: I images, R rounds (0: the crops, then each
expansion of all of them), N crops, C classes, D descriptions of a class (padded), E width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.arrays import unit_rows
from hada.extract.common.errors import UsageError

Normalize = Literal["official", "none"]
Floats = NDArray[np.floating[Any]]
# The published scales: e^4 for crops, e^2 for descriptions.
CROP_SCALE, TEXT_SCALE = math.exp(4), math.exp(2)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How crops become one vector.

    `rounds` 0 is WCA. Each further round keeps the share `keep` of the crops that are most like
    the whole image and takes their next expansion. `whole` is the share of the whole image; the
    rest is divided by `round_weights`, or evenly. `normalize` "official" gives the sum of each
    round, and of a class's descriptions, unit length, as WCA's code does; "none" is its formula.
    """

    rounds: int = 0
    keep: float = 0.5
    whole: float = 0.0
    crop_scale: float = CROP_SCALE
    text_scale: float = TEXT_SCALE
    normalize: Normalize = "official"
    round_weights: Sequence[float] = field(default=())

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1 or not 0 <= self.whole <= 1 or self.rounds < 0:
            raise UsageError("expected 0 < keep <= 1, 0 <= whole <= 1 and rounds >= 0")
        if self.round_weights and len(self.round_weights) != self.rounds + 1:
            raise UsageError(f"round_weights: expected {self.rounds + 1}, one for each round")

    def lambdas(self) -> NDArray[np.float64]:
        """(R,) weight of each round; with `whole` they sum to 1."""
        given = np.asarray(self.round_weights or [1.0] * (self.rounds + 1), np.float64)
        return np.asarray((1 - self.whole) * given / given.sum())


# The whole image and the plain mean of texts. `Rules()` is WCA as published.
CLIP = Rules(whole=1.0, text_scale=0.0)


def describe(
    label_CE: Floats, descriptions_CDE: Floats, mask_CD: NDArray[np.bool_], rules: Rules
) -> NDArray[np.float64]:
    """(C, E) one vector a class: its descriptions, weighted by their similarity to its prompt.

    Args:
        label_CE: Unit embeddings of the classes' prompts.
        descriptions_CDE: Unit embeddings of D descriptions of each class.
        mask_CD: Which of them there are.
        rules: `text_scale` 0 is their plain mean: CLIP-E with templates, CuPL with descriptions,
            CLIP with one prompt.
    """
    similarity_CD = np.einsum("ce,cde->cd", label_CE, descriptions_CDE, dtype=np.float64)
    weight_CD = softmax(np.where(mask_CD, rules.text_scale * similarity_CD, -np.inf))
    sums_CE = np.einsum("cd,cde->ce", weight_CD, descriptions_CDE)
    return unit_rows(sums_CE) if rules.normalize == "official" else sums_CE


def look(image_IE: Floats, crops_IRNE: Floats | None, rules: Rules) -> NDArray[np.float64]:
    """(I, E) one vector an image: `whole` of it, and its rounds of crops.

    Args:
        image_IE: Whole images.
        crops_IRNE: Crops (round 0) and all their expansions; None where `whole` is 1.
        rules: What to make of them.

    Raises:
        UsageError: There are fewer rounds of crops than the rules ask for.
    """
    total_IE = rules.whole * image_IE.astype(np.float64)
    if rules.whole == 1:
        return total_IE
    if crops_IRNE is None or crops_IRNE.shape[1] <= rules.rounds or not crops_IRNE.shape[2]:
        have = 0 if crops_IRNE is None else crops_IRNE.shape[1] - 1
        raise UsageError(
            f"the stored crops were expanded {have} times, {rules.rounds} are asked for; extract "
            "them again with --crops lgca"
        )
    for step, weight in enumerate(rules.lambdas()):
        kept_IK = selected(image_IE, crops_IRNE, rules)[step]
        crops_IKE = np.take_along_axis(crops_IRNE[:, step], kept_IK[..., None], axis=1)
        similarity_IK = np.einsum("ie,ike->ik", image_IE, crops_IKE, dtype=np.float64)
        weight_IK = softmax(rules.crop_scale * similarity_IK)
        sums_IE = np.einsum("ik,ike->ie", weight_IK, crops_IKE)
        total_IE += weight * (unit_rows(sums_IE) if rules.normalize == "official" else sums_IE)
    return total_IE


def selected(image_IE: Floats, crops_IRNE: Floats, rules: Rules) -> list[NDArray[np.int64]]:
    """Per round (I, K) which crops take part: those kept are the most like the whole image.

    Of equal ones the first is kept. The order within a round is that of the last selection.
    """
    images, _, crops, _ = crops_IRNE.shape
    kept = [np.broadcast_to(np.arange(crops), (images, crops))]
    for step in range(rules.rounds):
        similarity_IN = np.einsum("ie,ine->in", image_IE, crops_IRNE[:, step], dtype=np.float64)
        mine_IK = np.take_along_axis(similarity_IN, kept[-1], axis=1)
        count = max(1, math.ceil(rules.keep * kept[-1].shape[1] - 1e-9))
        # Ties go to the lower crop number, whatever order the last round left.
        order_IK = np.lexsort((kept[-1], -mine_IK), axis=1)[:, :count]
        kept.append(np.take_along_axis(kept[-1], order_IK, axis=1))
    return kept


def softmax(values: Floats) -> NDArray[np.float64]:
    """Over the last axis; minus infinity is left out."""
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), np.float64)
