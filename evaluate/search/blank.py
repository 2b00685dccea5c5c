"""Stores without items: what an `Encoder` needs to know of a run's models where none are stored."""

from __future__ import annotations

import numpy as np

from hada.extract.backbones import BackboneRequest, load_backbone
from hada.extract.common.errors import UsageError
from hada.extract.manifest import Manifest
from hada.extract.spec import StoreSpec
from hada.extract.store import StoreReader
from hada.extract.store.memory import MemoryStore
from hada.extract.variants.reduced import reduced
from hada.fuse.run_folder import RunFolder

# What features are stored in unless something else is asked for: new ones are rounded to it.
DTYPE = "float16"


def blank_stores(manifest: Manifest, run: RunFolder, device: str = "cpu") -> list[StoreReader]:
    """One store a model of the run, in its order, that holds nothing.

    Args:
        manifest: Names the models' families and weights.
        run: Its configuration names the models and which tokens of each it takes.
        device: Where the models are loaded to look at them.

    Raises:
        UsageError: The manifest has no such model.
        BackboneError: The weights cannot be loaded.
    """
    config = run.config()
    dataset = config["dataset"]
    stores: list[StoreReader] = []
    for name in config["models"]:
        request = BackboneRequest.of(manifest.model(name, dataset), dataset, device=device)
        backbone = load_backbone(request)
        tokens = config["features"][name].get("tokens")
        spec = (backbone if tokens is None else reduced(backbone, tokens)).spec
        if spec.image is None and spec.embedding_width is None:
            raise UsageError(f"model {name!r} gives neither tokens nor embeddings")
        stores.append(
            _empty(
                StoreSpec(
                    model=spec, dataset=dataset, split="query", dataset_digest="0", dtype=DTYPE
                )
            )
        )
    return stores


def _empty(spec: StoreSpec) -> StoreReader:
    width = spec.model.embedding_width
    sides = ("image", "caption")
    embeddings = {} if width is None else {side: np.zeros((0, width)) for side in sides}
    return MemoryStore(
        spec,
        {"image": [], "caption": []},
        np.zeros(0, np.int64),
        {"image": [], "caption": []},
        embeddings,  # type: ignore[arg-type]
    )
