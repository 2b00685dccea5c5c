"""Flickr30k's results.csv, as Kaggle has it: `image_name| comment_number| comment`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hada.extract.datasets.annotations import ReadOptions, Row, Sample, rows_of_lines

LAYOUT = "Flickr30k's results.csv, separated by ' | '"
_HEADER = re.compile(r"image_name\s*\|\s*comment_number\s*\|\s*comment", re.IGNORECASE)
# The published file has one row without its second bar: `2199200615.jpg| 4   A dog runs ...`.
_LINE = re.compile(r"\s*([^|]+?)\s*\|\s*(\d+)(?:\s*\||\s)\s*(.*?)\s*")


def recognises(sample: Sample) -> bool:
    """Its header."""
    return _HEADER.match(sample.text.lstrip()) is not None


def read(path: Path, _options: ReadOptions) -> Iterator[Row]:
    """One row for each line after the header."""
    return rows_of_lines(path, _LINE, "NAME| k| caption", header=_HEADER)
