"""Parses JSON and JSON lines from outside; an error is one line with its place.

Every document of a user, of another program or of an earlier run goes through here, so that a
damaged, hostile or foreign one ends in an error of the caller's kind with the file and the place,
and never in an exception of a parser. Sizes, depth and the length of numbers have limits that no
honest file meets. `shapes.conform` then checks the shape of a value against a type; the arrays'
and tensors' side of this is in `array_files` and `tensor_files`, YAML's in `yamlnodes`.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

from hada.extract.common.errors import HadaError, UsageError
from hada.extract.common.shapes import shown

MIB = 2**20
# Markers, configurations, labels; a caption file or a result may be as large as the other.
SMALL_BYTES, LARGE_BYTES = 32 * MIB, 2048 * MIB
DEPTH = 64
# 64-bit integers have no more, and Python reads no more than 4,300.
DIGITS = 19

_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_FOREIGN = (
    (b"\x1f\x8b", "gzip-compressed: unpack it first (gunzip)"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"PAR1", "a parquet file"),
)
# Outside of strings: what no JSON is, or a number that is too long.
_STRING = r'"(?:[^"\\]|\\.)*"'
_ODD = re.compile(rf"{_STRING}|(NaN|-?Infinity)|(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)")

_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class _RefusedError(Exception):
    """Raised by the parser's hooks: what is wrong."""


def read_bytes(path: Path, error: type[HadaError], most: int, absent: str = "") -> bytes:
    """Read a file's bytes.

    Args:
        path: The file; it may lie behind a URL.
        error: The kind of error that every failure is raised as; its text names the file.
        most: Most bytes: a larger file is refused.
        absent: What to do where there is no such file; it ends the message.
    """
    from hada.extract.common import remote

    large = error(
        f"{path}: more than {most:,} bytes: this is another kind of file, or a damaged one"
    )
    try:
        data = remote.read_bytes(path) if remote.is_remote(path) else _read(path, most, large)
    except FileNotFoundError as failure:
        raise error(f"{path}: no such file. {absent}".rstrip()) from failure
    except IsADirectoryError as failure:
        raise error(f"{path}: a folder, expected a file") from failure
    except OSError as failure:
        raise error(f"{path}: cannot be read ({failure.strerror or failure})") from failure
    except ValueError as failure:  # a NUL in the name
        raise error(f"{str(path)!r}: no name of a file ({failure})") from failure
    if len(data) > most:
        raise large
    return data


def _read(path: Path, most: int, large: HadaError) -> bytes:
    """The file; of a pipe or a device at most one piece more than `most`."""
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        if stat.S_ISREG(status.st_mode):
            if status.st_size > most:
                raise large
            return stream.read()
        parts, total = [], 0
        while total <= most and (part := stream.read(MIB)):
            parts.append(part)
            total += len(part)
        return b"".join(parts)


def decode(data: bytes, where: str, error: type[HadaError]) -> str:
    """Decode UTF-8 text.

    Args:
        data: UTF-8, with or without its mark.
        where: Its name in messages.
        error: The kind of error that is raised for other encodings, which it names.
    """
    for start, what in _FOREIGN:
        if data.startswith(start):
            raise error(f"{where}: {what}, expected text")
    for mark, name in _MARKS:
        if data.startswith(mark):
            raise error(
                f"{where}: {name} text, expected UTF-8. Convert it: iconv -f {name} -t UTF-8"
            )
    if (hole := data.find(b"\0")) >= 0:
        raise error(
            f"{where}: a NUL byte at byte {hole:,}: the file is damaged (a write that never "
            "reached the disk leaves them), or no text. Make it or fetch it again"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        line, column = data.count(b"\n", 0, failure.start) + 1, failure.start
        column -= data.rfind(b"\n", 0, failure.start)
        raise error(
            f"{where}, line {line}, column {column}: not UTF-8 text (byte "
            f"0x{data[failure.start]:02x}). Save it as UTF-8"
        ) from failure


def parse_json(
    data: bytes | str,
    where: str,
    error: type[HadaError] = UsageError,
    *,
    finite: bool = True,
    unique: bool = True,
    halves: bool = False,
    digits: int = DIGITS,
    depth: int = DEPTH,
    remedy: str = "",
) -> Any:
    """A JSON document as plain values.

    Args:
        data: The document.
        where: Its name in messages.
        error: The kind of error that is raised.
        finite: Refuse NaN, Infinity and numbers that overflow to it.
        unique: Refuse a key that is written twice in one mapping (the last would win silently).
        halves: Let halves of surrogate pairs pass, which no file or terminal can be given.
        digits: Most digits of a whole number.
        depth: Most mappings and lists in one another.
        remedy: What to do about a broken document.
    """
    text = data if isinstance(data, str) else decode(data, where, error)
    tail = f". {remedy}" if remedy else ""

    def fail(what: str, place: int | None) -> NoReturn:
        raise error(f"{where}: broken JSON{_place(text, place)}: {what}{tail}")

    try:
        value = json.loads(
            text,
            parse_int=_whole(digits),
            parse_float=_fraction if finite else float,
            parse_constant=_constant if finite else None,
            object_pairs_hook=_mapping if unique else None,
        )
    except json.JSONDecodeError as failure:
        what = failure.msg if text.strip() else "the file is empty"
        fail(what[:1].lower() + what[1:], failure.pos)
    except _RefusedError as refusal:
        fail(str(refusal), _odd_place(text, digits, finite))
    except RecursionError:
        fail(f"nested more than {depth} deep", None)
    if _deeper(value, depth):
        fail(f"nested more than {depth} deep", None)
    if not halves and (half := _HALF.search(text)) and not _encodes(value):
        fail("half of a surrogate pair, which is no character", half.start())
    return value


def read_json(
    path: Path,
    error: type[HadaError] = UsageError,
    *,
    most: int = SMALL_BYTES,
    absent: str = "",
    **rules: Any,
) -> Any:
    """Read the JSON document of a file.

    Args:
        path: The file.
        error: The kind of error that is raised.
        most: Most bytes of the file.
        absent: What to do where there is no such file.
        rules: As `parse_json` takes them.

    Returns:
        Plain values.
    """
    return parse_json(read_bytes(path, error, most, absent), str(path), error, **rules)


def _place(text: str, position: int | None) -> str:
    if position is None:
        return ""
    line = text.count("\n", 0, position) + 1
    return f" at line {line}, column {position - text.rfind(chr(10), 0, position)}"


def _odd_place(text: str, digits: int, finite: bool) -> int | None:
    """Where the first number is that a hook refused; None for a key that is there twice."""
    for found in _ODD.finditer(text):
        constant, number = found.groups()
        if constant and finite:
            return found.start()
        if number:
            plain = number.lstrip("-").isdigit()
            if (plain and len(number.lstrip("-")) > digits) or (
                not plain and finite and math.isinf(float(number))
            ):
                return found.start()
    return None


def _whole(digits: int) -> Any:
    def parse(text: str) -> int:
        if len(text) > digits + text.startswith("-"):
            raise _RefusedError(f"a whole number of {len(text.lstrip('-')):,} digits")
        return int(text)

    return parse


def _fraction(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _RefusedError(f"the number {text[:20]} is too large")
    return value


def _constant(text: str) -> NoReturn:
    raise _RefusedError(f"{text} is no number")


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"the key {shown(key)} is written twice")
            seen.add(key)
    return found


def _encodes(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _deeper(value: Any, most: int) -> bool:
    """Whether mappings and lists are nested more than `most` deep; level by level, no recursion."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        if not level:
            return False
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
    return bool(level)
