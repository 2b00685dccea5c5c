"""Where the bytes of an image lie: a file of its own, a member of a tar, a cell of a parquet file.

All three can be pickled, have `read_bytes` and are shown as text, so decoding threads and
processes do not know which they have.
"""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hada.extract.common.errors import DatasetError

# Open files that a process keeps: shards of a webdataset are read one after the other.
_OPEN_FILES = 16
_LARGEST_IMAGE = 512 * 2**20


@dataclass(frozen=True, slots=True)
class InTar:
    """A member of a tar: `size` bytes from `offset`. Nothing is unpacked."""

    file: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"

    def read_bytes(self) -> bytes:
        """The member's bytes; raises `DatasetError` where the tar has become shorter."""
        if self.size > _LARGEST_IMAGE:
            raise DatasetError(f"{self}: {self.size:,} bytes, which is no image")
        # Held until it is read: the cache may drop it, and what is dropped is closed.
        opened = _descriptor(self.file)
        data = os.pread(opened.number, self.size, self.offset)
        if len(data) != self.size:
            raise DatasetError(f"{self}: {len(data):,} of {self.size:,} bytes: the tar was cut")
        return data


@dataclass(frozen=True, slots=True)
class InParquet:
    """The image in row `row` of row group `group` of a parquet file.

    The column holds bytes, or records with a field `bytes`.
    """

    file: str
    column: str
    group: int
    row: int

    def __str__(self) -> str:
        return f"{self.file}:{self.column}[{self.group}:{self.row}]"

    def read_bytes(self) -> bytes:
        """The cell's bytes; raises `DatasetError` where it holds none."""
        # One at a time: a row group is large, and several threads want the same one.
        with _PARQUET:
            cells = _row_group(self.file, self.column, self.group)
        value = cells[self.row].as_py()
        if isinstance(value, dict):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise DatasetError(f"{self}: holds no bytes")
        return value


ImageFile = Path | InTar | InParquet


class _Descriptor:
    """An open file that closes itself when the cache drops it."""

    def __init__(self, file: str) -> None:
        self.number = os.open(file, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@functools.lru_cache(_OPEN_FILES)
def _descriptor(file: str) -> _Descriptor:
    return _Descriptor(file)


_PARQUET = threading.Lock()


@functools.lru_cache(2)
def _row_group(file: str, column: str, group: int) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=[column]).column(0)
