"""Whole numbers of every item inside a JSON result: small, exact and one line.

A packed array is the base64 text of its zlib-compressed little-endian int32 values:
`numpy.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4")`.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import UsageError
from hada.fuse.ranking.ranks import Ranks

_MOST = 2**31


def pack(values: NDArray[np.int64]) -> str:
    """An array as text.

    >>> unpack(pack(np.array([3, 1]))).tolist()
    [3, 1]
    """
    return base64.b64encode(zlib.compress(values.astype("<i4").tobytes(), 9)).decode()


def unpack(text: str, count: int | None = None) -> NDArray[np.int64]:
    """Back from `pack`: `count` numbers, any where None; raises `UsageError` for damage."""
    most = _MOST if count is None else 4 * count
    try:
        inflate = zlib.decompressobj()
        raw = inflate.decompress(base64.b64decode(text, validate=True), most + 1)
        if not inflate.eof or len(raw) > most or (count is not None and len(raw) != most):
            raise ValueError(f"expected {count if count is not None else 'whole'} numbers")
        return np.frombuffer(raw, "<i4").astype(np.int64)
    except (binascii.Error, zlib.error, ValueError, TypeError) as error:
        raise UsageError(f"the packed ranks of a result are damaged ({error})") from error


def pack_ranks(ranks: Ranks) -> dict[str, str]:
    """All that `Ranks` holds, as texts."""
    return {name: pack(values) for name, values in vars(ranks).items()}


def unpack_ranks(
    packed: dict[str, Any], images: int | None = None, captions: int | None = None
) -> Ranks:
    """Unpack ranks.

    Args:
        packed: What `pack_ranks` returned.
        images: How many images there must be; None for any number.
        captions: Likewise.

    Raises:
        UsageError: It is of other numbers of items, or damaged.
    """
    names = Ranks.__dataclass_fields__
    if set(packed) != set(names):
        raise UsageError(f"the packed ranks of a result: expected {', '.join(names)}")
    counts = {name: images if name.startswith("i2t") else captions for name in names}
    return Ranks(**{name: unpack(text, counts[name]) for name, text in packed.items()})
