"""What a run makes of a split, and its score.

Shape letters: I images, T captions, E embedding width, M models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.arrays import unit_rows
from hada.fuse.closed_form.correction import as_cosine, folded
from hada.fuse.scores.item_nodes import (
    CAPTIONS_AT_ONCE,
    ItemNodes,
    pair_node_scores,
    score_blocks,
)

# Of the images and of the captions.
Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Embedded:
    """What a run makes of one split; unpacks into `image_IE, caption_TE`.

    A run's score is the sum of the cosines, each with its share, and of the node matching's score
    with its own, less what each item pays for its popularity. All but the node matching is one
    inner product: that of `image_IE` and `caption_TE`, which ranks alone where there are no nodes
    and is the first of two stages where there are.

    fused_image, fused_caption: (I, E) and (T, E), unit length: the network alone.
    own: per model with a joint space, its own (I, E_m) and (T, E_m), unit length; then, where the
        run has one, the CCA head's.
    shares: (1 + len(own),) weights of those cosines in the run's score. They sum to 1, with
        `node_share` where there is one.
    image_rows, caption_rows: rows of the stores these items have there (failed ones are absent).
    caption_to_image: (T,) entry j is the row, here, of caption j's image.
    nodes: of the images and of the captions, where the run matches nodes; mirror: how.
    penalties: (I,) and (T,) what items pay in the sum of cosines, where the run corrects it;
    node_penalties: the same in the whole score.
    """

    fused_image: NDArray[np.float32]
    fused_caption: NDArray[np.float32]
    own: tuple[Pair, ...]
    shares: tuple[float, ...]
    image_rows: NDArray[np.int64]
    caption_rows: NDArray[np.int64]
    caption_to_image: NDArray[np.int64]
    nodes: tuple[ItemNodes, ItemNodes] | None = None
    node_share: float = 0.0
    mirror: float = 0.5
    penalties: Pair | None = None
    node_penalties: Pair | None = None

    @property
    def image_IE(self) -> NDArray[np.float32]:
        """Image embeddings whose cosine with `caption_TE` is the run's whole score."""
        return self._joined(0)

    @property
    def caption_TE(self) -> NDArray[np.float32]:
        """Caption embeddings; see `image_IE`."""
        return self._joined(1)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        yield self.image_IE
        yield self.caption_TE

    def unit(self) -> Pair:
        """(I, E) and (T, E) of unit length whose cosine ranks as `image_IE` and `caption_TE` do."""
        pair = self.image_IE, self.caption_TE
        if self.penalties is not None:
            return as_cosine(*pair)
        # The shares of the cosines sum to 1 only where nodes have none.
        return (unit_rows(pair[0]), unit_rows(pair[1])) if self.node_share else pair

    def cosines(self) -> Pair:
        """(I, E) and (T, E) whose inner product is the sum of cosines alone, uncorrected."""
        return self._parts(0), self._parts(1)

    def scores(self, *, device: str = "cpu") -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """The run's whole score, of all images with some captions after the other.

        Yields:
            Which captions, and (I, that many) scores.
        """
        image, caption = self.cosines()
        if self.nodes is None or not self.node_share:
            image, caption = self.image_IE, self.caption_TE
            for first in range(0, len(caption), CAPTIONS_AT_ONCE):
                some = slice(first, min(first + CAPTIONS_AT_ONCE, len(caption)))
                yield some, image @ caption[some].T
            return
        for some, block in score_blocks(*self.nodes, self.mirror, device=device):
            total = self.node_share * block + image @ caption[some].T
            if self.node_penalties is not None:
                by_image, by_caption = self.node_penalties
                total -= by_image[:, None] + by_caption[None, some]
            yield some, total

    def pair_scores(
        self, images_P: NDArray[np.int64], captions_P: NDArray[np.int64], *, device: str = "cpu"
    ) -> NDArray[np.float32]:
        """(P,) the run's whole score of some pairs."""
        image, caption = self.cosines()
        scores = np.einsum("pe,pe->p", image[images_P], caption[captions_P])
        penalties = self.penalties
        if self.nodes is not None and self.node_share:
            penalties = self.node_penalties
            scores += self.node_share * pair_node_scores(
                *self.nodes, images_P, captions_P, self.mirror, device=device
            )
        if penalties is not None:
            scores -= penalties[0][images_P] + penalties[1][captions_P]
        return np.asarray(scores, np.float32)

    def part(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Embedded:
        """Some images and some of their captions; `images` in ascending order."""

        def both(pair: Pair) -> Pair:
            return pair[0][images], pair[1][captions]

        fused = both((self.fused_image, self.fused_caption))
        nodes = self.nodes and (self.nodes[0].take(images), self.nodes[1].take(captions))
        return replace(
            self,
            fused_image=fused[0],
            fused_caption=fused[1],
            own=tuple(both(pair) for pair in self.own),
            image_rows=self.image_rows[images],
            caption_rows=self.caption_rows[captions],
            caption_to_image=np.searchsorted(images, self.caption_to_image[captions]),
            nodes=nodes,
            penalties=self.penalties and both(self.penalties),
            node_penalties=self.node_penalties and both(self.node_penalties),
        )

    def _joined(self, side: int) -> NDArray[np.float32]:
        if self.penalties is None:
            return self._parts(side)
        return folded(*self.cosines(), *self.penalties)[side]

    def _parts(self, side: int) -> NDArray[np.float32]:
        # sum_k w_k <a_k, b_k> is the inner product of the parts, each times sqrt(w_k).
        fused = self.fused_image if side == 0 else self.fused_caption
        parts = [fused, *(pair[side] for pair in self.own)]
        kept = [math.sqrt(w) * x for w, x in zip(self.shares, parts, strict=True) if w > 0]
        if not kept:
            # The nodes are all that counts: one zero an item, so that there is a product.
            return np.zeros((len(fused), 1), np.float32)
        return np.concatenate(kept, axis=1).astype(np.float32)
