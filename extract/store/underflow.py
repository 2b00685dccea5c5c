"""Features below the range of a number type: half precision loses the digits of small numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.store import dtypes

# The largest relative error of rounding, and the smallest number that has it.
_UNIT = {"float16": 2.0**-11, "float32": 2.0**-24, "bfloat16": 2.0**-9}
_NORMAL = {"float16": 2.0**-14, "float32": 2.0**-126, "bfloat16": 2.0**-126}
# A row or an item may lose so many times as much as rounding takes of normal numbers.
_LEEWAY = 8
# Items looked at together.
_ITEMS = 1 << 12


def too_small(
    values: NDArray[Any], stored: NDArray[Any], dtype: str, lengths: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which items are so small that their encoding lost them: below its range, digits go first.

    An item is lost if encoding changed it, as one vector, by more than 8 times what rounding
    takes of numbers in range. Zeros lose nothing, and neither does a small row of a larger item.

    Args:
        values: (rows, D) numbers.
        stored: (rows, D) the same, encoded.
        dtype: What they were encoded to; not int8, which has a step of its own for every row.
        lengths: (n,) rows of each item, one after the other.

    Returns:
        (n,) true for an item that was lost.

    >>> values = np.array([[1.0, 2.0], [1e-7, 2e-7], [0.0, 0.0]])
    >>> halves = dtypes.encode(values, "float16")
    >>> too_small(values, halves, "float16", np.ones(3, np.int64)).tolist()
    [False, True, False]
    """
    width = stored.shape[1]
    lost = np.zeros(len(lengths), bool)
    bits = stored.view(f"u{stored.dtype.itemsize}")
    sign = bits.dtype.type(2 ** (8 * bits.itemsize - 1) - 1)
    # Only what lies below all this can have lost so much; looking at bits costs little.
    limit = dtypes.encode(np.array([_NORMAL[dtype] * (1 + width**0.5)]), dtype)
    highest = limit.view(bits.dtype)[0]
    ends = np.cumsum(lengths)
    starts = ends - lengths
    # Looking at one row of each item tells nearly all of them apart: that row has to be low, too.
    items = np.flatnonzero(lengths > 0)
    for start in range(0, len(items), _ITEMS):
        some = items[start : start + _ITEMS]
        for item in some[(bits[starts[some]] & sign).max(axis=1, initial=0) < highest].tolist():
            part = slice(starts[item], ends[item])
            if (bits[part] & sign).max(initial=0) >= highest:
                continue
            wide = values[part].astype(np.float64)
            change = np.linalg.norm(dtypes.decode(stored[part], dtype).astype(np.float64) - wide)
            lost[item] = change > _LEEWAY * _UNIT[dtype] * np.linalg.norm(wide)
    return lost
