"""What happens when the network is trained: closed-form heads, the shares, the correction.

Everything here is fitted on scores, in seconds. A part stays only where it helps on items that did
not fit it; what became of each is said in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from hada.extract.spec import SIDES
from hada.fuse.closed_form.cca import CCA, choose_cca
from hada.fuse.closed_form.correction import Correction, choose_correction, popularities
from hada.fuse.closed_form.kernel_cca import KernelCCA, choose_kernel_cca
from hada.fuse.embedding import embed
from hada.fuse.network.fuser import Fuser
from hada.fuse.network.score_mix import ScoreMix
from hada.fuse.scores.embedded import Embedded, Pair
from hada.fuse.scores.heads import (
    Bank,
    Heads,
    cca_pair,
    kernel_pair,
    node_popularity,
    side_by_side,
    with_tokens,
)
from hada.fuse.scores.pooled_tokens import pooled
from hada.fuse.scores.shares import ScoreTable, fit, score_loss, spread, tuned_shares
from hada.fuse.settings import ScoreSettings
from hada.fuse.tokens.split import Split
from hada.fuse.training.late_choice import choose_late

# A part must make right matches this much more likely (nats) on items that did not fit it.
LEAST_GAIN = 1e-3
# A second stage that was itself chosen on validation, and that costs a hundred products, must more.
LEAST_GAIN_OF_LATE = 5e-3
# Images of validation that choose; in every epoch fewer do.
MOST_IMAGES = 500
MOST_IMAGES_OF_CCA = 250
# Images of training that fit the kernel head; their pools are held in memory.
MOST_IMAGES_OF_KERNEL = 10_000
NEIGHBOURS = (8, 16, 32, 64, 128)
NEIGHBOURS_OF_NODES = (8, 16, 32, 64)


def fit_heads(
    fuser: Fuser,
    mix: ScoreMix,
    train: Split,
    val: Split,
    settings: ScoreSettings,
    *,
    names: Sequence[str],
    device: torch.device,
    report: Callable[[str], None],
    trained: bool = True,
) -> Heads:
    """Everything behind a trained network.

    Args:
        fuser: The network with the weights that are kept.
        mix: The shares of its scores while it was trained.
        train: Fits the closed-form heads and gives the bank.
        val: Chooses shares and corrections.
        settings: Which heads the recipe asks for.
        names: The models whose own cosine is a score, in that order.
        device: Where the network runs.
        report: Is called with one line for each decision.
        trained: Whether the network is; an untrained one has no share.

    Returns:
        The heads. The score that they make is, on `val`, never less likely to find the right
        matches than the network's own.
    """
    val = val.subset(spread(val.images, MOST_IMAGES))
    found = embed(fuser, mix, val, device)
    cca = _cca(train, val, found, report) if settings.cca else None
    if cca is not None:
        found = replace(found, own=(*found.own, cca_pair(cca, val)))
    kernel = _kernel_cca(train, val, found, report) if settings.kernel_cca else None
    if kernel is not None:
        found = replace(found, own=(*found.own, kernel_pair(kernel, val)))
    closed = [name for name, head in (("cca", cca), ("kernel", kernel)) if head is not None]
    late = None
    if settings.late != "none" and found.nodes is None:
        late = choose_late(settings.late, train, val, found, report)
    if late is not None:
        found = with_tokens(found, val, late)
    matched = ["late" if late else "nodes"] if found.nodes else []
    labels = ["fused", *names, *closed, *matched]
    table = ScoreTable.of(found, val.images, device=str(device))
    shares = chosen_shares(
        table,
        labels,
        report,
        without=() if trained else (0,),
        costly=(len(labels) - 1,) if late is not None else (),
    )
    # From the last to the first, so that the places before stay as they are.
    for name in reversed(closed):
        place = labels.index(name)
        if shares[place] == 0:
            shares = (*shares[:place], *shares[place + 1 :])
            table = replace(table, scores_KIT=_without(table.scores_KIT, place))
            found = replace(found, own=(*found.own[: place - 1], *found.own[place:]))
            cca, kernel = (None, kernel) if name == "cca" else (cca, None)
    if late is not None and shares[-1] == 0:
        shares, late = shares[:-1], None
        table = replace(table, scores_KIT=table.scores_KIT[:-1])
        found = replace(found, nodes=None)
    heads = Heads(shares, cca, late=late, kernel=kernel)
    if settings.correct == "none":
        return heads
    cosines = 1 + len(found.own)
    found = replace(
        found,
        shares=shares[:cosines],
        node_share=shares[cosines] if len(shares) > cosines else 0.0,
    )
    bank = _bank(fuser, mix, heads, train, settings, device)
    return corrected(heads, found, table, bank, device, report)


def chosen_shares(
    table: ScoreTable,
    labels: Sequence[str],
    report: Callable[[str], None],
    without: Sequence[int] = (),
    costly: Sequence[int] = (),
) -> tuple[float, ...]:
    """Shares that sum to 1, 0 for scores that do not help on images that did not fit them.

    Args:
        table: The scores.
        labels: Their names.
        report: Is called with one line for each.
        without: Scores that have no share whatever they give.
        costly: Scores that must give `LEAST_GAIN_OF_LATE`.
    """
    least = {k: LEAST_GAIN_OF_LATE if k in costly else LEAST_GAIN for k in range(len(labels))}
    kept = [k for k in range(len(labels)) if k not in without] or [0]
    losses: dict[int, float] = {}
    loss = _held_out(table, kept)
    while len(kept) > 1:
        losses = {k: _held_out(table, [other for other in kept if other != k]) for k in kept}
        worst = min(losses, key=lambda k: losses[k] - least[k])
        if losses[worst] > loss + least[worst]:
            break
        report(f"{labels[worst]}: left out: right matches are as likely without it")
        kept.remove(worst)
        loss = losses[worst]
    part = replace(table, scores_KIT=table.scores_KIT[kept])
    found = tuned_shares(part)[0]
    shares = [0.0] * len(labels)
    for k, share in zip(kept, found, strict=True):
        shares[k] = share
        if len(kept) > 1:
            report(
                f"{labels[k]}: share {share:.2f}; without it right matches are "
                f"{losses[k] - loss:.3f} nats less likely"
            )
    return tuple(shares)


def _held_out(table: ScoreTable, kept: Sequence[int]) -> float:
    """`matching_loss` of each half of the images under weights that the other half fitted."""
    images = len(table.images_I)
    halves = [table.part(np.arange(first, images, 2)) for first in (0, 1)]
    losses = []
    for one, other in (halves, halves[::-1]):
        weights_K, _ = fit(replace(one, scores_KIT=one.scores_KIT[list(kept)]))
        part = replace(other, scores_KIT=other.scores_KIT[list(kept)])
        losses.append(score_loss(part, weights_K.tolist()))
    return float(np.mean(losses))


def _without(scores_KIT: torch.Tensor, k: int) -> torch.Tensor:
    return torch.cat([scores_KIT[:k], scores_KIT[k + 1 :]])


def _cca(train: Split, val: Split, found: Embedded, report: Callable[[str], None]) -> CCA | None:
    """The head of `train` that makes right matches of `val` most likely, beside other cosines."""
    image, caption = (side_by_side(train, side) for side in SIDES)
    if image is None or caption is None:
        report("cca: left out: no model has embeddings on both sides")
        return None
    few, worth = _beside_others(found, val)
    cca, facts = choose_cca(
        image, caption, train.caption_to_image, value=lambda head: worth(cca_pair(head, few))
    )
    report(f"cca: shrinkage {facts['shrinkage']:g}, width {facts['width']}")
    return cca


def _kernel_cca(
    train: Split, val: Split, found: Embedded, report: Callable[[str], None]
) -> KernelCCA | None:
    """The same of the head on pooled tokens."""
    if train.captions < 2:
        report("kernel: left out: there are fewer than two captions to fit it on")
        return None
    drawn = np.random.default_rng(0).permutation(train.images)[:MOST_IMAGES_OF_KERNEL]
    part = train.subset(np.sort(drawn))
    few, worth = _beside_others(found, val)
    few_image, few_caption = (pooled(few, side) for side in SIDES)

    def value(head: KernelCCA) -> float:
        return worth((head.encode("image", few_image), head.encode("caption", few_caption)))

    image, caption = (pooled(part, side) for side in SIDES)
    head, facts = choose_kernel_cca(image, caption, part.caption_to_image, value=value)
    report(f"kernel: shrinkage {facts['shrinkage']:g}, width {facts['width']}")
    return head


def _beside_others(found: Embedded, val: Split) -> tuple[Split, Callable[[Pair], float]]:
    """Images of `val` that choose a head, and what a head's cosines of them are worth.

    That is how likely right matches are when this cosine joins those that there are.
    """
    images = spread(val.images, MOST_IMAGES_OF_CCA)
    others = ScoreTable.of(replace(found, nodes=None), val.images).part(images)

    def worth(pair: Pair) -> float:
        scores_IT = torch.from_numpy(pair[0] @ pair[1].T)
        return -fit(replace(others, scores_KIT=torch.cat([others.scores_KIT, scores_IT[None]])))[1]

    return val.subset(images), worth


def _bank(
    fuser: Fuser,
    mix: ScoreMix,
    heads: Heads,
    train: Split,
    settings: ScoreSettings,
    device: torch.device,
) -> Bank:
    """Images drawn from the training split, with all their captions; nodes of the first ones."""
    drawn = np.random.default_rng(0).permutation(train.images)[: settings.bank]
    part = train.subset(drawn)
    light = replace(heads, late=None)
    cosines = light.applied(embed(fuser, mix, part, device, nodes=False), part, device).cosines()
    if fuser.nodes is None and heads.late is None:
        return Bank(cosines)
    few = train.subset(drawn[: settings.node_bank])
    found = embed(fuser, mix, few, device)
    if heads.late is not None:
        found = with_tokens(found, few, heads.late)
    return Bank(cosines, found.nodes)


def corrected(
    heads: Heads,
    found: Embedded,
    table: ScoreTable,
    bank: Bank,
    device: torch.device,
    report: Callable[[str], None],
) -> Heads:
    """The heads with what items pay for their popularity, where that helps.

    Args:
        heads: What is fitted so far, shares included.
        found: The embeddings of validation, with these heads.
        table: Which images and captions of validation choose.
        bank: Items of training; how near they are is what popularity is.
        device: Where nodes are matched.
        report: Is called with one line for each decision.
    """
    image, caption = found.cosines()
    caption_to_image = table.caption_to_image_T.numpy()
    bank_image, bank_caption = bank.cosines
    of_images = popularities(image, bank_caption, NEIGHBOURS)
    of_captions = popularities(caption, bank_image, NEIGHBOURS)
    correction = choose_correction(image @ caption.T, of_images, of_captions, caption_to_image)
    nodes: Correction | None = None
    if found.nodes is not None and found.node_share:
        ks = NEIGHBOURS_OF_NODES
        by_image, by_caption = node_popularity(found, bank, ks, ks, device=str(device))
        paid_I = correction.alpha_image * of_images[correction.k_image]
        paid_T = correction.alpha_caption * of_captions[correction.k_caption]
        nodes = choose_correction(
            table.total(heads.shares) - paid_I[:, None] - paid_T[None],
            dict(zip(ks, by_image, strict=True)),
            dict(zip(ks, by_caption, strict=True)),
            caption_to_image,
        )
    for what, one in (("the cosines", correction), ("the node matching", nodes)):
        if one is not None:
            report(f"correction of {what}: {_told(one)}")
    return replace(
        heads,
        correction=correction if _acts(correction) else None,
        node_correction=nodes if _acts(nodes) else None,
        bank=bank if _acts(correction) or _acts(nodes) else None,
    )


def _acts(correction: Correction | None) -> bool:
    return correction is not None and bool(correction.alpha_image or correction.alpha_caption)


def _told(correction: Correction) -> str:
    parts = [
        f"{what} pay {alpha:g} of the mean of {k}" if alpha else f"{what} pay nothing: no gain"
        for what, k, alpha in (
            ("images", correction.k_image, correction.alpha_image),
            ("captions", correction.k_caption, correction.alpha_caption),
        )
    ]
    return ", ".join(parts)
