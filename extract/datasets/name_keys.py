"""Names of images and of their features in the form in which they are compared: keys."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

# What is no part of a name at either end: blanks, the end of a line, a byte order mark, padding.
_EDGES = " \t\r\n\x0b\x0c\0\u00a0\ufeff"
# `str` of bytes, as programs write it that forget to decode.
_BYTES = re.compile(r"b(['\"])([^\\]*)\1")
# Suffixes of images and of features. Others may be parts of a name: `v1.2`, `mr. brown`.
_SUFFIXES = frozenset(
    (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "bmp", "dib", "webp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "heic", "heif", "avif", "jp2", "j2k", "jxl", "tga", "mpo"),
        *("ico", "svg", "npz", "npy", "pt", "pth", "pkl", "h5", "hdf5", "json", "txt", "bin"),
        "safetensors",
    )
)
_NUMBER = re.compile(r"(?:.*_)?([0-9]{1,100})", re.DOTALL)


def keys_of(names: Sequence[str], *, suffixes: bool = False) -> list[str]:
    r"""Paths in the form in which they are compared: `/` between parts, no empty ones.

    Edges are cut, Windows' separators become `/`, characters have their composed form (NFC), and
    without `suffixes` the last part loses the suffixes of images and features.

    >>> keys_of([" C:\\photos\\cats\\001.png\r", "./cats//a.b.jpg.npz", "v1.2", "b'1'"])
    ['C:/photos/cats/001', 'cats/a.b', 'v1.2', '1']
    """
    keys = [name.strip(_EDGES) for name in names]
    # Each of the passes below is for few names: one look at all of them saves it.
    text = "\n".join(keys)
    if not text.isascii():
        keys = [unicodedata.normalize("NFC", key) for key in keys]
    if "b'" in text or 'b"' in text:
        keys = [found[2].strip(_EDGES) if (found := _BYTES.fullmatch(key)) else key for key in keys]
    if "\\" in text:
        keys = [key.replace("\\", "/") for key in keys]
        text = text.replace("\\", "/")
    keys = [key.strip("/") for key in keys]
    if "//" in text or "./" in text or "/." in text:
        keys = [
            "/".join(part for part in key.split("/") if part not in ("", "."))
            if "//" in key or "./" in key or "/." in key
            else key
            for key in keys
        ]
    return keys if suffixes else [_stem(key) for key in keys]


def _stem(key: str) -> str:
    while True:
        stem, _, suffix = key.rpartition(".")
        if not stem or (suffix not in _SUFFIXES and suffix.lower() not in _SUFFIXES):
            return key
        if stem.endswith("/"):
            return key
        key = stem


def without_suffix(id_: str) -> str:
    """An image's id without its suffix, whatever that is.

    >>> without_suffix("v1.x/a.b.jpg"), without_suffix("v1.x/a"), without_suffix(".jpg")
    ('v1.x/a.b', 'v1.x/a', '.jpg')
    """
    stem, dot, suffix = id_.rpartition(".")
    return id_ if not dot or "/" in suffix or not stem or stem.endswith("/") else stem


def last_part(name: str) -> str:
    """The file name of a path, with its suffix."""
    return keys_of([name], suffixes=True)[0].rpartition("/")[2]


def shared_parts(key: str, name: str) -> tuple[int, bool]:
    """How many trailing parts two keys share, and whether they are all parts of `key`.

    >>> shared_parts("cats/001", "/p/cats/001"), shared_parts("cats/001", "birds/001")
    ((2, True), (1, False))
    """
    if name.endswith(key) and (len(name) == len(key) or name[-len(key) - 1] == "/"):
        return key.count("/") + 1, True
    shared = 0
    for one, other in zip(reversed(key.split("/")), reversed(name.split("/")), strict=False):
        if one != other:
            break
        shared += 1
    return shared, False


def image_numbers(keys: Sequence[str]) -> list[str | None]:
    """The numbers that images' names are or end in after a `_`, without leading zeros.

    >>> image_numbers(["val2014/COCO_val2014_000000000042", "42", "n42"])
    ['42', '42', None]
    """
    found = (_NUMBER.fullmatch(key, key.rfind("/") + 1) for key in keys)
    return [(number[1].lstrip("0") or "0") if number else None for number in found]


def row_number(key: str) -> str | None:
    """The number that a key is and no more, without leading zeros."""
    if not (key.isdigit() and key.isascii() and len(key) <= 100):
        return None
    return key.lstrip("0") or "0"


def files_below(folder: Path) -> list[str]:
    """All files in a folder and those below it, as posix paths from it, in order.

    Links to folders are followed, each folder once. A folder that does not exist holds none.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    todo = [""] if folder.is_dir() else []
    while todo:
        top = todo.pop()
        status = os.stat(folder / top)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder / top) as entries:
            for entry in entries:
                if entry.is_dir():
                    todo.append(f"{top}{entry.name}/")
                else:
                    found.append(f"{top}{entry.name}")
    return sorted(found)
