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


def pack(values: NDArray[np.int64]) -> str:
    """An array as text.

    >>> unpack(pack(np.array([3, 1]))).tolist()
    [3, 1]
    """
    return base64.b64encode(zlib.compress(values.astype("<i4").tobytes(), 9)).decode()


def unpack(text: str) -> NDArray[np.int64]:
    """Back from `pack`; raises `UsageError` where the text is damaged."""
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4").astype(np.int64)
    except (binascii.Error, zlib.error, ValueError, TypeError) as error:
        raise UsageError(f"the packed ranks of a result are damaged ({error})") from error


def pack_ranks(ranks: Ranks) -> dict[str, str]:
    """All that `Ranks` holds, as texts."""
    return {name: pack(values) for name, values in vars(ranks).items()}


def unpack_ranks(packed: dict[str, Any]) -> Ranks:
    """Back from `pack_ranks`."""
    names = Ranks.__dataclass_fields__
    if set(packed) != set(names):
        raise UsageError(f"the packed ranks of a result: expected {', '.join(names)}")
    return Ranks(**{name: unpack(text) for name, text in packed.items()})
