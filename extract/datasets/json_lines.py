"""JSON lines: one record a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from hada.extract.common.documents import parse_json
from hada.extract.common.errors import DatasetError
from hada.extract.datasets.annotations import ReadOptions, Row, Sample, read_text
from hada.extract.datasets.columns import looks_like_an_image
from hada.extract.datasets.json_records import rows_of

LAYOUT = "JSON lines, a record a line"


def recognises(sample: Sample) -> bool:
    """Every line of the sample begins a record, and the first is whole."""
    lines = [line for line in sample.lines if line.strip()]
    if not lines or not all(line.lstrip().startswith("{") for line in lines):
        return False
    try:
        first = json.loads(lines[0])
    except (ValueError, RecursionError):
        # A broken first line is told by reading, where the name says what it is meant to be.
        return sample.suffix in (".jsonl", ".ndjson")
    if not isinstance(first, dict) or isinstance(first.get("images"), list):
        return False
    # One line may be a whole mapping of image to captions.
    return not all(map(looks_like_an_image, first))


def read(path: Path, options: ReadOptions) -> Iterator[Row]:
    """One row for each line that is not empty."""
    return rows_of(_lines(path), options)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    decoder = msgspec.json.Decoder()
    # Not `splitlines`, which also cuts at the line separators that a caption may hold.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line or line.isspace():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, decoder.decode(line)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            # The strict and slower parser accepts a little more, and says what is wrong.
            yield (
                where,
                parse_json(
                    line, where, DatasetError, finite=False, unique=False, halves=True, digits=100
                ),
            )
