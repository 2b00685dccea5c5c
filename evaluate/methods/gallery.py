"""The images and captions of a split, and what a method is.

A method is a way of scoring. Most are a pair of embeddings whose inner product is the score, so one
exact ranking serves them all; the fusion of rankings and re-ranking have ranks of their own. All
methods of a comparison are made from the same stores, on the same images and captions.

Shape letters: I images, T captions, E embedding width, M models.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.rank_fusion import RRF_CONSTANT, fused_ranks
from hada.evaluate.methods.seen import Fitted, of_run, of_store
from hada.extract.common.errors import NonFiniteError, StoreError
from hada.extract.store import StoreReader
from hada.fuse.ranking.ranks import Ranks, rank_positives, recalls
from hada.fuse.tokens.split import check_together

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
# Shares tried by the tuned sum: multiples of 1/20 for two models, coarser for more.
STEPS = {1: 1, 2: 20, 3: 10, 4: 6}
STEPS_FOR_MORE = 4


@dataclass(frozen=True)
class Gallery:
    """The images and captions of one split that every model could read.

    Attributes:
        stores: One store per model, all of the same items.
        image_rows: (I,) rows of the images in the stores.
        caption_rows: (T,) rows of the captions in the stores.
        caption_to_image: (T,) entry j is the image of caption j, as a number from 0 to I - 1.
    """

    stores: tuple[StoreReader, ...]
    image_rows: NDArray[np.int64]
    caption_rows: NDArray[np.int64]
    caption_to_image: NDArray[np.int64]

    @classmethod
    def of(cls, stores: Sequence[StoreReader]) -> Gallery:
        """Raises `StoreMismatchError` where the stores are not of the same items."""
        check_together(stores)
        first = stores[0]
        for side in (first.image, first.caption):
            if len(set(side.ids)) != len(side.ids):
                twice = next(id_ for id_, count in Counter(side.ids).items() if count > 1)
                raise StoreError(
                    f"{first.path}: {side.side} id {twice!r} appears twice, so queries would be "
                    "counted twice; extract the split again"
                )
        image_of = np.asarray(first.caption_to_image, np.int64)
        bad_image = np.any([store.image.failed for store in stores], axis=0)
        good = ~np.any([store.caption.failed for store in stores], axis=0) & ~bad_image[image_of]
        used = np.bincount(image_of[good], minlength=len(bad_image)) > 0
        if not good.any():
            raise StoreError(f"{first.path}: no image with a caption is readable in every store")
        return cls(
            stores=tuple(stores),
            image_rows=np.flatnonzero(used),
            caption_rows=np.flatnonzero(good),
            caption_to_image=(np.cumsum(used) - 1)[image_of[good]],
        )

    def own(self, store: StoreReader) -> Pair | None:
        """A model's own embeddings at unit length; None where it has no joint space."""
        image, caption = store.image.embeddings(), store.caption.embeddings()
        if image is None or caption is None:
            return None
        return (
            _unit(image[self.image_rows], f"{store.path}: image embeddings"),
            _unit(caption[self.caption_rows], f"{store.path}: caption embeddings"),
        )


