"""What the fusion's global nodes look at: the patches of each model, and the words of a caption.

Shape letters: B items, R readers (the global nodes), H heads, M models, L padded tokens.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hada.extract.common.errors import UsageError
from hada.extract.spec import SideName
from hada.fuse.network.fuser import Fuser
from hada.fuse.network.global_layer import GraphLayer
from hada.fuse.tokens.split import Split


@torch.no_grad()
def attention(
    fuser: Fuser, split: Split, side: SideName, items: NDArray[np.int64]
) -> list[list[NDArray[np.float64]]]:
    """GATv2's weights on each model's tokens, mean over global nodes and heads.

    Returns:
        Per item, per model, one weight for every token in its own order; a global token's is
        what the global nodes give to it. All weights of an item sum to 1.

    Raises:
        UsageError: The run has no graph, or one in which not the global nodes alone read.
    """
    branch = fuser.image if side == "image" else fuser.caption
    if not isinstance(branch.graph, GraphLayer):
        raise UsageError("this run's graph has no single attention of its global nodes to show")
    features = split.features(side, items).to("cpu")
    alpha = branch.graph.attention.attend(branch.nodes(features), features.layouts)[0]
    mean_BX = alpha.double().mean(dim=(1, 2)).numpy()
    models = len(features.layouts)
    by_item: list[list[NDArray[np.float64]]] = [[] for _ in items]
    start = models
    for model, layout in enumerate(features.layouts):
        lengths = layout.lengths_B.numpy()
        tokens_BL = layout.tokens_BL.numpy()
        longest = tokens_BL.shape[1]
        for item, length in enumerate(lengths):
            weights = np.zeros(length)
            if longest > 1:
                weights = mean_BX[item, start : start + length].copy()
            # The first M weights are those on the global nodes, whose own place holds 0.
            weights[np.flatnonzero(~tokens_BL[item, :length])[0]] = mean_BX[item, model]
            by_item[item].append(weights)
        start += longest if longest > 1 else 0
    return by_item


def grid(weights: NDArray[np.float64], *, global_last: bool) -> NDArray[np.float64] | None:
    """(S, S) weights of square patches, row by row; None where the tokens are no square grid."""
    patches = weights[:-1] if global_last else weights[1:]
    side = math.isqrt(len(patches))
    return patches.reshape(side, side) if side > 1 and side * side == len(patches) else None


def word_spans(caption: str, tokens: int, backbone: Any) -> list[tuple[str, int, int]] | None:
    """Each word of a caption with the rows of its tokens; None where the pieces do not add up.

    A word's tokens are counted by tokenising it alone: BPE and WordPiece never join two words.
    """
    words = caption.split()
    counts = [len(ids) for ids in backbone.tokenize([*words, ""])]
    marks = counts.pop()  # the tokens around every text
    pieces = [count - marks for count in counts]
    spec = backbone.spec.caption
    extra = 1 if spec is not None and spec.global_source == "pooled" else 0
    if sum(pieces) + marks + extra != tokens or marks not in (1, 2):
        return None
    ends = 1 + extra + np.cumsum(pieces)
    return [
        (word, int(end - count), int(end))
        for word, count, end in zip(words, pieces, ends, strict=True)
    ]
