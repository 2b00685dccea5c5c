"""A second stage by a cross-encoder of sentence-transformers, on image files and captions.

Shape letters: I images, T captions, P pairs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.evaluate.methods.gallery import EmbeddingMethod, Gallery, Method
from hada.evaluate.methods.pair_scores import PairScores
from hada.evaluate.methods.rerank import Reranked
from hada.evaluate.methods.seen import Fitted
from hada.extract.common.errors import HadaError, UsageError
from hada.extract.common.progress import progress
from hada.extract.datasets.image_files import ImageFile
from hada.extract.datasets.images import open_image
from hada.extract.datasets.read import read_dataset
from hada.extract.manifest import Manifest
from hada.fuse.ranking.ranks import Ranks

# --rerank-with cross-encoder:PATH-OR-ID
PREFIX = "cross-encoder:"
PAIRS_OF_A_BATCH = 16
# Scores are kept as often as this, and after the last pair.
KEEP_EVERY_S = 20.0


@dataclass(frozen=True)
class CrossEncoderHead:
    """Scores of pairs by a cross-encoder, which reads the image file and the caption each time.

    `images` and `captions` are those of the gallery; `image_rows` and `caption_rows` are their
    rows in the split, by which scores are kept in `known`.
    """

    model: Any
    images: Sequence[ImageFile]
    captions: Sequence[str]
    image_rows: NDArray[np.int64]
    caption_rows: NDArray[np.int64]
    known: PairScores
    fitted: tuple[Fitted, ...] = ()

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
        numbers = (self.image_rows[images_P] << 32) | self.caption_rows[captions_P]
        wanted, first = np.unique(numbers, return_index=True)
        missing = first[np.isnan(self.known.find(wanted))]
        if len(missing):
            self._score(numbers[missing], images_P[missing], captions_P[missing])
        return self.known.find(numbers)

    def _score(
        self,
        numbers: NDArray[np.int64],
        images_P: NDArray[np.int64],
        captions_P: NDArray[np.int64],
    ) -> None:
        """Score pairs that are not known, image by image, so that few files are open at once."""
        begun, done, kept = time.monotonic(), 0, 0
        scores = np.empty(len(numbers), np.float32)
        with progress(self.name, len(numbers), "pairs") as advance:
            while done < len(numbers):
                part = slice(done, done + PAIRS_OF_A_BATCH)
                opened = {row: open_image(self.images[row]) for row in set(images_P[part].tolist())}
                scores[part] = self.model.scores(
                    [self.captions[row] for row in captions_P[part]],
                    [opened[row] for row in images_P[part].tolist()],
                )
                if not np.isfinite(scores[part]).all():
                    raise HadaError(f"{self.name} gives NaN or infinity for a pair; not used")
                done = min(part.stop, len(numbers))
                advance(done - part.start)
                if done == len(numbers) or time.monotonic() - begun >= KEEP_EVERY_S:
                    now = time.monotonic()
                    self.known.add(numbers[kept:done], scores[kept:done], now - begun)
                    begun, kept = now, done

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> CrossEncoderHead:
        """The same head on a subset: (i,) rows of images and (t,) rows of captions."""
        return replace(
            self,
            images=[self.images[row] for row in images],
            captions=[self.captions[row] for row in captions],
            image_rows=self.image_rows[images],
            caption_rows=self.caption_rows[captions],
        )


@dataclass(frozen=True)
class CrossEncoded(Reranked):
    """A method whose first results are reordered by a cross-encoder; it says what a query costs.

    known: The scores that `head` keeps.
    """

    known: PairScores = field(kw_only=True)

    def ranks(self, caption_to_image: NDArray[np.int64], *, device: str = "cpu") -> Ranks:
        """Where the best positive of every query stands."""
        found = super().ranks(caption_to_image, device=device)
        # Known now: the mean over all pairs of this split that were ever scored.
        self.details["second_stage"]["seconds_per_pair"] = self.known.seconds_per_pair
        return found

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> CrossEncoded:
        """The same method on a subset: (i,) rows of images and (t,) rows of captions."""
        return replace(
            self,
            first=self.first.part(images, captions),
            head=self.head.part(images, captions),
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
    data = read_dataset(manifest.dataset(store.spec.dataset), store.spec.split)
    data = data.as_stored(store.spec.dataset_digest)
    if data.digest() != store.spec.dataset_digest:
        raise UsageError(
            f"--rerank-with {PREFIX}{place}: the captions here are not those of {store.path}"
        )
    model = CrossEncoder(place, device)
    key = hashlib.sha256(f"{model.digest} {data.digest()} {data.split}".encode()).hexdigest()[:24]
    known = PairScores(Path(manifest.runs) / data.name / ".pair-scores" / key)
    head = CrossEncoderHead(
        model,
        [data.image_paths[row] for row in gallery.image_rows],
        [data.captions[row] for row in gallery.caption_rows],
        np.asarray(gallery.image_rows, np.int64),
        np.asarray(gallery.caption_rows, np.int64),
        known,
    )
    firsts = [method for method in methods if isinstance(method, EmbeddingMethod)]
    runs = [method for method in firsts if method.kind == "hada"]
    pairs = {
        "i2t": min(depth, len(gallery.caption_rows)),
        "t2i": min(depth, len(gallery.image_rows)),
    }
    return [
        CrossEncoded(
            first, head, depth, details={"second_stage": {"pairs_per_query": pairs}}, known=known
        )
        for first in runs or [method for method in firsts if method.kind == "model"]
    ]
