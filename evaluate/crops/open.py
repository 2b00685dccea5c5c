"""Stored crops, opened beside the store of the model that they were made with.

Shape letters: I images, R rounds, N crops, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.gallery import Gallery
from hada.extract.common.arrays import unit_rows
from hada.extract.common.errors import StoreMismatchError
from hada.extract.store import open_store


@dataclass(frozen=True)
class Crops:
    """The stored crops of the images of a gallery: (I, E) whole images, (I, R, N, E) crops."""

    name: str
    image_IE: NDArray[np.float32]
    crops_IRNE: NDArray[np.float32]


def open_crops(path: str, gallery: Gallery) -> Crops:
    """The crops of a gallery's images.

    Raises:
        StoreMismatchError: They are of other images or another model.
    """
    store = open_store(path)
    own, spec = gallery.stores[0], store.spec.model
    settings = spec.preprocessing.get("crops")
    if not isinstance(settings, dict):
        raise StoreMismatchError(f"{path}: no store of crops; extract it with --crops")
    if spec.weights_digest != own.spec.model.weights_digest or list(store.image.ids) != list(
        own.image.ids
    ):
        raise StoreMismatchError(
            f"{path}: crops of another model or of other images than {own.path}; extract again"
        )
    rows = gallery.image_rows
    failed = int(store.image.failed[rows].sum())
    if failed:
        raise StoreMismatchError(f"{path}: {failed} images failed there that {own.path} has")
    rounds, count = settings["rounds"] + 1, settings["count"]
    tokens = store.image.tokens(rows).reshape(len(rows), 1 + rounds * count, -1)
    values = unit_rows(tokens.astype(np.float32)).astype(np.float32)
    return Crops(
        settings["name"], values[:, 0], values[:, 1:].reshape(len(rows), rounds, count, -1)
    )
