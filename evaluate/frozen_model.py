"""The one place where evaluation loads a frozen model.

Queries of a search, match heads, class names and tokenizers are encoded by the model that a store
was made with, so the store decides which weights are right.
"""

from __future__ import annotations

from typing import Any

from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.common.errors import StoreMismatchError
from hada.extract.manifest import Manifest
from hada.extract.store import StoreReader


def load_frozen_model(manifest: Manifest, store: StoreReader, device: str = "cpu") -> Any:
    """The frozen model that a store was made with.

    Args:
        manifest: Names the model's family, weights and options.
        store: A store of that model; its data set decides between weights that were fine-tuned.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        The backbone (`hada.extract.backbones.Backbone` or `RegionBackbone`).

    Raises:
        UsageError: The manifest has no such model, or the device is not there.
        BackboneError: The weights cannot be loaded.
        StoreMismatchError: The manifest's weights are not those that the store was made with.
    """
    name = store.spec.model.name
    backbone = load_backbone(
        BackboneRequest.of(
            manifest.model(name, store.spec.dataset), store.spec.dataset, device=device
        )
    )
    if backbone.spec.weights_digest != store.spec.model.weights_digest:
        raise StoreMismatchError(
            f"model {name!r}: {store.path} was extracted with other weights than the manifest "
            "names now; extract it again"
        )
    return backbone
