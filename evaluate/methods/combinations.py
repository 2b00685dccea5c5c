"""Methods made from frozen models and from trained runs: single, combined, fused.

Shape letters: I images, T captions, E embedding width, M models.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery, Pair, fitted_of
from hada.evaluate.methods.late import NodeMethod
from hada.evaluate.methods.seen import Fitted, of_run, of_store
from hada.fuse.ranking.ranks import rank_positives, recalls
from hada.fuse.scores.embedded import Embedded

if TYPE_CHECKING:
    from hada.extract.store import StoreReader
    from hada.fuse.run_folder import RunFolder

# Shares tried by the tuned sum: multiples of 1/20 for two models, coarser for more.
STEPS = {1: 1, 2: 20, 3: 10, 4: 6}
STEPS_FOR_MORE = 4


def single_models(gallery: Gallery) -> list[EmbeddingMethod]:
    """Each model with a joint space, alone: the cosine of its own embeddings."""
    pairs = [(store, gallery.own(store)) for store in gallery.stores]
    return [
        EmbeddingMethod(
            store.spec.model.name, "model", pair, "its own cosine", fitted=of_store(store)
        )
        for store, pair in pairs
        if pair is not None
    ]


def weighted_sum(methods: Sequence[EmbeddingMethod], shares: Sequence[float]) -> Pair:
    """Embeddings whose inner product is the sum of the methods' scores times their shares.

    sum_m s_m <a_m, b_m> is the inner product of the parts, each times sqrt(s_m), side by side.
    """
    kept = [(math.sqrt(s), method.pair) for s, method in zip(shares, methods, strict=True) if s > 0]
    image = np.concatenate([scale * pair[0] for scale, pair in kept], axis=1)
    caption = np.concatenate([scale * pair[1] for scale, pair in kept], axis=1)
    return image.astype(np.float32), caption.astype(np.float32)


def mean_of_cosines(models: Sequence[EmbeddingMethod]) -> EmbeddingMethod:
    """Every model's cosine with the same weight; nothing is trained or tuned."""
    shares = [1 / len(models)] * len(models)
    return EmbeddingMethod(
        "mean of cosines",
        "mean",
        weighted_sum(models, shares),
        "nothing trained",
        fitted=fitted_of(models),
    )


def tuned_sum(models: Sequence[EmbeddingMethod], tuning: Gallery) -> EmbeddingMethod:
    """The weighted sum of cosines with the best RSum on another split, by exhaustive search.

    Args:
        models: Single models on the evaluated split.
        tuning: The same models on the split that chooses the shares.
    """
    others = {method.name: method for method in single_models(tuning)}
    chosen = [others[method.name] for method in models]
    shares = max(_share_grid(len(models)), key=lambda s: _rsum(weighted_sum(chosen, s), tuning))
    weights = ", ".join(f"{method.name} {s:.2f}" for method, s in zip(models, shares, strict=True))
    return EmbeddingMethod(
        "weighted sum",
        "weighted",
        weighted_sum(models, shares),
        f"tuned on {tuning.stores[0].spec.split}: {weights}",
        {"shares": dict(zip((method.name for method in models), shares, strict=True))},
        (*fitted_of(models), Fitted.of(tuning.stores, "tuned on")),
    )


def fusions(run: Path, gallery: Gallery, device: str) -> list[EmbeddingMethod | NodeMethod]:
    """A trained run, applied to the gallery's stores: its one inner product, then its whole score.

    The two are the same, and one method, where the run matches no nodes.

    Args:
        run: The run's folder.
        gallery: Has a store of every model of the run.
        device: Where the network runs: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        RunError: The run does not fit the stores.
    """
    from hada.fuse.run_folder import RunFolder

    folder = RunFolder(run)
    config = folder.config()
    stores, embedded = embed_gallery(folder, gallery, device)
    fitted = (*of_run(config), *(entry for store in stores for entry in of_store(store)))
    name = f"HADA {folder.name}"
    details: dict[str, Any] = {"run": str(run), "shares": list(embedded.shares)}
    matched = embedded.nodes is not None and embedded.node_share > 0
    # The first method's score is corrected by what the second's is: a bank of training items.
    paid = embedded.penalties is not None, embedded.node_penalties is not None
    cosines = EmbeddingMethod(
        f"{name}, cosines" if matched else name,
        "hada",
        (embedded.image_IE, embedded.caption_TE),
        _note(embedded, matched=False),
        {**details, "corrected": paid[0]},
        fitted,
        embedded.cosines() if paid[0] else None,
    )
    if not matched:
        return [cosines]
    details = {**details, "node_share": embedded.node_share, "corrected": paid[1]}
    whole = NodeMethod(name, embedded, _note(embedded, matched=True), details, fitted)
    return [cosines, whole]


def embed_gallery(
    run: RunFolder, gallery: Gallery, device: str
) -> tuple[list[StoreReader], Embedded]:
    """A trained run applied to a gallery.

    Args:
        run: The run.
        gallery: Has a store of every model of the run.
        device: Where the network runs: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        (the stores of the run's models, the embeddings of the gallery's items).

    Raises:
        RunError: The run does not fit the stores.
    """
    from hada.fuse.embedding import embed_split

    names = run.config()["models"]
    stores = [store for store in gallery.stores if store.spec.model.name in names]
    embedded = embed_split(run, stores, device=device)
    # Another gallery model may have failed on more items than the run's own models did.
    images = np.searchsorted(embedded.image_rows, gallery.image_rows)
    captions = np.searchsorted(embedded.caption_rows, gallery.caption_rows)
    return stores, embedded.part(images, captions)


def _note(embedded: Embedded, *, matched: bool) -> str:
    """What a run's score is made of, for people."""
    total = sum(embedded.shares) + (embedded.node_share if matched else 0.0)
    parts = [f"fused {embedded.shares[0] / total:.2f}"]
    if others := sum(embedded.shares[1:]):
        parts.append(f"own cosines {others / total:.2f}")
    if matched:
        parts.append(f"nodes {embedded.node_share / total:.2f}")
    penalties = embedded.node_penalties if matched else embedded.penalties
    return " + ".join(parts) + (", corrected" if penalties is not None else "")


def _share_grid(models: int) -> list[tuple[float, ...]]:
    """All shares in steps that sum to 1, e.g. (0, 1), (0.05, 0.95), ... for two models."""
    steps = STEPS.get(models, STEPS_FOR_MORE)
    return [
        tuple(part / steps for part in parts)
        for parts in itertools.product(range(steps + 1), repeat=models)
        if sum(parts) == steps
    ]


def _rsum(pair: Pair, gallery: Gallery) -> float:
    return recalls(rank_positives(*pair, gallery.caption_to_image))["rsum"]
