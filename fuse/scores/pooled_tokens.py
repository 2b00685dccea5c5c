"""An item's stored tokens as one vector: what closed-form heads see of them.

Per model the global token, the mean and the largest value of the other tokens, each at unit
length; a model without tokens brings its embedding.

Shape letters: N items, S packed tokens, D token width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hada.extract.common.arrays import unit_rows
from hada.extract.common.errors import NonFiniteError
from hada.extract.spec import SideName
from hada.fuse.batch import Layout
from hada.fuse.tokens.split import Split

# Items whose tokens are read and widened at once.
ITEMS_AT_ONCE = 256


def pooled(split: Split, side: SideName) -> NDArray[np.float32]:
    """(n, D) the pools of a side's items, all models' side by side.

    Args:
        split: The items.
        side: Which side.

    Raises:
        NonFiniteError: A token is NaN or infinite.
    """
    blocks = list(pooled_blocks(split, side))
    return np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)


def pooled_blocks(split: Split, side: SideName) -> Iterator[NDArray[np.float32]]:
    """`pooled`, some items after the other, so that a large split need not be held.

    Args:
        split: The items.
        side: Which side.

    Yields:
        (N, D) pools of the next items.
    """
    count = len(split.rows(side))
    for first in range(0, count, ITEMS_AT_ONCE):
        some = np.arange(first, min(first + ITEMS_AT_ONCE, count))
        features = split.features(side, some)
        parts = []
        for shape, x_SD, layout in zip(
            split.shapes(side), features.nodes, features.layouts, strict=True
        ):
            pools = pools_of(x_SD.cpu().float(), layout) if shape.has_tokens else [x_SD.float()]
            parts += [unit_rows(pool.numpy()) for pool in pools]
        found = np.concatenate(parts, axis=1)
        if not np.isfinite(found).all():
            raise NonFiniteError(
                f"{side} tokens of {', '.join(map(str, (s.path for s in split.stores)))} are not "
                "finite; extract them again"
            )
        yield found


def pools_of(x_SD: Tensor, layout: Layout) -> list[Tensor]:
    """Global token, mean and largest values of the others: three times (N, D).

    An item that has no other token has its global one in all three.

    Args:
        x_SD: Packed tokens.
        layout: Where they lie; on the CPU.
    """
    global_ND = x_SD[layout.rows_B]
    rest_S = torch.ones(len(x_SD), dtype=torch.bool)
    rest_S[layout.rows_B] = False
    lengths_N = layout.lengths_B - 1
    rest_S[layout.rows_B[lengths_N == 0]] = True
    lengths_N = lengths_N.clamp_min(1)
    others_SD = x_SD[rest_S]
    mean_ND, most_ND = (
        torch.segment_reduce(others_SD, reduce, lengths=lengths_N, axis=0, unsafe=True)
        for reduce in ("mean", "max")
    )
    return [global_ND, mean_ND, most_ND]
