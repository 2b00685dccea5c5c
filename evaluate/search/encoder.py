"""Queries encoded as the split that is searched was.

Shape letters: E embedding width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from hada.evaluate.frozen_model import load_frozen_model
from hada.evaluate.search.index import Query, own_embeddings
from hada.extract.backbones import RegionBackbone
from hada.extract.common.device import choose_device
from hada.extract.common.errors import UsageError
from hada.extract.datasets.images import open_image
from hada.extract.manifest import Manifest
from hada.extract.spec import SideName, StoreSpec
from hada.extract.store import StoreReader, open_store, write_store
from hada.fuse.embedding import Embedded, check_features, embed
from hada.fuse.run_folder import RunFolder
from hada.fuse.tokens.split import Split


class Encoder:
    """The frozen models, and the fusion where there is one, loaded once for any number of queries.

    A query becomes a store of one image and one caption, so that it passes through the same code as
    the split. The side that is not the query is filled with a placeholder whose result is unused.
    """

    def __init__(
        self,
        manifest: Manifest,
        stores: Sequence[StoreReader],
        device: str,
        run: RunFolder | None = None,
    ) -> None:
        """Load the models of the stores, and the run's fusion.

        Args:
            manifest: Names the models' families and weights.
            stores: Of the split that is searched, one per model of the run.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            run: The fusion behind the models; None for a single model.

        Raises:
            StoreMismatchError: The manifest's weights are not those of a store.
            UsageError: A model sees regions, so it cannot encode a query.
            RunError: The run does not fit the stores.
        """
        self._like = stores
        self._backbones = [load_frozen_model(manifest, store, device) for store in stores]
        for store, backbone in zip(stores, self._backbones, strict=True):
            if isinstance(backbone, RegionBackbone):
                name = store.spec.model.name
                raise UsageError(
                    f"model {name!r} sees regions, not images: it cannot encode a query"
                )
        self._fuse = None if run is None else self._fusion(run, device)

    def _fusion(self, run: RunFolder, device: str) -> Callable[[Sequence[StoreReader]], Embedded]:
        """The run's fusion as a function from the stores of a query to its embeddings."""
        fuser, mix = run.load_best()
        heads, config, recipe = run.load_heads(), run.config(), run.recipe()
        inputs = recipe.network.inputs
        for store, backbone in zip(self._like, self._backbones, strict=True):
            model = store.spec.model
            check_features(config["features"][model.name], store, run.path, inputs=inputs)
            if inputs == "as-is" and backbone.spec.normalized != model.normalized:
                raise UsageError(
                    f"{store.path}: holds embeddings of unit length, which model {model.name!r} "
                    "no longer gives, and this run takes them as they are; extract again"
                )
        first_only = recipe.features.first_tokens_only

        def fuse(stores: Sequence[StoreReader]) -> Embedded:
            split = Split(stores, first_tokens_only=first_only)
            return embed(fuser, mix, split, torch.device(choose_device(device)), heads)

        return fuse

    def text(self, text: str) -> Query:
        """A caption as a query."""
        if not text.strip():
            raise UsageError("the query is empty: expected a sentence, or --image FILE")
        return self._encode("caption", text, PIL.Image.new("RGB", (64, 64)))

    def image(self, path: Path) -> Query:
        """An image as a query; raises `ImageError` where it cannot be read."""
        return self._encode("image", "a picture", open_image(path))

    def _encode(self, side: SideName, text: str, query_image: PIL.Image.Image) -> Query:
        with tempfile.TemporaryDirectory(prefix="hada-query-") as folder:
            stores = []
            for number, backbone in enumerate(self._backbones):
                dtype = self._like[number].spec.dtype
                stores.append(_store_one(backbone, f"{folder}/{number}", text, query_image, dtype))
            if self._fuse is None:
                return Query(np.asarray(own_embeddings(stores[0], side)[0]))
            embedded = self._fuse(stores)
            vector = embedded.image_IE[0] if side == "image" else embedded.caption_TE[0]
            matched = embedded.nodes is not None and embedded.node_share > 0
            return Query(np.asarray(vector, np.float32), embedded if matched else None)


def _store_one(
    backbone: Any, path: str, text: str, query_image: PIL.Image.Image, dtype: str
) -> StoreReader:
    encoded: dict[SideName, Any] = {
        "image": backbone.encode_images(backbone.preprocess(query_image)[None]),
        "caption": backbone.encode_captions(backbone.tokenize([text])),
    }
    spec = StoreSpec(
        model=backbone.spec, dataset="query", split="query", dataset_digest="0", dtype=dtype
    )
    write_store(
        path,
        spec,
        ids={"image": ["query"], "caption": ["query"]},
        caption_to_image=np.zeros(1, np.int64),
        tokens={s: [e.values] for s, e in encoded.items() if e.values is not None},
        embeddings={s: e.embeddings for s, e in encoded.items() if e.embeddings is not None}
        or None,
    )
    return open_store(path)
