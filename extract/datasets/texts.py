"""Texts alone: one caption a line, no images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hada.extract.datasets.annotations import ReadOptions, Row, Sample, read_text

LAYOUT = "texts alone, one a line"


def recognises(sample: Sample) -> bool:
    """Never by itself: any text is a list of lines. `.txt` files are taken so by their name."""
    return sample.suffix == ".txt" and bool(sample.text.strip()) and "\t" not in sample.text


def read(path: Path, _options: ReadOptions) -> Iterator[Row]:
    """One row for each line that is not empty."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if text := line.strip():
            yield Row("", [text], f"{path}, line {number}", caption_ids=[f"line-{number}"])
