"""Reads NumPy files from outside, .npz and .npy, with limits and without running anything.

What a header claims is compared with the bytes that are there before anything is allocated, no
pickle is opened, and whatever is wrong is an error of the caller's kind with file and array.
"""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.errors import DatasetError, HadaError

# A file of one image has megabytes; an index of a million captions has two gigabytes.
MOST_BYTES = 64 * 2**30
# How much larger an array may be than what is stored of it: plain, or packed by zlib.
_MOST_RATIO = (1, 1100)
_DAMAGE = (
    ValueError, TypeError, OSError, EOFError, KeyError, IndexError, OverflowError, AttributeError,
    SyntaxError, RuntimeError, NotImplementedError, RecursionError, ImportError,
    pickle.UnpicklingError, struct.error, tokenize.TokenError, zipfile.BadZipFile,
    zlib.error, UnicodeError,
)  # fmt: skip


class PickledError(Exception):
    """Arrays of objects, which are a pickle; callers say what is to be done."""


@contextlib.contextmanager
def opened(source: Path | bytes, where: str, error: type[HadaError]) -> Iterator[ArrayArchive]:
    """An .npz as an `ArrayArchive`.

    Everything that goes wrong inside the block, too, is an `error` in one line.

    Args:
        source: The file, or its bytes.
        where: The name of the file in messages.
        error: The kind of error for a file that is missing or damaged.

    Yields:
        The archive, open until the block ends.
    """
    try:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream,
            zipfile.ZipFile(stream) as archive,
        ):
            yield ArrayArchive(archive, stream.seek(0, io.SEEK_END))
    except (HadaError, PickledError):
        raise
    except FileNotFoundError as failure:
        raise error(f"{where}: no such file") from failure
    except IsADirectoryError as failure:
        raise error(f"{where}: a folder, expected an .npz file") from failure
    except _DAMAGE as failure:
        raise error(f"{where}: truncated or not an .npz file ({reason(failure)})") from failure


class ArrayArchive:
    """The arrays of an open .npz by name; `names` is their order in the file."""

    def __init__(self, archive: zipfile.ZipFile, length: int) -> None:
        self._length = length
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in self._members:
                raise ValueError(f"the array {name!r} is there twice")
            self._members[name] = info
        self._archive = archive
        self.names = list(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, from its header."""
        with self._archive.open(self._members[name]) as stream:
            return _header(stream, name)[0]

    def read(
        self, name: str, *, most: int = MOST_BYTES, allow_pickle: bool = False
    ) -> NDArray[Any]:
        """One array. Raises `PickledError` for objects, and an error of damage for the rest."""
        info = self._members[name]
        if info.flag_bits & 1:
            raise ValueError(f"{name!r} is encrypted")
        with self._archive.open(info) as stream:
            shape, dtype, start = _header(stream, name)
        size = _size(shape, dtype, name)
        if dtype.hasobject:
            if not allow_pickle:
                raise PickledError(name)
        elif size != info.file_size - start:
            raise ValueError(
                f"{name!r} has {info.file_size - start:,} bytes, its header says {size:,}"
            )
        packed = min(info.compress_size, self._length)
        if size > min(most, packed * _MOST_RATIO[info.compress_type != zipfile.ZIP_STORED]):
            raise ValueError(f"{name!r} says that it unpacks to {size:,} bytes")
        with self._archive.open(info) as stream:
            found: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=allow_pickle)
        return found


def read_npz(
    source: Path | bytes,
    where: str,
    error: type[HadaError],
    wanted: Sequence[str] | None = None,
    *,
    most: int = MOST_BYTES,
) -> dict[str, NDArray[Any]]:
    """Read the arrays that an .npz holds; no pickle is opened.

    Args:
        source: The file, or its bytes.
        where: Its name in messages.
        error: The kind of error that is raised for a damaged file, and for arrays of objects.
        wanted: Names of arrays, those that are missing left out; None for all.
        most: Most bytes of an array.

    Returns:
        Name -> array.
    """
    try:
        with opened(source, where, error) as archive:
            names = archive.names if wanted is None else [n for n in wanted if n in archive]
            return {name: archive.read(name, most=most) for name in names}
    except PickledError as pickled:
        raise pickles(where, error) from pickled


def pickles(where: str, error: type[HadaError]) -> HadaError:
    """The error for arrays of objects where numbers are expected."""
    return error(
        f"{where}: holds pickled objects where arrays are expected; opening them can run code, so "
        "HADA does not. Save the arrays again as plain numbers"
    )


def map_npy(path: Path, error: type[HadaError] = DatasetError) -> NDArray[Any]:
    """One array of a .npy, mapped and not read.

    Args:
        path: A local file.
        error: The kind of error for a file that is missing, damaged or no .npy.

    Returns:
        A read-only map of the file.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(4).startswith(b"PK"):
                raise error(f"{path}: an archive of arrays, expected one array (.npy)")
            stream.seek(0)
            shape, dtype, start = _header(stream, "the array")
            size, there = _size(shape, dtype, "the array"), stream.seek(0, io.SEEK_END) - start
        if dtype.hasobject:
            raise pickles(str(path), error)
        if size != there:
            raise ValueError(f"it has {there:,} bytes of numbers, its header says {size:,}")
        # Nothing can be mapped that has no bytes.
        found: NDArray[Any] = np.load(path, mmap_mode="r" if size else None, allow_pickle=False)
        return found
    except FileNotFoundError as failure:
        raise error(f"{path}: no such file") from failure
    except IsADirectoryError as failure:
        raise error(f"{path}: a folder, expected a .npy file") from failure
    except HadaError:
        raise
    except _DAMAGE as failure:
        raise error(f"{path}: truncated or not a plain .npy file ({reason(failure)})") from failure


def reason(failure: BaseException) -> str:
    """An exception's message on one line of moderate length."""
    text = " ".join(str(failure).split()) or type(failure).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def _header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and the bytes before the numbers."""
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None and version == (3, 0):  # 2.0 with names of fields in UTF-8: no plain numbers
        raise ValueError(f"{name!r} has named fields, expected plain numbers")
    if read is None:
        raise ValueError(f"{name!r} is of format {version[0]}.{version[1]}, expected 1.0 or 2.0")
    shape, _, dtype = read(stream)
    if not all(type(number) is int and number >= 0 for number in shape):
        raise ValueError(f"{name!r} has the shape {shape}")
    return shape, dtype, stream.tell()


def _size(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> int:
    size = math.prod(shape) * dtype.itemsize
    if math.prod(n for n in shape if n) * max(1, dtype.itemsize) >= 2**62 or len(shape) > 32:
        raise ValueError(f"{name!r} has the impossible shape {str(shape)[:60]}")
    return size
