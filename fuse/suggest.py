"""Which models are worth fusing, computed from their stores: `hada-fuse suggest`.

A fusion can gain where models err on different queries. Nothing is trained: each model's own
cosines are compared on the same images and captions.

Shape letters: I images, T captions, K models of a combination.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.arrays import evenly_spread, unit_rows
from hada.extract.common.console import say
from hada.extract.common.errors import HadaError, StoreError
from hada.extract.common.progress import progress
from hada.extract.common.terminal import console
from hada.extract.manifest import Manifest
from hada.extract.store import open_store, stores_below
from hada.fuse.ranking.ranks import KS, Ranks, rank_matrix, recalls
from hada.fuse.tokens.split import Split
from hada.fuse.untrained import Embeddings, hubness, without_training

LARGEST = 3
# Combinations that are also fitted in closed form, about two seconds each, and images that fit.
MOST_FITTED, MOST_TRAIN = 12, 5000


@dataclass(frozen=True)
class Scored:
    """One model: (I, T) cosines, their ranks, and each image's scores around their mean."""

    name: str
    scores_IT: NDArray[np.float32]
    ranks: Ranks
    centred_IT: NDArray[np.float32]

    @classmethod
    def of(
        cls, name: str, scores_IT: NDArray[np.float32], caption_to_image: NDArray[np.int64]
    ) -> Scored:
        """Rank a model's scores."""
        centred = scores_IT - scores_IT.mean(axis=1, keepdims=True)
        return cls(name, scores_IT, rank_matrix(scores_IT, caption_to_image), unit_rows(centred))

    @property
    def rsum(self) -> float:
        """Of the model alone."""
        return recalls(self.ranks)["rsum"]


def look(
    manifest: Manifest,
    dataset: str,
    split: str,
    models: Sequence[str],
    *,
    most_images: int,
    train_split: str = "train",
) -> dict[str, Any]:
    """Everything that `hada-fuse suggest` prints, the most promising combination first.

    Args:
        manifest: Where stores are.
        dataset: Its name there.
        split: The split whose cosines are looked at.
        models: Their names; all that have a store of the split where there are none.
        most_images: Look at this many images at most, evenly spread.
        train_split: Fits the CCA head and is the bank of the correction, for the first
            combinations, where its stores are there.

    Raises:
        StoreError: No model with a joint space has a store of the split.
    """
    folder = Path(manifest.store_path(dataset, split, "any")).parent
    names = list(models) or [path.name for path in stores_below(folder)]
    if not names:
        raise StoreError(
            f"no stores in {folder}; extract first: hada-extract --dataset {dataset} "
            f"--split {split}"
        )
    part = Split(
        [open_store(manifest.store_path(dataset, split, n)) for n in names], in_memory=False
    )
    kept = evenly_spread(part.images, most_images)
    captions = part.captions_of(kept)
    caption_to_image = np.searchsorted(kept, part.caption_to_image[captions])
    scored, items = _cosines(part, names, kept, captions, caption_to_image)
    if not scored:
        raise StoreError(f"{dataset}/{split}: none of {', '.join(names)} has a joint space")
    found = [
        combine(some, caption_to_image)
        for size in range(1, LARGEST + 1)
        for some in itertools.combinations(scored, size)
    ]
    found.sort(key=lambda entry: -entry["mean_rsum"])
    train = _train(manifest, dataset, train_split, [model.name for model in scored])
    if train is not None:
        looked_at = Embeddings(tuple(items), caption_to_image)
        numbers = {model.name: k for k, model in enumerate(scored)}
        first = found[:MOST_FITTED]
        with progress("closed form", len(first), "combinations") as advance:
            for entry in first:
                chosen = [numbers[name] for name in entry["models"]]
                entry |= without_training(looked_at.some(chosen), train.some(chosen))
                advance(1)
    return {
        "dataset": dataset,
        "split": split,
        "images": len(kept),
        "captions": len(captions),
        "combinations": found,
    }


