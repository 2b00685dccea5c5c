"""Simple methods at their strongest: with a closed-form head, and corrected for hubs.

A trained fusion has to be compared with what costs nothing: the correction takes no training and
the CCA head one decomposition. Both are fitted on the training split and chosen on validation.

Shape letters: I images, T captions, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.combinations import single_models, weighted_sum
from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery, Pair, fitted_of
from hada.evaluate.methods.seen import Fitted
from hada.extract.common.arrays import evenly_spread
from hada.extract.common.errors import HadaError
from hada.extract.spec import SIDES, SideName
from hada.fuse.closed_form.cca import CCA, choose_cca
from hada.fuse.closed_form.correction import (
    Correction,
    choose_correction,
    folded,
    popularities,
    popularity,
)
from hada.fuse.ranking.ranks import rank_positives

NEIGHBOURS = (8, 16, 32, 64, 128)
# Images of the bank, with all their captions; what a run keeps among its weights, too.
BANK = 5000
# Images of validation that choose; a matrix of scores is made of them.
CHOSEN_BY = 1000
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)

# A method as a function of the items that it scores.
Scored = Callable[[Gallery], Pair]


def mean_with_cca(
    gallery: Gallery, train: Gallery, val: Gallery
) -> tuple[EmbeddingMethod, Scored] | None:
    """The mean of cosines and a CCA head on all models' embeddings; its share chosen on `val`.

    Returns:
        The method, and the same as a function of a gallery; None where the embeddings allow none.
    """
    sides = [_side_by_side(train, side) for side in SIDES]

    def scored(items: Gallery, head: CCA, share: float) -> Pair:
        models = single_models(items)
        pairs = [model.pair for model in models]
        method = EmbeddingMethod("cca", "cca", _encoded(head, items))
        shares = [(1 - share) / len(pairs)] * len(pairs)
        return weighted_sum([*models, method], [*shares, share])

    def value(head: CCA, share: float = SHARES[len(SHARES) // 2]) -> float:
        ranks = rank_positives(*scored(val, head, share), val.caption_to_image)
        return float((1 / (1 + ranks.i2t)).mean() + (1 / (1 + ranks.t2i)).mean())

    try:
        head, facts = choose_cca(sides[0], sides[1], train.caption_to_image, value=value)
    except HadaError:
        return None
    share = max(SHARES, key=lambda share: value(head, share))
    method = EmbeddingMethod(
        "mean + CCA",
        "cca",
        scored(gallery, head, share),
        f"closed form: shrinkage {facts['shrinkage']:g}, width {facts['width']}, share {share:g} "
        f"chosen on {val.stores[0].spec.split}",
        {"share": share, "cca": facts},
        (
            *fitted_of(single_models(gallery)),
            Fitted.of(train.stores, "trained on"),
            Fitted.of(val.stores, "tuned on"),
        ),
    )
    return method, lambda items: scored(items, head, share)


def corrected(
    method: EmbeddingMethod, scored: Scored, train: Gallery, val: Gallery, *, bank: int = BANK
) -> EmbeddingMethod:
    """A method whose items pay for their popularity; 0 is among what they may pay.

    Args:
        method: The method, uncorrected.
        scored: The same as a function of a gallery.
        train: The bank's images and captions.
        val: Chooses how much is paid, for each direction.
        bank: Images of the bank at most.
    """
    of_train = scored(part_of(train, bank))
    chosen_by = part_of(val, CHOSEN_BY)
    choice = _chosen(scored(chosen_by), of_train, chosen_by)
    return _paid(method, "corrected", of_train, choice, "in a bank of train", train, val)


def transductive(
    method: EmbeddingMethod, scored: Scored, gallery: Gallery, val: Gallery
) -> EmbeddingMethod:
    """A method whose bank is the evaluated split itself: every query is scored knowing all others.

    That is another task than retrieval for one query, so such a method stands apart and is never
    what a fusion is compared with.

    Args:
        method: The method, uncorrected.
        scored: The same as a function of a gallery.
        gallery: What is evaluated, and the bank.
        val: Chooses how much is paid, with itself as the bank.
    """
    chosen_by = part_of(val, CHOSEN_BY)
    of_val = scored(chosen_by)
    choice = _chosen(of_val, of_val, chosen_by)
    among = "among all queries of the split"
    return _paid(method, "transductive", method.pair, choice, among, gallery, val)


def _paid(
    method: EmbeddingMethod,
    kind: str,
    of_bank: Pair,
    choice: Correction,
    among: str,
    bank: Gallery,
    val: Gallery,
) -> EmbeddingMethod:
    """A method whose items pay what was chosen on `val` for their popularity in a bank."""
    return replace(
        method,
        name=f"{method.name}, {kind}",
        kind=kind,
        pair=_paying(method.pair, of_bank, choice),
        note=f"items pay for their popularity {among}: {_told(choice)}",
        details={**method.details, "correction": vars(choice)},
        fitted=(
            *method.fitted,
            Fitted.of(bank.stores, "bank from"),
            Fitted.of(val.stores, "tuned on"),
        ),
        uncorrected=method.pair,
    )


def _chosen(pair: Pair, bank: Pair, items: Gallery) -> Correction:
    image, caption = pair
    bank_image, bank_caption = bank
    return choose_correction(
        image @ caption.T,
        popularities(image, bank_caption, NEIGHBOURS),
        popularities(caption, bank_image, NEIGHBOURS),
        items.caption_to_image,
    )


def _paying(pair: Pair, bank: Pair, choice: Correction) -> Pair:
    image, caption = pair
    bank_image, bank_caption = bank
    return folded(
        image,
        caption,
        choice.alpha_image * popularity(image, bank_caption, choice.k_image),
        choice.alpha_caption * popularity(caption, bank_image, choice.k_caption),
    )


def _told(choice: Correction) -> str:
    return ", ".join(
        f"{what} {alpha:g} of the mean of {k}" if alpha else f"{what} nothing, no gain"
        for what, k, alpha in (
            ("images", choice.k_image, choice.alpha_image),
            ("captions", choice.k_caption, choice.alpha_caption),
        )
    )


def part_of(gallery: Gallery, most: int) -> Gallery:
    """At most so many of its images, evenly spread, with all their captions."""
    kept = evenly_spread(len(gallery.image_rows), most)
    captions = np.flatnonzero(np.isin(gallery.caption_to_image, kept))
    return replace(
        gallery,
        image_rows=gallery.image_rows[kept],
        caption_rows=gallery.caption_rows[captions],
        caption_to_image=np.searchsorted(kept, gallery.caption_to_image[captions]),
    )


def of_models(names: Sequence[str], shares: Sequence[float]) -> Scored:
    """The weighted sum of some models' cosines as a function of a gallery."""

    def scored(items: Gallery) -> Pair:
        models = {model.name: model for model in single_models(items)}
        return weighted_sum([models[name] for name in names], shares)

    return scored


def _side_by_side(gallery: Gallery, side: SideName) -> NDArray[np.float32]:
    """(n, D) all models' stored embeddings of a side, those without a joint space left out."""
    rows = gallery.image_rows if side == "image" else gallery.caption_rows
    parts = []
    for store in gallery.stores:
        reader = store.image if side == "image" else store.caption
        values = reader.embeddings()
        if values is not None:
            parts.append(values[rows].astype(np.float32))
    return np.concatenate(parts, axis=1)


def _encoded(head: CCA, gallery: Gallery) -> Pair:
    image, caption = (head.encode(side, _side_by_side(gallery, side)) for side in SIDES)
    return image, caption
