"""A second stage by a cross-encoder of sentence-transformers, on image files and captions.

Shape letters: I images, T captions, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery, Method
from hada.evaluate.methods.pair_cache import CachedHead, PairCache
from hada.evaluate.methods.rerank import Reranked, read_data
from hada.evaluate.methods.seen import Fitted
from hada.extract.common.errors import HadaError
from hada.extract.datasets.image_files import ImageFile
from hada.extract.datasets.images import open_image
from hada.extract.manifest import Manifest
from hada.fuse.run_files.sealed import digest_json

# --rerank-with cross-encoder:PATH-OR-ID
PREFIX = "cross-encoder:"
PAIRS_OF_A_BATCH = 16


@dataclass(frozen=True)
class CrossEncoderHead:
    """Scores of pairs by a cross-encoder, which reads the image file and the caption each time.

    `images` and `captions` are those of the gallery.
    """

    model: Any
    images: Sequence[ImageFile]
    captions: Sequence[str]
    fitted: tuple[Fitted, ...] = ()
    stage: str = "cross-encoder"
    seconds_per_pair: float | None = None

    @property
    def name(self) -> str:
        """How a method is called that ends with it."""
        return f"cross-encoder {self.model.name}"

    @property
    def description(self) -> str:
        """For the note of a method that is re-ranked by it."""
        return f"the cross-encoder {self.model.name}, on image files and captions"

    def logits(
        self, images_P: NDArray[np.int64], captions_P: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """(P,) scores of pairs, by their rows in the gallery."""
        scores_P = np.empty(len(images_P), np.float32)
        # Image by image, so that few files are open at once.
        order = np.argsort(images_P, kind="stable")
        for start in range(0, len(order), PAIRS_OF_A_BATCH):
            part = order[start : start + PAIRS_OF_A_BATCH]
            opened = {row: open_image(self.images[row]) for row in set(images_P[part].tolist())}
            scores_P[part] = self.model.scores(
                [self.captions[row] for row in captions_P[part]],
                [opened[row] for row in images_P[part].tolist()],
            )
        if not np.isfinite(scores_P).all():
            raise HadaError(f"{self.name} gives NaN or infinity for a pair; not used")
        return scores_P

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> CrossEncoderHead:
        """The same head on a subset: (i,) rows of images and (t,) rows of captions."""
        return replace(
            self,
            images=[self.images[row] for row in images],
            captions=[self.captions[row] for row in captions],
        )


def cross_encoded(
    manifest: Manifest, gallery: Gallery, methods: Sequence[Method], place: str, depth: int,
    device: str,
) -> list[Method]:  # fmt: skip
    """The second stages by a cross-encoder: of every run, and of the models where there is none.

    Args:
        manifest: Names the data set, and where runs lie, beside which scores are kept.
        gallery: What is evaluated.
        methods: All first stages.
        place: The cross-encoder's folder or id.
        depth: So many first results of a query are reordered.
        device: Where the model computes.

    Raises:
        UsageError: sentence-transformers is not installed, or the captions are not those of the
            stores.
        CheckpointError: The place holds no cross-encoder of images and captions.
        DatasetError: The images are not on this machine.
    """
    from hada.extract.backbones.cross_encoder import CrossEncoder

    store = gallery.stores[0]
    data = read_data(manifest, store, f"{PREFIX}{place}")
    model = CrossEncoder(place, device)
    key = digest_json([model.digest, data.digest(), data.split])
    file = f"cross-encoder-{data.split}-{model.digest[:12]}.npz"
    cache = PairCache.open(Path(manifest.runs) / data.name / file, key)
    head = CachedHead(
        CrossEncoderHead(
            model,
            [data.image_paths[row] for row in gallery.image_rows],
            [data.captions[row] for row in gallery.caption_rows],
        ),
        cache,
        np.asarray(gallery.image_rows, np.int64),
        np.asarray(gallery.caption_rows, np.int64),
        PAIRS_OF_A_BATCH,
    )
    firsts = [method for method in methods if isinstance(method, EmbeddingMethod)]
    runs = [method for method in firsts if method.kind == "hada"]
    return [
        Reranked(first, head, depth)
        for first in runs or [method for method in firsts if method.kind == "model"]
    ]
