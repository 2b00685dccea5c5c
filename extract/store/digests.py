"""The hash that binds a store's parts to each other, and the form in which records are hashed.

XXH3-128 runs at four times the speed of crc32c and at 26 times that of SHA-256 (docs/store.md),
so it costs nothing beside a disk. It tells accidents apart, not forgeries: whoever can write a
store can also write its digests. A crc32c of a whole file cannot do even that, where the file's
chunks end in their own: it is the same for all contents.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import xxhash
from numpy.typing import NDArray

from hada.extract.common import remote

NAME = "xxh3-128"
_BLOCK = 1 << 22
# A checksum over memory that the processor has not at hand takes three times as long as one over
# a block of so many bytes that was read, copied or hashed just before.
HOT = 1 << 18


def canonical(value: Any) -> bytes:
    r"""A JSON value as the bytes that are hashed: keys sorted, no spaces, ASCII.

    >>> canonical({"b": [1, "é"], "a": None})
    b'{"a":null,"b":[1,"\\u00e9"]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def of_json(value: Any) -> str:
    """Digest of a JSON value, 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(canonical(value))


def of_array(values: NDArray[Any]) -> str:
    """Digest of an array's elements in C order, little-endian; shape and type are not in it."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return xxhash.xxh3_128_hexdigest(little.reshape(-1).view(np.uint8).data)


def crc32c(data: NDArray[np.uint8]) -> int:
    """crc32c of bytes that need not lie in the processor's cache: of a copy, which does.

    That takes half the time: copying fetches memory far ahead, the checksum does not.
    """
    near, found = np.empty(min(len(data), HOT), np.uint8), 0
    for start in range(0, len(data), HOT):
        block = near[: len(data) - start]
        block[:] = data[start : start + HOT]
        found = google_crc32c.extend(found, block)
    return int(found)


def of_file(path: Path) -> str:
    """Digest of a local or remote file's bytes."""
    state = xxhash.xxh3_128()
    if remote.is_remote(path):
        for data in remote.blocks(path, remote.file_size(path)):
            state.update(data)
    else:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                state.update(block)
    return state.hexdigest()


def pack_crcs(crcs: NDArray[np.uint32]) -> str:
    """A table of crc32c as text: little-endian, base64."""
    return base64.b64encode(np.asarray(crcs, "<u4").tobytes()).decode()


def unpack_crcs(text: str) -> NDArray[np.uint32]:
    """Back from `pack_crcs`; raises ValueError for another text.

    >>> unpack_crcs(pack_crcs(np.array([1, 2**32 - 1], np.uint32))).tolist()
    [1, 4294967295]
    """
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<u4")
    except (binascii.Error, TypeError) as error:
        raise ValueError(f"not a table of checksums ({error})") from error
