"""The match head of a frozen model as a second stage: BLIP's and ALBEF's, from stored tokens.

The image tokens come from the store, the captions pass the model again with each of them. That is
slow, so every score is kept on disk (`pair_cache`).

Shape letters: I images, T captions, N tokens, D token width, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.frozen_model import load_frozen_model
from hada.evaluate.methods.gallery import Gallery, Pair
from hada.evaluate.methods.pair_cache import CachedHead, PairCache
from hada.evaluate.methods.rerank import read_data
from hada.evaluate.methods.seen import Fitted, of_store
from hada.extract.backbones.base import MatchingBackbone
from hada.extract.common.errors import UsageError
from hada.extract.manifest import Manifest
from hada.extract.store import StoreReader
from hada.fuse.ranking.counting import pair_scores
from hada.fuse.run_files.features import contents_of
from hada.fuse.run_files.sealed import digest_json

PAIRS_OF_A_MODEL = 256
PAIRS_AT_ONCE = 4096


@dataclass(frozen=True)
class ModelHead:
    """A frozen model's head, which encodes every pair again: slow, so for few results.

    `own` are its embeddings; `image_rows` lead to rows of the store; `ids` are the captions as
    the model's tokens.
    """

    backbone: Any
    store: StoreReader
    own: Pair
    image_rows: NDArray[np.int64]
    ids: Sequence[Sequence[int]]

    @property
    def name(self) -> str:
        """How a method is called that ends with it."""
        return f"{self.store.spec.model.name}'s match head"

    @property
    def description(self) -> str:
        """For the note of a method that is re-ranked by it."""
        return f"{self.name}, from stored image tokens"

    stage = "match head"
    seconds_per_pair = None

    @property
    def fitted(self) -> tuple[Fitted, ...]:
        """Of a frozen model, nothing that is known here."""
        return of_store(self.store)

    def logits(
        self, images_P: NDArray[np.int64], captions_P: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """(P,) logits of pairs, by their rows in the gallery."""
        result = np.empty(len(images_P), np.float32)
        # Captions of like length go together, so little is padded.
        order = np.argsort([len(self.ids[t]) for t in captions_P], kind="stable")
        for start in range(0, len(order), PAIRS_OF_A_MODEL):
            batch = order[start : start + PAIRS_OF_A_MODEL]
            rows, row_of = np.unique(self.image_rows[images_P[batch]], return_inverse=True)
            tokens = self.store.image.tokens(rows).reshape(len(rows), -1, self._width)
            pair = self.backbone.match_tokens(
                tokens.astype(np.float32)[row_of], [self.ids[t] for t in captions_P[batch]]
            )
            result[batch] = pair[:, 1]
        if not self.backbone.match_adds_cosine:
            return result
        return result + pair_scores(*self.own, images_P, captions_P).astype(np.float32)

    @property
    def _width(self) -> int:
        image = self.store.spec.model.image
        assert image is not None
        return image.width

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> ModelHead:
        """The same head on a subset: (i,) rows of images and (t,) rows of captions."""
        ids = [self.ids[t] for t in captions]
        own = (self.own[0][images], self.own[1][captions])
        return replace(self, own=own, image_rows=self.image_rows[images], ids=ids)


def model_head(manifest: Manifest, gallery: Gallery, name: str, device: str) -> CachedHead:
    """The matching head of a model whose store is in the gallery; its scores are kept on disk.

    Args:
        manifest: Names the model and the data set, and the runs beside which scores are kept.
        gallery: What is evaluated.
        name: Of the model.
        device: Where the model computes.

    Raises:
        UsageError: It has no such head, or its store does not hold the tokens as they were.
        DatasetError: The captions are not on this machine.
    """
    stores = [store for store in gallery.stores if store.spec.model.name == name]
    if not stores:
        raise UsageError(f"--rerank-with {name}: not among the models that are evaluated")
    store = stores[0]
    backbone = load_frozen_model(manifest, store, device)
    if not isinstance(backbone, MatchingBackbone):
        raise UsageError(
            f"--rerank-with {name}: family {store.spec.model.family!r} has no match head that "
            "works from stored tokens; blip and albef have"
        )
    if store.spec.model.image != backbone.spec.image:
        raise UsageError(
            f"--rerank-with {name}: {store.path} does not hold all image tokens as the model gave "
            "them; extract it again without --tokens"
        )
    data = read_data(manifest, store, name)
    ids = backbone.tokenize([data.captions[row] for row in gallery.caption_rows])
    own = gallery.own(store)
    assert own is not None, "a model with a match head has a joint space"
    head = ModelHead(backbone, store, own, gallery.image_rows, ids)
    file = f"match-{store.spec.split}-{name}.npz"
    key = digest_json(
        [contents_of(store), backbone.spec.weights_digest, backbone.spec.preprocessing]
    )
    cache = PairCache.open(Path(manifest.runs) / store.spec.dataset / file, key)
    return CachedHead(head, cache, gallery.image_rows, gallery.caption_rows, PAIRS_AT_ONCE)