class Method(Protocol):
    """A way of scoring: a name, a kind, and ranks on demand."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def note(self) -> str: ...

    @property
    def details(self) -> dict[str, Any]: ...

    @property
    def fitted(self) -> tuple[Fitted, ...]: ...

    def ranks(self, caption_to_image: NDArray[np.int64], *, device: str = "cpu") -> Ranks:
        """Rank of the best positive of every query; `caption_to_image` as in `rank_positives`."""
        ...

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Method:
        """The same on some of the images and captions."""
        ...


@dataclass(frozen=True)
class EmbeddingMethod:
    """One way of scoring: `image_IE @ caption_TE.T`. `note` says how it was made.

    `fitted` is all data that its parameters come from, its models' included.
    """

    name: str
    kind: str
    pair: Pair
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    fitted: tuple[Fitted, ...] = ()

    def ranks(self, caption_to_image: NDArray[np.int64], *, device: str = "cpu") -> Ranks:
        """Rank of the best positive of every query; `caption_to_image` as in `rank_positives`."""
        return rank_positives(*self.pair, caption_to_image, device=device)

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> EmbeddingMethod:
        """The same method on some of the images and captions."""
        return replace(self, pair=(self.pair[0][images], self.pair[1][captions]))


@dataclass(frozen=True)
class RankFusion:
    """Reciprocal-rank fusion of other methods; it has ranks, but no embeddings of its own.

    score = sum over models of 1 / (constant + rank), ranks counted from 1 (Cormack, Clarke and
    Buettcher, SIGIR 2009, with their constant of 60).
    """

    models: tuple[EmbeddingMethod, ...]
    constant: float = RRF_CONSTANT
    name: str = "reciprocal ranks"
    kind: str = "rrf"
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """How it was made."""
        return f"sum of 1 / ({self.constant:g} + rank), nothing trained"

    @property
    def fitted(self) -> tuple[Fitted, ...]:
        """What its models were fitted on."""
        return fitted_of(self.models)

    def ranks(self, caption_to_image: NDArray[np.int64], *, device: str = "cpu") -> Ranks:
        """Where the best positive of every query stands. Always on the CPU: it sorts."""
        return fused_ranks([method.pair for method in self.models], caption_to_image, self.constant)

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> RankFusion:
        """The same method on some of the images and captions."""
        return replace(self, models=tuple(method.part(images, captions) for method in self.models))


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


def fitted_of(methods: Sequence[EmbeddingMethod]) -> tuple[Fitted, ...]:
    """All that several methods were fitted on."""
    return tuple(entry for method in methods for entry in method.fitted)


def weighted_sum(methods: Sequence[EmbeddingMethod], shares: Sequence[float]) -> Pair:
    """Embeddings whose inner product is the sum of the methods' scores times their shares.

    sum_m s_m <a_m, b_m> is the inner product of the parts, each times sqrt(s_m), side by side.
    """
    kept = [(math.sqrt(s), method.pair) for s, method in zip(shares, methods, strict=True) if s > 0]
    image = np.concatenate([scale * pair[0] for scale, pair in kept], axis=1)
    caption = np.concatenate([scale * pair[1] for scale, pair in kept], axis=1)
    return image.astype(np.float32), caption.astype(np.float32)


def reciprocal_ranks(models: Sequence[EmbeddingMethod]) -> RankFusion:
    """Every model's ranking with the same weight; nothing is trained or tuned."""
    return RankFusion(tuple(models))


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
    """The weighted sum of cosines with the best RSum on another split, by exhaustive search."""
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


def fusion(run: Path, gallery: Gallery, device: str) -> EmbeddingMethod:
    """A trained run, applied to the gallery's stores; its score is what it was trained to give.

    Raises `RunError` where the run does not fit the stores.
    """
    from hada.fuse.embedding import embed_split
    from hada.fuse.run_folder import RunFolder

    folder = RunFolder(run)
    config = folder.config()
    names = config["models"]
    stores = [store for store in gallery.stores if store.spec.model.name in names]
    found = embed_split(folder, stores, device=device)
    # Another gallery model may have failed on more items than the run's own models did.
    images = np.searchsorted(found.image_rows, gallery.image_rows)
    captions = np.searchsorted(found.caption_rows, gallery.caption_rows)
    image, caption = found
    own = f" + own cosines {1 - found.shares[0]:.2f}" if found.shares[0] < 1 else ""
    return EmbeddingMethod(
        f"HADA {folder.name}",
        "hada",
        (image[images], caption[captions]),
        f"fused {found.shares[0]:.2f}{own}",
        {"run": str(run), "shares": list(found.shares)},
        (*of_run(config), *(entry for store in stores for entry in of_store(store))),
    )


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


def _unit(values: NDArray[Any], what: str) -> NDArray[np.float32]:
    wide = values.astype(np.float32)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(length[:, 0]) | (length[:, 0] == 0))
    if bad.size:
        raise NonFiniteError(f"{what}: {bad.size} rows are zero or not finite; extract them again")
    return np.asarray(wide / length, np.float32)
