"""Number types of a store, and the conversions to and from them.

`bfloat16` has no NumPy type: it lies on disk as uint16, the upper half of a float32, and is
read as float32.

`int8` is for tokens: each token row is 127 steps of its own to either side of zero, and the size
of its step, a float32, lies in a second array. A value is code times step, read as float32, and
differs from what was stored by half a step at most. Embeddings, a thousandth of a store, stay
float16 beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# A magnitude of this many bits or more is infinite or NaN: the exponent is all ones.
_INFINITE = {"float16": 0x7C00, "float32": 0x7F80_0000, "bfloat16": 0x7F80}
# Small enough to stay in a processor's cache while it is looked at.
_BLOCK = 1 << 17
# Steps to either side of zero; -128 is not used.
_STEPS = 127
# Rows quantized at a time: a whole shard in float32 would be gigabytes.
_ROWS = 1 << 12
_SMALLEST_STEP = np.finfo(np.float32).tiny
# The upper half of float32's NaN.
_BFLOAT16_NAN = 0x7FC0
_NUMBERS = tuple(f"{kind}{8 * size}" for size in (1, 2, 4, 8) for kind in ("int", "uint"))
_NUMBERS += ("float16", "float32", "float64")


def on_disk(dtype: str) -> str:
    """NumPy's name of what lies on disk."""
    return "uint16" if dtype == "bfloat16" else dtype


def in_memory(dtype: str) -> np.dtype[Any]:
    """What a reader returns."""
    return np.dtype("float32" if dtype in ("bfloat16", "int8") else dtype)


def fill_value(dtype: str) -> float:
    """What an unwritten value holds on disk; it reads as NaN (of int8, its step does)."""
    return {"bfloat16": _BFLOAT16_NAN, "int8": 0}.get(dtype, np.nan)


def of_embeddings(dtype: str) -> str:
    """What a store of `dtype` keeps its embeddings in."""
    return "float16" if dtype == "int8" else dtype


def quantize(values: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(n, D) rows as int8 codes (n, D) and the step of each row (n, 1).

    A row of zeros has step 0. The step of a row with NaN or infinity in it is NaN or infinite,
    and its codes are 0. `codes * steps` gives the values back, each to half a step.

    >>> codes, steps = quantize(np.array([[-2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    >>> codes.tolist(), steps.round(4).tolist()
    ([[-127, 64, 0], [0, 0, 0]], [[0.015699999406933784], [0.0]])
    """
    codes = np.empty(values.shape, np.int8)
    steps = np.empty((len(values), 1), np.float32)
    for start in range(0, len(values), _ROWS):
        part = slice(start, start + _ROWS)
        with np.errstate(all="ignore"):
            wide = values[part].astype(np.float32)
            most = np.abs(wide).max(axis=1, keepdims=True, initial=0)
            # Below the smallest normal number a step would not be exact.
            step = np.where(most == 0, 0, np.maximum(most / np.float32(_STEPS), _SMALLEST_STEP))
            np.rint(np.divide(wide, step, out=wide), out=wide)
        wide[~np.isfinite(wide)] = 0
        codes[part], steps[part] = np.clip(wide, -_STEPS, _STEPS), step
    return codes, steps


def encode(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Numbers as they lie on disk, rounded to the nearest, ties to even.

    Args:
        values: Of any float type and shape.
        dtype: A type of NumPy by its name, or "bfloat16".

    Returns:
        The same shape; bfloat16 as the upper halves of float32, uint16. What is too large becomes
        infinite.
    """
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, dtype)
    with np.errstate(over="ignore"):
        wide = np.ascontiguousarray(values, np.float32)
    bits = wide.view(np.uint32)
    halves = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> 16).astype(
        np.uint16
    )
    # Rounding would carry a NaN's low bits into the exponent and beyond.
    halves[np.isnan(wide)] = _BFLOAT16_NAN
    return halves


def decode(stored: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The inverse of `encode`, as far as rounding allows.

    >>> decode(encode(np.array([1.0, -2.5, np.nan]), "bfloat16"), "bfloat16").tolist()
    [1.0, -2.5, nan]

    Args:
        stored: What `encode` gave.
        dtype: The one it was given.

    Returns:
        Floats of the same shape; float32 for "bfloat16".
    """
    if dtype != "bfloat16":
        return stored
    wide: NDArray[Any] = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return wide


def all_finite(stored: NDArray[Any], dtype: str) -> bool:
    """Whether encoded values are all finite; many times faster than `np.isfinite` on halves.

    >>> [all_finite(encode(np.array([1.0, x]), "float16"), "float16") for x in (-65504, 1e6)]
    [True, False]
    """
    limit = _INFINITE[dtype]
    bits = stored.reshape(-1).view(f"u{stored.dtype.itemsize}")
    sign = bits.dtype.type(2 ** (8 * bits.itemsize - 1) - 1)
    return all(
        int((bits[k : k + _BLOCK] & sign).max()) < limit for k in range(0, len(bits), _BLOCK)
    )


def number_type(name: Any) -> np.dtype[Any]:
    """The type of a plain number by NumPy's and Zarr's name; raises ValueError for other texts.

    `np.dtype` itself takes much more: it runs a parser of Python over what it does not know.
    """
    if name not in _NUMBERS:
        raise ValueError(f"dtype {name!r}")
    found: np.dtype[Any] = np.dtype(name)
    return found


def fill_bytes(fill: float, dtype: np.dtype[Any]) -> NDArray[np.uint8]:
    """One fill value as it lies on disk."""
    return np.frombuffer(np.array(fill).astype(dtype).tobytes(), np.uint8)


def filled_up(
    part: NDArray[np.uint8], n_bytes: int, fill: float, dtype: np.dtype[Any]
) -> NDArray[np.uint8]:
    """The bytes of a chunk as they lie on disk, where rows reach its end or not.

    Args:
        part: Its rows, flat.
        n_bytes: Of a whole chunk.
        fill: The value that stands where no row is.
        dtype: Of the values on disk.
    """
    if len(part) == n_bytes:
        return part
    one = fill_bytes(fill, dtype)
    return np.concatenate([part, np.tile(one, (n_bytes - len(part)) // len(one))])
