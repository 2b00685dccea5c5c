"""Which patch answered which word: the node-to-node matching of an image and its caption.

Shape letters: M models, S nodes of an image, N nodes of a caption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hada.fuse.network.nodes import NodeMatcher
from hada.fuse.tokens.split import Split

# A model, its image token (-1 for its embedding), and their product.
Answer = tuple[int, int, float]


@dataclass(frozen=True)
class Matched:
    """One image and one caption, matched.

    patches: per model, for each of its image tokens the weight of the caption nodes that it
        answered: those whose largest product it has.
    words: per model, the weight of each of its caption tokens.
    answers: per model, for each of its caption tokens the model and the image token that answered
        it, and their product; a token number of -1 is that model's embedding.
    """

    patches: list[NDArray[np.float64]]
    words: list[NDArray[np.float64]]
    answers: list[list[Answer]]


@torch.no_grad()
def match(matcher: NodeMatcher, split: Split, image: int, caption: int) -> Matched:
    """Match an image with a caption, in the order in which the network has their nodes."""
    sides = []
    for side, item in (("image", image), ("caption", caption)):
        features = split.features(side, np.array([item])).to("cpu")  # type: ignore[arg-type]
        counts = [int(layout.lengths_B[0]) for layout in features.layouts]
        encoder = matcher.image if side == "image" else matcher.caption
        nodes = matcher.encode(side, features)  # type: ignore[arg-type]
        origin = [(m, n) for m, count in enumerate(counts) for n in range(count)]
        origin += [(int(m), -1) for m in encoder.embeddings]
        sides.append((nodes, origin, counts))
    (images, image_origin, image_counts), (captions, caption_origin, caption_counts) = sides
    products_NS = captions.vectors_SD @ images.vectors_SD.T
    best_N = products_NS.argmax(dim=1).tolist()
    weights_N = captions.weights_S.double().tolist()
    patches = [np.zeros(count) for count in image_counts]
    words = [np.zeros(count) for count in caption_counts]
    answers: list[list[Answer]] = [[] for _ in caption_counts]
    for n, (model, token) in enumerate(caption_origin):
        there, patch = image_origin[best_N[n]]
        if patch >= 0:
            patches[there][patch] += weights_N[n]
        if token >= 0:
            words[model][token] = weights_N[n]
            answers[model].append((there, patch, float(products_NS[n, best_N[n]])))
    return Matched(patches, words, answers)


def told(answer: Answer, models: Sequence[str], grids: Mapping[int, tuple[int, bool]]) -> str:
    """An answer in words.

    Args:
        answer: Which token answered.
        models: Names of the models.
        grids: Per model whose patches are a square grid its side, and whether its global token is
            the last one.

    >>> told((0, 5, 0.71), ["clip"], {0: (3, False)})
    "clip's patch in row 2, column 2 (0.71)"
    """
    model, token, product = answer
    name = models[model]
    if token < 0:
        return f"{name}'s embedding ({product:.2f})"
    patch = patch_of(answer, models, grids)
    if patch is not None:
        return f"{name}'s patch in row {patch[1] + 1}, column {patch[2] + 1} ({product:.2f})"
    if model in grids:
        return f"{name}'s global token ({product:.2f})"
    return f"{name}'s token {token + 1}"


def patch_of(
    answer: Answer, models: Sequence[str], grids: Mapping[int, tuple[int, bool]]
) -> tuple[str, int, int] | None:
    """Model, row and column (from 0) of the patch that answered; None where it is no patch.

    The arguments are those of `told`.

    >>> patch_of((0, 5, 0.71), ["clip"], {0: (3, False)})
    ('clip', 1, 1)
    """
    model, token, _ = answer
    side, last = grids.get(model, (0, False))
    patch = token if last else token - 1
    if token < 0 or not 0 <= patch < side * side:
        return None
    return models[model], *divmod(patch, side)
