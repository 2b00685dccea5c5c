"""Arrays in one .npz that NumPy opens, laid out so that they can be mapped instead of read.

`np.savez` puts arrays where they fall; BLAS copies what is not aligned, for every product anew.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNED = 64
# A local header without name and extra field; the extra field's head: a number of our own, length.
_HEADER, _EXTRA = 30, struct.Struct("<HH")
_FILLER = 0xD935
_LARGE = 1 << 31


def packed(arrays: Mapping[str, NDArray[Any]]) -> memoryview:
    """The bytes of an uncompressed .npz whose arrays begin at multiples of 64."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, values in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            large = values.nbytes >= _LARGE
            # zipfile adds 20 bytes to a large file's extra field.
            start = buffer.tell() + _HEADER + len(info.filename) + _EXTRA.size + 20 * large
            filler = -start % ALIGNED
            info.extra = _EXTRA.pack(_FILLER, filler) + bytes(filler)
            with archive.open(info, "w", force_zip64=large) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(values), allow_pickle=False)
    return buffer.getbuffer()


def mapped(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of `packed`, mapped read-only; those of zero bytes are read.

    Raises:
        ValueError: The file is not one of `packed`.
        zipfile.BadZipFile: It is no zip.
    """
    found: dict[str, NDArray[Any]] = {}
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{info.filename} is compressed")
            file.seek(info.header_offset)
            header = file.read(_HEADER)
            name, extra = struct.unpack("<HH", header[26:30])
            file.seek(info.header_offset + _HEADER + name + extra)
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(file)
            if dtype.hasobject or fortran:
                raise ValueError(f"{info.filename} holds objects, or columns first")
            key = info.filename.removesuffix(".npy")
            if not dtype.itemsize or not np.prod(shape):
                found[key] = np.empty(shape, dtype)
                continue
            found[key] = np.memmap(file, dtype, "r", file.tell(), shape)
    return found
