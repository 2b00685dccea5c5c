"""The nodes of a whole split, and the scores of two such sides, in bounded memory.

Shape letters: I images, T captions, S packed nodes, W node width, n items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from hada.fuse.network.maxsim import NodeSet, node_scores

CAPTIONS_AT_ONCE = 256
# Scores of one block, float32: 16 MiB.
BLOCK_NUMBERS = 1 << 22
# Numbers of image nodes that are widened to float32 at once: 256 MiB.
IMAGE_NUMBERS = 1 << 26


@dataclass(frozen=True)
class ItemNodes:
    """The nodes of n items, item after item.

    vectors_SW: float16, unit length. weights_S: float32, they sum to 1 over an item.
    lengths: (n,) nodes of each item.
    """

    vectors_SW: NDArray[np.float16]
    weights_S: NDArray[np.float32]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def joined(cls, sets: list[tuple[NDArray[np.int64], NodeSet]], count: int, width: int) -> Self:
        """All nodes out of blocks of (items, their nodes), in the order of items.

        `count` may be 0, of a side that a dataset has not.
        """
        lengths = np.zeros(count, np.int64)
        for items, nodes in sets:
            lengths[items] = nodes.lengths
        ends = np.cumsum(lengths)
        total = int(lengths.sum())
        vectors = np.empty((total, width), np.float16)
        weights = np.empty(total, np.float32)
        for items, nodes in sets:
            rows = _rows(ends[items] - lengths[items], lengths[items])
            vectors[rows] = nodes.vectors_SD.float().cpu().numpy()
            weights[rows] = nodes.weights_S.float().cpu().numpy()
        return cls(vectors, weights, lengths)

    def take(self, items: NDArray[np.int64]) -> Self:
        """The nodes of some items, in the order asked for."""
        starts = np.cumsum(self.lengths) - self.lengths
        rows = _rows(starts[items], self.lengths[items])
        return type(self)(self.vectors_SW[rows], self.weights_S[rows], self.lengths[items])

    def tensors(self, device: str | torch.device = "cpu") -> NodeSet:
        """The same as float32 tensors."""
        return NodeSet(
            torch.from_numpy(self.vectors_SW.astype(np.float32)).to(device),
            torch.from_numpy(self.weights_S).to(device),
            tuple(self.lengths.tolist()),
        )

    def weighted(self) -> list[NDArray[np.float16]]:
        """Per item (length, W): every vector times its weight, which its length then tells.

        So a store of plain tokens keeps both, and the sum of maxima of the products of a caption's
        rows with an image's unit vectors is the score's first part.
        """
        scaled = self.vectors_SW.astype(np.float32) * self.weights_S[:, None]
        items = np.split(scaled.astype(np.float16), np.cumsum(self.lengths)[:-1])
        return items if len(self) else []


def _rows(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of items that begin at `starts`."""
    shift = starts - (np.cumsum(lengths) - lengths)
    rows: NDArray[np.int64] = np.repeat(shift, lengths) + np.arange(int(lengths.sum()))
    return rows


@torch.no_grad()
def score_blocks(
    image: ItemNodes, caption: ItemNodes, mirror: float, *, device: str = "cpu"
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """The scores of all images with some captions after the other, in bounded memory.

    Beside the nodes as they are held there is a block of scores, and at most `IMAGE_NUMBERS`
    numbers of image nodes as float32 with one copy of them; more images come piece by piece.

    Args:
        image: Nodes of I images.
        caption: Nodes of T captions.
        mirror: See `hada.fuse.network.maxsim`.
        device: Where the products are computed.

    Yields:
        Which captions, and (I, that many) scores; nothing where a side is empty.
    """
    if not len(image) or not len(caption):
        return
    pieces = _pieces(image)
    most = max(1, BLOCK_NUMBERS // len(image))
    # Where images come in pieces, each caption block reads them all: larger blocks, fewer times.
    step = min(CAPTIONS_AT_ONCE, most) if len(pieces) < 2 else most
    held = image.tensors(device) if len(pieces) < 2 else None
    for first in range(0, len(caption), step):
        some = slice(first, min(first + step, len(caption)))
        captions = caption.take(np.arange(some.start, some.stop)).tensors(device)
        if held is not None:
            yield some, node_scores(held, captions, mirror).cpu().numpy()
            continue
        block = np.empty((len(image), some.stop - some.start), np.float32)
        for items in pieces:
            part = image.take(items).tensors(device)
            block[items] = node_scores(part, captions, mirror).cpu().numpy()
        yield some, block


def _pieces(image: ItemNodes) -> list[NDArray[np.int64]]:
    """Images in order, in pieces of about `IMAGE_NUMBERS` numbers."""
    numbers = np.cumsum(image.lengths * image.vectors_SW.shape[1])
    cuts = np.flatnonzero(np.diff(numbers // IMAGE_NUMBERS)) + 1
    return np.split(np.arange(len(image)), cuts)


def score_matrix(
    image: ItemNodes, caption: ItemNodes, mirror: float, *, device: str = "cpu"
) -> NDArray[np.float32]:
    """(I, T) scores of all images with all captions; the arguments are those of `score_blocks`."""
    scores_IT = np.empty((len(image), len(caption)), np.float32)
    for some, block in score_blocks(image, caption, mirror, device=device):
        scores_IT[:, some] = block
    return scores_IT


@torch.no_grad()
def pair_node_scores(
    image: ItemNodes,
    caption: ItemNodes,
    images_P: NDArray[np.int64],
    captions_P: NDArray[np.int64],
    mirror: float,
    *,
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Score some pairs by their nodes.

    Args:
        image: Nodes of I images.
        caption: Nodes of T captions.
        images_P: (P,) rows of images; pairs of one image are computed together.
        captions_P: (P,) rows of captions.
        mirror: The second direction's share, see `hada.fuse.network.maxsim`.
        device: Where to compute.

    Returns:
        (P,) scores.
    """
    result = np.empty(len(images_P), np.float32)
    order = np.argsort(images_P, kind="stable")
    bounds = np.flatnonzero(np.diff(images_P[order])) + 1
    for group in np.split(order, bounds) if len(order) else []:
        one = image.take(images_P[group[:1]]).tensors(device)
        others = caption.take(captions_P[group]).tensors(device)
        result[group] = node_scores(one, others, mirror)[0].cpu().numpy()
    return result
