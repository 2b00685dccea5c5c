"""Keeping fewer tokens than a model gives: `all`, `pool:K` or `none`.

`pool:K` keeps at most K rows an image: its global token as it is, and the others averaged in
K - 1 groups. Each token belongs to exactly one group. Where the others form a square grid and
K - 1 is a square too (`pool:17` of 576 patches: 4 x 4 cells of 6 x 6 patches), a group is a cell
of the grid, rows first; else it is a run of neighbours in their order, as equal as can be.
Captions are left as they are: they are short, and a word is not a patch.

`none` keeps embeddings alone, on both sides.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import UsageError
from hada.extract.spec import ModelSpec, TokenSpec

ALL, NONE, POOL = "all", "none", "pool:"


def pool_size(text: str) -> int | None:
    """K of `pool:K`, None for `all` and `none`; raises `UsageError` for anything else.

    >>> pool_size("pool:17")
    17
    """
    if text in (ALL, NONE):
        return None
    number = text.removeprefix(POOL)
    if text.startswith(POOL) and number.isascii() and number.isdigit() and 0 < int(number) < 2**20:
        return int(number)
    raise UsageError(
        f"--tokens {text!r}: expected all, none or pool:K with K from 1, as in pool:17"
    )


def describe(spec: TokenSpec | None) -> str:
    """What of a model's tokens is kept, in the words of `--tokens`."""
    if spec is None:
        return NONE
    return ALL if spec.pooled is None else f"{POOL}{spec.pooled}"


def reduced_spec(model: ModelSpec, tokens: str) -> ModelSpec:
    """The spec of a model of whose tokens only some are kept.

    Args:
        model: The spec of the whole model.
        tokens: Which tokens are kept, as --tokens says it: "all", "none" or "pool:K".

    Raises:
        UsageError: Nothing would be left, or the tokens are pooled otherwise already.
    """
    kept = pool_size(tokens)
    if tokens == NONE:
        if model.embedding_width is None:
            raise UsageError(
                f"--tokens none: model {model.name!r} has no joint space, so without its tokens "
                "nothing is left; use pool:1 to keep its global token"
            )
        return replace(model, image=None, caption=None)
    image = model.image
    if kept is None or image is None or (image.count is not None and kept >= image.count):
        return model
    if image.pooled is not None and kept != 1 and kept < image.pooled:
        raise UsageError(
            f"--tokens {tokens}: these are averages already ({describe(image)}), and averages of "
            "averages are others; begin with a store of all tokens"
        )
    if image.pooled is not None and kept >= image.pooled:
        return model
    return replace(
        model, image=replace(image, count=None if image.count is None else kept, pooled=kept)
    )


def pooled_lengths(lengths: NDArray[np.int64], kept: int | None) -> NDArray[np.int64]:
    """Rows that are left of each item's tokens.

    Args:
        lengths: (n,) rows of each item.
        kept: At most so many are left; None keeps all.
    """
    return lengths if kept is None else np.minimum(lengths, kept)


def pool(
    values: NDArray[Any], lengths: NDArray[np.int64], kept: int, *, global_last: bool = False
) -> NDArray[np.float32]:
    """Average the tokens of each item to at most `kept` rows, in float32.

    Args:
        values: (sum of lengths, D), item after item.
        lengths: (B,), each at least 1.
        kept: K; an item that is no longer stays as it is.
        global_last: The global token is an item's last row, not its first.

    Returns:
        (sum of `pooled_lengths`, D): the global token where it was, and the groups in order.
    """
    out = np.empty((int(pooled_lengths(lengths, kept).sum()), values.shape[1]), np.float32)
    place = start = 0
    for length, items in _runs(lengths):
        rows = values[start : start + length * items].reshape(items, length, -1)
        left = min(length, kept)
        part = out[place : place + left * items].reshape(items, left, -1)
        place, start = place + left * items, start + length * items
        part[:, -1 if global_last else 0] = rows[:, -1 if global_last else 0]
        first = 0 if global_last else 1
        for number, members in enumerate(groups(length - 1, left - 1)):
            # One group at a time: a sum down the token axis runs along the widths in memory, and
            # what an item gets does not depend on its neighbours in the batch.
            part[:, first + number] = rows[:, first + members].mean(axis=1, dtype=np.float32)
    return out


def _runs(lengths: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(length, how many items of that length follow each other)."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(lengths)) + 1, [len(lengths)]])
    return [
        (int(lengths[start]), int(stop - start))
        for start, stop in itertools.pairwise(edges.tolist())
        if stop > start
    ]


@functools.lru_cache(maxsize=256)
def groups(count: int, cells: int) -> tuple[NDArray[np.int64], ...]:
    """Which of `count` tokens are averaged into each of `cells` groups.

    >>> [group.tolist() for group in groups(5, 2)]
    [[0, 1, 2], [3, 4]]
    >>> [group.tolist() for group in groups(16, 4)][:2]
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    if not cells:
        return ()
    side, cell = math.isqrt(count), math.isqrt(cells)
    tokens = np.arange(count)
    if side * side == count and cell * cell == cells:
        owner = (tokens // side * cell // side) * cell + tokens % side * cell // side
    else:
        owner = tokens * cells // max(1, count)
    return tuple(np.flatnonzero(owner == number) for number in range(cells))
