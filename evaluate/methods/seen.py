"""Whether a method's parameters saw the items that it is evaluated on.

Splits are compared by content, not by name: by the digest of their ids and captions, and by the ids
of their images. Equal ids prove little, because many files count from 0 in every split, so the
embeddings of a model that both sides have must agree too. Without such a model, equal ids count
within a data set and not between two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.arrays import unit_rows
from hada.extract.common.errors import StoreError
from hada.extract.store import StoreReader, open_store
from hada.fuse.fitted import UNRECORDED, fitted_on

# The same image through the same model: more than views or rounding take away.
SAME_COSINE = 0.995


@dataclass(frozen=True)
class Fitted:
    """Data that parameters were fitted on, and how: "trained on", "tuned on", "stopped by".

    `dataset`, `split` and `digest` are None where they are not recorded; `stores` is empty where
    they cannot be opened.
    """

    how: str
    dataset: str | None
    split: str | None
    digest: str | None
    stores: tuple[StoreReader, ...] = ()

    @classmethod
    def of(cls, stores: Sequence[StoreReader], how: str) -> Fitted:
        """The split that these stores hold."""
        spec = stores[0].spec
        return cls(how, spec.dataset, spec.split, spec.dataset_digest, tuple(stores))

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "how": self.how,
            "dataset": self.dataset,
            "split": self.split,
            "dataset_digest": self.digest,
        }


def of_run(config: Mapping[str, Any]) -> tuple[Fitted, ...]:
    """What a run's configuration tells; its stores are opened where they still lie there."""
    return tuple(
        _entry(entry, config.get("paths", {}).get(entry["split"], ()))
        for entry in fitted_on(config)
    )


def of_store(store: StoreReader) -> tuple[Fitted, ...]:
    """What a store's model was fitted on: nothing, or where it holds a run's embeddings, its."""
    if store.spec.model.family != "hada":
        return ()
    entries = store.spec.model.preprocessing.get("fitted_on", [UNRECORDED])
    return tuple(_entry(entry, ()) for entry in entries)


def _entry(entry: Mapping[str, Any], paths: Sequence[str]) -> Fitted:
    digest = entry["dataset_digest"]
    stores = []
    for path in paths:
        try:
            store = open_store(path)
        except (StoreError, OSError):
            continue
        # What lies there now may have been made of other items since.
        if digest is None or store.spec.dataset_digest == digest:
            stores.append(store)
    return Fitted(entry["how"], entry["dataset"], entry["split"], digest, tuple(stores))


def saw(
    fitted: Sequence[Fitted], stores: Sequence[StoreReader], image_rows: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """The part of `fitted` that has evaluated images.

    Args:
        fitted: The data that a method's parameters come from.
        stores: The stores that are evaluated.
        image_rows: (I,) rows of the evaluated images in them.

    Returns:
        `how`, `dataset`, `split` and `images` for each. `images` is the number of evaluated images
        among them, None if only the name of the split shows that they are the same.
    """
    seen: list[dict[str, Any]] = []
    for entry in fitted:
        shared = _shared_images(entry, stores, image_rows)
        if shared != 0:
            plain = {key: entry.plain()[key] for key in ("how", "dataset", "split")}
            line = {**plain, "images": shared}
            if line not in seen:
                seen.append(line)
    return seen


def _shared_images(
    entry: Fitted, stores: Sequence[StoreReader], image_rows: NDArray[np.int64]
) -> int | None:
    spec = stores[0].spec
    if entry.digest is not None and entry.digest == spec.dataset_digest:
        return len(image_rows)
    if not entry.stores:
        return None if (entry.dataset, entry.split) == (spec.dataset, spec.split) else 0
    theirs = {id_: row for row, id_ in enumerate(entry.stores[0].image.ids)}
    ids = stores[0].image.ids
    rows = [(row, theirs[ids[row]]) for row in image_rows.tolist() if ids[row] in theirs]
    if not rows:
        return 0
    same = _same_images(stores, entry.stores, np.array(rows))
    return same if same is not None else len(rows) if entry.dataset == spec.dataset else 0


def _same_images(
    stores: Sequence[StoreReader], others: Sequence[StoreReader], rows_N2: NDArray[np.int64]
) -> int | None:
    """How many pairs of rows hold the same image, by the first model that both sides have.

    None where no model can tell.
    """
    there = {store.spec.model.name: store for store in others}
    for store in stores:
        other = there.get(store.spec.model.name)
        if other is None or other.spec.model.weights_digest != store.spec.model.weights_digest:
            continue
        one, two = (
            side.image.embeddings(rows)
            for side, rows in ((store, rows_N2[:, 0]), (other, rows_N2[:, 1]))
        )
        if one is None or two is None:
            continue
        a, b = one.astype(np.float64), two.astype(np.float64)
        return int(((unit_rows(a) * unit_rows(b)).sum(axis=1) > SAME_COSINE).sum())
    return None