def _cosines(
    part: Split,
    names: Sequence[str],
    images: NDArray[np.int64],
    captions: NDArray[np.int64],
    caption_to_image: NDArray[np.int64],
) -> tuple[list[Scored], list[tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    """The models that have a joint space: their scores, and (I, E) and (T, E) as stored."""
    scored, items = [], []
    for model, name in enumerate(names):
        image, caption = (part.sources[side][model].embeddings for side in ("image", "caption"))
        if image is None or caption is None or image.shape[1] != caption.shape[1]:
            say(f"{name}: no joint space, so no cosine of its own to look at")
            continue
        stored = image[part.image_rows[images]], caption[part.caption_rows[captions]]
        items.append((stored[0].astype(np.float32), stored[1].astype(np.float32)))
        unit_IE, unit_TE = (unit_rows(side) for side in items[-1])
        scored.append(Scored.of(name, unit_IE @ unit_TE.T, caption_to_image))
    return scored, items


def _train(manifest: Manifest, dataset: str, split: str, names: Sequence[str]) -> Embeddings | None:
    """Embeddings of a part of the training split; None where a store is missing."""
    try:
        part = Split(
            [open_store(manifest.store_path(dataset, split, n)) for n in names], in_memory=False
        )
    except HadaError as error:
        say(f"nothing of correction and closed form: {error}")
        return None
    kept = evenly_spread(part.images, MOST_TRAIN)
    captions = part.captions_of(kept)
    models = []
    for model in range(len(names)):
        image, caption = (part.sources[side][model].embeddings for side in ("image", "caption"))
        if image is None or caption is None:
            return None
        models.append(
            (
                np.asarray(image[part.image_rows[kept]], np.float32),
                np.asarray(caption[part.caption_rows[captions]], np.float32),
            )
        )
    return Embeddings(tuple(models), np.searchsorted(kept, part.caption_to_image[captions]))


def combine(models: Sequence[Scored], caption_to_image: NDArray[np.int64]) -> dict[str, Any]:
    """What is known of one combination before training it; RSums in percent."""
    alone = {model.name: model.rsum for model in models}
    total = sum((model.scores_IT for model in models[1:]), start=models[0].scores_IT)
    mean = (
        recalls(rank_matrix(total, caption_to_image))["rsum"]
        if len(models) > 1
        else max(alone.values())
    )
    union, missed = 0.0, []
    for way in ("i2t_hits", "t2i_hits"):
        for k in KS:
            hits = np.array([getattr(model.ranks, way)(k) for model in models])
            union += 100.0 * float(hits.max(axis=0).mean())
            if k == 1:
                missed.append(hits < 1)
    missed_KQ = np.concatenate(missed, axis=1)
    any_missed = int(missed_KQ.any(axis=0).sum())
    pairs = list(itertools.combinations(models, 2))
    alike = [float((a.centred_IT * b.centred_IT).sum(axis=1).mean()) for a, b in pairs]
    return {
        "models": [model.name for model in models],
        "alone_rsum": alone,
        "hubness": {model.name: hubness(model.scores_IT) for model in models},
        "mean_rsum": mean,
        "gain": mean - max(alone.values()),
        "union_rsum": union,
        "union_gain": union - max(alone.values()),
        "error_overlap": int(missed_KQ.all(axis=0).sum()) / any_missed if any_missed else 0.0,
        "score_correlation": sum(alike) / len(alike) if alike else 1.0,
    }


def render(found: dict[str, Any]) -> str:
    """The table, for people."""
    from rich.table import Table

    table = Table(
        title=f"{found['dataset']}/{found['split']}: {found['images']:,} images, "
        f"{found['captions']:,} captions, each model's own cosine",
        caption="union: RSum if the better model were known for every query. overlap: missed at "
        "R@1 by all, of those missed by any. alike: correlation of scores. Low is good. "
        "corrected, with CCA, both: RSum without training, by the training split, chosen on these "
        "images. hubs: skewness of how often an image is among the first ten. Low is good.",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("models", overflow="fold")
    names = ("mean\nRSum", "gain", "cor-\nrected", "with\nCCA", "both", "union\nRSum", "gain")
    for name in (*names, "overlap", "alike", "hubs"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in found["combinations"]:
        several = len(entry["models"]) > 1
        free = [
            f"{entry[name]:.1f}" if name in entry else ""
            for name in ("corrected_rsum", "cca_rsum", "cca_corrected_rsum")
        ]
        cells = [f"{entry['union_rsum']:.1f}", f"{entry['union_gain']:+.1f}"]
        cells += [f"{100 * entry['error_overlap']:.0f} %", f"{entry['score_correlation']:.2f}"]
        table.add_row(
            " + ".join(entry["models"]),
            f"{entry['mean_rsum']:.1f}",
            f"{entry['gain']:+.1f}" if several else "",
            *free,
            *(cells if several else [""] * len(cells)),
            "" if several else f"{next(iter(entry['hubness'].values())):.1f}",
        )
    text = io.StringIO()
    console(file=text, width=100).print(table)
    return text.getvalue().rstrip()
