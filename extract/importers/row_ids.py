"""The ids that say which image or caption each row of a source belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hada.extract.common.array_files import map_npy
from hada.extract.common.console import say
from hada.extract.common.documents import LARGE_BYTES, decode, parse_json, read_bytes
from hada.extract.common.errors import DatasetError
from hada.extract.common.shapes import conform, shown
from hada.extract.datasets.matching import Source, match, require_all


def rows_of(wanted: Sequence[str], source: Source) -> NDArray[np.int64]:
    """The row of each wanted id; raises `DatasetError` where one is missing or ambiguous."""
    matches = match(wanted, source)
    rows = require_all(matches, wanted, source)
    if matches.note:
        say(f"note: {matches.note}")
    return rows


def read_ids(file: Path) -> list[str]:
    """The ids of a .txt (one a line), .json (a list) or .npy file, as text.

    Text is UTF-8; a byte order mark, CRLF and blank lines at the end are no part of it. An array
    has one dimension, and holds text, bytes (`S10`) of UTF-8 or whole numbers.
    """
    if file.suffix == ".npy":
        return _from_array(map_npy(file), file)
    text = decode(read_bytes(file, DatasetError, LARGE_BYTES), str(file), DatasetError)
    if file.suffix == ".json":
        return id_list(text, str(file))
    # Not `splitlines`, which also cuts at U+2028, form feeds and others that a name may hold.
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    if len(lines) == 1 and "\r" in lines[0]:
        raise DatasetError(f"{file}: lines end in a lone CR, expected LF or CRLF. Save it again")
    return lines if lines != [""] else []


def id_list(text: str, label: str) -> list[str]:
    """The ids of a JSON list of texts or whole numbers; `label` names it in messages."""
    ids: list[str | int] = conform(
        parse_json(text, label, DatasetError),
        list[str | int],
        label,
        DatasetError,
        "A JSON list of ids",
    )
    return [str(id_) for id_ in ids]


def _from_array(array: NDArray[np.generic], file: Path) -> list[str]:
    if array.dtype.kind not in "SUiu" or array.size != max(array.shape, default=0):
        raise DatasetError(
            f"{file}: {array.dtype} of shape {array.shape}, expected one id a row: text, bytes or "
            "whole numbers"
        )
    ids = array.reshape(-1).tolist()
    if array.dtype.kind != "S":
        return [str(id_) for id_ in ids]
    try:
        return [id_.decode() for id_ in ids]
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{file}: the id {shown(error.object)} is not UTF-8. Save the ids as text"
        ) from error
